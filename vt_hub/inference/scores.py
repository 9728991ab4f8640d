"""The meaning of a model's outputs: names of the classes, and scores as in transformers' pipeline."""

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from ..loading.checkpoints import TimmModel
from ..network.vt_fpn import Network

__all__ = ['class_names', 'label_names', 'meaning_of', 'scores_of', 'shown']


def label_names(model: Network) -> list[str]:
    """Class names from a model's pretrained configuration; the class numbers if it has no names."""
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        descriptions = model.pretrained_cfg.get('label_descriptions') or {}
        return [descriptions.get(name, name) for name in names]
    return [str(i) for i in range(model.num_classes)]


def class_names(model: TimmModel) -> list[str] | None:
    """Class names of any timm model: its own, or the first synonyms of ImageNet's; None if they are unknown."""
    if model.pretrained_cfg.get('label_names'):
        return label_names(model)
    subset = infer_imagenet_subset(model)
    if subset is None:
        return None
    return [name.split(', ')[0] for name in ImageNetInfo(subset).label_descriptions()]


def meaning_of(model: Network) -> str:
    """'probability' of one class among all, 'presence' of each class by itself, or 'value', a number for regression.

    It depends on the model's `problem_type`, from its folder's `config.json`. A model with one output gives a presence.
    """
    problem = getattr(model, 'problem_type', None)
    if problem == 'regression':
        return 'value'
    return 'presence' if problem == 'multi_label_classification' or model.num_classes == 1 else 'probability'


def scores_of(model: Network, logits: torch.Tensor) -> torch.Tensor:
    """Scores (..., num_classes) of a model's logits: their softmax, their sigmoid, or the logits themselves."""
    logits = logits.float()
    meaning = meaning_of(model)
    if meaning == 'value':
        return logits
    return logits.sigmoid() if meaning == 'presence' else logits.softmax(dim=-1)


def shown(model: Network, score: float) -> str:
    """A score as text for people."""
    return f'{score:.4g}' if meaning_of(model) == 'value' else f'{100 * score:.1f} %'
