"""Networks for the tests of exports: every architecture, with values that leave no branch at zero."""

from typing import Any

import pytest
import timm
import torch
import torch.nn as nn

from vt_hub.models import list_models, task_of


def build(name: str, **kwargs: Any) -> nn.Module:
    """A network whose normalisations do something: new ones start as identities, and some as zeros."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)  # more would let values grow from block to block
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def architectures() -> list[tuple[str, dict[str, str]]]:
    """Name and arguments of every architecture, those of VT-FPN with both decoders."""
    decoders = {'image-segmentation': [{'decoder': 'vt'}, {'decoder': 'fpn'}], 'image-classification': [{}]}
    return [(name, kwargs) for name in list_models() for kwargs in decoders[task_of(name)]]


def every_architecture() -> list[Any]:
    """Parameters of a test; all but the tiny ones are marked as slow."""
    return [
        pytest.param(
            *(name, kwargs),
            id='-'.join([name, *kwargs.values()]),
            marks=() if name.startswith('test_') else pytest.mark.slow,
        )
        for name, kwargs in architectures()
    ]
