"""Scenes of several coloured fractals on clouds, with the classes that can be seen and the class of every pixel.

Source: the multi-instance scenes of "Improving Fractal Pre-training" (Anderson and Farrell 2022,
https://arxiv.org/abs/2110.03091), section 3.3, with rotation within 30 degrees and masks.
"""

import math

import torch
import torch.nn.functional as F

from .counters import CounterRandom

__all__ = ['compose_scenes']

TURN = math.radians(30)  # further, and the network unlearns which way is up
VISIBLE = 0.004  # share of the pixels from which on an object counts as seen
EDGE = 0.08  # density at which a fractal is opaque


def colour(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """HSV of any hue, (B, 1, H, W) each or broadcast, to RGB (B, 3, H, W)."""
    ramp = (torch.tensor([5.0, 3.0, 1.0], device=hue.device).view(1, 3, 1, 1) + 6 * hue) % 6
    return value - value * saturation * torch.minimum(ramp, 4 - ramp).clamp(0, 1)


def clouds(rng: CounterRandom, size: int) -> torch.Tensor:
    """Noise of several octaves, (B, 1, size, size) from 0 to 1."""
    fading, total, cells, weight = rng.uniform(1, 1, 1, low=0.35, high=0.85), 0, 2, 1
    while cells <= size:
        total = total + weight * F.interpolate(rng.uniform(1, cells, cells), (size, size), mode='bilinear')
        cells, weight = 2 * cells, weight * fading
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low)


def background(rng: CounterRandom, size: int) -> torch.Tensor:
    """Clouds in a band of hues, or for one image in ten a plain colour; (B, 3, size, size)."""
    z = clouds(rng, size)
    hue = rng.uniform(1, 1, 1) + z * rng.uniform(1, 1, 1, low=0.1)
    saturation = rng.uniform(1, 1, 1, low=0.3, high=0.6) + 0.2 * z
    value = rng.uniform(1, 1, 1, low=0.2, high=0.55) + 0.45 * z
    plain = rng.uniform(3, 1, 1).expand(-1, -1, size, size)
    return torch.where(rng.uniform(1, 1, 1) < 0.1, plain, colour(hue, saturation, value))


def placed(pictures: torch.Tensor, rng: CounterRandom, size: int, scale: tuple[float, float]) -> torch.Tensor:
    """Fractals (B, h, w) of densities turned, mirrored, scaled and moved, (B, 1, size, size) from 0 to 1."""
    reach, turn = rng.uniform(low=scale[0], high=scale[1]), rng.uniform(low=-TURN, high=TURN)
    x, y = rng.uniform(low=-0.7, high=0.7), rng.uniform(low=-0.7, high=0.7)
    side = torch.where(rng.uniform() < 0.5, 1.0, -1.0)
    cos, sin = turn.cos() / reach, turn.sin() / reach
    rows = [side * cos, -side * sin, -side * (cos * x - sin * y), sin, cos, -(sin * x + cos * y)]
    affine = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(affine, [len(pictures), 1, size, size], align_corners=False)
    return F.grid_sample(pictures[:, None] / 255.0, grid, align_corners=False)


@torch.no_grad()
def compose_scenes(
    bank: torch.Tensor,
    seed: int,
    items: torch.Tensor,
    size: int,
    objects: tuple[int, int] = (1, 5),
    scale: tuple[float, float] = (0.3, 0.9),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw scenes, each a function of (bank, seed, item) and of the arguments below.

    Args:
        bank: Pictures of the classes, (C, instances, h, w) uint8; see `fractal_bank`.
        seed: Of the data set.
        items: Index of each scene, (B,) int64 on the bank's device.
        size: Height and width in pixels.
        objects: Fewest and most objects of a scene.
        scale: Smallest and largest size of an object, as a share of the image.

    Returns:
        Images (B, 3, size, size) from 0 to 1; which classes can be seen, (B, C) of zeros and ones; and the class of
        every pixel, (B, size, size) int64, 0 for none and 1 for class 0.
    """
    classes, instances = bank.shape[:2]
    rng = CounterRandom(seed, items)
    images = background(rng, size)
    masks = torch.zeros(len(items), size, size, dtype=torch.int64, device=bank.device)
    counts = objects[0] + rng.integers(objects[1] - objects[0] + 1)
    for i in range(objects[1]):
        chosen = rng.integers(classes)
        density = placed(bank[chosen, rng.integers(instances)], rng, size, scale)
        alpha = (density / EDGE).clamp(max=1) * (counts > i).view(-1, 1, 1, 1)
        hue = rng.uniform(1, 1, 1) + density * rng.uniform(1, 1, 1)
        paint = colour(hue, rng.uniform(1, 1, 1, low=0.3), rng.uniform(1, 1, 1, low=0.5))
        images = images + alpha * (paint - images)
        masks = torch.where(alpha[:, 0] > 0.25, chosen.view(-1, 1, 1) + 1, masks)
    images = torch.where(rng.uniform(1, 1, 1) < 0.1, images.mean(1, keepdim=True), images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode='replicate'), 3, 1)
    images = images + (rng.uniform(1, 1, 1) < 0.5) * rng.uniform(1, 1, 1) * (blurred - images)
    pixels = torch.zeros(len(items), classes + 1, device=bank.device)
    pixels.scatter_add_(1, masks.flatten(1), torch.ones_like(masks.flatten(1), dtype=pixels.dtype))
    return images, (pixels[:, 1:] > VISIBLE * size**2).float(), masks
