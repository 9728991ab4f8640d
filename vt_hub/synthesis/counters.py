"""Random numbers computed from counters: no state to save, and the same on every device and in any batch."""

import math
from typing import TypeVar

import torch

__all__ = ['CounterRandom', 'mix']

MASK = 0xFFFFFFFF
Words = TypeVar('Words', int, torch.Tensor)


def mix(x: Words) -> Words:
    """A 32-bit hash of an integer or of int64 tensors (the "lowbias32" of https://nullprogram.com/blog/2018/07/31/)."""
    x = x ^ (x >> 16)  # a new tensor; the other steps are in place
    x *= 0x7FEB352D
    x &= MASK
    x ^= x >> 15
    x *= 0x846CA68B
    x &= MASK
    x ^= x >> 16
    return x


class CounterRandom:
    """Uniform numbers for each item of a batch. They depend on (seed, item, call, position in the call).

    Args:
        seed: Random seed of the data set.
        items: Index of each item, (B,) int64; only the lower 32 bits are used.
    """

    def __init__(self, seed: int, items: torch.Tensor):
        self.keys = mix((items + mix(seed & MASK)) & MASK)
        self.calls = 0

    def words(self, count: int) -> torch.Tensor:
        """Integers of 32 random bits, (B, count) int64."""
        self.calls += 1
        places = torch.arange(count, device=self.keys.device)
        return mix((mix(self.keys ^ mix(self.calls))[:, None] + mix(places)) & MASK)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Numbers from low to high, (B, *shape) float32."""
        numbers = (self.words(math.prod(shape)) >> 8) / 2**24  # 24 bits are exact in float32
        return (low + (high - low) * numbers).view(-1, *shape)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Integers from 0 to high - 1, (B, *shape) int64."""
        return (self.uniform(*shape) * high).long()

    def bytes(self, *shape: int) -> torch.Tensor:
        """Integers from 0 to 255, (B, *shape) uint8; faster for many numbers."""
        count = math.prod(shape)
        words = self.words(math.ceil(count / 4)).to(torch.int32)
        return words.view(torch.uint8)[:, :count].reshape(-1, *shape)
