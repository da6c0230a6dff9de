"""Numbers of steps against what the samplers can take."""

from __future__ import annotations

import json

import pytest

from testing.config_helpers import GENERATE, changed, line_of, load, problems_of

pytestmark = pytest.mark.usefixtures("folder")

STEPS = "sample_steps: 20"
PROMPT = '"[trigger] in snow"'


def sampled(sampler: str, steps: int) -> str:
    return changed("sampler: ddim", f"sampler: {sampler}", changed(STEPS, f"sample_steps: {steps}"))


@pytest.mark.parametrize(
    ("sampler", "steps", "limit"),
    [
        ("ddim", 1001, "at most 998"),
        ("ddpm", 1000, "at most 998"),
        ("dpmsolver", 999, "at most 998"),
        ("lcm", 51, "at most 50"),
        ("pndm", 3, "at least 4"),
    ],
)
def test_a_sampler_has_its_limits(sampler, steps, limit):
    text = sampled(sampler, steps)
    (problem,) = problems_of(text)
    assert problem.message == f"must be {limit} with sampler {sampler}, not {steps}"
    assert (problem.code, problem.key) == ("config.bad_value", "sample.sample_steps")
    assert (problem.line, problem.value) == (line_of(text, "sample_steps"), steps)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 998), ("lcm", 50), ("pndm", 4), ("euler", 1)])
def test_what_a_sampler_can_take_passes(sampler, steps):
    load(sampled(sampler, steps))


@pytest.mark.parametrize(("flag", "steps", "limit"), [("s", 1001, "at most 998"), ("steps", 0, "at least 1")])
def test_a_prompt_flag_has_the_same_limits(flag, steps, limit):
    text = changed(PROMPT, f'"a fox --{flag} {steps}"')
    (problem,) = problems_of(text)
    assert problem.message == f"prompt flag --{flag} must be {limit} with sampler ddim, not {steps}"
    assert (problem.key, problem.line) == ("sample.prompts[0]", line_of(text, "a fox"))


def test_an_item_may_have_its_own_sampler_and_steps():
    items = "samples: [{prompt: a, sampler: lcm, sample_steps: 60}, {prompt: b, sampler: lcm}]"
    text = changed("walk_seed: true", items, sampled("ddim", 70))
    assert [problem.key for problem in problems_of(text)] == [
        "sample.samples[0].sample_steps", "sample.sample_steps",
    ]  # fmt: skip


def test_the_steps_of_a_generate_job():
    text = changed("{prompts: [a fox]}", "{prompts: [a fox, a --s 2000], sample_steps: 1001}", GENERATE)
    assert {problem.key for problem in problems_of(text)} == {"generate.sample_steps", "generate.prompts[1]"}


def test_the_first_pictures_of_a_run_have_the_same_limits():
    text = changed(
        "      sample:\n", "      first_sample: {sample_steps: 5000, prompts: [a]}\n      sample:\n"
    )
    assert [problem.key for problem in problems_of(text)] == ["first_sample.sample_steps"]


def test_a_flow_model_has_no_limit():
    flow = changed("noise_scheduler: ddpm", "noise_scheduler: flowmatch", sampled("flowmatch", 1500))
    load(changed("is_flux: false", "prediction_type: flow", flow))
    with_euler = changed("{prompts: [a fox]}", "{prompts: [a fox], sample_steps: 1500}", GENERATE)
    load(changed("{name_or_path: tiny-sd}", "{name_or_path: some/flux, arch: flux}", with_euler))


def test_a_model_of_fewer_noise_levels_takes_fewer_steps(folder):
    schedule = folder / "few" / "scheduler" / "scheduler_config.json"
    schedule.parent.mkdir(parents=True)
    schedule.write_text(json.dumps({"num_train_timesteps": 100}))
    text = changed("name_or_path: some/model", "name_or_path: few", sampled("ddim", 99))
    (problem,) = problems_of(text)
    assert problem.message == "must be at most 98 with sampler ddim, not 99"


def test_the_limits_are_those_of_diffusers():
    from toolkit.config_modules.names import SAMPLERS
    from toolkit.models.shared.samplers import make_scheduler

    schedule = {"num_train_timesteps": 1000, "steps_offset": 1, "timestep_spacing": "leading"}
    for name in ("ddpm", "ddim", "pndm", "lcm", "dpmsolver++", "euler"):
        sampler = SAMPLERS[name]
        for steps in (sampler.least_steps, sampler.most_steps or 998):
            scheduler = make_scheduler(name, schedule)
            scheduler.set_timesteps(steps)
            assert max(scheduler.timesteps) < 1000, name
