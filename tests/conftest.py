import os

os.environ['HF_HUB_OFFLINE'] = '1'  # before anything imports huggingface_hub

from pathlib import Path

import pytest

import vt_hub  # noqa: F401  registers the models

ROOT = Path(__file__).parent.parent


@pytest.fixture
def samples() -> Path:
    """The folder of held-out digits that comes with the repository."""
    return ROOT / 'samples'
