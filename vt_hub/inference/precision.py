"""In which numbers and memory layout a network computes."""

from typing import TypeVar

import torch

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


def laid_out(model: Model) -> Model:
    """The model with its weights in channels_last, in place: convolutions are faster in it, on CPUs and GPUs."""
    return model.to(memory_format=torch.channels_last)
