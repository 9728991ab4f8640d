"""Pictures of noise, sharp or smooth."""

import numpy as np
from PIL import Image


def picture(width, height, mode='RGB', seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def write_smooth_pictures(folder, count, cells, size):
    """PNG files of random colours in (rows, columns), resized to (width, height)."""
    rng = np.random.default_rng(0)
    for number in range(count):
        colours = rng.integers(0, 255, (*cells, 3), dtype=np.uint8)
        Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(folder / f'{number}.png')
    return folder
