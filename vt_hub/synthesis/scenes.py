"""Scenes of several coloured fractals on clouds, with the visible classes and the class of every pixel.

Source: the multi-instance scenes of "Improving Fractal Pre-training" (Anderson and Farrell 2022,
https://arxiv.org/abs/2110.03091), section 3.3, with rotation within 30 degrees and masks.

Scenes are the same on every CPU. So every operation is +, -, x or /, which IEEE 754 rounds correctly, or uses integers
that float32 holds exactly. Other vectorised kernels may round differently between batches, threads or processors.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from .counters import CounterRandom
from .folders import SPLITS
from .fractals import fractal_bank

__all__ = ['HELD_OUT_FIRST', 'FractalScenes', 'compose_scenes']

HELD_OUT_FIRST = 1 << 31  # number of the first held-out item
HALF_TURN = math.tan(math.radians(30) / 2)  # with more than 30 degrees, the network would not learn which way is up
PARTS = 64  # pictures are sampled only at multiples of 1 / PARTS pixel
OPAQUE = 16  # a fractal is opaque from this density on, of 255
VISIBLE = 0.004  # an object counts as visible above this share of the pixels


def colour(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Convert HSV, (B, 1, H, W) each or broadcast, to RGB (B, 3, H, W). Hues outside 0 to 1 wrap around."""
    turns = torch.arange(3, device=hue.device).view(1, 3, 1, 1) * (2 / 3)
    ramp = (hue + turns).frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3)
    full = value * saturation
    return ramp.mul_(6 * full).add_(value - 2 * full)


def clouds(rng: CounterRandom, size: int) -> torch.Tensor:
    """Noise of several octaves, (B, 1, size, size) from 0 to 1."""
    fading = rng.uniform(1, 1, 1, low=0.35, high=0.85)
    weight: torch.Tensor | float = 16.0
    sizes = [size]
    while sizes[-1] > 2:
        sizes.append(math.ceil(sizes[-1] / 2))
    total = rng.bytes(1, sizes[-1], sizes[-1]) * weight  # integers of 15 bits, or 19 when interpolated
    for cells in reversed(sizes[:-1]):
        total = F.interpolate(total, scale_factor=2, mode='bilinear')[..., :cells, :cells]
        weight = weight * fading
        total = (total + weight * rng.bytes(1, cells, cells)).floor_()
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low)


def background(rng: CounterRandom, size: int) -> torch.Tensor:
    """Clouds in a range of hues, or in one of ten images a plain colour; (B, 3, size, size)."""
    z = clouds(rng, size)
    hue = rng.uniform(1, 1, 1) + z * rng.uniform(1, 1, 1, low=0.1)
    saturation = rng.uniform(1, 1, 1, low=0.3, high=0.6) + 0.2 * z
    value = rng.uniform(1, 1, 1, low=0.2, high=0.55) + 0.45 * z
    plain = rng.uniform(3, 1, 1)
    return torch.where(rng.uniform(1, 1, 1) < 0.1, plain, colour(hue, saturation, value))


def placements(rng: CounterRandom, count: int, size: int, scale: tuple[float, float], spread: float) -> torch.Tensor:
    """Random rotation, mirroring, scale and position of `count` objects per image.

    Returns:
        What each column and each row of the image adds to x and y in the object's picture, where x and y go from -1 to
        1: (B, count, x and y, column and row, size).
    """
    reach = rng.uniform(count, low=scale[0], high=scale[1])
    half = rng.uniform(count, low=-HALF_TURN, high=HALF_TURN)
    cos, sin = (1 - half * half) / (1 + half * half) / reach, 2 * half / (1 + half * half) / reach
    side = torch.where(rng.uniform(count) < 0.5, 1.0, -1.0)
    turned = torch.stack([side * cos, -side * sin, sin, cos], -1).view(-1, count, 2, 2, 1)
    centre = rng.uniform(count, 1, 2, 1, low=-spread, high=spread)
    ends = (torch.arange(size, device=reach.device) * 2 + 1) * (1 / size) - 1
    return turned * (ends - centre)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """The mean of the 3 x 3 pixels around each pixel."""
    images = F.pad(images, (1, 1, 1, 1), mode='replicate')
    images = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    return (images[..., :-2] + images[..., 1:-1] + images[..., 2:]) * (1 / 9)


@torch.no_grad()
def compose_scenes(
    bank: torch.Tensor,
    seed: int,
    items: torch.Tensor,
    size: int,
    objects: tuple[int, int] = (1, 5),
    scale: tuple[float, float] = (0.3, 0.9),
    spread: float = 0.7,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw scenes. Each depends only on the arguments and its item, and is bit-identical on every CPU.

    Args:
        bank: Pictures of the classes, (C, instances, h, h) uint8; see `fractal_bank`.
        seed: Random seed of the data set.
        items: Index of each scene, (B,) int64 on the bank's device; only the lower 32 bits are used.
        size: Height and width in pixels.
        objects: Smallest and largest number of objects per scene.
        scale: Smallest and largest size of an object, as a share of the image.
        spread: Largest distance of an object's centre from the middle, as a share of the distance to the edge.

    Returns:
        Images (B, 3, size, size) from 0 to 1; visible classes, (B, C) of zeros and ones; and the class of every pixel,
        (B, size, size) int64, 0 for none and 1 for class 0.
    """
    (classes, instances, _, length), (fewest, most) = bank.shape, objects
    rng = CounterRandom(seed, items)
    images = background(rng, size)
    shown = torch.arange(most, device=bank.device) < fewest + rng.integers(most - fewest + 1, 1)
    chosen, instance = rng.integers(classes, most), rng.integers(instances, most)
    hue, hues = rng.uniform(most, 1, 1, 1), rng.uniform(most, 1, 1, 1, high=1 / 255)
    saturation, value = rng.uniform(most, 1, 1, 1, low=0.3), rng.uniform(most, 1, 1, 1, low=0.5)
    opacity = shown.float().view(-1, most, 1, 1, 1) / OPAQUE
    # sampling is exact if the picture's side is a power of two and positions are multiples of 1 / PARTS pixel
    side = 2 ** math.ceil(math.log2(length))
    added = (placements(rng, most, size, scale, spread) * (length * PARTS / 2)).round() / (side * PARTS / 2)
    columns, rows = added.unbind(3)
    columns = columns + (length / side - 1)  # the picture lies in the upper left corner

    masks = torch.zeros(len(items), size, size, dtype=torch.int64, device=bank.device)
    for i in range(most):
        picture = F.pad(bank[chosen[:, i], instance[:, i]], (0, side - length, 0, side - length)).float()
        grid = columns[:, i, :, None, :] + rows[:, i, :, :, None]
        density = F.grid_sample(picture[:, None], grid.permute(0, 2, 3, 1), align_corners=False)
        alpha = (density * opacity[:, i]).clamp_(max=1)
        paint = colour(hue[:, i] + density * hues[:, i], saturation[:, i], value[:, i])
        images += paint.sub_(images).mul_(alpha)
        masks = torch.where(alpha[:, 0] > 0.25, chosen[:, i].view(-1, 1, 1) + 1, masks)
    grey = (images[:, :1] + images[:, 1:2] + images[:, 2:]) * (1 / 3)
    images = torch.where(rng.uniform(1, 1, 1) < 0.1, grey, images)
    strength = (rng.uniform(1, 1, 1) < 0.5) * rng.uniform(1, 1, 1)
    images += blurred(images).sub_(images).mul_(strength)
    pixels = torch.zeros(len(items), classes + 1, device=bank.device)
    pixels.scatter_add_(1, masks.flatten(1), torch.ones_like(masks.flatten(1), dtype=pixels.dtype))
    return images.clamp_(0, 1), (pixels[:, 1:] > VISIBLE * size**2).float(), masks


class FractalScenes(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Scenes for a training loop. Item i depends only on the arguments and on i.

    An item is the image (3, size, size) uint8; the visible classes, (num_classes,) of zeros and ones; and the class of
    every pixel, (size, size) int64, 0 for none and 1 for class 0. A DataLoader draws each batch at once.

    Args:
        num_classes: Number of fractal classes.
        seed: Random seed of the fractals and the scenes.
        size: Height and width in pixels.
        length: Number of scenes.
        split: 'train' or 'val'. Both show the same classes, but share neither scenes nor pictures of fractals.
        instances: Pictures per fractal; in all they need num_classes * instances * size^2 bytes of memory.
        objects: Smallest and largest number of fractals per scene.
        scale: Smallest and largest size of a fractal, as a share of the image.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        seed: int = 0,
        size: int = 128,
        length: int = 1_000_000,
        split: str = 'train',
        instances: int = 4,
        objects: tuple[int, int] = (1, 5),
        scale: tuple[float, float] = (0.3, 0.9),
    ):
        part = SPLITS.index(split)
        self.bank = fractal_bank(seed, num_classes, instances, size, first=part << 16)
        self.seed, self.size, self.length, self.objects, self.scale = seed, size, length, objects, scale
        self.first = part * HELD_OUT_FIRST

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.__getitems__([range(self.length)[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        return list(zip(*self.draw(indices), strict=True))

    def draw(
        self, indices: Sequence[int], classes: slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The items of a batch, stacked. With `classes`, only those are drawn, and numbered from 0."""
        items = torch.tensor(indices) + self.first
        images, labels, masks = compose_scenes(
            self.bank[classes], self.seed, items, self.size, self.objects, self.scale
        )
        return (255 * images).round().to(torch.uint8), labels, masks
