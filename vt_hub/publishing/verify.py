"""`vt-hub verify`: load a model folder in every way there is, and compare."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from ..checkpoints import load_folder, read_json
from ..weights import check_folder, fetch, read_checksums
from .folder import with_code

__all__ = ['Check', 'verify']

TOLERANCE = 1e-4  # of the largest logit: another processor rounds differently

# run where `import vt_hub` fails, as on a machine without the package
REMOTE_CODE = """
import sys
sys.modules['vt_hub'] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification
folder, inputs, outputs = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith('transformers_modules.'), type(model).__module__
with torch.inference_mode():
    save_file({'logits': model(load_file(inputs)['pixel_values'].float()).logits}, outputs)
"""
TORCH_HUB = """
import sys
sys.modules['vt_hub'] = None
import torch
from safetensors.torch import load_file, save_file
folder, inputs, outputs = sys.argv[1:]
model = torch.hub.load(folder, 'model', source='local').eval()
with torch.inference_mode():
    save_file({'logits': model(load_file(inputs)['pixel_values'].float())}, outputs)
"""


@dataclass
class Check:
    """One line of the report: what was checked, whether it held, and what was found."""

    name: str
    passed: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(source: str | Path) -> list[Check]:
    """Check a model folder: sums, card, fixture, and that every loader computes the same logits.

    Args:
        source: A folder, or `hf-hub:ID` for one on the Hub.

    Returns:
        The checks in order; a check that cannot be made because an earlier one failed is left out.

    Raises:
        OSError: The folder does not exist or cannot be downloaded.
    """
    source = str(source)
    folder = fetch(source.removeprefix('hf-hub:')) if source.startswith('hf-hub:') else Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {folder}.')
    checks: list[Check] = []

    def check(name: str, function: Callable[[], str]) -> bool:
        try:
            checks.append(Check(name, True, function()))
        except Exception as error:  # whatever a loader raises is the finding
            checks.append(Check(name, False, str(error).strip().splitlines()[-1] if str(error) else repr(error)))
        return checks[-1].passed

    found: dict[str, torch.Tensor] = {}

    def timm_loads() -> str:
        stored = load_file(folder / 'fixture.safetensors')
        with torch.inference_mode():
            found['logits'] = load_folder(folder)(stored['pixel_values'].float())
        return f'{found["logits"].shape[1]} classes'

    def fixture_fits() -> str:
        stored = load_file(folder / 'fixture.safetensors')['logits']
        difference = (stored - found['logits']).abs().max().item()
        if difference > TOLERANCE * stored.abs().max().item():
            raise ValueError(f'the logits differ from the stored ones by {difference:.2e}')
        return f'within {difference:.1e} of the stored logits'

    check('checksums', lambda: _checksums(folder))
    check('card', lambda: _card(folder))
    if not check('timm local-dir', timm_loads):
        return checks
    check('fixture', fixture_fits)
    with _no_progress_bars():
        check('transformers', lambda: _compare(found['logits'], _transformers(folder)))
        check('pipeline', lambda: _pipeline(folder))
    with tempfile.TemporaryDirectory() as tmp:
        copy = with_code(folder, Path(tmp) / folder.name)
        check('remote code', lambda: _compare(found['logits'], _subprocess(REMOTE_CODE, copy)))
        check('torch.hub', lambda: _compare(found['logits'], _subprocess(TORCH_HUB, copy)))
    return checks


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """The report is what is to be read, not how transformers reads a few files."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _checksums(folder: Path) -> str:
    check_folder(folder)
    return f'{len(read_checksums(folder))} files as listed'


def _card(folder: Path) -> str:
    card = ModelCard.load(folder / 'README.md')
    license = read_json(folder / 'config.json').get('pretrained_cfg', {}).get('license')
    if not card.data.license or card.data.license != license:
        raise ValueError(f'the card says licence {card.data.license}, config.json says {license}')
    return f'licence {license}, {len(card.data.eval_results or [])} metrics'


def _compare(expected: torch.Tensor, actual: torch.Tensor) -> str:
    difference = (expected - actual).abs().max().item()
    if difference:
        raise ValueError(f'the logits differ from those through timm by {difference:.2e}')
    return 'equal to timm'


def _transformers(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(load_file(folder / 'fixture.safetensors')['pixel_values'].float()).logits


def _pipeline(folder: Path) -> str:
    """The pipeline's labels and scores for an image against those through timm's own transform."""
    import timm
    from transformers import pipeline

    from ..predict import label_names

    noise = np.random.default_rng(0).integers(0, 256, (123, 157, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    model = load_folder(folder)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    if model.in_chans == 1:
        image = image.convert('L')
    with torch.inference_mode():
        scores = model(transform(image)[None]).softmax(-1)[0]
    classify = pipeline('image-classification', model=str(folder))
    best = classify(image, top_k=1)[0]
    label = label_names(model)[int(scores.argmax())]
    if best['label'] != label or abs(best['score'] - scores.max().item()) > 1e-6:
        raise ValueError(f'it says {best["label"]} ({best["score"]:.6f}), timm {label} ({scores.max().item():.6f})')
    return 'same label and score as timm'


def _subprocess(code: str, folder: Path) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as tmp:
        outputs = Path(tmp) / 'outputs.safetensors'
        environment = os.environ | {
            'OMP_NUM_THREADS': str(torch.get_num_threads()),  # sums are rounded alike by as many threads only
            'HF_MODULES_CACHE': tmp,
            'HF_HUB_OFFLINE': '1',
        }
        command = [sys.executable, '-c', code, str(folder), str(folder / 'fixture.safetensors'), str(outputs)]
        result = subprocess.run(command, cwd=tmp, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(result.stderr)
        return load_file(outputs)['logits']
