"""Read image files of every kind that Pillow opens."""

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ['check_size', 'read_image', 'to_channels', 'upright', 'with_channels']

MAX_ASPECT_RATIO = 1000  # a longer strip, resized by its shorter side, would fill the memory
LIMIT = 'VT_HUB_MAX_IMAGE_PIXELS'  # environment variable that replaces Pillow's limit
if os.environ.get(LIMIT):
    Image.MAX_IMAGE_PIXELS = int(os.environ[LIMIT])


def upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation. It stays unchanged if the EXIF block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged blocks make Pillow raise almost any error, but the picture may be fine
        return image


def check_size(image: Image.Image) -> None:
    """Raise ValueError for an image with more pixels than Pillow's limit. Pillow itself refuses only twice as many."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise ValueError(
            f'it has {image.width} x {image.height} pixels, more than {limit}; the environment variable {LIMIT} raises '
            'the limit'
        )


def to_channels(image: Image.Image, channels: int = 3) -> Image.Image:
    """Convert an image of any Pillow mode to RGB, or to grey for one channel, and apply its EXIF orientation.

    16-bit and float images keep their whole range.

    Raises:
        ValueError: The number of channels is not 1 or 3.
    """
    if channels not in (1, 3):
        raise ValueError(f'A model with {channels} channels cannot read image files.')
    image = upright(image)
    if image.mode.startswith(('I', 'F')):  # convert() would clip these to 0..255
        sixteen_bits = image.mode.startswith('I;16')
        image = image.convert('I') if sixteen_bits else image  # I;16B supports few conversions
        extrema: Any = image.getextrema()  # of one channel: two numbers
        low, high = extrema
        full = 65535.0 if sixteen_bits or high > 255 else 255.0
        if image.mode == 'F' and low >= 0 and high <= 1:
            full = 1.0
        image = image.convert('F').point(lambda value: value * (255.0 / full) + 0)
    elif 'transparency' in image.info:
        image = image.convert('RGBA')  # the only correct way for a palette with transparency
    return image.convert('L' if channels == 1 else 'RGB')


def with_channels(cfg: dict[str, Any], channels: int) -> dict[str, Any]:
    """Adapt timm's preprocessing configuration to images with this number of channels."""
    sizes = ('input_size', 'min_input_size', 'test_input_size')
    cfg = cfg | {key: (channels, *cfg[key][1:]) for key in sizes if cfg.get(key)}
    for key in ('mean', 'std'):
        if cfg.get(key) and len(cfg[key]) != channels:
            cfg[key] = (sum(cfg[key]) / len(cfg[key]),) * channels
    return cfg


def read_image(path: Path | str, channels: int = 3, content: bytes | None = None) -> Image.Image:
    """Read one image file as RGB or grey, with EXIF orientation applied.

    Args:
        path: The file.
        channels: 3 for RGB, 1 for grey.
        content: The file's bytes, if they have been read already; `path` is then only used in errors.

    Raises:
        ValueError: The file is missing, empty, truncated, not an image, PostScript, has more pixels than
            Image.MAX_IMAGE_PIXELS, or is a strip more than 1000 times as long as wide.
    """
    try:
        if content is None and Path(path).is_dir():
            raise ValueError('it is a folder without images')
        with open(path, 'rb') if content is None else io.BytesIO(content) as file, Image.open(file) as image:
            check_size(image)
            if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
                raise ValueError(f'it is a strip of {image.width} x {image.height} pixels')
            if image.format == 'EPS':  # Pillow would run it with Ghostscript, maybe for ever
                raise ValueError('it is a PostScript program')
            return to_channels(image, channels)
    except Exception as error:  # a hostile file makes Pillow's decoders raise almost any error
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            size = Path(path).stat().st_size if content is None else len(content)
            reason = 'it is not an image' if size else 'it is empty'
        raise ValueError(f'Cannot read {path} as an image: {reason.rstrip(".")}.') from error
