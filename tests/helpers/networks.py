"""Networks for the tests of exports: every architecture, with values that leave no branch at zero."""

from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
from torch.optim.swa_utils import update_bn

from vt_hub.loading.source import list_models
from vt_hub.network.vt_fpn import task_of


def build(name: str, **kwargs: Any) -> nn.Module:
    """A network whose normalisations do something, and whose values stay as small as in a trained one.

    New normalisations are identities, and zeros at the end of a residual branch. There they stay small: a deep random
    network with branches at full strength enlarges the rounding of its first layers, in torch as in onnxruntime.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, *((0.5, 1.5) if module.weight.any() else (0.1, 0.3)))
            nn.init.normal_(module.bias, std=0.1)
    colours, contrasts = torch.randn(8, model.in_chans, 1, 1), torch.rand(8, 1, 1, 1)
    update_bn([colours + contrasts * torch.randn(8, model.in_chans, 96, 96)], model)  # images differ as in a data set
    return model.eval()


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
