"""Flags in prompts, and how previews and generated pictures resolve their settings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from toolkit.config_modules.generate import GenerateConfig
from toolkit.config_modules.prompt_flags import FLAGS, FLAGS_NOT_YET, parse_prompt_flags
from toolkit.config_modules.sample import SampleConfig, SampleItem, round_size
from toolkit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "prompt", "values"),
    [
        ("a fox", "a fox", {}),
        ("a fox --w 512 --h 768", "a fox", {"width": 512, "height": 768}),
        ("a fox --d 7", "a fox", {"seed": 7}),
        ("a fox --seed -1", "a fox", {"seed": -1}),
        ("a fox --l 3.5", "a fox", {"guidance_scale": 3.5}),
        ("a fox --cfg 3", "a fox", {"guidance_scale": 3.0}),
        ("a fox --s 5 --n dark, blurry", "a fox", {"sample_steps": 5, "neg": "dark, blurry"}),
        ("a fox --steps=5", "a fox", {"sample_steps": 5}),
        ("a fox --m 0.5", "a fox", {"network_multiplier": 0.5}),
        ("a fox --network_multiplier -1", "a fox", {"network_multiplier": -1.0}),
        ("a fox --gr 0.7", "a fox", {"guidance_rescale": 0.7}),
        ("a fox --n", "a fox", {"neg": ""}),
        ("--w 64 ", "", {"width": 64}),
        ("a well--known fox -- asleep ---", "a well--known fox -- asleep ---", {}),
        ("a fox\n--w 64", "a fox", {"width": 64}),
        ("", "", {}),
    ],
)
def test_flags_are_taken_out(text, prompt, values):
    assert parse_prompt_flags(text) == (prompt, values)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_sets_a_setting_of_a_sample(flag):
    key, read = FLAGS[flag]
    assert key in SampleItem.model_fields
    assert parse_prompt_flags(f"a fox --{flag} 8") == ("a fox", {key: read("8")})


@pytest.mark.parametrize("flag", FLAGS_NOT_YET)
def test_later_flags_are_refused_by_name(flag):
    with pytest.raises(ConfigError, match=f"--{flag} is not supported yet"):
        parse_prompt_flags(f"a fox --{flag} 1")


def test_all_bad_flags_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_prompt_flags("a fox --w wide --sed 7 --cfg x")
    messages = [problem.message for problem in caught.value.problems]
    assert messages == [
        "prompt flag --w needs a whole number, got 'wide'",
        "unknown prompt flag --sed; did you mean --seed?",
        "prompt flag --cfg needs a number, got 'x'",
    ]


def test_the_nearest_setting_wins():
    sample = SampleConfig.model_validate(
        {
            "width": 64,
            "height": 64,
            "seed": 10,
            "neg": "blurry",
            "sample_steps": 20,
            "samples": [
                {"prompt": "a --w 37 --cfg 2", "width": 48, "guidance_scale": 9, "neg": False},
                {"prompt": "b", "sampler": "euler", "network_multiplier": 0, "seed": 3, "sample_steps": 4},
            ],
            "prompts": ["c"],
        }
    )
    first, second, third = sample.requests()
    assert (first.prompt, first.width, first.height, first.guidance_scale, first.neg) == (
        "a",
        32,
        64,
        2.0,
        "",
    )
    assert (second.sampler, second.network_multiplier, second.seed, second.sample_steps) == (
        "euler",
        0.0,
        3,
        4,
    )
    assert (third.prompt, third.width, third.seed, third.neg, third.sampler) == (
        "c",
        64,
        10,
        "blurry",
        "ddpm",
    )


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [
        ({"seed": 5}, [5, 5, 9]),
        ({"seed": 5, "walk_seed": True}, [5, 6, 9]),
        ({"seed": -1, "walk_seed": True}, [-1, -1, 9]),
    ],
)
def test_seeds_walk(settings, seeds):
    sample = SampleConfig.model_validate({"prompts": ["a", "b", "c --seed 9"], **settings})
    assert [request.seed for request in sample.requests()] == seeds


def test_the_trigger_word_is_placed_but_not_added():
    sample = SampleConfig.model_validate({"prompts": ["[trigger] in snow", "snow"], "neg": "not [trigger]"})
    assert [r.prompt for r in sample.requests("zwx")] == ["zwx in snow", "snow"]
    assert [r.neg for r in sample.requests("zwx")] == ["not zwx", "not zwx"]
    assert [r.prompt for r in sample.requests()] == ["in snow", "snow"]


@pytest.mark.parametrize(("pixels", "expected"), [(1, 8), (8, 8), (15, 8), (32, 32), (519, 512)])
def test_sizes_are_rounded_down_to_eights(pixels, expected):
    assert round_size(pixels) == expected


def generate(**values) -> GenerateConfig:
    """A generate section."""
    return GenerateConfig.model_validate({"prompts": ["a", "b --seed 9"]} | values)


def test_generated_pictures_resolve_like_previews():
    requests = generate(seed=5, num_repeats=2, width=50, neg="dark", network_multiplier="0.5").requests()
    assert [(r.prompt, r.seed) for r in requests] == [("a", 5), ("a", 6), ("b", 9), ("b", 10)]
    assert {(r.width, r.height, r.neg, r.network_multiplier) for r in requests} == {(48, 512, "dark", 0.5)}


@pytest.mark.parametrize("seed", ["-2", f"{2**63}", "1.5"])
def test_a_seed_that_is_none_is_told_in_a_flag_too(seed):
    with pytest.raises(ConfigError, match=r"--seed needs a whole number from -1 to 9223372036854775807"):
        parse_prompt_flags(f"a fox --seed {seed}")


def test_seeds_that_are_counted_up_stay_seeds():
    last = 2**63 - 1
    assert [r.seed for r in generate(seed=last, num_repeats=2).requests()] == [last, 0, 9, 10]
    previews = SampleConfig(prompts=["a", "b"], seed=last, walk_seed=True).requests()
    assert [r.seed for r in previews] == [last, 0]


def test_a_random_seed_stays_open():
    assert [r.seed for r in generate(num_repeats=2).requests()] == [-1, -1, 9, 10]


def test_prompts_come_from_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a fox --w 64\n\n  a hare  \n", encoding="utf-8")
    assert [(r.prompt, r.width) for r in generate(prompts=str(file)).requests()] == [
        ("a fox", 64),
        ("a hare", 512),
    ]
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ValidationError):
        generate(prompts=str(file))
    with pytest.raises(ValidationError, match="cannot read the prompt file"):
        generate(prompts=str(tmp_path / "none.txt"))


def test_random_choices_depend_on_the_seed_only():
    prompts = [str(number) for number in range(20)]
    shuffled = generate(prompts=prompts, shuffle=True, seed=1)
    order = [r.prompt for r in shuffled.requests()]
    assert sorted(order) == sorted(prompts)
    assert order != prompts
    assert order == [r.prompt for r in shuffled.requests()]
    assert order != [r.prompt for r in generate(prompts=prompts, shuffle=True, seed=2).requests()]
    drawn = generate(prompts=prompts, shuffle=True)
    assert drawn.requests(draw=1) != drawn.requests(draw=2)


def test_random_prompts_and_sizes():
    section = generate(
        prompts=["a", "b"],
        random_prompts=True,
        max_random_per_prompt=3,
        max_images=40,
        seed=0,
        size_list=[[64, 32]],
    )
    requests = section.requests()
    assert len(requests) == 40
    assert {r.prompt.count(",") + 1 for r in requests} == {1, 2, 3}
    assert {(r.width, r.height) for r in requests} == {(64, 32)}


def test_no_more_pictures_than_asked():
    assert len(generate(num_repeats=5, max_images=3).requests()) == 3


def test_repeats_without_end_are_drawn_up_to_the_most_pictures():
    config = GenerateConfig(prompts=["a fox"], num_repeats=10**12, max_images=3)
    assert len(config.requests()) == 3
