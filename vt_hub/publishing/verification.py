"""`vt-hub verify`: load a model folder in every possible way, and compare the outputs."""

import filecmp
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
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from ..files import read_json
from ..inference.diversity import TokenDiversity, token_diversity, warning_of
from ..inference.preprocessing import eval_transform
from ..inference.scores import label_names, scores_of
from ..loading.checkpoints import load_folder
from ..loading.source import Source
from ..network.checksums import check_folder, read_checksums
from ..network.images import to_channels
from ..network.vt_fpn import Network, is_segmenter, task_of
from ..synthesis.shapes import scene
from .model_folder import code_files, with_code
from .onnx_file import ONNX_FILE, open_onnx

__all__ = ['Check', 'verify']

SCENES, SCENES_SEED = 8, 0  # scenes on which the tokens are compared
TOLERANCE = 1e-4  # relative to the largest logit: another processor rounds differently

# these run with `import vt_hub` blocked, as on a machine without the package
REMOTE_CODE = """
import sys
sys.modules['vt_hub'] = None
import torch
from safetensors.torch import load_file, save_file
import transformers
folder, inputs, outputs, auto_class = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith('transformers_modules.'), type(model).__module__
with torch.inference_mode():
    save_file({'logits': model(load_file(inputs)['pixel_values'].float()).logits.contiguous()}, outputs)
"""
TORCH_HUB = """
import sys
sys.modules['vt_hub'] = None
import torch
from safetensors.torch import load_file, save_file
folder, inputs, outputs, _ = sys.argv[1:]
model = torch.hub.load(folder, 'model', source='local').eval()
with torch.inference_mode():
    save_file({'logits': model(load_file(inputs)['pixel_values'].float()).contiguous()}, outputs)
"""


@dataclass
class Check:
    """One line of the report: the name of the check, whether it passed, details, and whether it is a warning."""

    name: str
    passed: bool
    detail: str
    warning: bool = False

    @property
    def verdict(self) -> str:
        return ('warning' if self.warning else 'ok') if self.passed else 'FAILED'

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    source: str | Path, trust_remote_code: bool = False, started: Callable[[str], None] = lambda name: None
) -> list[Check]:
    """Check a model folder: checksums, card, fixture, and that every loader computes the same logits.

    Args:
        source: A folder, published weights (`vt_resnet10.digits`), or `hf-hub:ID` for a folder on the Hub.
        trust_remote_code: Run the folder's own code even if it differs from that of this package version.
        started: Called with the name of each check as it starts.

    Returns:
        The checks in order. If the checksums or the first loader fail, the other checks do not run.

    Raises:
        LookupError: There is no such folder, and nothing is published under that name.
        OSError: The folder cannot be downloaded.
    """
    folder = Path(source) if Path(source).is_dir() else Source.parse(source).folder()
    checks: list[Check] = []

    def check(name: str, function: Callable[[], str]) -> bool:
        started(name)
        try:
            checks.append(Check(name, True, function()))
        except Exception as error:  # any error of a loader is a finding
            checks.append(Check(name, False, str(error).strip().splitlines()[-1] if str(error) else repr(error)))
        return checks[-1].passed

    found: dict[str, torch.Tensor] = {}
    modules: list[TokenDiversity] = []

    def timm_loads() -> str:
        pixels = _pixels(folder)
        with torch.inference_mode():
            found['logits'] = load_folder(folder)(pixels)
            _compare(found['logits'], timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(pixels))
        return f'{found["logits"].shape[1]} classes'

    if not check('checksums', lambda: _checksums(folder)):
        return checks
    check('card', lambda: _card(folder))
    if not check('timm local-dir', timm_loads):
        return checks
    check('fixture', lambda: _fixture(folder, found['logits']))
    if _pixels(folder).shape[1] in (1, 3):  # image files have 1 or 3 channels
        check('tokens', lambda: _tokens(folder, modules))
        checks[-1].warning = bool(warning_of(modules))
    if (folder / ONNX_FILE).is_file():
        check('onnx', lambda: _fixture(folder, open_onnx(folder / ONNX_FILE)(_pixels(folder))[0]))
    with _no_progress_bars():
        check('transformers', lambda: _compare(found['logits'], _transformers(folder)))
        if _pixels(folder).shape[1] in (1, 3):  # image files have 1 or 3 channels
            check('pipeline', lambda: _pipeline(folder))
    others: list[str] = []
    if check('code', lambda: _code(folder, trust_remote_code, others)):
        with tempfile.TemporaryDirectory() as tmp:
            copy = with_code(folder, Path(tmp) / folder.resolve().name)
            check('remote code', lambda: _compare(found['logits'], _subprocess(REMOTE_CODE, copy), not others))
            check('torch.hub', lambda: _compare(found['logits'], _subprocess(TORCH_HUB, copy), not others))
    return checks


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars, so that only the report is shown."""
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
    listed = read_checksums(folder).keys()
    there = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
    # files left by clones, the Hub's client and Python
    there = {name for name in there if not name.startswith(('.git', '.cache/', '__pycache__/'))}
    there -= {'README.md', 'SHA256SUMS'}
    for name in sorted(there - listed):
        raise ValueError(f'SHA256SUMS does not list {name}')
    for name in sorted({'config.json', 'model.safetensors', 'fixture.safetensors'} - listed):
        raise ValueError(f'the folder has no {name}')
    return f'{len(listed)} files as listed'


def _card(folder: Path) -> str:
    data = ModelCard.load(folder / 'README.md').data
    for key in ('license', 'library_name', 'pipeline_tag', 'tags', 'model_name'):
        if not getattr(data, key, None):
            raise ValueError(f'the card has no {key}')
    license = read_json(folder / 'config.json').get('pretrained_cfg', {}).get('license')
    if data.license != license:
        raise ValueError(f'the card says licence {data.license}, config.json says {license}')
    return f'licence {license}, {len(data.eval_results or [])} metrics'


def _pixels(folder: Path) -> torch.Tensor:
    return load_file(folder / 'fixture.safetensors')['pixel_values'].float()


def _fixture(folder: Path, logits: torch.Tensor) -> str:
    stored = load_file(folder / 'fixture.safetensors')['logits']
    if stored.shape != logits.shape:
        raise ValueError(f'the stored logits have the shape {list(stored.shape)}, not {list(logits.shape)}')
    difference = (stored - logits).abs().max().item()
    if not is_rounding(difference, stored):
        raise ValueError(f'the logits differ from the stored ones by {difference:.2e}')
    return f'within {difference:.1e} of the stored logits'


def is_rounding(difference: float, logits: torch.Tensor) -> bool:
    return difference <= TOLERANCE * logits.abs().max().item()  # False for NaN


def _tokens(folder: Path, found: list[TokenDiversity]) -> str:
    """Measure how much the visual tokens differ, as the paper intends. Adds the results to `found`."""
    model = load_folder(folder)
    transform = eval_transform(model)
    scenes = [Image.fromarray(scene(SCENES_SEED, i)[0]) for i in range(SCENES)]
    found += token_diversity(model, torch.stack([transform(to_channels(image, model.in_chans)) for image in scenes]))
    return warning_of(found) or '; '.join(map(str, found)) or 'none'


def _code(folder: Path, trusted: bool, others: list[str]) -> str:
    """Check that the code in the folder is this package's own: other code runs only if it is trusted.

    Adds the names of the files with other code to `others`.
    """
    files = code_files()
    others += sorted(path.name for path in folder.glob('*.py') if path.name not in files)
    others += [
        name for name in files if (folder / name).exists() and not filecmp.cmp(folder / name, files[name], False)
    ]
    if others and not trusted:
        raise ValueError(
            f'{others[0]} is not the code of this version of vt_hub; read it, then pass --trust-remote-code to run it'
        )
    return "not this package's, trusted" if others else "this package's own"


def _compare(expected: torch.Tensor, actual: torch.Tensor, exact: bool = True) -> str:
    """Compare logits with those through timm; other code may round differently."""
    if torch.equal(expected, actual):
        return 'equal to timm'
    difference = (expected - actual).abs().max().item() if expected.shape == actual.shape else float('nan')
    if exact or not is_rounding(difference, expected):
        raise ValueError(f'the logits differ from those through timm by {difference:.2e}')
    return f'within {difference:.1e} of timm'


def _auto_class(folder: Path) -> str:
    """transformers' Auto class for the task of the folder's model."""
    return next(name for name in read_json(folder / 'config.json')['auto_map'] if name.startswith('AutoModelFor'))


def _transformers(folder: Path) -> torch.Tensor:
    import transformers

    model = getattr(transformers, _auto_class(folder)).from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(_pixels(folder)).logits


def _pipeline(folder: Path) -> str:
    """Compare the pipeline's answer for an image with the logits from timm's own transform."""
    from transformers import pipeline

    model = load_folder(folder)
    image = Image.effect_noise((157, 123), 100).convert('L' if model.in_chans == 1 else 'RGB')
    with torch.inference_mode():
        logits = model(eval_transform(model)(image)[None])
    answer = pipeline(task_of(model), model=str(folder))
    return (_segments if is_segmenter(model) else _classifies)(model, image, logits, answer)


def _segments(model: Network, image: Image.Image, logits: torch.Tensor, answer: Callable[..., Any]) -> str:
    """Compare the pipeline's masks with the largest logit at every pixel."""
    logits = F.interpolate(logits, size=(image.height, image.width), mode='bilinear', align_corners=False)
    expected = logits[0].argmax(0)
    labels = label_names(model)
    results = answer(image)
    for result in results:
        mask = torch.from_numpy(np.array(result['mask'])) > 0
        classes = [i for i, label in enumerate(labels) if label == result['label']]  # names may repeat
        if not any(torch.equal(mask, expected == i) for i in classes):
            raise ValueError(f'its mask of {result["label"]} is not where the logit of that class is the largest')
    if len(results) != len(expected.unique()):
        raise ValueError(f'it gives {len(results)} masks, and {len(expected.unique())} classes have the largest logit')
    return f'{len(results)} masks match the logits'


def _classifies(model: Network, image: Image.Image, logits: torch.Tensor, answer: Callable[..., Any]) -> str:
    """Compare the pipeline's labels and scores with those of the logits."""
    expected = sorted(zip(label_names(model), scores_of(model, logits)[0].tolist(), strict=True))
    results = answer(image, top_k=model.num_classes)
    found = sorted((result['label'], result['score']) for result in results)
    for (label, score), (other, known) in zip(found, expected, strict=True):
        if label != other or abs(score - known) >= 1e-6:
            raise ValueError(f'it gives {label} {score:.6f}, timm {other} {known:.6f}')
    return f'{len(results)} labels and scores equal to timm'


def _subprocess(code: str, folder: Path) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as tmp:
        outputs = Path(tmp) / 'outputs.safetensors'
        secrets = ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN')
        environment = {key: value for key, value in os.environ.items() if key not in secrets} | {
            'OMP_NUM_THREADS': str(torch.get_num_threads()),  # rounding depends on the number of threads
            'HF_MODULES_CACHE': tmp,
            'HF_HUB_OFFLINE': '1',
        }
        files = folder, folder / 'fixture.safetensors', outputs
        command = [sys.executable, '-c', code, *map(str, files), _auto_class(folder)]
        result = subprocess.run(command, cwd=tmp, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(result.stderr)
        return load_file(outputs)['logits']
