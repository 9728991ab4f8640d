"""The command `vt-hub`."""

import codecs
import os
import sys

from . import inference, paper, training, publishing  # isort: skip  # noqa: F401  they add themselves, in this order
from .common import app

SAID = (FloatingPointError, LookupError, ModuleNotFoundError, OSError, ValueError)  # raised with a sentence


def as_is_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """How names are written that need not be Unicode, and need not be in the output's encoding."""
    try:
        return codecs.lookup_error('surrogateescape')(error)  # the bytes that the name has on the disk
    except UnicodeError:
        return codecs.lookup_error('backslashreplace')(error)


def main():
    """Run the command: errors are one sentence on stderr and exit code 1, with a traceback if VT_HUB_DEBUG=1."""
    if not sys.stderr.isatty():
        os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')  # transformers asks the Hub client, too
    codecs.register_error('as_is_or_escaped', as_is_or_escaped)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='as_is_or_escaped')
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe has gone; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get('VT_HUB_DEBUG') == '1':
            raise
        if isinstance(error, OSError) and error.filename is not None:  # Python's own
            error = f'Cannot use {error.filename}: {error.strerror}.'
        elif not isinstance(error, SAID) or isinstance(error, (IndexError, KeyError)):
            text = ': '.join(filter(None, (type(error).__name__, str(error).rstrip('.'))))
            error = f'{text}. VT_HUB_DEBUG=1 shows where.'
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
