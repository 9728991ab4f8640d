"""Trainings that can stop at any step and resume bit-identically: state, signals, time limit and log."""

import csv
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

from ..files import read_json, replaced_whole
from ..processes import rank_and_world
from ..reporting import Progress, machine, write_result

__all__ = ['ResumableRun', 'autocast', 'check_settings', 'cosine', 'start_or_resume', 'train', 'training_entry']

MIN_LR = 1e-5
SAVE_EVERY = 300  # seconds


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; without that, bfloat16 is slower than float32."""
    if device.type != 'cpu':
        return True
    known = torch.cpu.get_capabilities()
    return bool(known.get('avx512_bf16') or known.get('bf16'))


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision where it is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))


def cosine(optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int) -> CosineLRScheduler:
    """A schedule whose learning rate rises during warm-up, then falls along half a cosine."""
    return CosineLRScheduler(
        optimizer, steps - warmup_steps, lr_min=MIN_LR, warmup_t=warmup_steps, warmup_prefix=True, t_in_epochs=False
    )


def check_settings(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as in `recipe.json`. Raises ValueError if the run in the folder was started with others."""
    settings = json.loads(json.dumps(settings))
    known = read_json(output / 'recipe.json') if (output / 'recipe.json').exists() else {}
    for key, value in known.items():
        if settings.get(key) != value:
            raise ValueError(f'{output} was started with {key} = {value}, not {settings.get(key)}.')
    return settings


class ResumableRun:
    """The state of a training and its steps. Everything random depends only on (seed, step).

    A subclass sets `net`, `optimizer`, `ema`, `steps`, `batch_size` (images) and `log_every` (steps), and defines
    `train_step` and `figures`. `sums` holds its sums since the last line of the log.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3
    device: torch.device
    steps: int
    batch_size: int
    log_every: int
    sums: torch.Tensor | None = None
    step = 0
    seconds = 0.0

    def train_step(self) -> None:
        """One step of the optimizer; adds 1 to `step`."""
        raise NotImplementedError

    def figures(self) -> dict[str, float]:
        """The figures of the last steps for `summary.csv`."""
        raise NotImplementedError

    def check_finite(self) -> None:
        """Raise FloatingPointError if a weight is not finite."""
        if not all(weight.isfinite().all() for weight in self.net.parameters()):
            raise FloatingPointError(
                f'The weights are not finite by step {self.step}; start again in another folder with a lower lr.'
            )

    def save(self, path: Path) -> None:
        self.check_finite()
        state = {name: getattr(self, name).state_dict() for name in ('net', 'optimizer', 'ema')}
        with replaced_whole(path) as unfinished:
            torch.save({**state, 'sums': self.sums, 'step': self.step, 'seconds': self.seconds}, unfinished)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name in ('net', 'optimizer', 'ema'):
            getattr(self, name).load_state_dict(state[name])
        self.sums, self.step, self.seconds = state['sums'], state['step'], state['seconds']


def start_or_resume(run: ResumableRun, output: Path, settings: dict[str, Any]) -> None:
    """Write `recipe.json` of a new run, or load the state of a stopped one.

    Call it once the run is made, so that a run that cannot start leaves no files.
    """
    output.mkdir(parents=True, exist_ok=True)
    rank, _ = rank_and_world()
    if rank == 0 and not (output / 'recipe.json').exists():
        write_result(output / 'recipe.json', settings)
    if (output / 'state.pt').exists():
        run.load(output / 'state.pt')


def training_entry(run: ResumableRun, settings: dict[str, Any]) -> dict[str, Any]:
    """The entry `training` of a result file."""
    return {
        **settings,
        'num_images': run.steps * run.batch_size,
        'precision': 'bfloat16' if multiplies_bfloat16(run.device) else 'float32',
        'seconds': round(run.seconds),
        **machine(run.device),
    }


def train(run: ResumableRun, output: Path, minutes: float | None, progress: Progress, title: str) -> None:
    """Train until the end, the time limit or a signal. The state is then in `output`.

    Of several processes only the first writes, and all stop at the same step.
    """
    earlier, started = run.seconds, time.monotonic()
    saved, logged = started, (run.step, started)
    writes = rank_and_world()[0] == 0
    with told_to_stop() as told:
        for _ in progress(range(run.step, run.steps), run.steps - run.step, title):
            run.train_step()
            now = time.monotonic()
            run.seconds = earlier + now - started
            done = run.step == run.steps
            if run.step % run.log_every == 0 or done:
                run.check_finite()
                figures = run.figures()
                if writes:
                    rate = (run.step - logged[0]) * run.batch_size / (now - logged[1])
                    log(output / 'summary.csv', step=run.step, **figures, images_per_second=round(rate, 1))
                logged = run.step, time.monotonic()
            over = any_process(bool(told) or (minutes is not None and now - started > 60 * minutes), run.device)
            if writes and (over or done or now - saved > SAVE_EVERY):
                run.save(output / 'state.pt')
                saved = now
            if over:
                break


def any_process(value: bool, device: torch.device) -> bool:
    """Whether a value is true in any of the processes that train together."""
    if not dist.is_initialized():
        return value
    flag = torch.tensor(float(value), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag.item() > 0


def log(path: Path, step: int, **figures: float) -> None:
    """Append a line to a CSV file. Lines of later steps, left by a killed run, are removed."""
    rows: list[dict[str, str]] = []
    if path.exists():
        with open(path, newline='') as file:
            rows = [row for row in csv.DictReader(file) if int(row['step']) < step]
    with replaced_whole(path) as unfinished, open(unfinished, 'w', newline='') as file:
        writer = csv.DictWriter(file, ['step', *figures])
        writer.writeheader()
        writer.writerows([*rows, {'step': step, **figures}])


@contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """Give a list that is filled on SIGTERM or SIGINT, so that a run can end after its step."""
    told: list[int] = []
    handlers = {
        kind: signal.signal(kind, lambda kind, _: told.append(kind)) for kind in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield told
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
