"""The meaning of a classifier's scores, as in transformers' pipeline. All code takes it from here."""

import torch

__all__ = ['meaning_of', 'scores_of', 'shown']


def meaning_of(model: torch.nn.Module) -> str:
    """'probability' of one class among all, 'presence' of each class by itself, or 'value', a number for regression.

    It depends on the model's `problem_type`, from its folder's `config.json`. A model with one output gives a presence.
    """
    problem = getattr(model, 'problem_type', None)
    if problem == 'regression':
        return 'value'
    return 'presence' if problem == 'multi_label_classification' or model.num_classes == 1 else 'probability'


def scores_of(model: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Scores (..., num_classes) of a model's logits: their softmax, their sigmoid, or the logits themselves."""
    logits = logits.float()
    meaning = meaning_of(model)
    if meaning == 'value':
        return logits
    return logits.sigmoid() if meaning == 'presence' else logits.softmax(dim=-1)


def shown(model: torch.nn.Module, score: float) -> str:
    """A score as text for people."""
    return f'{score:.4g}' if meaning_of(model) == 'value' else f'{100 * score:.1f} %'
