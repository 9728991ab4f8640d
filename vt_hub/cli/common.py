"""What the commands share: tables, JSON, progress, signals."""

import json
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..network.vt_fpn import Network

__all__ = [
    'Json',
    'Precision',
    'print_json',
    'print_table',
    'print_wrapped',
    'progress',
    'report_failed',
    'say_what_it_knows',
    'sigterm_as_interrupt',
    'steps_shown',
]

Json = Annotated[bool, typer.Option('--json', help='Print JSON.')]
Precision = Annotated[
    Literal['auto', 'fp32', 'bf16', 'fp16'],
    typer.Option(help='bf16 and fp16 are mixed precision; auto is bf16 where the processor has it, else fp32.'),
]


def print_table(columns: list[str], rows: Iterable[Iterable[Any]], numbers: Iterable[str] = ()) -> None:
    """An aligned table; cut to the width of a terminal only, never in a pipe or file."""
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style='bold', show_header=any(columns))
    for column in columns:
        table.add_column(column, justify='right' if column in numbers else 'left', overflow='fold')
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def print_wrapped(text: str, indent: str = '', file: TextIO | None = None) -> None:
    """A paragraph on stdout or another stream; wrapped to the width of a terminal only."""
    file = file or sys.stdout
    width = shutil.get_terminal_size().columns if file.isatty() else 1000
    print(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent), file=file, flush=True)


def say_what_it_knows(name: str, model: 'Network', as_json: bool) -> None:
    """Say on stderr what a model can answer, since it gives such an answer for any image, and what it learned from."""
    from ..inference.scores import knowledge_of

    if not as_json:
        learned = model.pretrained_cfg.get('description') or ''  # published weights have one
        print_wrapped(f'{name} {knowledge_of(model)}. {learned}', file=sys.stderr)


@contextmanager
def steps_shown(doing: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr, if that is a terminal, that says which step runs. Yields what takes the name of each."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    with console.status(doing) as status:
        yield lambda name: status.update(f'{doing}: {name}')


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def progress(items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """A progress bar on stderr if that is a terminal. Lines printed meanwhile still go to stdout."""
    console = Console(stderr=True)
    columns = (TextColumn('{task.description}'), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    together = sys.stdout.isatty()  # then lines are put above the bar; a pipe or a file gets them as they are
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=together, disable=not console.is_terminal
    ) as bar:
        yield from bar.track(items, total=total, description=description)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within this context, SIGTERM acts like Ctrl-C."""
    terminate = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, terminate)


def report_failed(failed: list[str], total: int) -> None:
    """Name the images that failed, if any, and end with exit code 1."""
    if failed:
        print(f'{len(failed)} of {total} images failed:', *failed, sep='\n  ', file=sys.stderr)
        raise typer.Exit(1)
