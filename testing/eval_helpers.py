"""Drawings with captions whose truth is known, as folders and as items, for tests of the evaluation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from toolkit.data.items import Bucket, MediaItem, Placement
from toolkit.evaluation.report import RunReport
from tools.draw_shapes import BACKGROUNDS, COLOURS, SHAPES, Drawing, captions, fits, make_drawing, render

UNSEEN = 10_000  # seeds of drawings from here on are not those that the embedded model was trained on
ATTRIBUTES = ("shape", "colour", "background", "size", "position")
WHOLE, ONE = "whole", "one"


def unseen(count: int, seed: int = 0) -> list[Drawing]:
    """Drawings that the embedded model never saw."""
    return [make_drawing(index, UNSEEN + seed) for index in range(count)]


def write(folder: Path, drawings: Sequence[Drawing], texts: Sequence[str] | None = None) -> Path:
    """A data set: pictures of 32 px, each with a caption (its own, or the text given for it)."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, drawing in enumerate(drawings):
        render(drawing).save(folder / f"{index:03d}.png")
        text = drawing.caption if texts is None else texts[index]
        (folder / f"{index:03d}.txt").write_text(text, encoding="utf-8")
    return folder


def item_of(image: Image.Image, caption: str, name: str = "0.png") -> MediaItem:
    """An item of 32 px that no file stands behind."""
    sha256 = hashlib.sha256(image.tobytes()).hexdigest()
    return MediaItem(
        id=sha256, path=Path(name), sha256=sha256, caption=caption, dataset="drawings",
        bucket=Bucket(32, 32), placement=Placement(32, 32, 0, 0),
    )  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """Drawings with some wrong captions. kinds: "" right, WHOLE another's, ONE one attribute wrong."""

    drawings: list[Drawing]
    texts: list[str]
    kinds: list[str]


def planted(count: int, seed: int) -> Planted:
    """10 % of the captions swapped whole (3 attributes or more differ), 10 % with one attribute wrong."""
    draw, drawings = random.Random(seed), unseen(count, seed)
    texts, kinds = [drawing.caption for drawing in drawings], [""] * count
    places = draw.sample(range(count), 2 * (count // 10))
    for place in places[: count // 10]:
        far = [other for other in drawings if _num_different(drawings[place], other) >= 3]
        texts[place], kinds[place] = draw.choice(far).caption, WHOLE
    for place in places[count // 10 :]:
        texts[place], kinds[place] = _one_wrong(drawings[place], draw), ONE
    return Planted(drawings, texts, kinds)


def tags_of(drawing: Drawing, **changes: str) -> str:
    """What a drawing shows as a list of tags, with some attributes changed."""
    shown = {name: getattr(drawing, name) for name in ATTRIBUTES} | changes
    place = {"centre": [], "top": ["at the top"], "bottom": ["at the bottom"]}.get(
        shown["position"], [f"on the {shown['position']}"]
    )
    return ", ".join(
        [shown["size"], f"{shown['colour']} {shown['shape']}", *place, f"{shown['background']} background"]
    )


def planted_tags(count: int, seed: int) -> Planted:
    """Drawings with lists of tags, 10 % of them with one attribute wrong."""
    draw, drawings = random.Random(seed), unseen(count, seed)
    texts, kinds = [tags_of(drawing) for drawing in drawings], [""] * count
    for place in draw.sample(range(count), count // 10):
        texts[place], kinds[place] = tags_of(drawings[place], **_wrong(drawings[place], draw)), ONE
    return Planted(drawings, texts, kinds)


def _num_different(one: Drawing, other: Drawing) -> int:
    return sum(getattr(one, name) != getattr(other, name) for name in ATTRIBUTES)


def _one_wrong(drawing: Drawing, draw: random.Random) -> str:
    truth = {each: getattr(drawing, each) for each in ATTRIBUTES}
    return draw.choice(captions(**truth | _wrong(drawing, draw)))


def _wrong(drawing: Drawing, draw: random.Random) -> dict[str, str]:
    """An attribute with a value that it does not have."""
    name = draw.choice(("shape", "colour", "background"))
    values = {
        "shape": list(SHAPES),
        "colour": [colour for colour in COLOURS if fits(colour, drawing.background)],
        "background": [background for background in BACKGROUNDS if fits(drawing.colour, background)],
    }[name]
    return {name: draw.choice([value for value in values if value != getattr(drawing, name)])}


def a_run(**changes: object) -> RunReport:
    """What a report says of its run."""
    values: dict[str, Any] = {
        "job_name": "job <b>", "step": 7, "model": "tiny-sd", "arch": "sd15", "model_hash": "0", "seed": 0,
        "samples_per_image": 16, "timestep_type": "uniform", "t_range": (0, 1), "fixed_noise_std": None,
        "caption_ablation": "none", "num_others": 2, "target_se": None, "target_q": None,
        "false_discovery_rate": 0.1, "eval_resolution": 32, "batch_size": 1, "dtype": "float32",
        "device": "cpu", "design": "0", "num_forwards": 1, "num_draws": 1, "num_draws_full": 1,
        "started": "now", "seconds": 1.0, "versions": {"torch": "2"},
    }  # fmt: skip
    return RunReport(**(values | changes))


def errors_in(value: Any, schema: dict[str, Any], whole: dict[str, Any], place: str = "$") -> list[str]:
    """What a value lacks to keep to a JSON Schema; of its vocabulary what pydantic writes."""
    if "$ref" in schema:
        return errors_in(value, whole["$defs"][schema["$ref"].rsplit("/", 1)[1]], whole, place)
    if "anyOf" in schema:
        found = [errors_in(value, each, whole, place) for each in schema["anyOf"]]
        return [] if [] in found else min(found, key=len)
    if "const" in schema and value != schema["const"]:
        return [f"{place}: {value!r} is not {schema['const']!r}"]
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "integer": int,
    }
    kind = schema.get("type")
    right = isinstance(value, int | float) if kind == "number" else isinstance(value, types.get(kind, object))
    if not right or (isinstance(value, bool) and kind in ("number", "integer")):
        return [f"{place}: {value!r} is no {kind}"]
    errors = []
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        errors += [f"{place}: lacks {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            if name not in known and other is False:
                errors.append(f"{place}: has {name}")
            rule = known.get(name, other if isinstance(other, dict) else {})
            errors += errors_in(inner, rule, whole, f"{place}.{name}")
    if isinstance(value, list):
        rules = schema.get("prefixItems", [schema.get("items", {})] * len(value))
        for index, (inner, rule) in enumerate(zip(value, rules, strict=True)):
            errors += errors_in(inner, rule, whole, f"{place}[{index}]")
    return errors
