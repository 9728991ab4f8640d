"""Pictures of noise."""

import numpy as np
from PIL import Image


def picture(width, height, mode='RGB', seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)
