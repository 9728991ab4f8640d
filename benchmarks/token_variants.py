"""Arithmetics of tokens that were compared with the two of the package; `python benchmarks/tokens.py` trains them.

Each one changes a new network in place: one with the paper's arithmetic, or one with the package's default.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import LayerScale
from torch.nn.utils import parametrize

from vt_hub.network.vt_layers import (
    DistinctTokenizer,
    FilterTokenizer,
    Projector,
    RecurrentTokenizer,
    TransformerMixer,
    pixels,
)

Part = tuple[nn.Module, str, nn.Module]


def parts(model: nn.Module, *kinds: type[nn.Module]) -> Iterator[Part]:
    """Modules of some kinds, each with the module that holds it and its name there."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kinds):
                yield parent, name, child


def unit(model: nn.Module):
    """Equation 1 as printed, with logits of unit variance at the start."""
    for _, _, tokenizer in parts(model, FilterTokenizer):
        nn.init.normal_(tokenizer.filters.weight)
    for _, _, tokenizer in parts(model, RecurrentTokenizer):
        nn.init.normal_(tokenizer.token_to_filter.weight, std=tokenizer.token_to_filter.in_features**-0.5)


class Sigma(nn.Module):
    """W = gain * W / sigma(W), with a learned gain that starts at sigma(W)."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.gain = nn.Parameter(torch.linalg.matrix_norm(weight.detach(), 2))
        self.register_buffer('u', F.normalize(torch.randn(len(weight)), dim=0))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            v = F.normalize(weight.t() @ self.u, dim=0)
            if self.training:  # one step of the power method
                self.u.copy_(F.normalize(weight @ v, dim=0))
        return self.gain * weight / (self.u @ weight @ v)


def sigma(model: nn.Module):
    """`unit` with sigma-reparametrised layers of logits (Zhai et al. 2023, https://arxiv.org/abs/2303.06296)."""
    unit(model)
    for _, _, part in parts(model, FilterTokenizer, RecurrentTokenizer, TransformerMixer, Projector):
        for name in ('filters', 'token_to_filter', 'k', 'q', 'key', 'query'):
            if hasattr(part, name):
                layer = getattr(part, name)
                parametrize.register_parametrization(layer, 'weight', Sigma(layer.weight))


class Bounded(DistinctTokenizer):
    """A = softmax_P(s X W^T / rms(X)) with a learned s of at least 1, which bounds the logits of all tokens alike."""

    def forward(self, x: torch.Tensor, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        X, W = pixels(x), F.normalize(self.filters, dim=1)
        if self.token_to_filter is not None and tokens is not None:
            W = W + F.normalize(self.token_to_filter(tokens), dim=2, eps=1.0) / 2
        lengths = torch.linalg.vector_norm(X, dim=2, keepdim=True)
        rms = (lengths.square().mean(dim=1, keepdim=True) / X.shape[2]).clamp(min=1e-6).sqrt()
        s = 1 + self.sharpness.abs()
        A = (X @ W.transpose(-2, -1) * (s / rms)).softmax(dim=1)
        return self.proj(A.transpose(1, 2) @ X), A.transpose(1, 2)


def bounded(model: nn.Module):
    """The default with one learned sharpness for all tokens of a module in place of logits of unit deviation."""
    for _, _, tokenizer in parts(model, DistinctTokenizer):
        tokenizer.__class__ = Bounded
        tokenizer.sharpness = nn.Parameter(torch.full((1,), 0.1))


def ungated(model: nn.Module):
    """The default without the gates of the mixer."""
    for parent, name, _ in parts(model, LayerScale):
        setattr(parent, name, nn.Identity())


VARIANTS: dict[str, Callable[[nn.Module], None] | None] = {
    'paper': None,
    'distinct': None,
    'unit': unit,
    'sigma': sigma,
    'bounded': bounded,
    'ungated': ungated,
}
OF_THE_PAPER = ('paper', 'unit', 'sigma')  # the others start from the default


@torch.no_grad()
def change(model: nn.Module, variant: str) -> nn.Module:
    """Give a new network a variant's arithmetic, in place; returns it."""
    if VARIANTS[variant]:
        VARIANTS[variant](model)
    return model
