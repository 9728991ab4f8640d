"""Makes inference cheaper: folds norms into the layers before them, and merges pairs of matrices.

Other ideas gained too little on a CPU: giving the next module a map and two small matrices instead of the projected
map; using weights as left factors for few tokens; computing K and Q in one product.
"""

from itertools import pairwise
from typing import Iterator, Tuple, TypeVar

import torch
import torch.nn as nn
from timm.models import FeatureDictNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .vt_layers import Projector, pixels

__all__ = ['fuse']

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
Model = TypeVar('Model', bound=nn.Module)


def ordered_leaves(module: nn.Module) -> Iterator[Tuple[nn.Module, str, nn.Module]]:
    """Yield (parent, name, child) of each child in order. A Sequential is replaced by its parts."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from ordered_leaves(child)
        else:
            yield module, name, child


def runs_in_order(module: nn.Module) -> bool:
    """Whether a module runs its children in the order in which they are registered."""
    return isinstance(module, (nn.Sequential, BasicBlock, Bottleneck, ResNet, FeatureDictNet)) or hasattr(module, 'vt')


def fuse_convolutions(module: nn.Module) -> None:
    """Fold each BatchNorm into the convolution before it."""
    for (parent, name, conv), (norm_parent, norm_name, norm) in pairwise(list(ordered_leaves(module))):
        if isinstance(conv, nn.Conv2d) and type(norm) in NORMS:
            setattr(parent, name, fuse_conv_bn_eval(conv, norm))
            setattr(norm_parent, norm_name, nn.Identity())


class Affine(nn.Module):
    """T * gain + shift."""

    def __init__(self, gain: torch.Tensor, shift: torch.Tensor):
        super().__init__()
        self.gain, self.shift = (nn.Parameter(value, requires_grad=False) for value in (gain, shift))

    def forward(self, T: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, T, self.gain)


class FusedProjector(nn.Module):
    """`Projector` with W_K W_Q^T as one matrix. Rows of A sum to 1, so the norm can run on L tokens, not P pixels."""

    def __init__(self, projector: Projector):
        super().__init__()
        query, key, norm = projector.query.weight, projector.key.weight, projector.norm
        wide = torch.promote_types(query.dtype, torch.float32)
        self.key = nn.Linear(key.shape[0], key.shape[1], bias=False, device='meta')
        self.key.weight = nn.Parameter((query.to(wide) @ key.to(wide) * projector.scale).to(query.dtype))
        if isinstance(projector.value, nn.Linear):
            self.value: nn.Module = fuse_linear_bn_eval(projector.value, norm)
        else:
            gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
            self.value = Affine(gain, norm.bias - norm.running_mean * gain)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, T: torch.Tensor) -> torch.Tensor:
        X, V = pixels(x), self.value(T)
        A = (X @ self.key(T).transpose(1, 2)).softmax(dim=2)
        if x.stride(1) == 1:  # channels_last, in which X is contiguous
            return torch.baddbmm(X, A, V).transpose(1, 2).view(x.shape)
        return torch.baddbmm(x.flatten(2), V.transpose(1, 2), A.transpose(1, 2)).view(x.shape)


@torch.no_grad()
def fuse(model: Model) -> Model:
    """Make a network cheaper for inference, in place. Its outputs stay the same up to rounding.

    Norms are folded in ResNets (timm's and this package's), in VT-FPN and in every Sequential. Other modules may run
    their children in another order than they hold them.

    Returns:
        The model. Its state dict has changed, so load weights before.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError('Only a model in evaluation mode can be fused; call eval() first.')
    for module in list(model.modules()):
        if runs_in_order(module):
            fuse_convolutions(module)
        for name, child in list(module.named_children()):
            if isinstance(child, Projector) and type(child.norm) in NORMS:
                setattr(module, name, FusedProjector(child))
    return model
