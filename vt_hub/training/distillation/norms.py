"""Statistics for the BatchNorms of a network that was grown into bottlenecks; see loading/bottlenecks.py."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ...network.vt_resnet import VTResNet
from ...reporting import Progress, find_device, no_progress
from ..resumable import autocast
from .data import Folders
from .regression import Regression, view_loader
from .run import constants

__all__ = ['settle_norms']

SETTLING = Regression(steps=8, size=128)


@torch.no_grad()
def settle_norms(
    grown: VTResNet,
    data: Folders,
    unreadable: Path,
    settings: Regression = SETTLING,
    seed: int = 0,
    workers: int = 2,
    progress: Progress = no_progress,
) -> None:
    """Give the BatchNorms of a trunk the statistics of what they normalise, in place; it computes the same as before.

    The norms of a grown trunk copy values and add constants, with statistics that are not those of their inputs. In
    training they would normalise, and the network would no longer compute what it did.

    Args:
        grown: What `vt_hub.loading.growing.grow` made of a smaller network.
        data: Images without labels.
        unreadable: File for the names of images that cannot be read.
        settings: Number and size of the views.
        seed: Random seed of the views.
        workers: Processes that read images.
        progress: Wraps the batches to show progress.
    """
    device = find_device()
    grown.eval().to(device).to(memory_format=torch.channels_last)
    norms = [module for module in grown.modules() if isinstance(module, nn.BatchNorm2d)]
    sums: dict[Any, list[Tensor]] = {norm: [] for norm in norms}

    def see(rows: list[Tensor], norm: nn.Module, given: Any) -> None:
        values = given[0].double()
        rows.append(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))

    handles = [norm.register_forward_pre_hook(partial(see, rows)) for norm, rows in sums.items()]
    mean, std = constants(grown, device)
    loader = view_loader(settings, data, unreadable, seed, workers)
    for batch in progress(loader, settings.steps, 'Settling norms'):
        with autocast(device):
            grown.forward_trunk((batch.to(device).float() / 255 - mean) / std)
    for handle in handles:
        handle.remove()
    for norm, rows in sums.items():
        if rows:
            settle(norm, *torch.stack(rows).mean(0))


def settle(norm: Any, mean: Tensor, square: Tensor) -> None:
    """Replace the statistics of a BatchNorm, and compensate for it by its scale and shift."""
    variance = (square - mean.square()).clamp(min=0)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias += (mean - norm.running_mean) * scale
    norm.weight.copy_(scale * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
