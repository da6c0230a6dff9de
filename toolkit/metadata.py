"""What a weight file says about itself: kohya's ss_*, the hashes of sshs_*, modelspec 1.0.1. Torch-free.

Only facts that are meant to be public go in: names, counts and settings, never a path of this computer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError, Problem

SOFTWARE = {"name": "ai-toolkit", "version": "0.1.0"}
MODELSPEC_VERSION = "1.0.1"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format

# The slice of a file that the legacy hash of A1111 looks at.
LEGACY_HASH_START, LEGACY_HASH_BYTES = 0x100000, 0x10000

# architecture -> (ss_base_model_version, modelspec's architecture). A1111 takes a file whose version does
# not begin with "sdxl_" for SD 1, so a wrong value hides a LoRA from the models it fits.
BASE_MODELS = {
    **dict.fromkeys(("sd15", "sd1", "sd1.5"), ("sd_v1", "stable-diffusion-v1")),
    # Segmind's models have SDXL's text encoders and latents; tools know no version of their own.
    **dict.fromkeys(("sdxl", "ssd", "vega"), ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")),
    "flux": ("flux1", "flux-1-dev"),
    "flex1": ("flex1", "flex-1-alpha"),
}

# network type -> (ss_network_module, modelspec's suffix of the architecture)
NETWORK_TYPES = {
    "lora": ("networks.lora", "lora"),
    "locon": ("networks.lora", "lora"),
    "dora": ("lycoris.kohya", "lora"),
    "loha": ("lycoris.kohya", "lora"),
    "lokr": ("lycoris.kohya", "lora"),
}

PREDICTION_TYPES = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedFile:
    """The facts about a saved file. `base_model` may be a path: only its last part is written.

    `network_type` None means full weights; `resolution` is the largest side in pixels; `user` is the
    config's `meta` section.
    """

    name: str
    architecture: str
    step: int
    epoch: int
    resolution: int
    base_model: str = ""
    network_type: str | None = "lora"
    rank: int = 0
    alpha: float = 0.0
    network_args: Mapping[str, Any] = field(default_factory=dict)
    prediction_type: str = "epsilon"
    num_images: int = 0
    num_reg_images: int = 0
    trigger_word: str | None = None
    seed: int | None = None
    clip_skip: int | None = None
    date: datetime | None = None
    user: Mapping[str, Any] = field(default_factory=dict)


def build_metadata(facts: TrainedFile) -> dict[str, str]:
    """The metadata of a file, all strings. The user's keys add to ours and may replace those of modelspec."""
    user = {key: _as_text(value) for key, value in facts.user.items()}
    ours = {
        "format": "pt",
        "software": json.dumps(SOFTWARE),
        "training_info": json.dumps({"step": facts.step, "epoch": facts.epoch}),
        **_kohya_facts(facts),
    }
    return {**_modelspec(facts), **user, **ours}


def training_info(metadata: Mapping[str, str]) -> tuple[int, int]:
    """(step, epoch) at which a file was written; zeros if it does not say."""
    try:
        info = json.loads(metadata.get("training_info", "{}"))
        return int(info.get("step", 0)), int(info.get("epoch", 0))
    except (ValueError, TypeError, AttributeError):
        return 0, 0


def _kohya_facts(facts: TrainedFile) -> dict[str, str]:
    version, _ = BASE_MODELS.get(facts.architecture, (facts.architecture, ""))
    result = {
        "ss_output_name": facts.name,
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_sd_model_name": _last_part(facts.base_model),
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_num_train_images": str(facts.num_images),
        "ss_num_reg_images": str(facts.num_reg_images),
        "ss_steps": str(facts.step),
        "ss_epoch": str(facts.epoch),
        "ss_seed": _optional(facts.seed),
        "ss_clip_skip": _optional(facts.clip_skip),
    }
    if facts.network_type is not None:
        result |= {
            "ss_network_module": NETWORK_TYPES[facts.network_type][0],
            "ss_network_dim": str(facts.rank),
            "ss_network_alpha": str(facts.alpha),
            "ss_network_args": json.dumps(dict(facts.network_args), sort_keys=True),
        }
    if facts.trigger_word:
        # Tools read the trigger from here; the tags of real captions would tell the dataset.
        frequency = {f"1_{facts.trigger_word}": {facts.trigger_word: max(1, facts.num_images)}}
        result["ss_tag_frequency"] = json.dumps(frequency)
    return {key: value for key, value in result.items() if value}


def _modelspec(facts: TrainedFile) -> dict[str, str]:
    _, architecture = BASE_MODELS.get(facts.architecture, ("", facts.architecture))
    if facts.network_type is not None:
        architecture = f"{architecture}/{NETWORK_TYPES[facts.network_type][1]}"
    result = {
        "sai_model_spec": MODELSPEC_VERSION,
        "architecture": architecture,
        "implementation": "diffusers",
        "title": facts.name,
        "resolution": f"{facts.resolution}x{facts.resolution}",
        "prediction_type": PREDICTION_TYPES.get(facts.prediction_type, ""),
        "trigger_phrase": facts.trigger_word or "",
        "date": facts.date.isoformat(timespec="seconds") if facts.date else "",
    }
    return {f"modelspec.{key}": value for key, value in result.items() if value}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _optional(value: int | None) -> str:
    return "" if value is None else str(value)


def _last_part(name_or_path: str) -> str:
    return name_or_path.replace("\\", "/").rstrip("/").rpartition("/")[2]


# The safetensors layout: 8 bytes with the header's length, a JSON header, the data of the tensors.


def seal(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A serialised safetensors file with this metadata and the hashes over it in its header.

    Keys are sorted: the library writes them in an order that changes from one process to the next, and
    then equal weights would not make equal files.
    """
    header, tensors = split_file(data)
    digest = hashlib.sha256(tensors).hexdigest()
    kohya_only = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    complete = {
        **metadata,
        "sshs_model_hash": digest,
        "sshs_legacy_hash": _legacy_hash(_encode_header(header, kohya_only), tensors),
        "modelspec.hash_sha256": f"0x{digest}",
    }
    return _encode_header(header, complete) + tensors


def split_file(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """A serialised safetensors file -> (its header, the data of its tensors)."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), memoryview(data)[start:]


def _encode_header(header: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    entries = {key: value for key, value in header.items() if key != "__metadata__"}
    complete = {"__metadata__": dict(sorted(metadata.items())), **entries}
    # UTF-8 unescaped, as the library writes it: the legacy hash depends on the length of the header.
    encoded = json.dumps(complete, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format asks for aligned data
    return len(encoded).to_bytes(8, "little") + encoded


def _legacy_hash(header: bytes, tensors: memoryview) -> str:
    start = max(0, LEGACY_HASH_START - len(header))
    end = max(0, LEGACY_HASH_START + LEGACY_HASH_BYTES - len(header))
    head = header[LEGACY_HASH_START : LEGACY_HASH_START + LEGACY_HASH_BYTES]
    return hashlib.sha256(head + tensors[start:end]).hexdigest()[:8]


def read_header(path: str | PathLike[str]) -> dict[str, Any]:
    """The header of a safetensors file: tensor name -> dtype, shape, data_offsets; `__metadata__`.

    Reads nothing else. Raises ModelError if the file is missing, cut short, or of another kind.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("its header is not a table")
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            if max(ends, default=0) != size - 8 - length:
                raise ValueError("it is cut short, or something follows its data")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(Problem("model.unreadable", f"cannot be read: {reason}", file=str(path))) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        problem = Problem("model.not_safetensors", f"is not a safetensors file: {error}", file=str(path))
        raise ModelError(problem) from error
    return header


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, {} if it has none. Raises ModelError as `read_header` does."""
    metadata = read_header(path).get("__metadata__") or {}
    return {str(key): str(value) for key, value in metadata.items()}
