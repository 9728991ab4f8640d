"""The meaning of a model's outputs: names of the classes, and scores as in transformers' pipeline."""

from collections.abc import Sequence
from functools import cache

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from ..loading.checkpoints import TimmModel
from ..network.vt_fpn import Network, is_segmenter

__all__ = [
    'SHOWN',
    'class_names',
    'knowledge',
    'knowledge_of',
    'label_names',
    'meaning',
    'meaning_of',
    'percent',
    'scores_of',
    'shown',
]

NAMED = 10  # classes that a sentence names
SHOWN = 0.0005  # score or share of the pixels from which a class is named to people; less would be 0.0 %


def label_names(model: Network) -> list[str]:
    """Class names from a model's pretrained configuration; the class numbers if it has no names.

    Weights whose tag ends with `in1k`, as timm calls them, have the names of ImageNet's 1,000 classes.
    """
    names = model.pretrained_cfg.get('label_names')
    if not names and str(model.pretrained_cfg.get('tag')).endswith('in1k'):
        names = imagenet_names()
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
    return imagenet_names(subset)


@cache
def imagenet_names(subset: str = 'imagenet-1k') -> list[str]:
    """The first synonym of each class of ImageNet."""
    return [name.split(', ')[0] for name in ImageNetInfo(subset).label_descriptions()]


def meaning(problem_type: str | None, num_outputs: int) -> str:
    """'probability' of one class among all, 'presence' of each class by itself, or 'value', a number for regression.

    Args:
        problem_type: As in a folder's `config.json`.
        num_outputs: Number of logits. A single one is a presence, unless it is a value.
    """
    if problem_type == 'regression':
        return 'value'
    return 'presence' if problem_type == 'multi_label_classification' or num_outputs == 1 else 'probability'


def meaning_of(model: Network) -> str:
    """`meaning` of a model's scores."""
    return meaning(getattr(model, 'problem_type', None), model.num_classes)


def knowledge(labels: Sequence[str], segments: bool, problem_type: str | None = None) -> str:
    """What a model with these classes answers for any image, in words; see `meaning` for the last argument."""
    some = ', '.join(labels[:NAMED]) + (f' and {len(labels) - NAMED} more' if len(labels) > NAMED else '')
    of_scores = 'probability' if segments else meaning(problem_type, len(labels))
    if of_scores == 'value':
        return f'gives {"a value" if len(labels) == 1 else f"{len(labels)} values"} for an image: {some}'
    if of_scores == 'presence':
        return f'says how likely it is that an image shows {"this class" if len(labels) == 1 else "each class"}: {some}'
    does = 'names every pixel' if segments else 'names an image'
    if list(labels) == imagenet_names():
        return f"{does} as one of ImageNet's 1,000 classes"
    return f'{does} as one of {len(labels)} classes, whatever it shows: {some}'


def knowledge_of(model: Network) -> str:
    """`knowledge` of a model."""
    return knowledge(label_names(model), is_segmenter(model), getattr(model, 'problem_type', None))


def scores_of(model: Network, logits: torch.Tensor) -> torch.Tensor:
    """Scores (..., num_classes) of a model's logits: their softmax, their sigmoid, or the logits themselves."""
    logits = logits.float()
    meaning = meaning_of(model)
    if meaning == 'value':
        return logits
    return logits.sigmoid() if meaning == 'presence' else logits.softmax(dim=-1)


def shown(model: Network, score: float) -> str:
    """A score as text for people."""
    return f'{score:.4g}' if meaning_of(model) == 'value' else percent(score)


def percent(share: float) -> str:
    return f'{100 * share:.1f} %'
