import os

os.environ['HF_HUB_OFFLINE'] = '1'  # before anything imports huggingface_hub

import sys
from pathlib import Path

import pytest

import vt_hub  # noqa: F401  registers the models
from vt_hub import cli

ROOT = Path(__file__).parent.parent


@pytest.fixture
def samples() -> Path:
    """The folder of held-out digits that comes with the repository."""
    return ROOT / 'samples'


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
