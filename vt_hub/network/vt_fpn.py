"""VT-FPN: a feature pyramid for semantic segmentation whose convolutions are replaced by visual tokens.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677, section 4 and Figure 4

The baseline is the panoptic FPN, https://arxiv.org/abs/1901.02446, with the same backbone and the same semantic head.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Optional, Self, Sequence, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs

from .trunk import create_trunk
from .vt_fuse import fuse
from .vt_layers import DISTINCT_TOKENIZERS, TOKENIZERS, Projector, TransformerMixer
from .vt_stage import Body, Task, VTClassifier, register, signature_of
from .weights import builder_args, hub_id

__all__ = ['VTFPN', 'Network', 'SemanticHead', 'TopDownDecoder', 'VTDecoder', 'is_segmenter', 'task_of']


class ConvBnAct(nn.Sequential):
    """3x3 convolution, BatchNorm (SyncBN when converted) and ReLU."""

    def __init__(self, in_chs: int, out_chs: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.add_module('conv', nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=False, **dd))
        self.add_module('bn', nn.BatchNorm2d(out_chs, **dd))
        self.add_module('act', nn.ReLU(inplace=True))


def merge_top_down(maps: List[torch.Tensor]) -> List[torch.Tensor]:
    """Add coarser maps to finer ones, as the FPN does. Maps are (B, dim, H, W), finest first. Costs no MACs."""
    merged = list(maps)
    for i in range(len(maps) - 1, 0, -1):
        merged[i - 1] = F.interpolate(merged[i], size=maps[i - 1].shape[-2:], mode='nearest').add_(maps[i - 1])
    return merged


class VTDecoder(nn.Module):
    """VT-FPN (Figure 4, right): one transformer relates the tokens of all levels.

    Each level has a 1x1 lateral convolution, and coarser maps are added to finer ones. A filter tokenizer takes
    `num_tokens` tokens from each map. One transformer relates the tokens of all levels. Then a projector per level adds
    the tokens of that level to its map.

    Args:
        in_chs: Channels of the backbone's maps, finest first.
        dim: Channels of the pyramid.
        token_dim: Width of the tokens.
        num_tokens: Tokens of each level.
        top_down: First add the coarser maps to the finer ones, as the FPN does. The paper replaces only the FPN's
            convolutions, but Figure 4 does not show these additions. Tables 9 and 10 fit both, since additions are not
            counted. If False, only tokens connect the levels, and small objects suffer (docs/segmentation.md).
        distinct_tokens: Keep tokens apart; if False, use the paper's equations.
    """

    def __init__(
        self,
        in_chs: Sequence[int],
        dim: int = 256,
        token_dim: int = 1024,
        num_tokens: int = 8,
        top_down: bool = True,
        distinct_tokens: bool = True,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        tokenizer = (DISTINCT_TOKENIZERS if distinct_tokens else TOKENIZERS)['filter']
        self.num_tokens = num_tokens
        self.top_down = top_down
        self.laterals = nn.ModuleList([nn.Conv2d(chs, dim, 1, **dd) for chs in in_chs])
        self.tokenizers = nn.ModuleList([tokenizer(dim, token_dim, num_tokens, **dd) for _ in in_chs])
        self.mixer = TransformerMixer(token_dim, num_tokens * len(in_chs), gated=distinct_tokens, **dd)
        self.norm = nn.LayerNorm(token_dim, **dd)
        self.projectors = nn.ModuleList([Projector(dim, token_dim, **dd) for _ in in_chs])
        # projectors start at zero: untrained ones would hide the maps, and training is slow to undo this
        for projector in self.projectors:
            projector.norm.zero_init = True  # for transformers, which initialises module by module
            nn.init.zeros_(projector.norm.weight)

    def forward_tokens(self, maps: List[torch.Tensor]) -> Tuple[List[torch.Tensor], torch.Tensor, List[torch.Tensor]]:
        """Maps (B, in_chs, H, W) to maps (B, dim, H, W), all tokens (B, levels * L, D) and attention (B, L, P)."""
        maps = [lateral(maps[i]) for i, lateral in enumerate(self.laterals)]
        if self.top_down:
            maps = merge_top_down(maps)
        pooled = [tokenizer(maps[i]) for i, tokenizer in enumerate(self.tokenizers)]
        tokens = self.norm(self.mixer(torch.cat([t for t, _ in pooled], dim=1)))
        own = tokens.split(self.num_tokens, dim=1)
        for i, projector in enumerate(self.projectors):  # one by one, so that the old maps are freed
            maps[i] = projector(maps[i], own[i])
        return maps, tokens, [attn for _, attn in pooled]

    def forward(self, maps: List[torch.Tensor]) -> List[torch.Tensor]:
        """Maps (B, in_chs, H, W) to maps (B, dim, H, W), finest first."""
        return self.forward_tokens(maps)[0]


class TopDownDecoder(nn.Module):
    """The FPN (Figure 4, left): adds coarser maps to finer ones, then applies a 3x3 convolution to each level.

    Args:
        in_chs: Channels of the backbone's maps, finest first.
        dim: Channels of the pyramid.
    """

    def __init__(self, in_chs: Sequence[int], dim: int = 256, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.laterals = nn.ModuleList([nn.Conv2d(chs, dim, 1, **dd) for chs in in_chs])
        self.outputs = nn.ModuleList([nn.Conv2d(dim, dim, 3, padding=1, **dd) for _ in in_chs])

    def forward(self, maps: List[torch.Tensor]) -> List[torch.Tensor]:
        """Maps (B, in_chs, H, W) to maps (B, dim, H, W), finest first."""
        maps = merge_top_down([lateral(maps[i]) for i, lateral in enumerate(self.laterals)])
        return [output(maps[i]) for i, output in enumerate(self.outputs)]


def upsampled(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear upsampling to the size of the next finer map, which may be odd."""
    return F.interpolate(x, size=like.shape[-2:], mode='bilinear', align_corners=False)


def make_predictor(hidden_dim: int, num_classes: int, device=None, dtype=None) -> nn.Conv2d:
    """The last convolution, for at least one class."""
    if num_classes < 1:
        raise ValueError(f'Segmentation needs classes, not {num_classes}; for maps only, use the backbone.')
    return nn.Conv2d(hidden_dim, num_classes, 1, device=device, dtype=dtype)


class SemanticHead(nn.Module):
    """The semantic branch of the panoptic FPN: upsamples every level to the finest one and classifies their sum.

    A level of stride 4 * 2**i passes max(i, 1) 3x3 convolutions. Bilinear upsampling by two follows each of them,
    except at the finest level.

    Args:
        dim: Channels of the pyramid.
        hidden_dim: Channels of the convolutions.
        num_levels: Levels, finest first.
        num_classes: Classes.
    """

    def __init__(self, dim: int, hidden_dim: int, num_levels: int, num_classes: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.levels = nn.ModuleList(
            [
                nn.ModuleList([ConvBnAct(hidden_dim if j else dim, hidden_dim, **dd) for j in range(max(i, 1))])
                for i in range(num_levels)
            ]
        )
        self.predictor = make_predictor(hidden_dim, num_classes, **dd)

    def forward(self, maps: List[torch.Tensor]) -> torch.Tensor:
        """Maps (B, dim, H / 4 .. H / 32, ...), finest first, to logits (B, num_classes, H / 4, W / 4)."""
        parts: List[torch.Tensor] = []
        for i, convs in enumerate(self.levels):
            x = maps[i]
            for j, conv in enumerate(convs):
                if j > 0:
                    x = upsampled(x, maps[i - j])
                x = conv(x)
            parts.append(x)
        coarse = parts[1]
        for part in parts[2:]:
            coarse = coarse + part
        # upsampling is linear, so it can be applied once to the sum
        return self.predictor(upsampled(coarse, maps[0]).add_(parts[0]))


class VTFPNBody(Body):
    """The network, without a base class; `VTBody` says why.

    Args:
        backbone: Name of a timm model with maps at strides 4, 8, 16 and 32.
        backbone_args: Further arguments of `timm.create_model` for the backbone.
        decoder: 'vt' for VT-FPN, 'fpn' for the panoptic FPN.
        num_classes: Classes.
        in_chans: Image channels.
        dim: Channels of the pyramid.
        token_dim: Width of the visual tokens.
        num_tokens: Visual tokens of each level.
        hidden_dim: Channels of the semantic head.
        top_down: See `VTDecoder`; always on in the panoptic FPN.
        distinct_tokens: Keep tokens apart; if False, use the paper's equations (docs/architecture.md). For weights
            saved without this argument, it is False.
        pretrained_backbone: Load timm's weights for the backbone.
    """

    task: ClassVar[Task] = 'image-segmentation'  # as the Hub names it

    def build(
        self,
        backbone: str = 'resnet50',
        backbone_args: Optional[Dict[str, Any]] = None,
        decoder: str = 'vt',
        num_classes: int = 54,
        in_chans: int = 3,
        dim: int = 256,
        token_dim: int = 1024,
        num_tokens: int = 8,
        hidden_dim: int = 128,
        top_down: bool = True,
        distinct_tokens: bool = True,
        pretrained_backbone: bool = False,
        device=None,
        dtype=None,
    ):
        """Make the layers.

        Raises:
            ValueError: The decoder is unknown, there are no classes, or the backbone lacks maps at those strides.
        """
        dd = {'device': device, 'dtype': dtype}
        if decoder not in ('vt', 'fpn'):
            raise ValueError(f"Unknown decoder {decoder!r}; use 'vt' or 'fpn'.")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.distinct_tokens = distinct_tokens
        self.num_features = self.head_hidden_size = hidden_dim
        self.backbone: Any
        self.backbone, self.levels = create_trunk(
            backbone, (4, 8, 16, 32), in_chans, pretrained_backbone, backbone_args, **dd
        )
        in_chs = [self.backbone.feature_info[i]['num_chs'] for i in self.levels]
        if decoder == 'vt':
            self.decoder: nn.Module = VTDecoder(in_chs, dim, token_dim, num_tokens, top_down, distinct_tokens, **dd)
        else:
            self.decoder = TopDownDecoder(in_chs, dim, **dd)
        self.head = SemanticHead(dim, hidden_dim, len(in_chs), num_classes, **dd)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True):
        """Recompute the backbone's activations in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    @torch.jit.unused  # unlike ignore, it keeps the types
    def fuse(self) -> Self:
        """Make the network cheaper for inference, in place; see `vt_fuse.fuse`. Returns it."""
        return fuse(self)

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None):
        """Replace the last convolution by a new one for other classes, at least one. `global_pool` is ignored."""
        weight = self.head.predictor.weight
        self.head.predictor = make_predictor(self.num_features, num_classes, weight.device, weight.dtype)
        self.num_classes = num_classes

    @torch.jit.ignore
    def forward_features(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Images (B, in_chans, H, W) to the backbone's maps at strides 4, 8, 16 and 32."""
        return self.backbone.forward_intermediates(x, indices=self.levels, intermediates_only=True)

    @torch.jit.unused  # unlike ignore, it keeps the types
    def forward_maps(
        self, maps: List[torch.Tensor], attention: bool = False
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """The backbone's maps to the decoder's maps (B, dim, H / r, W / r) and, if requested, the token attention.

        The attention is (B, num_tokens, H / r, W / r) for each level; the panoptic FPN has no attention.
        """
        if not attention or not isinstance(self.decoder, VTDecoder):
            return self.decoder(maps), []
        sizes = [x.shape[-2:] for x in maps]
        maps, _, attns = self.decoder.forward_tokens(maps)
        return maps, [attn.unflatten(2, size) for attn, size in zip(attns, sizes, strict=True)]


class VTFPN(VTFPNBody, nn.Module):
    """VT-FPN in timm; the arguments are those of `VTFPNBody`."""

    __signature__ = signature_of(VTFPNBody.build)

    if TYPE_CHECKING:
        pretrained_cfg: Dict[str, Any]  # timm's builder sets it

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.build(**kwargs)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        return dict(backbone=r'^backbone', decoder=r'^decoder', head=r'^head')

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.predictor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes, H / 4, W / 4), rounded up."""
        return self.head(self.decoder(self.forward_features(x)))


Network = Union[VTClassifier, VTFPN]  # what timm makes of this package's names


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        'num_classes': 54,
        'input_size': (3, 512, 512),
        'min_input_size': (3, 64, 64),
        'pool_size': None,
        'crop_pct': 1.0,
        'crop_mode': 'squash',
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'backbone.conv1',
        'classifier': 'head.predictor',
        'paper_ids': 'arXiv:2006.03677',
        'paper_name': 'Visual Transformers: Token-based Image Representation and Processing for Computer Vision',
        'license': 'apache-2.0',
        **kwargs,
    }


SHAPES = (  # the classes of `vt-hub synthesize shapes`
    'background', 'circle', 'triangle', 'square', 'pentagon', 'hexagon', 'star', 'cross', 'ring', 'crescent', 'heart',
    'arrow', 'stripes', 'waves', 'checkerboard', 'dots', 'bricks',
)  # fmt: skip


default_cfgs = generate_default_cfgs(
    {
        'vt_fpn_resnet18.untrained': _cfg(),
        'vt_fpn_resnet50.untrained': _cfg(),
        'vt_fpn_resnet101.untrained': _cfg(),
        'vt_fpn_resnet10t.shapes': _cfg(
            hf_hub_id=hub_id('vt_fpn_resnet10t.shapes'),
            num_classes=17,
            input_size=(3, 128, 128),
            first_conv='backbone.conv1.0',
            label_names=SHAPES,
            description='Shapes and textures, trained on generated scenes.',
        ),
        'test_vt_fpn.untrained': _cfg(num_classes=5, input_size=(3, 96, 96), first_conv='backbone.conv1.0'),
    }
)


ARCHITECTURES: Dict[str, Dict[str, Any]] = {  # arguments of VTFPNBody.build
    'vt_fpn_resnet10t': dict(backbone='resnet10t', dim=128, token_dim=512, hidden_dim=64),
    'vt_fpn_resnet18': dict(backbone='resnet18', dim=128, token_dim=512),
    'vt_fpn_resnet50': dict(backbone='resnet50'),
    'vt_fpn_resnet101': dict(backbone='resnet101'),
    'test_vt_fpn': dict(backbone='test_resnet', dim=16, token_dim=32, num_tokens=4, hidden_dim=16),
}


def task_of(model: Union[str, nn.Module]) -> Task:
    """What an architecture or a model does: 'image-classification', also of other packages, or 'image-segmentation'."""
    network = (VTFPN if model in ARCHITECTURES else VTClassifier) if isinstance(model, str) else model
    return getattr(network, 'task', VTClassifier.task)


def is_segmenter(model: Union[str, nn.Module]) -> bool:
    """Whether an architecture or a model classifies pixels, as VT-FPN does, and not images."""
    return task_of(model) == VTFPN.task


def _create_vt_fpn(variant: str, pretrained: bool = False, **kwargs: Any) -> VTFPN:
    if kwargs.pop('features_only', False):
        raise ValueError(f'{variant} is not a backbone; use its backbone alone.')
    kwargs, _ = builder_args(variant, pretrained, kwargs)
    return build_model_with_cfg(VTFPN, variant, pretrained, **{**ARCHITECTURES[variant], **kwargs})


@register
def vt_fpn_resnet10t(pretrained: bool = False, **kwargs: Any) -> VTFPN:
    """A small VT-FPN for demos, notebooks and CPUs. It is not from the paper."""
    return _create_vt_fpn('vt_fpn_resnet10t', pretrained=pretrained, **kwargs)


@register
def vt_fpn_resnet18(pretrained: bool = False, **kwargs: Any) -> VTFPN:
    """VT-FPN with ResNet-18, for CPUs and small data sets. It is not from the paper."""
    return _create_vt_fpn('vt_fpn_resnet18', pretrained=pretrained, **kwargs)


@register
def vt_fpn_resnet50(pretrained: bool = False, **kwargs: Any) -> VTFPN:
    """VT-FPN with ResNet-50, Tables 9 and 10."""
    return _create_vt_fpn('vt_fpn_resnet50', pretrained=pretrained, **kwargs)


@register
def vt_fpn_resnet101(pretrained: bool = False, **kwargs: Any) -> VTFPN:
    """VT-FPN with ResNet-101, Tables 9 and 10."""
    return _create_vt_fpn('vt_fpn_resnet101', pretrained=pretrained, **kwargs)


@register
def test_vt_fpn(pretrained: bool = False, **kwargs: Any) -> VTFPN:
    """A tiny VT-FPN for tests."""
    return _create_vt_fpn('test_vt_fpn', pretrained=pretrained, **kwargs)
