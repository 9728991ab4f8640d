"""The command `vt-hub`."""

import atexit
import codecs
import gc
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from . import inference, paper, publishing, training

MENU: dict[str, tuple[Callable[..., None], ...]] = {  # panels of the help, and the functions that are commands
    'Use models': (
        inference.list_,
        inference.info,
        inference.predict,
        inference.segment,
        inference.explain,
        inference.demo,
    ),
    'Train': (training.distill, training.pretrain, training.timm_, training.plot),
    'Measure': (training.evaluate, paper.benchmark, paper.tables),
    'Publish': (
        publishing.export,
        publishing.convert,
        publishing.verify,
        publishing.card,
        publishing.push,
        publishing.pull,
    ),
}
GROUPS: dict[str, tuple[str, tuple[Callable[..., None], ...]]] = {  # commands of two words, in the panel Train
    'train': ('Train a model, and export it.', (training.classifier, training.segmenter)),
    'synthesize': ('Draw data by formula.', (training.shapes, training.scenes)),
}
OTHERS = {'allow_extra_args': True, 'ignore_unknown_options': True}  # of timm's scripts and of recipes
TAKE_OTHERS = (training.classifier, training.segmenter, training.timm_)
SAID = (FloatingPointError, LookupError, ModuleNotFoundError, OSError, ValueError)  # raised with a sentence


def print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(__version__)
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option('--version', help='Print the version.', callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Visual Transformers: use, train, measure and publish the models."""


def add(app: typer.Typer, functions: Iterable[Callable[..., None]], panel: str | None = None) -> None:
    for function in functions:
        settings = OTHERS if function in TAKE_OTHERS else None
        command = app.command(
            function.__name__.rstrip('_'), help=unwrapped(function), rich_help_panel=panel, context_settings=settings
        )
        command(function)


def unwrapped(function: Callable[..., None]) -> str:
    """A docstring without line breaks in its paragraphs; the terminal has a width of its own."""
    paragraphs = inspect.cleandoc(function.__doc__ or '').split('\n\n')
    return '\n\n'.join(paragraph.replace('\n', ' ') for paragraph in paragraphs)


def build_app() -> typer.Typer:
    """The application of the menu."""
    app = typer.Typer(name='vt-hub', no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(options)
    for panel, functions in MENU.items():
        add(app, functions, panel)
    for name, (text, functions) in GROUPS.items():
        group = typer.Typer(help=text, no_args_is_help=True)
        add(group, functions)
        app.add_typer(group, name=name, rich_help_panel='Train')
    return app


app = build_app()


def as_is_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the bytes of a name that is not Unicode, and escape characters that the output's encoding lacks."""
    try:
        return codecs.lookup_error('surrogateescape')(error)  # the bytes that the name has on the disk
    except UnicodeError:
        return codecs.lookup_error('backslashreplace')(error)


def main() -> None:
    """Run the command: errors are one sentence on stderr and exit code 1, with a traceback if VT_HUB_DEBUG=1."""
    gc.set_threshold(500_000)  # importing torch and timm makes many objects and no garbage; see benchmarks/startup.py
    atexit.register(gc.freeze)  # nor does garbage matter at the end
    if not sys.stderr.isatty():
        os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')  # transformers asks the Hub client, too
    codecs.register_error('as_is_or_escaped', as_is_or_escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='as_is_or_escaped')
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe has gone; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get('VT_HUB_DEBUG') == '1':
            raise
        sentence = str(error)
        if isinstance(error, OSError) and error.filename is not None:  # Python's own
            sentence = f'Cannot use {error.filename}: {error.strerror}.'
        elif not isinstance(error, SAID) or isinstance(error, (IndexError, KeyError)):
            text = ': '.join(filter(None, (type(error).__name__, sentence.rstrip('.'))))
            sentence = f'{text}. VT_HUB_DEBUG=1 shows where.'
        print(f'error: {sentence}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
