"""VT-ResNet: a ResNet whose last stage is replaced by Visual Transformers.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677

The stem and layer1..layer3 are timm's ResNet, with the same blocks and state-dict names, so a timm ResNet checkpoint
fits them. Stage 5 is `vt`, see vt_stage.py.
"""

from typing import Any, Callable, Dict, List, Tuple, Type, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import calculate_drop_path_rates
from timm.models import checkpoint_seq, generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck, make_blocks

from .vt_stage import VTBody, VTClassifier, build_classifier, classifier_cfg, register, signature_of
from .weights import builder_args, hub_id

__all__ = ['VTResNet']

BLOCKS: Dict[str, Union[Type[BasicBlock], Type[Bottleneck]]] = {'basic': BasicBlock, 'bottleneck': Bottleneck}


class VTResNetBody(VTBody):
    """The network, without a base class. `VTBody` explains this, and the arguments of `build`."""

    first_conv = 'conv1'

    def build_trunk(  # type: ignore[override]  # VTBody passes its own arguments and those for the trunk
        self,
        block: str = 'basic',
        layers: Tuple[int, ...] = (2, 2, 2),
        channels: Tuple[int, ...] = (64, 128, 256),
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        vt_depth: int = 2,
        device=None,
        dtype=None,
    ) -> List[float]:
        """Make the stem and layer1..layer3 of timm's ResNet.

        Args:
            block: Residual block of layer1..layer3, 'basic' or 'bottleneck'.
            layers: Number of blocks in layer1..layer3.
            channels: Base widths of layer1..layer3; the stem has the first. Bottleneck outputs are four times as wide.
            in_chans, drop_path_rate, vt_depth: See `VTBody`.

        Returns:
            The stochastic depth rate of each VT module.

        Raises:
            ValueError: The block is unknown.
        """
        dd = {'device': device, 'dtype': dtype}
        if block not in BLOCKS:
            raise ValueError(f'Unknown block {block!r}; use one of {", ".join(map(repr, BLOCKS))}.')
        drop_path_rates: Any = calculate_drop_path_rates(drop_path_rate, sum(layers) + vt_depth)
        stem_chs = channels[0]
        self.conv1 = nn.Conv2d(in_chans, stem_chs, kernel_size=7, stride=2, padding=3, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(stem_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages, feature_info = make_blocks(
            (BLOCKS[block],) * 3, channels, layers, stem_chs, drop_path_rate=drop_path_rates[sum(layers) - 1], **dd
        )
        self.layer1, self.layer2, self.layer3 = (stage for _, stage in stages)
        self.feature_info = [dict(num_chs=stem_chs, reduction=2, module='act1'), *feature_info]
        return drop_path_rates[sum(layers) :]

    def forward_trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) to the map of layer3, (B, channels, H / 16, W / 16)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    @torch.jit.ignore
    def forward_levels(self, x: torch.Tensor, last: int) -> List[torch.Tensor]:
        """Image (B, in_chans, H, W) to the maps of the stem and of layer1..layer3, up to number `last`."""
        maps = [self.act1(self.bn1(self.conv1(x)))]
        x = self.maxpool(maps[0])
        for layer in [self.layer1, self.layer2, self.layer3][:last]:
            x = checkpoint_seq(layer, x) if self.grad_checkpointing else layer(x)
            maps.append(x)
        return maps

    @torch.jit.ignore
    def prune_trunk(self, last: int) -> None:
        """Remove the layers after level number `last`."""
        for name in ('layer1', 'layer2', 'layer3')[last:]:
            setattr(self, name, nn.Sequential())  # empty, not Identity, so (flattened) checkpoint_seq can iterate it
        if last == 0:
            self.maxpool = nn.Identity()


class VTResNet(VTResNetBody, VTClassifier):
    """VT-ResNet in timm. The arguments are those of `VTBody.build` and `VTResNetBody.build_trunk`."""

    __signature__ = signature_of(VTResNetBody.build, VTResNetBody.build_trunk)

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if not self.conv1.weight.is_meta:  # on the meta device it would only cost time
            self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True):
        """timm's ResNet initialisation for the convolutions, torch's defaults for the VT modules and the classifier.

        Args:
            needs_reset: Reset every other module first, as needed after `to_empty()`.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif needs_reset and hasattr(module, 'reset_parameters'):
                module.reset_parameters()
        for module in self.modules():
            if hasattr(module, 'zero_init_last'):
                module.zero_init_last()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(  # entries are in the order of the layers
            stem=r'^conv1|bn1',
            blocks=r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)',
            embed=r'^vt\.embed',
            vt=r'^vt' if coarse else r'^vt\.blocks\.(\d+)',
        )


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return classifier_cfg(first_conv=VTResNetBody.first_conv, **kwargs)


SMALL = dict(input_size=(3, 64, 64), crop_pct=1.0, mean=IMAGENET_INCEPTION_MEAN, std=IMAGENET_INCEPTION_STD)

default_cfgs = generate_default_cfgs(
    {
        'vt_resnet18.dist_in1k': _cfg(
            hf_hub_id=hub_id('vt_resnet18.dist_in1k'),
            description='Photographs, distilled from a ResNet-18 on images without labels.',
        ),
        'vt_resnet18.untrained': _cfg(),
        'vt_resnet34.untrained': _cfg(),
        'vt_resnet50.scenes': _cfg(
            hf_hub_id=hub_id('vt_resnet50.scenes'),
            num_classes=100,
            description='A start for fine-tuning, trained on generated scenes of fractals alone.',
            **SMALL,
        ),
        'vt_resnet50.untrained': _cfg(),
        'vt_resnet101.untrained': _cfg(),
        'vt_resnet10.digits': _cfg(
            hf_hub_id=hub_id('vt_resnet10.digits'),
            num_classes=10,
            label_names=tuple('0123456789'),
            description="Handwritten digits, trained on four fifths of the 1797 images of scikit-learn's load_digits.",
            **SMALL,
        ),
        'test_vt_resnet.untrained': _cfg(input_size=(3, 96, 96)),
    }
)


ARCHITECTURES: Dict[str, Dict[str, Any]] = {  # arguments of VTResNetBody.build; the paper's are in Table 11
    'vt_resnet10': dict(block='basic', layers=(1, 1, 1), vt_dim=256, vt_depth=2, token_dim=256),
    'vt_resnet18': dict(block='basic', layers=(2, 2, 2), vt_dim=512, vt_depth=2),
    'vt_resnet34': dict(block='basic', layers=(3, 4, 6), vt_dim=512, vt_depth=3),
    'vt_resnet50': dict(block='bottleneck', layers=(3, 4, 6), vt_dim=1024, vt_depth=3),
    'vt_resnet101': dict(block='bottleneck', layers=(3, 4, 23), vt_dim=1024, vt_depth=3),
    'test_vt_resnet': dict(block='basic', layers=(1, 1, 1), channels=(16, 32, 48), vt_dim=64, vt_depth=2, token_dim=96),
}


def _empty_vt_resnet(device=None, **kwargs: Any) -> VTResNet:
    """A VT-ResNet whose weights are uninitialised, except conv1 and fc: a checkpoint may not fit these two."""
    model = VTResNet(device='meta', **kwargs).to_empty(device=device or torch.get_default_device())
    nn.init.kaiming_normal_(model.conv1.weight, mode='fan_out', nonlinearity='relu')
    if isinstance(model.fc, nn.Linear):
        model.fc.reset_parameters()
    return model


def _create_vt_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> VTResNet:
    kwargs, published = builder_args(variant, pretrained, kwargs, 'problem_type')
    model_cls: Callable[..., VTResNet] = VTResNet
    if published and kwargs.get('pretrained_strict', True):
        model_cls = _empty_vt_resnet  # the published file has the other layers
    elif not pretrained and 'untrained' in default_cfgs[variant].cfgs:
        # the paper's classes and image size, not those of published weights
        kwargs['pretrained_cfg'] = kwargs.get('pretrained_cfg') or 'untrained'
    return build_classifier(model_cls, variant, pretrained, **{**ARCHITECTURES[variant], **kwargs})


@register
def vt_resnet10(pretrained: bool = False, **kwargs: Any) -> VTResNet:
    """A small VT-ResNet for demos, notebooks and CPUs. It is not from the paper."""
    return _create_vt_resnet('vt_resnet10', pretrained=pretrained, **kwargs)


@register
def vt_resnet18(pretrained: bool = False, **kwargs: Any) -> VTResNet:
    """VT-R18 of Table 11."""
    return _create_vt_resnet('vt_resnet18', pretrained=pretrained, **kwargs)


@register
def vt_resnet34(pretrained: bool = False, **kwargs: Any) -> VTResNet:
    """VT-R34 of Table 11."""
    return _create_vt_resnet('vt_resnet34', pretrained=pretrained, **kwargs)


@register
def vt_resnet50(pretrained: bool = False, **kwargs: Any) -> VTResNet:
    """VT-R50 of Table 11."""
    return _create_vt_resnet('vt_resnet50', pretrained=pretrained, **kwargs)


@register
def vt_resnet101(pretrained: bool = False, **kwargs: Any) -> VTResNet:
    """VT-R101 of Table 11."""
    return _create_vt_resnet('vt_resnet101', pretrained=pretrained, **kwargs)


@register
def test_vt_resnet(pretrained: bool = False, **kwargs: Any) -> VTResNet:
    """A tiny VT-ResNet for tests."""
    return _create_vt_resnet('test_vt_resnet', pretrained=pretrained, **kwargs)
