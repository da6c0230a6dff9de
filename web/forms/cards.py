"""Which field stands on which card of the form, and which of them are shown at once. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import Problem
from web.forms.fields import Field, Form, Listing
from web.forms.values import entries, locate, shown

TITLES = ("Job", "Model", "Quantization", "Target", "Save", "Training", "Datasets", "Sample", "Advanced")
_SECTIONS = {
    "model": "Model", "network": "Target", "embedding": "Target", "slider": "Target", "save": "Save",
    "train": "Training", "vae_loss": "Training", "datasets": "Datasets", "sample": "Sample",
    "generate": "Sample", "caption": "Datasets", "eval": "Datasets",
}  # fmt: skip
_QUANTIZATION = re.compile(
    r"model\.(?:q|low_vram|layer_offloading|auto_memory|text_encoder_bits|accuracy|only_if|ignore_if)"
)
_MAIN = frozenset({
    "type", "training_seed", "trigger_word", "device", "model.name_or_path", "model.arch", "model.vae_path",
    "network.type", "network.linear", "network.linear_alpha", "network.conv", "network.conv_alpha",
    "network.dropout", "embedding.trigger", "embedding.tokens", "embedding.init_words", "train.steps",
    "train.batch_size", "train.gradient_accumulation", "train.lr", "train.optimizer",
    "train.optimizer_params", "train.lr_scheduler", "train.lr_scheduler_params", "train.dtype",
    "train.gradient_checkpointing", "train.train_unet", "train.train_text_encoder", "train.noise_scheduler",
    "train.timestep_type", "train.content_or_style", "train.loss_type", "train.cache_text_embeddings",
    "train.ema_config.use_ema", "train.ema_config.ema_decay", "train.disable_sampling",
    "train.skip_first_sample", "sample.sampler", "sample.sample_every", "sample.width", "sample.height",
    "sample.prompts", "sample.neg", "sample.seed", "sample.walk_seed", "sample.guidance_scale",
    "sample.sample_steps", "datasets.N.folder_path", "datasets.N.caption_ext", "datasets.N.default_caption",
    "datasets.N.resolution", "datasets.N.num_repeats", "datasets.N.caption_dropout_rate",
    "datasets.N.is_reg", "datasets.N.flip_x", "datasets.N.cache_latents_to_disk",
})  # fmt: skip
_ALL_MAIN = ("save.", "slider.", "generate.", "vae_loss.", "model.q", "caption.")


@dataclass(frozen=True, slots=True)
class Shown:
    """A field with what it holds and what is wrong with it. is_set: the config says something about it."""

    field: Field
    value: str
    is_set: bool
    problems: list[Problem]


@dataclass(slots=True)
class Group:
    """An entry of a list, such as one dataset."""

    listing: Listing
    index: int
    main: list[Shown] = field(default_factory=list)
    more: list[Shown] = field(default_factory=list)


@dataclass(slots=True)
class Card:
    """A card of the form. notes: keys that belong here but do nothing yet, with the reason."""

    title: str
    main: list[Shown] = field(default_factory=list)
    more: list[Shown] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def cards_of(form: Form, process: Any, problems: Iterable[Problem]) -> list[Card]:
    """The cards of a form, filled with what a process says."""
    cards = {title: Card(title) for title in TITLES}
    by_name: dict[str, list[Problem]] = {}
    for problem in problems:
        by_name.setdefault(field_name(problem.key or ""), []).append(problem)

    def fill(each: Field) -> Shown:
        value, _path = locate(process, each)
        names = [each.name, *(".".join(map(str, (*each.path[:-1], key))) for key in each.spellings)]
        found = [problem for name in names for problem in by_name.get(name, [])]
        return Shown(each, shown(each, value), value is not None and bool(shown(each, value)), found)

    for each in form.fields:
        card = cards[_card(each.name)]
        (card.main if _is_main(each) else card.more).append(fill(each))
    for listing in form.listings:
        card = cards[_card(listing.name)]
        card.listings.append(listing)
        for index in range(entries(process, listing)):
            group = Group(listing, index)
            for each in listing.entry(index):
                (group.main if _is_main(each) else group.more).append(fill(each))
            card.groups.append(group)
    for name, reason in form.idle.items():
        if _card(name) == "Quantization":
            cards["Quantization"].notes[name] = reason
    return [card for card in cards.values() if card.main or card.more or card.listings or card.notes]


def field_name(key: str) -> str:
    """The name of the field that a problem's key means: datasets[0].flip[1] -> datasets.0.flip."""
    key = re.sub(r"(?:\[\d+\])+$", "", key)
    return re.sub(r"\[(\d+)\]", r".\1", re.sub(r"^(?:config\.)?process\[0\]\.", "", key))


def unplaced(cards: Iterable[Card], problems: Iterable[Problem]) -> list[Problem]:
    """The problems that no field shows."""
    told = [
        problem
        for card in cards
        for each in [*card.main, *card.more, *(s for g in card.groups for s in [*g.main, *g.more])]
        for problem in each.problems
    ]
    return [problem for problem in problems if problem not in told]


def _card(name: str) -> str:
    if _QUANTIZATION.match(name):
        return "Quantization"
    section = name.split(".")[0]
    if section == name and section not in _SECTIONS:
        return "Job"
    if (
        section == "train"
        and name not in _MAIN
        and not name.startswith(("train.ema_config", "train.max_grad"))
    ):
        return "Advanced"
    return _SECTIONS.get(section, "Advanced")


def _is_main(each: Field) -> bool:
    name = re.sub(r"\.\d+\.", ".N.", each.name)
    return name in _MAIN or name.startswith(_ALL_MAIN) or each.required or name.endswith(".N.prompt")


def as_mapping(values: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a posted form; of a name that came twice the last."""
    return {key: value for key, value in values.items() if isinstance(value, str)}
