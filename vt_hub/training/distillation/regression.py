"""Teach a grown `layer1` what it only comes near to; see loading/bottlenecks.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader

from ...network.vt_resnet import VTResNet
from ...reporting import Progress, find_device, no_progress
from ..resumable import autocast, cosine
from .data import Folders, Views, start_worker
from .run import constants

__all__ = ['Regression', 'teach_layer1']

AVERAGED = 20  # steps behind the figure that is returned


@dataclass(frozen=True)
class Regression:
    """The size of a regression; the defaults take five minutes on two CPU cores with AMX.

    Args:
        steps: Optimizer steps.
        batch_size: Views per step.
        size: Height and width of the views in pixels.
        lr: Highest learning rate; it falls along half a cosine.
        crop_scale: Smallest and largest area of a view, as a share of the image.
        color_jitter: Strength of timm's colour jitter.
    """

    steps: int = 400
    batch_size: int = 128
    size: int = 96
    lr: float = 1e-3
    crop_scale: tuple[float, float] = (0.25, 1.0)
    color_jitter: float = 0.3

    @property
    def num_views(self) -> int:
        return self.steps * self.batch_size

    def view_size(self, item: int) -> int:
        return self.size


def view_loader(settings: Regression, data: Folders, unreadable: Path, seed: int, workers: int) -> DataLoader[Any]:
    """Batches of views, (B, 3, size, size) uint8, in their order."""
    views = Views(settings, data, seed, unreadable)
    return DataLoader(views, settings.batch_size, num_workers=workers, worker_init_fn=start_worker)


def teach_layer1(
    source: VTResNet,
    grown: VTResNet,
    data: Folders,
    unreadable: Path,
    settings: Regression,
    seed: int = 0,
    workers: int = 2,
    progress: Progress = no_progress,
) -> float:
    """Let the first channels of a network's `layer1` learn the output of the network that it grew from, in place.

    Every position of every view is an example (FitNets, Romero et al. 2015, https://arxiv.org/abs/1412.6550). Norms
    keep their statistics.

    Args:
        source: The smaller network.
        grown: What `vt_hub.loading.growing.grow` made of it.
        data: Images without labels.
        unreadable: File for the names of images that cannot be read.
        settings: Number and size of the views.
        seed: Random seed of the views.
        workers: Processes that read images.
        progress: Wraps the steps to show progress.

    Returns:
        The share of the variance of the source's output that is left over, in the last steps.
    """
    device = find_device()
    for net in (source, grown):
        net.eval().to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(grown.layer1, 'adamw', settings.lr, weight_decay=0.0, fused=True)
    schedule = cosine(optimizer, settings.steps, settings.steps // 10)
    loader = view_loader(settings, data, unreadable, seed, workers)
    mean, std = constants(source, device)
    left = []
    for step, views in enumerate(progress(loader, settings.steps, 'Teaching layer1')):
        schedule.step_update(step)
        images = (views.to(device).float() / 255 - mean) / std
        with autocast(device):
            with torch.no_grad():
                stem, wanted = source.forward_levels(images, 1)
            found = grown.layer1(grown.maxpool(stem))[:, : wanted.shape[1]]
        loss = F.mse_loss(found.float(), wanted.float()) / wanted.float().var(dim=(0, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        left.append(loss.item())
    return sum(left[-AVERAGED:]) / len(left[-AVERAGED:])
