"""Presets: what suits a model and a card, as data in the YAML files beside this module. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.errors import ConfigError, ModelError, Problem, did_you_mean
from toolkit.models.catalogue import ARCHITECTURES, ArchitectureEntry, find_architecture

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Card:
    """What fits on a card of `vram` GB or more. resolution, if given, replaces the preset's."""

    vram: float
    batch_size: int
    gradient_checkpointing: bool
    optimizer: str
    gradient_accumulation: int = 1
    resolution: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Preset:
    """What suits a LoRA on one model. showings: how often each picture is shown, within bounds of steps."""

    name: str
    title: str
    arch: str
    name_or_path: str
    resolution: tuple[int, ...]
    noise_scheduler: str
    rank: int
    lr: float
    dtype: str
    showings: int
    min_steps: int
    max_steps: int
    sampler: str
    guidance_scale: float
    sample_steps: int
    cards: tuple[Card, ...]
    min_snr_gamma: float | None = None

    def card(self, vram: float) -> Card:
        """The largest card not above `vram` GB. Raises ConfigError if even the smallest needs more."""
        fitting = [card for card in self.cards if card.vram <= vram]
        if not fitting:
            needed = min(card.vram for card in self.cards)
            message = f"{self.title} needs a card of at least {needed:g} GB, not {vram:g}"
            remedy = "choose a smaller model, such as --model sd15"
            raise ConfigError(Problem("new.vram", message, remedy=remedy))
        return max(fitting, key=lambda card: card.vram)


def preset_names() -> list[str]:
    """The names of all presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yml"))


def read_preset(name: str) -> Preset:
    """The preset of that name, whether or not its architecture is supported."""
    import yaml

    content = yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))
    cards = tuple(Card(**_plain(card)) for card in content.pop("cards"))
    values = _plain(content)
    known = {entry.name: str(entry.type) for entry in fields(Preset)}
    floats = [key for key in values if known.get(key, "").startswith("float")]
    return Preset(name=name, cards=cards, **(values | {key: float(values[key]) for key in floats}))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def find_preset(model: str) -> Preset:
    """The preset that a name on the command line means: its own, or an architecture's.

    Raises ConfigError if there is none, ModelError if the architecture is not supported yet.
    """
    names = preset_names()
    if model in names:
        preset = read_preset(model)
        _require(find_architecture(preset.arch))
        return preset
    try:
        entry = find_architecture(model)
    except ModelError:
        guess = did_you_mean(model, [*names, *ARCHITECTURES])
        hint = f"did you mean '{guess}'?" if guess else f"known: {', '.join(names)}"
        message = f"unknown model '{model}'"
        raise ConfigError(Problem("config.unknown_name", message, key="--model", remedy=hint)) from None
    _require(entry)
    if entry.name not in names:
        remedy = f"presets: {', '.join(names)}; or copy a file of config/examples"
        message = f"there is no preset for {entry.title} yet"
        raise ConfigError(Problem("new.no_preset", message, key="--model", remedy=remedy))
    return read_preset(entry.name)


def _require(entry: ArchitectureEntry) -> None:
    """Raise ModelError unless models of this architecture can be loaded."""
    if not entry.supported:
        ready = [name for name in preset_names() if find_architecture(read_preset(name).arch).supported]
        message = f"{entry.name} ({entry.title}) is not supported yet"
        remedy = f"supported: {', '.join(ready)}"
        raise ModelError(Problem("model.arch", message, key="--model", remedy=remedy))
