"""The trunk of a network: a timm model, cut after the last feature map that the network reads."""

from collections.abc import Sequence
from typing import Any

import timm
import torch.nn as nn

__all__ = ['create_trunk', 'last_level']


def create_trunk(
    backbone: str,
    strides: Sequence[int],
    in_chans: int = 3,
    pretrained: bool = False,
    backbone_args: dict[str, Any] | None = None,
    device=None,
    dtype=None,
) -> tuple[nn.Module, list[int]]:
    """Make a timm model without the layers after its last map at some strides.

    The parts that stay keep their names, so the model's own weights fit. `forward_intermediates` gives the maps.

    Args:
        backbone: Name of a timm model.
        strides: Strides of the maps that are needed, such as 16 for maps (B, C, H / 16, W / 16).
        in_chans: Image channels.
        pretrained: Load timm's weights.
        backbone_args: Further arguments of `timm.create_model`.

    Returns:
        The model, and the number of its last feature level at each stride.

    Raises:
        ValueError: The model has no feature maps, or none at one of the strides.
    """
    on = {name: value for name, value in (('device', device), ('dtype', dtype)) if value is not None}
    trunk: Any = timm.create_model(
        backbone, pretrained=pretrained, num_classes=0, in_chans=in_chans, **on, **(backbone_args or {})
    )
    if not hasattr(trunk, 'forward_intermediates'):
        raise ValueError(f'{backbone} does not give its feature maps; choose a model with features_only in timm.')
    found = [info['reduction'] for info in trunk.feature_info]
    if missing := [stride for stride in strides if stride not in found]:
        raise ValueError(f'{backbone} has feature maps at strides {found}; stride {missing[0]} is needed too.')
    levels = [last_level(found, stride) for stride in strides]
    trunk.prune_intermediate_layers(levels, prune_norm=True, prune_head=True)
    return trunk, levels


def last_level(strides: Sequence[int], stride: int) -> int:
    """The number of the last of some feature levels, given by their strides, that has a stride."""
    return max(number for number, found in enumerate(strides) if found == stride)
