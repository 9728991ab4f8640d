"""Make sure that Ctrl-C is not lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

__all__ = ['iterate']


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """Iterate over a loader. An interrupt while its workers start is raised after they have started."""
    with held_interrupts():
        batches = iter(loader)
    yield from batches


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Delay a KeyboardInterrupt until the end. Python would lose one that is raised while a process forks."""
    held: list[int] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if interrupts(number)]
    for number in numbers:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)
    if held:
        raise KeyboardInterrupt


def interrupts(number: signal.Signals) -> bool:
    """Whether a signal raises KeyboardInterrupt in this thread."""
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(number) is signal.default_int_handler
