"""A trained network inside a larger one that computes the same, as a start for more training.

Source: Net2DeeperNet (Chen et al. 2016, https://arxiv.org/abs/1511.05641), with blocks that begin as identities.

In a ResNet stage, a new block's last norm has scale and shift 0: the block adds nothing, and since the stream behind a
ReLU is not negative, the ReLU changes nothing. In the VT stage new modules come first, with a projector whose norm is 0
likewise. The module that was first reads tokens then, and W_(T->R) = 0 asks for no filter beside W_A. All else in the
new parts starts at random, so that they can learn.
"""

from typing import Any

import timm
import torch
import torch.nn as nn
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from ..network.vt_layers import DistinctTokenizer
from ..network.vt_resnet import VTResNet
from .bottlenecks import embed_stage

__all__ = ['goes_into_bottlenecks', 'grow', 'layer1_falls_short']

STAGES = ('layer1', 'layer2', 'layer3')
KEPT = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'license', 'label_names', 'label_descriptions')


@torch.no_grad()
def grow(source: nn.Module, architecture: str, **kwargs: Any) -> VTResNet:
    """A deeper VT-ResNet that computes what a VT-ResNet does, or whose trunk computes what that of a ResNet does.

    It has the source's preprocessing, licence and names of classes. A trunk of basic blocks also goes into bottlenecks,
    see bottlenecks.py; the VT stage and the classifier are then new, until `vt_hub.training.distillation.teach_stage`
    teaches them. ResNet-50 and 101 have one bottleneck too few in `layer1`, so what comes after it is only near until
    `teach_layer1` or training mends that.

    Args:
        source: A VT-ResNet, or a timm ResNet, whose classifier and last stage are left out.
        architecture: Name of the larger one.
        kwargs: Further arguments of `timm.create_model` for it; a VT-ResNet gives it its classes.

    Raises:
        ValueError: The source does not fit into it.
    """
    if isinstance(source, VTResNet):
        kwargs = {'num_classes': source.num_classes, 'in_chans': source.in_chans, **kwargs}
        kwargs['distinct_tokens'] = source.distinct_tokens
    elif not isinstance(source, ResNet):
        raise ValueError(f'Only a ResNet or a VT-ResNet grows, not a {type(source).__name__}.')
    known = getattr(source, 'pretrained_cfg', {})
    overlay = {key: known[key] for key in KEPT if known.get(key)}
    model = timm.create_model(architecture, pretrained_cfg_overlay=overlay, **kwargs)
    if not isinstance(model, VTResNet):
        raise ValueError(f'{architecture} is not a VT-ResNet.')
    model.to(next(source.parameters()).dtype)
    copy(source.conv1, model.conv1, 'The stem')
    copy(source.bn1, model.bn1, 'The stem')
    wider = goes_into_bottlenecks(source, model)
    for name in STAGES:
        blocks, into = getattr(source, name), getattr(model, name)
        if wider:
            embed_stage(blocks, into, name)
        else:
            grow_stage(blocks, into, name)
    if isinstance(source, VTResNet) and not wider:
        copy(source.vt.embed, model.vt.embed, 'The 1x1 convolution of the VT stage')
        grow_modules(source.vt.blocks, model.vt.blocks)
        copy(source.fc, model.fc, 'The classifier')
    return model.eval()


def goes_into_bottlenecks(source: nn.Module, model: nn.Module) -> bool:
    """Whether a network has basic blocks, and the one that it grows into has bottlenecks."""
    first, into = (net.get_submodule('layer1.0') for net in (source, model))
    return isinstance(first, BasicBlock) and isinstance(into, Bottleneck)


def layer1_falls_short(source: Any, model: Any) -> bool:
    """Whether a network's `layer1` only comes near that of the one that it grew from; see bottlenecks.py."""
    return goes_into_bottlenecks(source, model) and len(model.layer1) < 2 * len(source.layer1)


def copy(part: nn.Module, into: nn.Module, what: str) -> None:
    """Load one module's values into another one of the same structure."""
    shapes, wanted = ({key: value.shape for key, value in net.state_dict().items()} for net in (part, into))
    if shapes != wanted:
        raise ValueError(f'{what} of the source does not fit: its tensors are not those of the deeper network.')
    into.load_state_dict(part.state_dict())


def grow_stage(blocks: nn.Sequential, into: nn.Sequential, name: str) -> None:
    """Copy the blocks of a stage, and make the others identities."""
    if len(blocks) > len(into):
        raise ValueError(f'{name} of the source has {len(blocks)} blocks, more than {len(into)}.')
    for number, block in enumerate(into):
        if number < len(blocks):
            copy(blocks[number], block, f'Block {number + 1} of {name}')
        else:
            silence(block.get_submodule('bn3' if hasattr(block, 'bn3') else 'bn2'))


def grow_modules(blocks: nn.ModuleList, into: nn.ModuleList) -> None:
    """Copy VT modules to the end of a stage, and let the map pass through those before them."""
    new = len(into) - len(blocks)
    if new < 0:
        raise ValueError(f'The source has {len(blocks)} VT modules, more than {len(into)}.')
    for module in into[:new]:
        if module.projector is None:
            raise ValueError('Without projectors a new VT module cannot pass the map on.')
        silence(module.get_submodule('projector.norm'))
    for module, block in zip(into[new:], blocks, strict=True):
        asks = getattr(module.tokenizer, 'token_to_filter', None)
        if asks is not None and getattr(block.tokenizer, 'token_to_filter', None) is None:
            if not isinstance(block.tokenizer, DistinctTokenizer):
                raise ValueError(
                    "In the paper's arithmetic a recurrent tokenizer has no filters of its own, so the first VT module "
                    f'cannot become a later one; give the deeper network vt_depth={len(blocks)}.'
                )
            nn.init.zeros_(asks.weight)
            module.load_state_dict({**block.state_dict(), 'tokenizer.token_to_filter.weight': asks.weight})
        else:
            copy(block, module, 'A VT module')


def silence(norm: nn.Module) -> None:
    """Set the scale and the shift of a norm to 0."""
    for value in norm.parameters():
        nn.init.zeros_(value)
