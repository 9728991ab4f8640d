"""Facts about a model: its size, preprocessing and classes, and the measured metrics of its weights."""

from typing import Any

import timm
import torch
from huggingface_hub import ModelCard

from ..files import read_json
from ..inference.scores import knowledge, knowledge_of, label_names
from ..network.vt_fpn import Network, VTDecoder, is_segmenter, task_of
from ..network.vt_stage import VTClassifier
from .published import PRETRAINED, pretrained_folder, resolve_name
from .source import Source, list_models, load_model

__all__ = ['describe', 'describe_pretrained']


def describe_pretrained(name: str) -> dict[str, Any]:
    """What published weights know, their size in bytes, licence, sha256 and measured metrics, from their folder."""
    name = resolve_name(name)
    folder = pretrained_folder(name)
    card = ModelCard.load(folder / 'README.md').data
    labels = list(read_json(folder / 'config.json')['id2label'].values())
    return {
        'name': name,
        'knows': knowledge(labels, is_segmenter(name.split('.')[0])),
        'folder': str(folder),
        'size': (folder / 'model.safetensors').stat().st_size,
        'license': card.license,
        'sha256': PRETRAINED[name],
        'metrics': [
            {
                'name': result.metric_name,
                'value': result.metric_value,
                'dataset': result.dataset_name,
                'split': result.dataset_split,
            }
            for result in card.eval_results or []
        ],
    }


@torch.inference_mode()
def token_shape(model: Network, input_size: tuple[int, int, int]) -> list[int] | None:
    """Number and width of a model's visual tokens; None for the panoptic FPN, which has none."""
    images = torch.zeros(1, *input_size)
    if isinstance(model, VTClassifier):
        return list(model.forward_features(images).shape[1:])
    if not isinstance(model.decoder, VTDecoder):
        return None
    _, tokens, _ = model.decoder.forward_tokens(model.forward_features(images))
    return list(tokens.shape[1:])


def describe(source: str) -> dict[str, Any]:
    """What `vt-hub info` prints about a model; see `load_model` for the argument."""
    published = Source.parse(source).published
    pretrained = published is not None or source not in list_models()
    model = load_model(source, pretrained=pretrained)
    cfg, data = model.pretrained_cfg, timm.data.resolve_model_data_config(model)
    entry = {
        'model': cfg['architecture'],
        'task': task_of(model),
        'knows': knowledge_of(model) if pretrained else None,
        'params_m': round(sum(p.numel() for p in model.parameters()) / 1e6, 3),
        'tokens': token_shape(model, data['input_size']),
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
        entry['weights'] = describe_pretrained(published)
    return entry
