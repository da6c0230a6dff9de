"""Pictures with the recipe that made them inside: PNG text or EXIF. Torch-free; PIL is imported on use."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.runs import atomic

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_EXIF_FOLDER, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
_UNICODE = b"UNICODE\0"
# Recipe key -> the label that stable-diffusion-webui and its readers use.
_LABELS = {
    "steps": "Steps", "sample_steps": "Steps", "sampler": "Sampler", "guidance_scale": "CFG scale",
    "seed": "Seed", "model": "Model", "clip_skip": "Clip skip",
}  # fmt: skip
_HIDDEN = {"prompt", "negative_prompt", "neg", "width", "height"}


def save_image(
    image: Image, path: Path, recipe: Mapping[str, Any] | None = None, *, quality: int = 95
) -> None:
    """Write a jpg, png or webp in one piece, `recipe` inside.

    Raises ValueError for another extension, RunError if the disk refuses.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name}: pictures are written as {', '.join(sorted(_FORMATS))}")
    options: dict[str, Any] = {}
    if kind == "PNG":
        options["pnginfo"] = _png_text(recipe)
    else:
        options |= {"quality": quality, "exif": _exif(recipe)}
    if kind == "JPEG":
        image = _flattened(image)
        options["subsampling"] = 0  # small coloured shapes lose their colour otherwise
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    atomic.write_bytes(path, buffer.getvalue(), durable=False)


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe inside a picture, or None if it holds none that can be read."""
    from PIL import Image

    with Image.open(path) as image:
        text = image.info.get("recipe") or image.getexif().get(_IMAGE_DESCRIPTION)
    try:
        recipe = json.loads(text) if text else None
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None


def read_parameters(path: Path) -> str | None:
    """The recipe as stable-diffusion-webui writes it, or None."""
    from PIL import Image

    with Image.open(path) as image:
        if "parameters" in image.info:
            return str(image.info["parameters"])
        comment = image.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        return comment[len(_UNICODE) :].decode("utf-16-be")
    return None


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """prompt / Negative prompt: … / Steps: 20, Sampler: …, Seed: 1, Size: 512x512, …

    >>> parameters_text({"prompt": "a cat", "steps": 20, "seed": 1, "width": 8, "height": 8})
    'a cat\\nSteps: 20, Seed: 1, Size: 8x8'
    """
    lines = [str(recipe.get("prompt", ""))]
    negative = recipe.get("negative_prompt") or recipe.get("neg")
    if negative:
        lines.append(f"Negative prompt: {negative}")
    known = {label: recipe[key] for key, label in _LABELS.items() if recipe.get(key) is not None}
    if recipe.get("width") and recipe.get("height"):
        known["Size"] = f"{recipe['width']}x{recipe['height']}"
    rest = {key: value for key, value in recipe.items() if key not in _LABELS and key not in _HIDDEN}
    pairs = [*known.items(), *((key, value) for key, value in rest.items() if value is not None)]
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs))
    return "\n".join(line for line in lines if line)


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else atomic.to_json(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def _png_text(recipe: Mapping[str, Any] | None) -> Any:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if recipe is not None:
        text.add_text("parameters", parameters_text(recipe))
        text.add_text("recipe", atomic.to_json(dict(recipe)))
    return text


def _exif(recipe: Mapping[str, Any] | None) -> Exif:
    from PIL import Image

    exif = Image.Exif()
    if recipe is not None:
        # EXIF text is ASCII, and json can say everything in it.
        exif[_IMAGE_DESCRIPTION] = json.dumps(json.loads(atomic.to_json(dict(recipe))))
        exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _UNICODE + parameters_text(recipe).encode("utf-16-be")
    return exif


def _flattened(image: Image) -> Image:
    """RGB, transparent parts on white: JPEG knows no transparency."""
    from PIL import Image as pil

    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = pil.new("RGBA", image.size, "white")
        image = pil.alpha_composite(ground, image)
    return image.convert("RGB")
