"""Nested wavy contours. They differ from fractals, so they test how well training on fractals transfers.

Source: the sinusoidal contours of VisualAtom (Takashima et al. 2023, https://arxiv.org/abs/2303.01112).
"""

import math

import torch

from .counters import MASK, CounterRandom, mix

__all__ = ['contour_bank']


def draw_contours(seed: int, classes: torch.Tensor, instances: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures of the given instances of classes, (B,) int64 each; (B, size, size) uint8.

    Ring k has radius inner + k (1 + depth (sin(n1 t + p1) + sin(n2 t + p2)) / 2) at angle t, on an oval. A class fixes
    the frequencies n, depth, inner radius and number of rings. A picture fixes the phases p, oval and line width.
    """
    rng = CounterRandom(seed, classes)
    waves, rings = rng.integers(16, 2, 1, 1) + 1, 2 + rng.integers(9, 1, 1)
    depth, inner = rng.uniform(1, 1, low=0.2, high=0.9), rng.uniform(1, 1, low=0.3) * rings
    rng = CounterRandom(mix(seed & MASK), mix(classes) ^ instances)
    phases, oval = rng.uniform(2, 1, 1, high=math.tau), rng.uniform(1, 1, low=0.6)
    width = rng.uniform(1, 1, low=0.01, high=0.02) * size

    ends = (torch.arange(size, device=classes.device, dtype=torch.float64) * 2 + 1) / size - 1
    x, y = ends, ends[:, None] / oval
    angles = torch.atan2(y, x)[:, None]
    step = 1 + depth * (waves * angles + phases).sin().mean(1)
    outer = (inner + rings * step).amax((1, 2), keepdim=True)
    beyond = torch.hypot(x, y) * outer - inner
    number = torch.where(beyond > 0, beyond / step, beyond)  # inside the innermost ring there are no waves
    nearest = number.round().clamp(0).minimum(rings)
    slope = torch.hypot(*torch.gradient(number, dim=(1, 2)))
    line = (width - (number - nearest).abs() / slope).clamp(0, 1)
    return (255 * line * (0.4 + 0.6 * nearest / rings)).round().to(torch.uint8)


def contour_bank(
    seed: int, num_classes: int, instances: int, size: int, device: torch.device | str = 'cpu', batch_size: int = 64
) -> torch.Tensor:
    """Pictures of contours, class by class; they can replace those of `fractal_bank`.

    They are computed in float64 and rounded to 8 bits, so that all devices should give the same pictures.

    Args:
        seed: Random seed of the classes.
        num_classes: Number of classes.
        instances: Pictures per class.
        size: Height and width in pixels.
        device: Device to draw on.
        batch_size: Pictures drawn at once.

    Returns:
        (num_classes, instances, size, size) uint8.
    """
    items = torch.arange(num_classes * instances, device=device).split(batch_size)
    pictures = torch.cat([draw_contours(seed, item // instances, item % instances, size) for item in items])
    return pictures.view(num_classes, instances, size, size)
