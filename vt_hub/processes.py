"""Run in one process, or in several that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = ['processes']


@contextmanager
def processes(timeout: timedelta | None = None) -> Iterator[tuple[int, torch.device]]:
    """Join the processes that torchrun started, if any. Gives this process's rank and device.

    Args:
        timeout: How long processes wait for one another; default: torch's, some minutes.
    """
    cuda = torch.cuda.is_available()
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0))) if cuda else torch.device('cpu')
    if int(os.environ.get('WORLD_SIZE', 1)) == 1:
        yield 0, device
        return
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if cuda else 'gloo', timeout=timeout)
    try:
        yield dist.get_rank(), device
    finally:
        dist.destroy_process_group()
