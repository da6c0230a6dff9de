"""Pictures that carry their recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from toolkit.runs.images import parameters_text, read_parameters, read_recipe, save_image

RECIPE = {
    "prompt": "a red circle, кот ✓", "negative_prompt": "blur", "steps": 20, "sampler": "ddim",
    "guidance_scale": 7.5,
    "seed": 42, "width": 32, "height": 48, "model": "tiny-sd", "lora": "a, b.safetensors", "step": 250,
}  # fmt: skip


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_a_picture_tells_how_it_was_made(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"1700__000000250_0.{extension}"
    image = Image.new("RGB", (32, 48), (200, 30, 40))
    save_image(image, path, RECIPE)
    assert read_recipe(path) == RECIPE
    assert read_parameters(path) == parameters_text(RECIPE)
    with Image.open(path) as loaded:
        assert loaded.size == (32, 48)
        if extension == "png":
            assert loaded.tobytes() == image.tobytes()
            assert set(loaded.info) >= {"parameters", "recipe"}
        pixel = loaded.convert("RGB").getpixel((16, 24))
    assert isinstance(pixel, tuple)
    assert all(abs(a - b) <= 3 for a, b in zip(pixel, (200, 30, 40), strict=True))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_text_is_what_other_tools_read() -> None:
    assert parameters_text(RECIPE) == (
        "a red circle, кот ✓\nNegative prompt: blur\n"
        "Steps: 20, Sampler: ddim, CFG scale: 7.5, Seed: 42, Model: tiny-sd, Size: 32x48, "
        'lora: "a, b.safetensors", step: 250'
    )
    assert parameters_text({}) == ""


def test_transparency_turns_white_in_jpg_and_stays_in_png(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    save_image(image, tmp_path / "a.jpg")
    save_image(image, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.jpg").getpixel((4, 4)) == (255, 255, 255)
    assert Image.open(tmp_path / "a.png").getpixel((4, 4)) == (255, 0, 0, 0)
    assert read_recipe(tmp_path / "a.jpg") is None
    assert read_parameters(tmp_path / "a.jpg") is None


def test_thin_colours_survive_jpg(tmp_path: Path) -> None:
    """Without chroma subsampling a red line of one pixel on blue stays red."""
    image = Image.new("RGB", (32, 32), (20, 40, 220))
    for y in range(32):
        image.putpixel((15, y), (220, 30, 30))
    save_image(image, tmp_path / "a.jpg")
    pixel = Image.open(tmp_path / "a.jpg").getpixel((15, 16))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 190 and pixel[2] < 70


def test_another_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.gif")
