"""One entry of `datasets:`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from toolkit.config_modules.base import AnyOf, Float, Int, Section, Text
from toolkit.config_modules.text_lists import list_or_file
from toolkit.data.captions import is_extension, normalize_extension
from toolkit.data.dataset_list import is_list
from toolkit.paths import resolve_path

_AHEAD = "every worker has the next batch or two ready"
_NO_VIDEO = "only counts with num_frames above 1"
_NO_CONTROL = "only counts with controls"


def _with_dot(extension: str) -> str:
    if not is_extension(extension):
        raise PydanticCustomError("extension", "must be the end of a file's name, such as .txt")
    return normalize_extension(extension)


def _replacement(text: str) -> str:
    old, bar, new = text.partition("|")
    if not old or not bar or "|" in new:
        raise PydanticCustomError("replacement", "must be of the form old|new")
    return text


Resolution = Annotated[Int, Field(ge=8, le=16384)]
Channel = Annotated[Int, Field(ge=0, le=255)]
Replacement = Annotated[Text, AfterValidator(_replacement)]
Word = Annotated[Text, Field(min_length=1)]
Extension = Annotated[Text, AfterValidator(_with_dot)]


class DatasetConfig(Section):
    """A folder of pictures with captions, and how they are shown to the model."""

    ALIASES: ClassVar = {"dataset_path": "folder_path", "caption_type": "caption_ext"}
    NOT_YET: ClassVar = {
        "prior_reg": False, "network_weight": 1.0,
        "cache_clip_vision_to_disk": False,
        "controls": None, "inpaint_path": None,
        "unconditional_path": None, "clip_image_path": None, "clip_image_from_same_folder": False,
        "clip_image_augmentations": None, "augments": None, "augmentations": None,
        "num_frames": 1, "extra_values": None, "standardize_images": False,
        "control_residuals_path": None, "control_generate_on_the_fly": None,
        "auto_frame_count": False, "do_audio": False, "batch_size": None, "control_from_same_folder": False,
        "cache_tensors_to_disk": False,
    }  # fmt: skip
    IDLE: ClassVar = {
        "prefetch_factor": (2, _AHEAD), "cache_latents_num_workers": (None, "pictures are decoded ahead"),
        "control_canny_threshold1": (100, _NO_CONTROL), "control_canny_threshold2": (200, _NO_CONTROL),
        "control_blur": (3, _NO_CONTROL), "control_size": (None, _NO_CONTROL),
        "guidance_type": ("targeted", "only counts with unconditional_path"),
        "shuffle_augmentations": (False, "only counts with augmentations"),
        "replay_transforms": (True, "only counts with augmentations"),
        "shrink_video_to_frames": (True, _NO_VIDEO), "fps": (AnyOf(16, 24), _NO_VIDEO),
        "do_i2v": (AnyOf(True, False), _NO_VIDEO),
        "fast_image_size": (False, "sizes are read from the files' headers"),
        "debug": (False, "problems with pictures are always reported"),
    }  # fmt: skip

    folder_path: Text = Field(
        min_length=1,
        description="Folder of pictures, searched with its subfolders; or a .json or .jsonl file that lists "
        "pictures with their captions.",
    )
    strict: bool = Field(
        False,
        description="Refuse what else is only noted: missing and empty captions, captions without picture, "
        "enlarged, animated and duplicate pictures, damaged EXIF data, unread files.",
    )
    caption_ext: Extension = Field(
        ".txt", description="Extension of caption files, each beside its picture; the dot may be left out."
    )
    default_caption: Text | None = Field(
        None, description="Caption of a picture whose caption file is missing or blank."
    )
    use_short_captions: bool = Field(
        False, description="Take caption_short of JSON captions where it is given."
    )
    replacements: list[Replacement] = Field(
        [], description="Texts to replace in captions, each as `old|new`, applied in order."
    )
    trigger_word: Text | None = Field(None, description="Word placed in every caption (null: the process's).")
    random_triggers: Annotated[list[Word], list_or_file("trigger")] = Field(
        [], description="Words drawn at random into each text: a list, or a file with one a line."
    )
    random_triggers_max: Int = Field(
        1, ge=1, description="1 draws one random trigger into each text, a larger number none up to so many."
    )
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
    square_crop: bool = Field(False, description="Cut out squares of `resolution`, as buckets: false does.")
    scale: Float = Field(
        1.0,
        gt=0,
        le=4,
        description="Factor of their size at which pictures count: no bucket is larger, no cut closer.",
    )
    random_crop: bool = Field(
        False,
        description="Cut at another place in every epoch, not at the middle; with buckets: false out of the "
        "picture at its own size times `scale`.",
    )
    random_scale: bool = Field(
        False,
        description="Cut out another size in every epoch, from the bucket's own pixels to all there is.",
    )
    poi: Text | None = Field(
        None,
        min_length=1,
        description="Point of interest, by its name in the `poi` of a JSON file beside each picture, that "
        "every cut shows; place and size are drawn anew in every epoch.",
    )
    cached_crops: Int = Field(
        4,
        ge=1,
        description="How many random cuts of each picture are encoded with cached latents; epochs take "
        "them in turn.",
    )
    flip_x: bool = Field(False, description="Also show every picture mirrored left to right.")
    flip_y: bool = Field(False, description="Also show every picture mirrored top to bottom.")
    num_repeats: Int = Field(
        1, ge=1, le=10_000, description="How often each picture is shown in an epoch, at most 10000."
    )
    is_reg: bool = Field(False, description="Regularisation pictures: their captions get no trigger word.")
    loss_multiplier: Float = Field(1.0, ge=0, description="Weight of these pictures' losses.")
    caption_dropout_rate: Float = Field(
        0.0, ge=0, le=1, description="Share of showings without caption, in [0, 1]."
    )
    token_dropout_rate: Float = Field(
        0.0, ge=0, le=1, description="Share of tokens (parts between commas) left out, drawn at each showing."
    )
    shuffle_tokens: bool = Field(
        False, description="Shuffle the tokens (parts between commas) of a caption at each showing."
    )
    keep_tokens: Int = Field(
        0, ge=0, description="First tokens that stay in front, neither left out nor shuffled."
    )
    caption_variants: Int = Field(
        8,
        ge=1,
        description="Texts drawn from each caption for the whole run where cache_text_embeddings meets "
        "shuffle_tokens, token_dropout_rate or random_triggers; else every showing has a new one.",
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
    mask_path: Text | None = Field(
        None,
        min_length=1,
        description="Folder of masks, named as their pictures: white counts in the loss, black does not.",
    )
    alpha_mask: bool = Field(
        False, description="Take the pictures' own transparency for their masks: opaque counts."
    )
    invert_mask: bool = Field(False, description="Black (or transparent) counts, white does not.")
    mask_min_value: Float = Field(
        0.0, ge=0, le=1, description="How much the places that a mask leaves out count; 0.1 is usual."
    )
    control_path: list[Text] = Field(
        [],
        description="Folder (or list of them) of control pictures, named as their pictures.",
    )
    control_path_1: Text | None = Field(None, min_length=1, description="Folder of first control pictures.")
    control_path_2: Text | None = Field(None, min_length=1, description="Folder of second control pictures.")
    control_path_3: Text | None = Field(None, min_length=1, description="Folder of third control pictures.")
    control_transparent_color: tuple[Channel, Channel, Channel] = Field(
        (0, 0, 0), description="Red, green and blue that shows through transparent control pictures."
    )
    full_size_control_images: bool = Field(
        True,
        description="Cut control pictures as their pictures are; false squeezes all of it into 512 x 512.",
    )
    num_workers: Int = Field(
        2,
        ge=0,
        le=64,
        description="Threads that read pictures and make batches ahead, for all datasets the largest number; "
        "0 makes each batch when its step begins.",
    )
    alpha_color: tuple[Channel, Channel, Channel] = Field(
        (255, 255, 255), description="Red, green and blue, 0 to 255, that shows through transparent pixels."
    )

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """A single resolution is a list of one."""
        if "resolution" in data and not isinstance(data["resolution"], list | tuple):
            data = {**data, "resolution": [data["resolution"]]}
        if isinstance(data.get("control_path"), str):
            data = {**data, "control_path": [data["control_path"]] if data["control_path"] else []}
        return data

    @property
    def varies_captions(self) -> bool:
        """Whether a caption has another text at each showing, dropping it aside."""
        return self.shuffle_tokens or self.token_dropout_rate > 0 or bool(self.random_triggers)

    @property
    def is_list(self) -> bool:
        """Whether a file lists the pictures and their captions."""
        return is_list(resolve_path(self.folder_path))

    @property
    def control_folders(self) -> list[str]:
        """Every folder of control pictures, in order."""
        numbered = (self.control_path_1, self.control_path_2, self.control_path_3)
        return [*self.control_path, *(folder for folder in numbered if folder)]

    @property
    def has_masks(self) -> bool:
        """Whether masks weigh the places of these pictures."""
        return self.alpha_mask or self.mask_path is not None

    @property
    def cuts_anew(self) -> bool:
        """Whether pictures are cut differently in every epoch."""
        return self.random_crop or self.random_scale or self.poi is not None

    @property
    def cuts_at_own_size(self) -> bool:
        """Whether random cuts are as large as the bucket in the picture's own pixels, times scale."""
        return self.random_crop and not self.buckets and not self.square_crop

    @property
    def caches_latents(self) -> bool:
        """Whether every picture is encoded once."""
        return self.cache_latents or self.cache_latents_to_disk
