"""What a model costs: parameters and multiply-accumulates, counted and not measured."""

from functools import cache
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['cost', 'count']


def cost(model_name: str, stage: str = '', size: tuple[int, int] = (224, 224), **args: Any) -> tuple[float, float]:
    """Parameters and multiply-accumulates, both in millions, of a timm model or of one of its stages.

    MACs are counted by torch's FlopCounterMode (two FLOPs each) on the meta device: convolutions, linear layers and
    matrix products.

    Args:
        model_name: Registry name.
        stage: Name of a submodule; empty for the whole model.
        size: Input height and width.
        args: Further arguments of `timm.create_model`.
    """
    return _cost(model_name, stage, size, tuple(sorted(args.items())))


@cache
def _cost(model_name: str, stage: str, size: tuple[int, int], args: tuple[tuple[str, Any], ...]) -> tuple[float, float]:
    with torch.device('meta'):
        model = timm.create_model(model_name, device='meta', **dict(args))
    return count(model, size, stage)


def count(model: torch.nn.Module, size: tuple[int, int] = (224, 224), stage: str = '') -> tuple[float, float]:
    """`cost` of a model on the meta device. It stays in training mode."""
    model.train()  # the equations as they stand, a little more than inference needs
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.empty(2, 3, *size, device='meta'))
    part = model.get_submodule(stage)
    name = f'{type(model).__name__}.{stage}' if stage else 'Global'
    return sum(p.numel() for p in part.parameters()) / 1e6, _flops(counter.get_flop_counts(), name, part) / 4e6


def _flops(counts: dict[str, dict[Any, int]], name: str, module: torch.nn.Module) -> int:
    """Counted FLOPs of a module, or of its parts where its own __call__ was not used."""
    if name in counts:
        return sum(counts[name].values())
    return sum(_flops(counts, f'{name}.{child_name}', child) for child_name, child in module.named_children())
