"""One entry of `datasets:`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import AnyOf, Float, Int, Section, Text

_ONE_THREAD = "pictures are read ahead on one background thread"
_NO_VIDEO = "only counts with num_frames above 1"
_NO_CONTROL = "only counts with control pictures"
_NO_MASK = "only counts with mask_path or alpha_mask"


def _with_dot(extension: str) -> str:
    return extension if not extension or extension.startswith(".") else f".{extension}"


Resolution = Annotated[Int, Field(ge=8, le=16384)]
Channel = Annotated[Int, Field(ge=0, le=255)]


class DatasetConfig(Section):
    """A folder of pictures with captions, and how they are shown to the model."""

    ALIASES: ClassVar = {"dataset_path": "folder_path", "caption_type": "caption_ext"}
    NOT_YET: ClassVar = {
        "random_triggers": None, "replacements": None, "random_crop": False, "random_scale": False,
        "square_crop": False, "scale": 1.0, "poi": None, "prior_reg": False, "network_weight": 1.0,
        "token_dropout_rate": 0.0, "shuffle_tokens": False, "use_short_captions": False,
        "cache_clip_vision_to_disk": False,
        "control_path": None, "control_path_1": None, "control_path_2": None, "control_path_3": None,
        "controls": None, "inpaint_path": None, "mask_path": None, "alpha_mask": False,
        "unconditional_path": None, "clip_image_path": None, "clip_image_from_same_folder": False,
        "clip_image_augmentations": None, "augments": None, "augmentations": None,
        "num_frames": 1, "extra_values": None, "standardize_images": False,
        "control_residuals_path": None, "control_generate_on_the_fly": None,
        "auto_frame_count": False, "do_audio": False, "batch_size": None, "control_from_same_folder": False,
        "cache_tensors_to_disk": False,
    }  # fmt: skip
    IDLE: ClassVar = {
        "num_workers": (2, _ONE_THREAD), "prefetch_factor": (2, _ONE_THREAD),
        "cache_latents_num_workers": (None, _ONE_THREAD),
        "random_triggers_max": (1, "only counts with random_triggers"),
        "keep_tokens": (0, "only counts with shuffle_tokens or token_dropout_rate"),
        "control_transparent_color": ([0, 0, 0], _NO_CONTROL),
        "full_size_control_images": (True, _NO_CONTROL),
        "control_canny_threshold1": (100, _NO_CONTROL), "control_canny_threshold2": (200, _NO_CONTROL),
        "control_blur": (3, _NO_CONTROL), "control_size": (None, _NO_CONTROL),
        "invert_mask": (False, _NO_MASK), "mask_min_value": (AnyOf(0.0, 0.1), _NO_MASK),
        "guidance_type": ("targeted", "only counts with unconditional_path"),
        "shuffle_augmentations": (False, "only counts with augmentations"),
        "replay_transforms": (True, "only counts with augmentations"),
        "shrink_video_to_frames": (True, _NO_VIDEO), "fps": (AnyOf(16, 24), _NO_VIDEO),
        "do_i2v": (AnyOf(True, False), _NO_VIDEO),
        "fast_image_size": (False, "sizes are read from the files' headers"),
        "debug": (False, "problems with pictures are always reported"),
    }  # fmt: skip

    folder_path: Text = Field(min_length=1, description="Folder of pictures, searched with its subfolders.")
    caption_ext: Annotated[Text, AfterValidator(_with_dot)] = Field(
        ".txt", description="Extension of caption files, each beside its picture; the dot may be left out."
    )
    default_caption: Text | None = Field(
        None, description="Caption of a picture whose caption file is missing or blank."
    )
    trigger_word: Text | None = Field(None, description="Word placed in every caption (null: the process's).")
    resolution: list[Resolution] = Field(
        [512],
        min_length=1,
        description="Side in pixels of the square whose area a bucket has; a list trains at each.",
    )
    buckets: bool = Field(
        True, description="Keep aspect ratios in buckets of equal size; false cuts out squares."
    )
    bucket_tolerance: Int | None = Field(
        None,
        ge=1,
        description="Bucket sides are multiples of this many pixels (null: the model's own multiple).",
    )
    flip_x: bool = Field(False, description="Also show every picture mirrored left to right.")
    flip_y: bool = Field(False, description="Also show every picture mirrored top to bottom.")
    num_repeats: Int = Field(1, ge=1, description="How often each picture is shown in an epoch.")
    is_reg: bool = Field(False, description="Regularisation pictures: their captions get no trigger word.")
    loss_multiplier: Float = Field(1.0, ge=0, description="Weight of these pictures' losses.")
    caption_dropout_rate: Float = Field(
        0.0, ge=0, le=1, description="Share of showings without caption, in [0, 1]."
    )
    cache_latents: bool = Field(
        False, description="Encode every picture once and keep its latents in memory."
    )
    cache_latents_to_disk: bool = Field(
        False, description="Encode every picture once and keep its latents on disk."
    )
    cache_text_embeddings: bool = Field(
        False, description="Encode every caption once and keep its embeddings."
    )
    alpha_color: tuple[Channel, Channel, Channel] = Field(
        (255, 255, 255), description="Red, green and blue, 0 to 255, that shows through transparent pixels."
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A single resolution is a list of one; ai-toolkit's JSON datasets are refused by name."""
        if "resolution" in data and not isinstance(data["resolution"], list | tuple):
            data = {**data, "resolution": [data["resolution"]]}
        if str(data.get("folder_path", "")).lower().endswith((".json", ".jsonl")):
            raise PydanticCustomError(
                "not_yet", "a JSON file as folder_path is not supported yet (give a folder)"
            )
        return data
