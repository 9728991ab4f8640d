"""The VT stage at the end of a network, and what all networks with one share.

Paper: `Visual Transformers: Token-based Image Representation and Processing for Computer Vision`
    - https://arxiv.org/abs/2006.03677

A trunk makes a map of stride 16. The modules of the stage pool it into visual tokens, relate them and project them
back. The classifier reads the mean of the last tokens. The map after the last projector is the last feature level.
"""

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Dict, List, Literal, Mapping, Optional, Self, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import build_model_with_cfg, checkpoint, is_model, register_model
from timm.models._features import feature_take_indices

from .vt_fuse import fuse
from .vt_layers import VTModule

__all__ = ['Body', 'Task', 'VTBody', 'VTClassifier', 'VTStage', 'signature_of']

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


class VTBody(Body):
    """A trunk, the VT stage and a classifier, without a base class. A subclass makes the trunk.

    It is not an nn.Module: the timm models and the transformers models inherit from it and from their own base classes.
    So they all have the same state dict, without key prefixes. Each calls `build` with these arguments.

    Args:
        vt_dim: Channels C of the map in the VT modules; if the trunk's map has another width, a 1x1 convolution adapts
            it. Default: twice the trunk's channels, at most 1024, as in Table 11.
        vt_depth: Number of VT modules.
        num_tokens: Number L of visual tokens (Table 6).
        token_dim: Width D of the tokens (the paper's CT). Default: twice `vt_dim`, at most 1024, as in Table 11.
        tokenizer: Tokenizer of the first module, 'filter', 'pooling' or 'cluster' (Table 3).
        recurrent: Use recurrent tokenizers in the later modules; if False, the first module's kind (Table 4).
        token_mixer: 'transformer', 'graph' or 'none' (Table 5).
        projector: Project the tokens back onto the map (Table 7).
        distinct_tokens: Keep tokens apart; if False, use the paper's equations, which make them nearly the same
            (docs/architecture.md). For weights saved without this argument, it is False.
        output_stride: Stride of the last feature level, 16 or 32. For 32, the map of the VT stage is averaged over
            2 x 2 pixels, so that decoders find one level at each stride. It does not change the logits.
        num_classes: Classes of the classifier; 0 for pooled features.
        in_chans: Image channels.
        global_pool: 'avg' for the mean over the tokens, '' for none (only with num_classes=0).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth rate of the last residual, rising linearly from 0 at the first.
        problem_type: Meaning of the logits, in transformers' terms: 'single_label_classification',
            'multi_label_classification' or 'regression'. It does not change the logits.
        trunk: Arguments of the subclass's `build_trunk`.
    """

    task: ClassVar[Task] = 'image-classification'  # as the Hub names it
    feature_info: List[Dict[str, Any]]
    first_conv: str  # name of the layer that reads the image

    def build(
        self,
        vt_dim: Optional[int] = None,
        vt_depth: int = 2,
        num_tokens: int = 16,
        token_dim: Optional[int] = None,
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
        **trunk: Any,
    ):
        """Make the layers. Raises ValueError for an unknown output stride, or a trunk that cannot be made."""
        dd = {'device': device, 'dtype': dtype}
        if output_stride not in (16, 32):
            raise ValueError(f'output_stride is 16 or 32, not {output_stride!r}.')
        self.in_chans = in_chans
        self.num_tokens = num_tokens
        self.distinct_tokens = distinct_tokens
        self.problem_type = problem_type
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.pruned = False

        drop_path_rates = self.build_trunk(
            in_chans=in_chans, drop_path_rate=drop_path_rate, vt_depth=vt_depth, **trunk, **dd
        )
        trunk_chs = self.feature_info[-1]['num_chs']
        vt_dim = vt_dim or min(2 * trunk_chs, 1024)
        token_dim = token_dim or min(2 * vt_dim, 1024)
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
            drop_path_rates=drop_path_rates,
            **dd,
        )
        self.last_pool = nn.AvgPool2d(2, ceil_mode=True) if output_stride == 32 else nn.Identity()
        self.feature_info.append(dict(num_chs=vt_dim, reduction=output_stride, module='vt'))

        self.num_features = self.head_hidden_size = token_dim
        self.build_head(num_classes, global_pool, **dd)

    def build_trunk(self, in_chans: int, drop_path_rate: float, vt_depth: int, **kwargs: Any) -> List[float]:
        """Make the trunk, `feature_info` of its levels and `first_conv`.

        Returns:
            The stochastic depth rate of each VT module.
        """
        raise NotImplementedError

    def forward_trunk(self, x: torch.Tensor) -> torch.Tensor:
        """Image (B, in_chans, H, W) to the trunk's map (B, C, H / 16, W / 16)."""
        raise NotImplementedError

    def forward_levels(self, x: torch.Tensor, last: int) -> List[torch.Tensor]:
        """Image (B, in_chans, H, W) to the maps of the trunk's levels up to number `last`."""
        raise NotImplementedError

    def prune_trunk(self, last: int) -> None:
        """Remove the layers after level number `last`."""
        raise NotImplementedError

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
        last = len(self.feature_info) - 1
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        maps = self.forward_levels(x, min(max_index, last - 1) if stop_early else last - 1)
        x = maps[-1]
        if max_index == last or not stop_early:
            x, tokens, _ = self.vt.forward_tokens(x)
            maps.append(self.last_pool(x))
            x = maps[-1] if self.pruned else tokens[-1]
        intermediates = [maps[i] for i in take_indices]
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
        last = len(self.feature_info) - 1
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        if max_index == last and not prune_head:
            return take_indices
        if max_index < last:
            self.prune_trunk(max_index)
            self.vt.embed = self.last_pool = nn.Identity()
        num_projectors = sum(block.projector is not None for block in self.vt.blocks)
        self.vt.blocks = self.vt.blocks[: num_projectors if max_index == last else 0]  # those the map depends on
        self.pruned = True
        self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        self.reset_classifier(0, '')
        return take_indices


def signature_of(*functions: Callable[..., Any]) -> inspect.Signature:
    """The keyword arguments of some methods together, for `help` and editors; of the same name, the first counts."""
    found: Dict[str, inspect.Parameter] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if name != 'self' and parameter.kind is not parameter.VAR_KEYWORD:
                found.setdefault(name, parameter.replace(kind=parameter.KEYWORD_ONLY))
    return inspect.Signature(list(found.values()))


class VTClassifier(VTBody, nn.Module):
    """What timm needs of a network with a VT stage."""

    if TYPE_CHECKING:
        pretrained_cfg: Dict[str, Any]  # timm's builder sets it

    def __init__(self, **kwargs: Any):
        super().__init__()
        self.build(**kwargs)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x


def classifier_cfg(**kwargs: Any) -> Dict[str, Any]:
    """timm's description of the weights of a network with a VT stage; what is not given is as for ImageNet."""
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'min_input_size': (3, 64, 64),
        'pool_size': None,
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'classifier': 'fc',
        'paper_ids': 'arXiv:2006.03677',
        'paper_name': 'Visual Transformers: Token-based Image Representation and Processing for Computer Vision',
        'license': 'apache-2.0',
        **kwargs,
    }


def first_filters(state_dict: Mapping[str, torch.Tensor], num_tokens: int) -> Dict[str, torch.Tensor]:
    """Keep only the filters of the first `num_tokens` tokens. Weights with fewer tokens stay unchanged."""
    names = ('tokenizer.filters', 'tokenizer.filters.weight')
    return {key: value[:num_tokens] if key.endswith(names) else value for key, value in state_dict.items()}


def checkpoint_filter_fn(state_dict: Dict[str, torch.Tensor], model: VTClassifier) -> Dict[str, torch.Tensor]:
    """Let weights load into a network with fewer tokens. It is accurate only if they were trained for that."""
    return first_filters(state_dict, model.num_tokens)


def build_classifier(model_cls: Callable[..., VTClassifier], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """timm's builder for a network with a VT stage. With `features_only` it returns timm's wrapper of the network."""
    if kwargs.get('features_only') and kwargs.get('feature_cls') in ('hook', 'fx'):
        raise ValueError("Hooks and fx cannot return the last map; use feature_cls 'getter', 'list' or 'dict'.")
    return build_model_with_cfg(
        model_cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(feature_cls='getter'),  # it prunes, so that every parameter of a backbone gets a gradient
        **kwargs,
    )


def register(fn: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """timm's register_model. A copy of this file in a model folder does not replace models of the package."""
    if is_model(fn.__name__) and not __name__.startswith('vt_hub.'):
        return fn
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # timm warns if a copy was registered first
        return register_model(fn)
