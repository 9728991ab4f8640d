import os

os.environ['HF_HUB_OFFLINE'] = '1'  # before anything imports huggingface_hub
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # before anything imports torch

import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import vt_hub  # noqa: F401  registers the models
from vt_hub.cli import main as cli
from vt_hub.publishing import verification as checks

ROOT = Path(__file__).parent.parent
CATS = 'tabby', 'tiger cat', 'Persian cat', 'Siamese cat', 'Egyptian cat'  # of ImageNet's classes
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores both, with its children
if hasattr(signal, 'SIGHUP'):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def samples() -> Path:
    """The folder of held-out digits that comes with the repository."""
    return ROOT / 'samples'


@pytest.fixture
def quick(monkeypatch):
    """`verify` without the two loaders that need a process of their own; see test_publishing.py."""
    monkeypatch.setattr(checks, '_subprocess', lambda code, folder: load_file(folder / 'fixture.safetensors')['logits'])


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command; returns its exit code, stdout and stderr."""
    monkeypatch.delenv('VT_HUB_DEBUG', raising=False)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['vt-hub', *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run
