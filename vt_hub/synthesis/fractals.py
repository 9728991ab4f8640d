"""Fractals of iterated function systems. Each class is one system, drawn with the chaos game.

Sources: FractalDB (Kataoka et al. 2020, https://arxiv.org/abs/2101.08515) and the sampling by singular values of
"Improving Fractal Pre-training" (Anderson and Farrell 2022, https://arxiv.org/abs/2110.03091).
"""

import math
import random
from dataclasses import dataclass

import torch

from .counters import MASK, mix

__all__ = ['System', 'fractal_bank', 'render_fractals', 'sample_system']

BITS = 20  # fractional bits of a coordinate; all steps use integers, so every device draws the same pixels
MAX_MAPS = 4
WALKERS, KEPT, DROPPED = 1024, 32, 8  # points drawn together; steps that are drawn, and steps skipped before them
SCALE_BITS = 40  # fractional bits of the pixels per unit of a coordinate
ONE = 0x3F800000  # the bits of 1 in float32


@dataclass(frozen=True)
class System:
    """Affine maps x -> A x + b, as (a, b, c, d, e, f) in units of 2**-BITS, and cumulative odds in units of 2**-16."""

    maps: list[list[int]]
    odds: list[int]


def sample_system(seed: int, index: int) -> System:
    """The system of class `index`: two to four contractive maps, A = R(t) diag(s1, +-s2) R(w).

    The sum of s1 + 2 s2 over N maps lies between (5 + N) / 2 and (6 + N) / 2. In this range, fractals are neither too
    sparse nor too dense.
    """
    uniform = random.Random(f'{seed}-{index}').random  # the same in every version of Python
    count = 2 + int(uniform() * (MAX_MAPS - 1))
    values: list[tuple[float, float]] = []
    while not 5 + count <= 2 * sum(s1 + 2 * s2 for s1, s2 in values) <= 6 + count:
        firsts = [uniform() for _ in range(count)]
        values = [(s1, s1 * uniform()) for s1 in firsts]
    maps, weights = [], []
    for s1, s2 in values:
        t, w = math.tau * uniform(), math.tau * uniform()
        sign = -1 if uniform() < 0.5 else 1
        (ct, st), (cw, sw) = (math.cos(t), math.sin(t)), (math.cos(w), math.sin(w))
        u, v = 0.998 * s1, 0.998 * sign * s2  # strictly contractive after rounding, too
        matrix = [u * ct * cw - v * st * sw, -u * ct * sw - v * st * cw]
        matrix += [u * st * cw + v * ct * sw, v * ct * cw - u * st * sw]
        maps.append([round(x * 2**BITS) for x in (*matrix, 2 * uniform() - 1, 2 * uniform() - 1)])
        weights.append(max(s1 * s2, 0.01))  # proportional to the area that a map covers
    odds = [round(65536 * sum(weights[: i + 1]) / sum(weights)) for i in range(count)]
    spare = MAX_MAPS - count
    return System(maps + [maps[-1]] * spare, odds + [65536] * spare)


def render_fractals(maps: torch.Tensor, odds: torch.Tensor, keys: torch.Tensor, size: int) -> torch.Tensor:
    """Draw a batch of fractals with the chaos game.

    Each place always applies the same random map; the walkers are shuffled over the places before every step.

    Args:
        maps: Affine maps, (B, N, 6) int64.
        odds: Their cumulative odds, (B, N) int64.
        keys: Random key of each picture, (B,) int64: sets the walk and the patch drawn for each point.
        size: Height and width in pixels.

    Returns:
        The logarithm of the density, (B, size, size) uint8, 255 at the densest point.
    """
    B, device = len(maps), maps.device
    batch, places = torch.arange(B, device=device), torch.arange(WALKERS, device=device)[:, None]
    draws = mix((mix(keys) + mix(places)) & MASK) >> 16
    chosen = (draws[..., None] >= odds[:, :-1]).sum(-1)
    a, b, c, d, e, f = maps[batch, chosen].permute(2, 0, 1).contiguous()  # (WALKERS, B) each
    e, f = e << BITS, f << BITS
    steps = torch.arange(DROPPED + KEPT, device=device)
    orders = mix((mix(steps) + mix(places)) & MASK).argsort(0).unbind(1)
    x = y = torch.zeros_like(a)
    points = torch.empty(2, KEPT, WALKERS, B, dtype=torch.int32, device=device)
    for step, order in enumerate(orders, -DROPPED):
        x, y = x[order], y[order]
        x, y = (a * x + b * y + e) >> BITS, (c * x + d * y + f) >> BITS
        if step >= 0:
            points[0, step], points[1, step] = x, y

    points = points.view(2, -1, B)
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    scale = ((size - 3) << SCALE_BITS) // (high - low).clamp(min=1).long()
    column, row = (((points - low) * scale) >> SCALE_BITS) + 1
    counts = ((batch * size + row) * size + column).flatten().bincount(minlength=B * size**2)
    counts = counts.view(B, size, size).int()
    patch = mix(keys + 1) % 511 + 1  # a 3 x 3 pattern with at least one pixel
    spread = torch.ones_like(counts)
    for i in range(9):
        spread += counts.roll((i // 3 - 1, i % 3 - 1), (1, 2)) * ((patch >> i) & 1).int()[:, None, None]
    # the bits of a float, read as an integer, are its logarithm: exact at powers of two and linear between them
    density = (spread.float().view(torch.int32) - ONE) >> 8
    return (255 * density // density.amax((1, 2), keepdim=True)).to(torch.uint8)


def fractal_bank(
    seed: int,
    num_classes: int,
    instances: int,
    size: int,
    device: torch.device | str = 'cpu',
    batch_size: int = 64,
    first: int = 0,
) -> torch.Tensor:
    """Pictures of fractals, class by class. Each picture depends only on (seed, class, instance, size).

    Args:
        seed: Random seed of the classes.
        num_classes: Number of classes.
        instances: Pictures per class.
        size: Height and width in pixels.
        device: Device to draw on; the pictures are the same on every device.
        batch_size: Pictures drawn at once.
        first: Number of the first instance. Banks without common instances show the same classes in other pictures.

    Returns:
        (num_classes, instances, size, size) uint8.
    """
    systems = [sample_system(seed, index) for index in range(num_classes)]
    maps = torch.tensor([system.maps for system in systems], device=device)
    odds = torch.tensor([system.odds for system in systems], device=device)
    parts = []
    for item in torch.arange(num_classes * instances, device=device).split(batch_size):
        index = item // instances
        keys = mix((mix((index + mix(seed & MASK)) & MASK) + first + item % instances) & MASK)
        parts.append(render_fractals(maps[index], odds[index], keys, size))
    return torch.cat(parts).view(num_classes, instances, size, size)
