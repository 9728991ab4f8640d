"""A tiny VT-FPN whose classes lie side by side, and images that classes form areas in."""

import timm
import torch
import torch.nn.functional as F
from PIL import Image

from .pictures import picture

LABELS = ['sky', 'tree', 'road', 'car', 'dog']
CFG = {'input_size': (3, 64, 64), 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.25)}


@torch.no_grad()
def tiny(**kwargs):
    """Random weights under which every part of the network counts and classes lie side by side."""
    torch.manual_seed(0)
    model = timm.create_model('test_vt_fpn', **kwargs)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)  # those of the projectors are zero at first
        norm.bias.uniform_(-0.2, 0.2)
        norm.momentum = 1.0
    x = F.interpolate(torch.randn(4, model.in_chans, 8, 8), scale_factor=8, mode='bicubic')
    model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
    model.head.predictor.bias -= model(x).mean((0, 2, 3))
    return model


def image_of(width, height, mode='RGB'):
    """Blurred noise, so that classes form areas."""
    return picture(width // 8, height // 8, mode).resize((width, height), Image.Resampling.BICUBIC)
