"""Small datasets, pictures and zips for the tests of datasets."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image


def picture(colour: str = "red", size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    """The bytes of a picture in one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def make_dataset(root: Path, name: str = "pets", **captions: str | None) -> Path:
    """A dataset with a picture for each caption (None: without one), each in its own shade."""
    folder = root / name
    folder.mkdir(parents=True)
    for number, (stem, caption) in enumerate((captions or {"cat": "a cat", "dog": "a dog"}).items()):
        shade = Image.linear_gradient("L").rotate(45 * number).resize((24, 24))
        Image.merge("RGB", [shade, shade.rotate(90), Image.new("L", (24, 24), 40 * number % 256)]).save(
            folder / f"{stem}.png"
        )
        if caption is not None:
            (folder / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder


def zip_of(entries: dict[str, bytes], **attributes: int) -> bytes:
    """A zip of (name, content); attributes: external_attr of a name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = attributes.get(name, 0o644 << 16)
            archive.writestr(info, content)
    return buffer.getvalue()


def send(client: Any, name: str, *files: tuple[str, bytes], **data: str) -> Any:
    """Upload files to a dataset."""
    listed = [("files", (given, content, "application/octet-stream")) for given, content in files]
    return client.post(f"/api/datasets/{name}/items", files=listed, data=data)


def report(
    folder: Path, images: dict[str, dict[str, Any]], job_name: str = "measured", model: str = "tiny-sd"
) -> dict:
    """A report about the pictures of a dataset, as the evaluator writes it."""
    listed = []
    for rel, values in images.items():
        gain = values.pop("gain", 0.5)
        listed.append(
            {
                "path": rel,
                "dataset": str(folder),
                "caption": "a cat",
                "sha256": "0" * 64,
                "width": 32,
                "height": 32,
                "num_draws": 8,
                "loss": 0.1,
                "loss_with_caption": 0.1,
                "loss_with_blank": 0.2,
                "loss_relative": 1.0,
                "ablation_delta": gain,
                "log_ratio": {"mean": gain, "se": 0.1, "low": gain - 0.2, "high": gain + 0.2},
                "flagged": False,
                "reasons": [],
                "hints": [],
                **values,
            }
        )
    run = {
        "job_name": job_name,
        "step": 0,
        "model": model,
        "arch": "sd15",
        "lora": None,
        "seed": 0,
        "samples_per_image": 8,
        "timestep_type": "uniform",
        "fixed_noise_std": None,
        "eval_resolution": 32,
        "seconds": 2.0,
    }
    about = {
        "path": str(folder),
        "num_images": len(listed),
        "num_measured": len(listed),
        "mean_loss": 0.1,
        "median_loss": 0.1,
        "log_ratio": {"mean": 0.5, "se": 0.1, "low": 0.3, "high": 0.7},
        "share_helped": 1.0,
        "retrieval_top1": 1.0,
        "num_flagged": 0,
        "reasons": {},
        "curve": [
            {"t": t, "num_draws": 8, "loss_with_caption": t, "loss_with_blank": 2 * t} for t in (0.1, 0.5)
        ],
    }
    return {
        "schema_version": 1,
        "kind": "eval_dataset",
        "run": run,
        "datasets": [about],
        "images": listed,
        "notes": [],
    }


def write_report(output: Path, body: dict, name: str = "measured") -> Path:
    """A report in the folder of a run."""
    path = output / name / f"{name}_000000000.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder that is not hidden, with its content."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
