"""In which numbers and memory layout a network computes."""

from typing import TypeVar

import torch
from torch import nn

__all__ = ['DTYPES', 'chosen_precision', 'computing_in', 'laid_out']

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
Model = TypeVar('Model', bound=torch.nn.Module)


def chosen_precision(precision: str, device: torch.device) -> str:
    """A key of `DTYPES`. 'auto' becomes 'bf16' if the device has instructions for it, else 'fp32'."""
    if precision != 'auto':
        return precision
    if device.type == 'cuda':
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = torch.cpu.get_capabilities()
        fast = any(there.get(name) for name in ('amx_bf16', 'avx512_bf16'))
    return 'bf16' if fast else 'fp32'


def computing_in(precision: str, device: torch.device) -> torch.autocast:
    """A context in which networks compute in mixed precision, or as they are for 'fp32'; see `chosen_precision`."""
    dtype = DTYPES[chosen_precision(precision, device)]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def laid_out(model: Model, precision: str = 'fp32') -> Model:
    """The model, in place, with its weights as `computing_in` uses them, so that they are not converted in each call.

    In channels_last convolutions are faster, on CPUs and GPUs. Norms keep their precision.

    Args:
        model: A network on its device.
        precision: See `chosen_precision`.
    """
    dtype = DTYPES[chosen_precision(precision, next(model.parameters()).device)]
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.to(dtype)
    return model.to(memory_format=torch.channels_last)
