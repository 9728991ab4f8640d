"""VT-ResNet: a ResNet whose last stage is replaced by Visual Transformers.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677

The stem and layer1..layer3 are timm's ResNet, with the same blocks and state-dict names, so a timm ResNet checkpoint
fits them. Stage 5 is `vt`: its modules pool the map into visual tokens, relate them and project them back. The
classifier reads the mean of the last tokens. The map after the last projector is the last feature level.
"""

import warnings
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    ClassVar,
    Dict,
    List,
    Literal,
    Mapping,
    Optional,
    Self,
    Tuple,
    Type,
    Union,
)

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import calculate_drop_path_rates, get_device_dtype
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    checkpoint_seq,
    generate_default_cfgs,
    is_model,
    register_model,
)
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, make_blocks

from .vt_fuse import fuse
from .vt_layers import VTModule
from .weights import builder_args, hub_id

__all__ = ['VTResNet']

BLOCKS: Dict[str, Union[Type[BasicBlock], Type[Bottleneck]]] = {'basic': BasicBlock, 'bottleneck': Bottleneck}

Task = Literal['image-classification', 'image-segmentation']

if TYPE_CHECKING:
    Body = nn.Module  # what every class is that inherits from a body
else:
    Body = object


class VTStage(nn.Module):
    """Stage 5 (Table 11): a chain of VT modules. Each passes its map and its tokens to the next.

    The last module has no projector, because no module reads its map.
    """

    def __init__(
        self,
        in_chs: int,
        dim: int,
        token_dim: int,
        num_tokens: int,
        tokenizer: str,
        recurrent: bool,
        token_mixer: str,
        projector: bool,
        distinct_tokens: bool,
        drop_path_rates: List[float],
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.grad_checkpointing = False
        self.embed = (
            nn.Identity()
            if in_chs == dim
            else nn.Sequential(
                nn.Conv2d(in_chs, dim, 1, bias=False, **dd), nn.BatchNorm2d(dim, **dd), nn.ReLU(inplace=True)
            )
        )
        # Table 3: the pooling baseline pools in every module; the parameter counts show this, unlike the text
        later_tokenizer = 'recurrent' if recurrent and tokenizer != 'pooling' else tokenizer
        last = len(drop_path_rates) - 1
        self.blocks = nn.ModuleList(
            [
                VTModule(
                    dim,
                    token_dim,
                    num_tokens,
                    tokenizer=later_tokenizer if i else tokenizer,
                    token_mixer=token_mixer,
                    projector=projector and i < last,
                    distinct_tokens=distinct_tokens,
                    drop_path=drop_path,
                    **dd,
                )
                for i, drop_path in enumerate(drop_path_rates)
            ]
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True):
        self.grad_checkpointing = enable

    def forward_tokens(self, x: torch.Tensor) -> Tuple[torch.Tensor, List[torch.Tensor], List[torch.Tensor]]:
        """Map (B, in_chs, H, W) to map (B, C, H, W), and each module's tokens (B, L, D) and attention (B, L, P)."""
        x = self.embed(x)
        tokens: Optional[torch.Tensor] = None
        all_tokens: List[torch.Tensor] = []
        attns: List[torch.Tensor] = []
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x, tokens, attn = checkpoint(block, x, tokens)
            else:
                x, tokens, attn = block(x, tokens)
            all_tokens.append(tokens)
            attns.append(attn)
        return x, all_tokens, attns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_chs, H, W) to map (B, C, H, W)."""
        return self.forward_tokens(x)[0]


class VTResNetBody(Body):
    """The network, without a base class.

    It is not an nn.Module: the timm model and the transformers models inherit from it and from their own base classes.
    So they all have the same state dict, without key prefixes. Each calls `build` with these arguments.

    Args:
        block: Residual block of layer1..layer3, 'basic' or 'bottleneck'.
        layers: Number of blocks in layer1..layer3.
        channels: Base widths of layer1..layer3; the stem has the first. Bottleneck outputs are four times as wide.
        vt_dim: Channels C of the map in the VT modules; if layer3 has another width, a 1x1 convolution adapts it.
        vt_depth: Number of VT modules.
        num_tokens: Number L of visual tokens (Table 6).
        token_dim: Width D of the tokens (the paper's CT).
        tokenizer: Tokenizer of the first module, 'filter', 'pooling' or 'cluster' (Table 3).
        recurrent: Use recurrent tokenizers in the later modules; if False, the first module's kind (Table 4).
        token_mixer: 'transformer', 'graph' or 'none' (Table 5).
        projector: Project the tokens back onto the map (Table 7).
        distinct_tokens: Keep tokens apart; if False, use the paper's equations, which make them nearly the same
            (docs/architecture.md). For weights saved without this argument, it is False.
        output_stride: Stride of the last feature level, 16 or 32. For 32, the map of stage 5 is averaged over 2 x 2
            pixels, so that decoders find one level at each stride. It does not change the logits.
        num_classes: Classes of the classifier; 0 for pooled features.
        in_chans: Image channels.
        global_pool: 'avg' for the mean over the tokens, '' for none (only with num_classes=0).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth rate of the last residual, rising linearly from 0 at the first.
        problem_type: Meaning of the logits, in transformers' terms: 'single_label_classification',
            'multi_label_classification' or 'regression'. It does not change the logits.
    """

    task: ClassVar[Task] = 'image-classification'  # as the Hub names it

    def build(
        self,
        block: str = 'basic',
        layers: Tuple[int, ...] = (2, 2, 2),
        channels: Tuple[int, ...] = (64, 128, 256),
        vt_dim: int = 512,
        vt_depth: int = 2,
        num_tokens: int = 16,
        token_dim: int = 1024,
        tokenizer: str = 'filter',
        recurrent: bool = True,
        token_mixer: str = 'transformer',
        projector: bool = True,
        distinct_tokens: bool = True,
        output_stride: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        problem_type: Optional[str] = None,
        device=None,
        dtype=None,
    ):
        """Make the layers. Raises ValueError for an unknown block or output stride."""
        dd = {'device': device, 'dtype': dtype}
        if block not in BLOCKS:
            raise ValueError(f'Unknown block {block!r}; use one of {", ".join(map(repr, BLOCKS))}.')
        if output_stride not in (16, 32):
            raise ValueError(f'output_stride is 16 or 32, not {output_stride!r}.')
        self.in_chans = in_chans
        self.num_tokens = num_tokens
        self.distinct_tokens = distinct_tokens
        self.problem_type = problem_type
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.pruned = False

        drop_path_rates = calculate_drop_path_rates(drop_path_rate, sum(layers) + vt_depth)
        trunk_chs = self.build_trunk(block, layers, channels, in_chans, drop_path_rates[sum(layers) - 1], **dd)

        self.vt = VTStage(
            trunk_chs,
            vt_dim,
            token_dim,
            num_tokens,
            tokenizer=tokenizer,
            recurrent=recurrent,
            token_mixer=token_mixer,
            projector=projector,
            distinct_tokens=distinct_tokens,
            drop_path_rates=drop_path_rates[sum(layers) :],
            **dd,
        )
        self.last_pool = nn.AvgPool2d(2, ceil_mode=True) if output_stride == 32 else nn.Identity()
        self.feature_info.append(dict(num_chs=vt_dim, reduction=output_stride, module='vt'))

        self.num_features = self.head_hidden_size = token_dim
        self.build_head(num_classes, global_pool, **dd)

    def build_trunk(
        self,
        block: str,
        layers: Tuple[int, ...],
        channels: Tuple[int, ...],
        in_chans: int,
        drop_path_rate: float,
        device=None,
        dtype=None,
    ) -> int:
        """Make the stem and layer1..layer3 of timm's ResNet. Returns the channels of the map of layer3."""
        dd = {'device': device, 'dtype': dtype}
        stem_chs = channels[0]
        self.conv1 = nn.Conv2d(in_chans, stem_chs, kernel_size=7, stride=2, padding=3, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(stem_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        stages, feature_info = make_blocks(
            (BLOCKS[block],) * 3, channels, layers, stem_chs, drop_path_rate=drop_path_rate, **dd
        )
        self.layer1, self.layer2, self.layer3 = (stage for _, stage in stages)
        self.feature_info = [dict(num_chs=stem_chs, reduction=2, module='act1'), *feature_info]
        return feature_info[-1]['num_chs']

    def build_head(self, num_classes: int, global_pool: str, device=None, dtype=None):
        """Choose the pooling and make the classifier; without classes, there is none."""
        dd = {'device': device, 'dtype': dtype}
        assert global_pool in ('avg', ''), f"global_pool must be 'avg' or '', not {global_pool!r}."
        assert global_pool or num_classes == 0, "global_pool='' goes with num_classes=0 only."
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.fc = nn.Linear(self.head_hidden_size, num_classes, **dd) if num_classes > 0 else nn.Identity()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True):
        self.grad_checkpointing = enable
        self.vt.set_grad_checkpointing(enable)

    @torch.jit.unused  # unlike ignore, it keeps the types
    def fuse(self) -> Self:
        """Make the network cheaper for inference, in place; see `vt_fuse.fuse`. Returns it."""
        return fuse(self)

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None):
        global_pool = self.global_pool if global_pool is None else global_pool
        self.build_head(num_classes, global_pool, **get_device_dtype(self))
        self.fc.train(self.training)  # timm's tests check the mode

    def forward_trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) to the map of layer3, (B, channels, H / 16, W / 16)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) to visual tokens (B, L, D); after pruning, to the map of the last level kept."""
        x = self.forward_trunk(x)
        if self.pruned:
            return self.last_pool(self.vt(x))
        return self.vt.forward_tokens(x)[1][-1]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Visual tokens (B, L, D), or a map after pruning, to logits (B, num_classes) or to their mean (B, D)."""
        if self.global_pool == 'avg':
            x = x.mean(dim=(2, 3)) if self.pruned else x.mean(dim=1)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    @torch.jit.unused  # unlike ignore, it keeps the types
    def token_attention(self, x: torch.Tensor) -> List[torch.Tensor]:
        """Where each visual token looks (Figures 5 and 7).

        Args:
            x: Images, (B, in_chans, H, W).

        Returns:
            One (B, L, H / 16, W / 16) map per VT module; each token's map sums to 1.
        """
        x = self.forward_trunk(x)
        attns = self.vt.forward_tokens(x)[2]
        return [attn.unflatten(2, x.shape[-2:]) for attn in attns]

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Forward features that returns intermediates.

        Args:
            x: Input image tensor
            indices: Take last n levels if int, all if None, select matching indices if sequence
            norm: Has no effect: the levels are maps without a final norm
            stop_early: Stop after the last requested level
            output_fmt: Shape of intermediate feature outputs, NCHW
            intermediates_only: Only return intermediate features

        Returns:
            The output of forward_features (with stop_early, the last map) and the maps, or only the maps.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        take_indices, max_index = feature_take_indices(5, indices)
        intermediates = []

        x = self.act1(self.bn1(self.conv1(x)))
        if 0 in take_indices:
            intermediates.append(x)
        x = self.maxpool(x)
        layers = [self.layer1, self.layer2, self.layer3]
        for feat_idx, layer in enumerate(layers[:max_index] if stop_early else layers, start=1):
            x = checkpoint_seq(layer, x) if self.grad_checkpointing else layer(x)
            if feat_idx in take_indices:
                intermediates.append(x)
        if max_index == 4 or not stop_early:
            feature_map, tokens, _ = self.vt.forward_tokens(x)
            feature_map = self.last_pool(feature_map)
            x = feature_map if self.pruned else tokens[-1]
            if 4 in take_indices:
                intermediates.append(feature_map)

        return intermediates if intermediates_only else (x, intermediates)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self,
        indices: Union[int, List[int]] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> List[int]:
        """Prune layers not required for specified intermediates.

        Without the head, forward_features returns the map of the last level kept. The head reads the tokens of the last
        module, so it can be kept only with the last level.
        """
        take_indices, max_index = feature_take_indices(5, indices)
        if max_index == 4 and not prune_head:
            return take_indices
        for name in ('layer1', 'layer2', 'layer3')[max_index:]:
            setattr(self, name, nn.Sequential())  # empty, not Identity, so (flattened) checkpoint_seq can iterate it
        if max_index == 0:
            self.maxpool = nn.Identity()
        if max_index < 4:
            self.vt.embed = self.last_pool = nn.Identity()
        num_projectors = sum(block.projector is not None for block in self.vt.blocks)
        self.vt.blocks = self.vt.blocks[: num_projectors if max_index == 4 else 0]  # the modules the map depends on
        self.pruned = True
        self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        self.reset_classifier(0, '')
        return take_indices


class VTResNet(VTResNetBody, nn.Module):
    """VT-ResNet in timm; the arguments are those of `VTResNetBody`."""

    if TYPE_CHECKING:
        pretrained_cfg: Dict[str, Any]  # timm's builder sets it

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.build(**kwargs)
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

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'min_input_size': (3, 64, 64),
        'pool_size': None,
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1',
        'classifier': 'fc',
        'paper_ids': 'arXiv:2006.03677',
        'paper_name': 'Visual Transformers: Token-based Image Representation and Processing for Computer Vision',
        'license': 'apache-2.0',
        **kwargs,
    }


def _published_cfg(name: str, **kwargs: Any) -> Dict[str, Any]:
    return _cfg(
        hf_hub_id=hub_id(name),
        input_size=(3, 64, 64),
        crop_pct=1.0,
        mean=IMAGENET_INCEPTION_MEAN,
        std=IMAGENET_INCEPTION_STD,
        **kwargs,
    )


SCENES = dict(num_classes=100, description='A start for fine-tuning, trained on generated scenes of fractals alone.')

default_cfgs = generate_default_cfgs(
    {
        'vt_resnet18.scenes': _published_cfg('vt_resnet18.scenes', **SCENES),
        'vt_resnet18.untrained': _cfg(),
        'vt_resnet34.untrained': _cfg(),
        'vt_resnet50.scenes': _published_cfg('vt_resnet50.scenes', **SCENES),
        'vt_resnet50.untrained': _cfg(),
        'vt_resnet101.untrained': _cfg(),
        'vt_resnet10.digits': _published_cfg(
            'vt_resnet10.digits',
            num_classes=10,
            label_names=tuple('0123456789'),
            description="Handwritten digits, trained on four fifths of the 1797 images of scikit-learn's load_digits.",
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


def first_filters(state_dict: Mapping[str, torch.Tensor], num_tokens: int) -> Dict[str, torch.Tensor]:
    """Keep only the filters of the first `num_tokens` tokens. Weights with fewer tokens stay unchanged."""
    names = ('tokenizer.filters', 'tokenizer.filters.weight')
    return {key: value[:num_tokens] if key.endswith(names) else value for key, value in state_dict.items()}


def checkpoint_filter_fn(state_dict: Dict[str, torch.Tensor], model: VTResNet) -> Dict[str, torch.Tensor]:
    """Let weights load into a network with fewer tokens. It is accurate only if they were trained for that."""
    return first_filters(state_dict, model.num_tokens)


def _empty_vt_resnet(device=None, **kwargs: Any) -> VTResNet:
    """A VT-ResNet whose weights are uninitialised, except conv1 and fc: a checkpoint may not fit these two."""
    model = VTResNet(device='meta', **kwargs).to_empty(device=device or torch.get_default_device())
    nn.init.kaiming_normal_(model.conv1.weight, mode='fan_out', nonlinearity='relu')
    if isinstance(model.fc, nn.Linear):
        model.fc.reset_parameters()
    return model


def _create_vt_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> VTResNet:
    if kwargs.get('features_only') and kwargs.get('feature_cls') in ('hook', 'fx'):
        raise ValueError("Hooks and fx cannot return the last map; use feature_cls 'getter', 'list' or 'dict'.")
    kwargs, published = builder_args(variant, pretrained, kwargs, 'problem_type')
    model_cls: Callable[..., VTResNet] = VTResNet
    if published and kwargs.get('pretrained_strict', True):
        model_cls = _empty_vt_resnet  # the published file has the other layers
    elif not pretrained and 'untrained' in default_cfgs[variant].cfgs:
        # the paper's classes and image size, not those of published weights
        kwargs['pretrained_cfg'] = kwargs.get('pretrained_cfg') or 'untrained'
    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        # the getter prunes, so that every parameter of a wrapped backbone gets a gradient
        feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls='getter'),
        **{**ARCHITECTURES[variant], **kwargs},
    )


def register(fn: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """timm's register_model. A copy of this file in a model folder does not replace models of the package."""
    if is_model(fn.__name__) and not __name__.startswith('vt_hub.'):
        return fn
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # timm warns if a copy was registered first
        return register_model(fn)


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
