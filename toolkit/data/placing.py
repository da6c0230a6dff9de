"""A picture as it is cut for its bucket. Torch-free."""

from __future__ import annotations

from PIL import Image

from toolkit.data.items import Bucket, Placement


def fit(
    image: Image.Image,
    bucket: Bucket,
    placement: Placement,
    resampling: Image.Resampling = Image.Resampling.LANCZOS,
) -> Image.Image:
    """Scale, cut and flip a picture into its bucket."""
    size = (placement.scaled_width, placement.scaled_height)
    if image.size != size:
        image = image.resize(size, resampling)  # Pillow widens the filter when it reduces
    left, top = placement.left, placement.top
    image = image.crop((left, top, left + bucket.width, top + bucket.height))
    return flipped(image, placement)


def flipped(image: Image.Image, placement: Placement) -> Image.Image:
    """Mirror a picture as its placement says."""
    if placement.flip_x:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if placement.flip_y:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image
