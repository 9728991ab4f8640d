"""Start one process, or several on one or more machines through torchrun."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ['Launch', 'run']

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@dataclass
class Launch:
    """Processes and machines, as options of torchrun."""

    nproc_per_node: int = 1
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = 'localhost'
    master_port: int = 29500

    @property
    def processes(self) -> int:
        return self.nproc_per_node * self.nnodes

    def command(self, *target: str) -> list[str]:
        """The command that starts a script, or `-m` and a module."""
        if self.processes == 1:
            return [sys.executable, *target]
        options = [f'--nproc-per-node={self.nproc_per_node}']
        if self.nnodes == 1:
            options.append('--standalone')
        else:
            options += [f'--nnodes={self.nnodes}', f'--node-rank={self.node_rank}']
            options += [f'--master-addr={self.master_addr}', f'--master-port={self.master_port}']
        return [sys.executable, '-m', 'torch.distributed.run', *options, *target]


def run(command: Sequence[str]) -> int:
    """Run a command to its end. Its output is shown, and the user's signals are forwarded to it.

    Returns:
        Its exit code, or 128 plus the number of the signal that ended it, even if the command then reports success.
    """
    # a new session: otherwise the terminal would send Ctrl-C to the command and its children a second time
    process = subprocess.Popen(command, start_new_session=True)
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        process.send_signal(number)

    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    handlers = {number: signal.signal(number, forward) for number in heeded}
    try:
        code = process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received and not code:
        return 128 + received[0]
    return code if code >= 0 else 128 - code
