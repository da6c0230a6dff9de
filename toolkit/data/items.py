"""What the data path hands around: an item (no tensors) and a batch of them.

Legend: B batch, C latent channels, H W image rows and columns (pixels), h w latent rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from toolkit.prompt_utils import Conditioning


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A size in pixels that whole batches share. `frames` is 1 for pictures."""

    width: int
    height: int
    frames: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """How a picture fills its bucket: scale it, cut the bucket out at (left, top), flip."""

    scaled_width: int
    scaled_height: int
    left: int
    top: int
    flip_x: bool = False
    flip_y: bool = False


@dataclass(frozen=True, slots=True)
class CaptionRules:
    """How the text of one showing is drawn from a caption; shared by the items of a dataset.

    Tokens are what stands between commas. random_triggers_max: 1 adds one of random_triggers to every text,
    more add none up to so many. variants: texts that are drawn for a caption in the whole run, None for a
    new one at every showing.
    """

    dropout_rate: float = 0.0
    token_dropout_rate: float = 0.0
    shuffle_tokens: bool = False
    keep_tokens: int = 0
    random_triggers: tuple[str, ...] = ()
    random_triggers_max: int = 1
    trigger_word: str | None = None
    prepend_trigger: bool = True
    variants: int | None = None

    @property
    def vary(self) -> bool:
        """Whether a caption that is not dropped has more than one text."""
        return self.shuffle_tokens or self.token_dropout_rate > 0 or bool(self.random_triggers)


PLAIN = CaptionRules()


@dataclass(frozen=True, slots=True)
class CropChoice:
    """Where an item may be cut, drawn anew in every epoch: see toolkit.data.crops.

    size: the picture's own width and height. least, most: factors of it between which the picture is scaled
    before the bucket is cut out. moves: at any place, else at the middle. poi: (left, top, right, bottom) in
    the picture's own pixels that every cut shows if it can. num_draws: epochs take so many draws in turn;
    None: each has its own.
    """

    size: tuple[int, int]
    least: float
    most: float
    moves: bool
    poi: tuple[float, float, float, float] | None = None
    num_draws: int | None = None


@dataclass(frozen=True, slots=True)
class MaskSource:
    """What says how much each place of an item counts: a grey picture, or the transparency of one.

    White (or opaque) counts fully, black (or transparent) as `minimum`; inverted: the other way round.
    """

    path: Path
    from_alpha: bool = False
    inverted: bool = False
    minimum: float = 0.0


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One picture of one dataset at one resolution. Equal in every process that scans the same folder.

    id: sha256 of the file's bytes, with dataset, resolution, flip and repeat. caption: as read from its
    source, trigger word in place, before any dropout or shuffle (those are drawn per epoch); caption_source:
    the same before the trigger word was placed. source_size: width and height of the picture before
    scaling, None for an item without one. placement: the middle of the picture, or what an epoch drew from
    `crops`. control_paths: pictures that the model sees beside the noise, laid on control_color; unless
    full_size_controls they are made a square.
    """

    id: str
    path: Path
    sha256: str
    caption: str
    dataset: str
    bucket: Bucket
    placement: Placement
    caption_source: str = ""
    caption_rules: CaptionRules = PLAIN
    is_reg: bool = False
    loss_multiplier: float = 1.0
    network_weight: float = 1.0
    alpha_color: tuple[int, int, int] = (255, 255, 255)
    control_paths: tuple[Path, ...] = ()
    control_color: tuple[int, int, int] = (0, 0, 0)
    full_size_controls: bool = True
    crops: CropChoice | None = None
    mask: MaskSource | None = None
    source_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Batch:
    """B items of one bucket, ready for a step; made on the CPU, float32.

    captions: the final text of each item. pixels (B, 3, H, W) in [-1, 1] or latents (B, C, h, w) (one of
    both may be None); noise like latents; mixed_noise, if given, is mixed in where noise is in the target;
    t (B,) in [0, 1]; weights (B,); mask (B, 1, h, w) in [0, 1], or None if no item has one. controls: each
    (B, 3, H, W) in [-1, 1], the first of every item, the second and so on.
    conditioning is None when the text encoder runs inside the step.
    """

    items: tuple[MediaItem, ...]
    captions: tuple[str, ...]
    weights: Tensor
    noise: Tensor | None = None
    mixed_noise: Tensor | None = None
    t: Tensor | None = None
    latents: Tensor | None = None
    pixels: Tensor | None = None
    conditioning: Conditioning | None = None
    mask: Tensor | None = None
    controls: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def pinned(self) -> Batch:
        """The same in memory that a GPU fetches by itself; the host waits for copies from other memory."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value.pin_memory() for name, value in values.items() if hasattr(value, "pin_memory")}
        conditioning = None if self.conditioning is None else self.conditioning.pinned()
        return replace(self, **tensors, conditioning=conditioning)
