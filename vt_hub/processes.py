"""Run in one process, or in several that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ['gather_lists', 'processes', 'rank_and_world', 'reduce_sum']


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


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and the number of processes that work together; (0, 1) for one alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def reduce_sum(values: torch.Tensor) -> None:
    """Add the values of all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)


def gather_lists(items: list[Any]) -> list[Any]:
    """The items of all processes, in the order of their ranks."""
    if not dist.is_initialized():
        return items
    lists: list[list[Any]] = [[]] * dist.get_world_size()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]
