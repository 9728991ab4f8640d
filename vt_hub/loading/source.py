"""The models of this package: their names, how to load one from anywhere, what to say of it."""

import difflib
from pathlib import Path

import timm
import torch

from ..files import read_json
from ..network.vt_fpn import ARCHITECTURES as VT_FPN_ARCHITECTURES
from .checkpoints import load_folder
from .download import fetch
from .published import list_pretrained, pretrained_folder, resolve_name

__all__ = ['find_folder', 'is_ours', 'list_models', 'load_model', 'task_of']


def list_models() -> list[str]:
    """Names of all architectures of this package."""
    return timm.list_models(module='vt_resnet') + timm.list_models(module='vt_fpn')


def task_of(name: str) -> str:
    """What an architecture does, as the Hub names it: 'image-classification' or 'image-segmentation'."""
    return 'image-segmentation' if name in VT_FPN_ARCHITECTURES else 'image-classification'


def architecture_of(name: str) -> str:
    """The architecture of a name that timm takes: `arch`, `arch.tag` or `local-dir:` of a folder."""
    if name.startswith('local-dir:'):
        return read_json(Path(name.removeprefix('local-dir:')) / 'config.json').get('architecture', '')
    return name.split('.')[0]


def is_ours(name: str) -> bool:
    """Whether a name that timm takes is of this package's models; see `architecture_of`."""
    return architecture_of(name) in list_models()


def is_folder(source: str) -> bool:
    """Whether a model's source is a folder, here or on the Hub, and no name of ours.

    A folder that is called like a model of ours is one only if it holds a model.
    """
    if source.startswith('hf-hub:') or Path(source, 'config.json').is_file():
        return True
    return Path(source).is_dir() and source not in {*list_models(), *list_pretrained()}


def check_name(source: str):
    """Raise LookupError, with the nearest names, where a source that is no folder is no model of ours either."""
    names = list_models()
    if source.split('.')[0] not in names:
        near = difflib.get_close_matches(source, [*names, *list_pretrained()], n=3, cutoff=0.4)
        hint = f'did you mean {" or ".join(near)}?' if near else '`vt-hub list` names the models.'
        raise LookupError(f'There is no model or folder {source!r}; {hint}')


def find_folder(source: str | Path) -> Path:
    """The local folder of published weights (`vt_resnet10.digits`), of a path, or of `hf-hub:ID`, checked.

    Raises:
        LookupError: There is no such folder, and nothing is published under that name.
        OSError: It is damaged, or cannot be had.
    """
    source = str(source)
    if source.startswith('hf-hub:'):
        return fetch(source.removeprefix('hf-hub:'))
    if is_folder(source):
        return Path(source)
    try:
        name = resolve_name(source)
    except LookupError as error:
        there = ', '.join(list_pretrained())
        raise LookupError(f'There is no folder {source}, and no weights of that name; there are {there}.') from error
    return pretrained_folder(name)


def load_model(source: str | Path, pretrained: bool = True) -> torch.nn.Module:
    """Load a model in evaluation mode.

    Args:
        source: An architecture (`vt_resnet10`), published weights (`vt_resnet10.digits`), a model folder, or a
            repository on the Hub (`hf-hub:ID`).
        pretrained: Load weights; without, those of an architecture are random.

    Raises:
        LookupError: No such model, or no weights for it.
        ValueError: The folder's configuration or weights are damaged.
    """
    source = str(source)
    if is_folder(source):
        return load_folder(find_folder(source))
    check_name(source)
    return timm.create_model(resolve_name(source) if pretrained else source, pretrained=pretrained).eval()
