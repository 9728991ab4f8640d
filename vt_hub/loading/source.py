"""The models of this package: their names, where one comes from, and how to load it."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm

from ..files import read_json
from ..network.vt_fpn import Network
from .checkpoints import create_network, load_folder
from .download import fetch
from .published import list_pretrained, pretrained_folder, resolve_name

__all__ = ['Source', 'list_models', 'load_model']


def list_models() -> list[str]:
    """Names of all architectures of this package."""
    return [name for module in ('vt_resnet', 'vt_net', 'vt_fpn') for name in timm.list_models(module=module)]


@dataclass(frozen=True)
class Source:
    """Where a model comes from, read once from what a user wrote; see `parse`.

    Args:
        text: What was written.
        kind: 'model' for a name of this package (`vt_resnet10`, `vt_resnet10.digits`), 'folder' for a model folder,
            'hub' for a folder on the Hub (`hf-hub:ID`), 'other' for the rest, such as a model of timm's own.
        path: A folder's.
        repo: ID on the Hub.
    """

    text: str
    kind: Literal['model', 'folder', 'hub', 'other']
    path: Path = Path()
    repo: str = ''

    @classmethod
    def parse(cls, text: str | Path) -> 'Source':
        """A folder is given by its path, or as timm does by `local-dir:PATH`.

        A folder that is called like a model of this package counts as one only if it holds a model.
        """
        text = str(text)
        if text.startswith('hf-hub:'):
            return cls(text, 'hub', repo=text.removeprefix('hf-hub:'))
        path = Path(text.removeprefix('local-dir:'))
        there = path.is_dir() and text not in {*list_models(), *list_pretrained()}
        if there or text.startswith('local-dir:') or (path / 'config.json').is_file():
            return cls(text, 'folder', path=path)
        return cls(text, 'model' if text.split('.')[0] in list_models() else 'other')

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, here or on the Hub."""
        return self.kind in ('folder', 'hub')

    @property
    def published(self) -> str | None:
        """The name of published weights, `arch.tag`, if it is one or an architecture that has some."""
        try:
            return None if self.is_folder else resolve_name(self.text)
        except LookupError:
            return None

    @property
    def architecture(self) -> str:
        """The architecture, which a folder's config.json names."""
        if self.is_folder:
            return read_json(self.folder() / 'config.json').get('architecture', '')
        return self.text.split('.')[0]

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this package's models."""
        return self.architecture in list_models()

    @property
    def timm_name(self) -> str:
        """What `timm.create_model` takes for it."""
        return f'local-dir:{self.folder()}' if self.is_folder else self.text

    def folder(self) -> Path:
        """The local folder: its path, or that of published weights or of a repository on the Hub, checked.

        Raises:
            LookupError: There is no such folder, and no weights of that name are published.
            OSError: It is damaged, or cannot be downloaded.
        """
        if self.kind == 'folder':
            return self.path
        if self.kind == 'hub':
            return fetch(self.repo)
        if not (name := self.published):
            there = ', '.join(list_pretrained())
            raise LookupError(f'There is no folder {self.text}, and no weights of that name; there are {there}.')
        return pretrained_folder(name)


def check_name(source: Source) -> None:
    """Raise LookupError, with the nearest names, if the source is not a model of this package."""
    if source.kind != 'model':
        near = difflib.get_close_matches(source.text, [*list_models(), *list_pretrained()], n=3, cutoff=0.4)
        hint = f'did you mean {" or ".join(near)}?' if near else '`vt-hub list` names the models.'
        raise LookupError(f'There is no model or folder {source.text!r}; {hint}')


def load_model(source: str | Path, pretrained: bool = True) -> Network:
    """Load a model in evaluation mode.

    Args:
        source: An architecture (`vt_resnet10`), published weights (`vt_resnet10.digits`), a model folder, or a
            repository on the Hub (`hf-hub:ID`).
        pretrained: Load weights; if False, those of an architecture are random.

    Raises:
        LookupError: No such model, or no weights for it.
        ValueError: The folder's configuration or weights are damaged.
    """
    parsed = Source.parse(source)
    if parsed.is_folder:
        return load_folder(parsed.folder())
    check_name(parsed)
    return create_network(resolve_name(parsed.text) if pretrained else parsed.text, pretrained=pretrained).eval()
