"""Random numbers that are functions of counters: no state to save, the same on every device and in any batch."""

import math

import torch

__all__ = ['CounterRandom', 'mix']

MASK = 0xFFFFFFFF


def mix(x: int | torch.Tensor) -> int | torch.Tensor:
    """A 32-bit hash of an integer or of int64 tensors (the "lowbias32" of https://nullprogram.com/blog/2018/07/31/)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


class CounterRandom:
    """Uniform numbers for each of a batch of items, addressed by (seed, item, call, place in the call).

    Args:
        seed: Of the data set.
        items: Index of each item, (B,) int64.
    """

    def __init__(self, seed: int, items: torch.Tensor):
        self.keys = mix((items + mix(seed & MASK)) & MASK)
        self.calls = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Numbers from low to high, (B, *shape) float32."""
        self.calls += 1
        places = torch.arange(math.prod(shape), device=self.keys.device)
        keys = mix(self.keys ^ mix(self.calls))
        bits = mix((keys[:, None] + mix(places)) & MASK) >> 8  # 24 of them are exact in float32
        return (low + (high - low) * (bits.float() / 2**24)).view(-1, *shape)

    def integers(self, high: int | torch.Tensor, *shape: int) -> torch.Tensor:
        """Integers from 0 to high - 1, (B, *shape) int64."""
        return (self.uniform(*shape) * high).long()
