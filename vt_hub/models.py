"""The models of this package: their names, how to load one from anywhere, what to say of it."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard

from .checkpoints import load_folder
from .predict import label_names
from .weights import PRETRAINED, fetch, list_pretrained, pretrained_folder, resolve_name

__all__ = ['describe', 'describe_pretrained', 'list_models', 'load_model']


def list_models() -> list[str]:
    """Names of all architectures of this package."""
    return timm.list_models(module='vt_resnet')


def load_model(source: str, pretrained: bool = True) -> torch.nn.Module:
    """Load a model in evaluation mode.

    Args:
        source: An architecture (`vt_resnet10`), published weights (`vt_resnet10.digits`), a model folder, or a
            repository on the Hub (`hf-hub:ID`).
        pretrained: Load weights; without, those of an architecture are random.

    Raises:
        LookupError: No such model, or no weights for it.
        ValueError: The folder's configuration or weights are damaged.
    """
    if source.startswith('hf-hub:'):
        return load_folder(fetch(source.removeprefix('hf-hub:')))
    if Path(source).is_dir():
        return load_folder(source)
    names = list_models()
    if source.split('.')[0] not in names:
        near = difflib.get_close_matches(source, [*names, *list_pretrained()], n=3, cutoff=0.4) or names
        raise LookupError(f'There is no model {source!r}; did you mean {" or ".join(near)}?')
    return timm.create_model(resolve_name(source) if pretrained else source, pretrained=pretrained).eval()


def describe_pretrained(name: str) -> dict[str, Any]:
    """Size in bytes, licence, sha256 and measured metrics of published weights, from their folder."""
    name = resolve_name(name)
    folder = pretrained_folder(name)
    card = ModelCard.load(folder / 'README.md').data
    return {
        'name': name,
        'folder': str(folder),
        'size': (folder / 'model.safetensors').stat().st_size,
        'license': card.license,
        'sha256': PRETRAINED[name],
        'metrics': [
            {'name': result.metric_name, 'value': result.metric_value, 'dataset': result.dataset_name}
            for result in card.eval_results or []
        ],
    }


def describe(source: str) -> dict[str, Any]:
    """What `vt-hub info` prints of a model; see `load_model` for the argument. Without weights the structure."""
    published = [name for name in list_pretrained() if source in (name, name.split('.')[0])]
    pretrained = bool(published) or source not in list_models()
    model = load_model(source, pretrained=pretrained)
    cfg, data = model.pretrained_cfg, timm.data.resolve_model_data_config(model)
    with torch.inference_mode():
        tokens = model.forward_features(torch.zeros(1, *data['input_size']))
    entry = {
        'model': cfg['architecture'],
        'params_m': round(sum(p.numel() for p in model.parameters()) / 1e6, 3),
        'tokens': list(tokens.shape[1:]),
        'input_size': list(data['input_size']),
        'interpolation': data['interpolation'],
        'crop_pct': data['crop_pct'],
        'mean': list(data['mean']),
        'std': list(data['std']),
        'num_classes': model.num_classes,
        'license': cfg.get('license'),
        'paper': cfg.get('paper_name'),
        'pretrained': pretrained,
    }
    if cfg.get('label_names'):
        entry['labels'] = label_names(model)
    if published:
        entry['weights'] = describe_pretrained(published[0])
    return entry
