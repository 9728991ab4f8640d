"""Finding and reading image files of every kind that Pillow opens."""

import glob
import warnings
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

__all__ = ['find_images', 'read_image']


def find_images(inputs: Iterable[str]) -> list[Path]:
    """Files, folders (searched through, by file name extension) and glob patterns to a list of paths.

    A path that does not exist is kept, so that reading it reports it.

    Raises:
        FileNotFoundError: A folder or a pattern holds no image.
    """
    paths = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            extensions = Image.registered_extensions()
            found = sorted(p for p in path.rglob('*') if p.suffix.lower() in extensions and p.is_file())
        elif not path.exists() and glob.has_magic(name):
            found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        else:
            found = [path]
        if not found:
            raise FileNotFoundError(f'No image found in {name}; name a file, a folder with images or a pattern.')
        paths.extend(found)
    return paths


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB, upright (EXIF orientation applied); 16-bit and float images keep their whole range."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(('I', 'F')):  # convert() would clip these to 0..255
        low, high = image.getextrema()
        full = 255.0 if high <= 255 else 65535.0
        if image.mode == 'F' and low >= 0 and high <= 1:
            full = 1.0
        image = image.convert('F').point(lambda value: value * (255.0 / full) + 0)
    return image.convert('RGB')


def read_image(path: Path | str) -> Image.Image:
    """Read one image file as RGB, with EXIF orientation applied.

    Raises:
        ValueError: The file is missing, empty, truncated, no image, or has more pixels than Image.MAX_IMAGE_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)  # Pillow refuses at twice its limit only
            with open(path, 'rb') as file, Image.open(file) as image:
                return to_rgb(image)
    except Exception as error:  # a hostile file makes Pillow's decoders raise almost anything
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = 'it is empty' if not Path(path).stat().st_size else 'it is not an image'
        raise ValueError(f'Cannot read {path} as an image: {reason.rstrip(".")}.') from error
