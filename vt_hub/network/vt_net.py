"""VT-Net: a VT stage on the trunk of any timm model with a feature map of stride 16.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677, section 4: VTs are building blocks for other networks
"""

import re
from typing import Any, Dict, List, Optional

import timm
import torch
import torch.nn as nn
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import calculate_drop_path_rates
from timm.models import generate_default_cfgs

from .trunk import create_trunk
from .vt_stage import VTBody, VTClassifier, build_classifier, classifier_cfg, register, signature_of
from .weights import builder_args, hub_id

__all__ = ['VTNet']


class VTNetBody(VTBody):
    """The network, without a base class. `VTBody` explains this, and the arguments of `build`."""

    def build_trunk(  # type: ignore[override]  # VTBody passes its own arguments and those for the trunk
        self,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        vt_depth: int = 2,
        backbone: str = 'resnet18',
        backbone_args: Optional[Dict[str, Any]] = None,
        pretrained_backbone: bool = False,
        device=None,
        dtype=None,
    ) -> List[float]:
        """Make the trunk: the timm model up to its last map of stride 16.

        Args:
            backbone: Name of a timm model.
            backbone_args: Further arguments of `timm.create_model` for it, such as its own `drop_path_rate`.
            pretrained_backbone: Load timm's weights for the trunk.
            in_chans, drop_path_rate, vt_depth: See `VTBody`.

        Returns:
            The stochastic depth rate of each VT module.

        Raises:
            ValueError: The model has no feature map of stride 16.
        """
        self.backbone, self.backbone_args = backbone, backbone_args or {}
        self.trunk: Any
        self.trunk, [self.last_level] = create_trunk(
            backbone, (16,), in_chans, pretrained_backbone, backbone_args, device, dtype
        )
        self.feature_info = [
            {**info, 'module': f'trunk.{info["module"]}'} for info in self.trunk.feature_info[: self.last_level + 1]
        ]
        self.first_conv = next(
            f'trunk.{name}' for name, part in self.trunk.named_modules() if isinstance(part, nn.Conv2d)
        )
        rates: Any = calculate_drop_path_rates(drop_path_rate, vt_depth + 1)
        return rates[1:]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True):
        super().set_grad_checkpointing(enable)
        self.trunk.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def forward_trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) to the trunk's map (B, C, H / 16, W / 16)."""
        return self.trunk.forward_intermediates(x, indices=[self.last_level], intermediates_only=True)[0]

    @torch.jit.ignore
    def forward_levels(self, x: torch.Tensor, last: int) -> List[torch.Tensor]:
        """Image (B, in_chans, H, W) to the maps of the trunk's levels up to number `last`."""
        levels = list(range(min(last, self.last_level) + 1))
        return self.trunk.forward_intermediates(x, indices=levels, stop_early=True, intermediates_only=True)

    @torch.jit.ignore
    def prune_trunk(self, last: int) -> None:
        """Remove the layers after level number `last`."""
        self.last_level = last
        self.trunk.prune_intermediate_layers([last], prune_norm=True, prune_head=True)


class VTNet(VTNetBody, VTClassifier):
    """VT-Net in timm. The arguments are those of `VTBody.build` and `VTNetBody.build_trunk`."""

    __signature__ = signature_of(VTNetBody.build, VTNetBody.build_trunk)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True):
        """timm's initialisation for the trunk, torch's defaults for the VT modules and the classifier."""
        self.trunk.init_weights()
        for part in (self.vt, self.fc):
            for module in part.modules():
                if hasattr(module, 'reset_parameters'):
                    module.reset_parameters()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        of_trunk = self.trunk.group_matcher(coarse=coarse)
        return {
            **{name: within_trunk(pattern) for name, pattern in of_trunk.items()},
            'embed': r'^vt\.embed',
            'vt': r'^vt' if coarse else r'^vt\.blocks\.(\d+)',
        }

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        names = self.trunk.no_weight_decay() if hasattr(self.trunk, 'no_weight_decay') else ()
        return {f'trunk.{name}' for name in names}


def within_trunk(pattern: Any) -> Any:
    """A pattern of timm's group matchers for names that begin with `trunk.`."""
    if isinstance(pattern, str):
        return r'^trunk\.(?:' + re.sub(r'(?<!\[)\^', '', pattern) + ')'
    if isinstance(pattern, list):
        return [(within_trunk(one), *order) for one, *order in pattern]
    return (within_trunk(pattern[0]), *pattern[1:])


LITE = dict(first_conv='trunk.conv_stem', mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD)

default_cfgs = generate_default_cfgs(
    {
        'vt_net.untrained': classifier_cfg(first_conv='trunk.conv1'),
        'vt_efficientnet_lite0.dist_in1k': classifier_cfg(
            hf_hub_id=hub_id('vt_efficientnet_lite0.dist_in1k'),
            description='Photographs, distilled from the part of EfficientNet-Lite0 that the VT stage replaces.',
            **LITE,
        ),
        'vt_efficientnet_lite0.untrained': classifier_cfg(**LITE),
        'test_vt_net.untrained': classifier_cfg(input_size=(3, 96, 96), first_conv='trunk.conv_stem'),
    }
)


ARCHITECTURES: Dict[str, Dict[str, Any]] = {  # arguments of VTNetBody.build_trunk and VTBody.build
    'vt_net': dict(),
    'vt_efficientnet_lite0': dict(backbone='tf_efficientnet_lite0', vt_dim=384, token_dim=768),
    'test_vt_net': dict(backbone='test_efficientnet', vt_dim=64, token_dim=96),
}
PREPROCESSING = (
    'input_size', 'min_input_size', 'crop_pct', 'crop_mode', 'interpolation', 'mean', 'std', 'license'
)  # fmt: skip


def trunk_levels(backbone: str = 'resnet18', backbone_args: Optional[Dict[str, Any]] = None) -> int:
    """The number of the trunk's feature levels."""
    return create_trunk(backbone, (16,), backbone_args=backbone_args, device='meta')[1][0] + 1


def preprocessing_of(backbone: str) -> Dict[str, Any]:
    """What timm's weights of a backbone were trained with: image size, crop, normalisation, and their licence."""
    cfg = timm.get_pretrained_cfg(backbone)
    values = cfg.to_dict() if cfg else {}
    return {key: values[key] for key in PREPROCESSING if values.get(key) is not None}


def _create_vt_net(variant: str, pretrained: bool = False, **kwargs: Any) -> VTNet:
    chosen = kwargs.get('backbone')
    kwargs, _ = builder_args(variant, pretrained, kwargs, 'problem_type')
    if chosen and not pretrained:  # images are prepared as for the backbone's weights
        kwargs['pretrained_cfg_overlay'] = preprocessing_of(chosen) | kwargs['pretrained_cfg_overlay']
    args = {**ARCHITECTURES[variant], **kwargs}
    if args.get('features_only') and args.get('out_indices') is None:  # the last five levels
        levels = trunk_levels(**{name: args[name] for name in ('backbone', 'backbone_args') if name in args})
        args['out_indices'] = min(levels + 1, 5)
    model = build_classifier(VTNet, variant, pretrained, **args)
    if chosen and not kwargs.get('features_only'):
        model.pretrained_cfg['first_conv'] = model.first_conv
    return model


@register
def vt_efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> VTNet:
    """A VT stage on the trunk of EfficientNet-Lite0.

    It is not from the paper.
    """
    return _create_vt_net('vt_efficientnet_lite0', pretrained=pretrained, **kwargs)


@register
def vt_net(pretrained: bool = False, **kwargs: Any) -> VTNet:
    """A VT stage on the trunk of another timm model.

    `VTNetBody.build_trunk` and `VTBody.build` explain the arguments.
    """
    return _create_vt_net('vt_net', pretrained=pretrained, **kwargs)


@register
def test_vt_net(pretrained: bool = False, **kwargs: Any) -> VTNet:
    """A tiny VT-Net for tests."""
    return _create_vt_net('test_vt_net', pretrained=pretrained, **kwargs)
