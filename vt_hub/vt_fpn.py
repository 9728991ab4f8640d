"""VT-FPN: a feature pyramid for semantic segmentation whose convolutions are replaced by visual tokens.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677, section 4 and Figure 4

The baseline is the panoptic FPN, https://arxiv.org/abs/1901.02446, with the same backbone and the same semantic head.
"""

from typing import List, Sequence, Tuple

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

from .vt_layers import FilterTokenizer, Projector, TransformerMixer

__all__ = ['SegmentationFPN', 'SemanticHead', 'TopDownDecoder', 'VTDecoder']


class ConvBnAct(nn.Sequential):
    """3x3 convolution, BatchNorm (SyncBN when converted) and ReLU."""

    def __init__(self, in_chs: int, out_chs: int, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.add_module('conv', nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=False, **dd))
        self.add_module('bn', nn.BatchNorm2d(out_chs, **dd))
        self.add_module('act', nn.ReLU(inplace=True))


class VTDecoder(nn.Module):
    """VT-FPN (Figure 4, right): tokens of all levels meet in one transformer and go back to the level they came from.

    Each level's map keeps its 1x1 lateral convolution. A filter tokenizer takes `num_tokens` tokens from each; one
    transformer relates the tokens of all levels; a projector per level adds that level's own tokens to its map.

    Args:
        in_chs: Channels of the backbone's maps, finest first.
        dim: Channels of the pyramid.
        token_dim: Width of the tokens.
        num_tokens: Tokens of each level.
    """

    def __init__(
        self, in_chs: Sequence[int], dim: int = 256, token_dim: int = 1024, num_tokens: int = 8, device=None, dtype=None
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_tokens = num_tokens
        self.laterals = nn.ModuleList([nn.Conv2d(chs, dim, 1, **dd) for chs in in_chs])
        self.tokenizers = nn.ModuleList([FilterTokenizer(dim, token_dim, num_tokens, **dd) for _ in in_chs])
        self.mixer = TransformerMixer(token_dim, num_tokens * len(in_chs), **dd)
        self.norm = nn.LayerNorm(token_dim, **dd)
        self.projectors = nn.ModuleList([Projector(dim, token_dim, **dd) for _ in in_chs])

    def forward_tokens(self, maps: List[torch.Tensor]) -> Tuple[List[torch.Tensor], torch.Tensor, List[torch.Tensor]]:
        """Maps (B, in_chs, H, W) to maps (B, dim, H, W), all tokens (B, levels * L, D) and attention (B, L, P)."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        pooled = [tokenizer(x) for tokenizer, x in zip(self.tokenizers, maps, strict=True)]
        tokens = self.norm(self.mixer(torch.cat([t for t, _ in pooled], dim=1)))
        own = tokens.split(self.num_tokens, dim=1)
        maps = [projector(x, t) for projector, x, t in zip(self.projectors, maps, own, strict=True)]
        return maps, tokens, [attn for _, attn in pooled]

    def forward(self, maps: List[torch.Tensor]) -> List[torch.Tensor]:
        """Maps (B, in_chs, H, W) to maps (B, dim, H, W), finest first."""
        return self.forward_tokens(maps)[0]


class TopDownDecoder(nn.Module):
    """The FPN (Figure 4, left): coarser maps are added to finer ones, and a 3x3 convolution follows on each level.

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
        maps = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[-2:], mode='nearest')
        return [output(x) for output, x in zip(self.outputs, maps, strict=True)]


class SemanticHead(nn.Module):
    """The semantic branch of the panoptic FPN: every level is brought to the finest, and their sum is classified.

    A level of stride 4 * 2**i passes max(i, 1) 3x3 convolutions, each but the finest's followed by bilinear upsampling
    by two.

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
        self.predictor = nn.Conv2d(hidden_dim, num_classes, 1, **dd)

    def forward(self, maps: List[torch.Tensor]) -> torch.Tensor:
        """Maps (B, dim, H / 4 .. H / 32, ...), finest first, to logits (B, num_classes, H / 4, W / 4)."""
        total = torch.zeros(1, dtype=maps[0].dtype, device=maps[0].device)
        for i, convs in enumerate(self.levels):
            x = maps[i]
            for j, conv in enumerate(convs):
                x = conv(x)
                if i > 0:  # to the size of the next finer level, so that odd sizes meet again
                    x = F.interpolate(x, size=maps[i - 1 - j].shape[-2:], mode='bilinear', align_corners=False)
            total = total + x
        return self.predictor(total)


class SegmentationFPN(nn.Module):
    """Semantic segmentation: a timm backbone, a pyramid decoder and the panoptic FPN's semantic head.

    Args:
        backbone: Name of a timm model with maps at strides 4, 8, 16 and 32.
        decoder: 'vt' for VT-FPN, 'fpn' for the baseline.
        num_classes: Classes.
        in_chans: Image channels.
        dim: Channels of the pyramid.
        token_dim: Width of the visual tokens.
        num_tokens: Visual tokens of each level.
        hidden_dim: Channels of the semantic head.
        pretrained_backbone: Load timm's weights for the backbone.

    Raises:
        ValueError: The decoder is unknown, or the backbone has no maps at those strides.
    """

    def __init__(
        self,
        backbone: str = 'resnet50',
        decoder: str = 'vt',
        num_classes: int = 54,
        in_chans: int = 3,
        dim: int = 256,
        token_dim: int = 1024,
        num_tokens: int = 8,
        hidden_dim: int = 128,
        pretrained_backbone: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if decoder not in ('vt', 'fpn'):
            raise ValueError(f"Unknown decoder {decoder!r}; use 'vt' or 'fpn'.")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.backbone = timm.create_model(
            backbone, pretrained=pretrained_backbone, features_only=True, in_chans=in_chans, **dd
        )
        reductions = self.backbone.feature_info.reduction()
        if not {4, 8, 16, 32} <= set(reductions):
            raise ValueError(f'{backbone} has maps at strides {reductions}; a pyramid needs 4, 8, 16 and 32.')
        self.levels = [reductions.index(stride) for stride in (4, 8, 16, 32)]
        in_chs = [self.backbone.feature_info.channels()[i] for i in self.levels]
        if decoder == 'vt':
            self.decoder: nn.Module = VTDecoder(in_chs, dim, token_dim, num_tokens, **dd)
        else:
            self.decoder = TopDownDecoder(in_chs, dim, **dd)
        self.head = SemanticHead(dim, hidden_dim, len(in_chs), num_classes, **dd)

    def forward_features(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Images (B, in_chans, H, W) to the backbone's maps at strides 4, 8, 16 and 32."""
        maps = self.backbone(x)
        return [maps[i] for i in self.levels]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes, H / 4, W / 4), rounded up."""
        return self.head(self.decoder(self.forward_features(x)))
