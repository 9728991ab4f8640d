"""PyTorch models for transformers: the networks of this package with transformers' base class."""

import os
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils.generic import can_return_tuple

from .configuration_vt import VTClassifierConfig, VTFPNConfig, VTNetConfig, VTResNetConfig
from .vt_fpn import VTFPNBody
from .vt_layers import DistinctTokenizer
from .vt_net import VTNetBody
from .vt_resnet import VTResNetBody
from .vt_stage import VTBody

__all__ = [
    'VTFPNForSemanticSegmentation',
    'VTNetBackbone',
    'VTNetForImageClassification',
    'VTNetModel',
    'VTNetPreTrainedModel',
    'VTPreTrainedModel',
    'VTResNetBackbone',
    'VTResNetForImageClassification',
    'VTResNetModel',
    'VTResNetPreTrainedModel',
]


class VTPreTrainedModel(PreTrainedModel):
    """Base of the models. The state dict is the timm model's, and weights are never silently random."""

    if TYPE_CHECKING:
        to = nn.Module.to  # type: ignore[assignment]  # transformers' wrapper asks for `self` twice

    base_model_prefix = ''
    main_input_name = 'pixel_values'
    input_modalities = ['image']
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ['BasicBlock', 'Bottleneck', 'VTModule', 'VTDecoder', 'SemanticHead']

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Self:
        """transformers' method, but only the classifier may be silently random.

        Raises:
            ValueError: The checkpoint lacks weights of the network, or has values that are not finite.
        """
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = set(info['missing_keys']) - {name for name, *_ in info['mismatched_keys']}
        if not any('For' in name for name in model.config.architectures or []):
            missing -= {'fc.weight', 'fc.bias'}  # a new classifier on a checkpoint that never had one
        if missing:
            more = f' and {len(missing) - 1} more weights' if len(missing) > 1 else ''
            raise ValueError(
                f'The checkpoint {pretrained_model_name_or_path} lacks {min(missing)}{more}; '
                f'it does not fit {model.config.architecture}.'
            )
        for name, value in model.state_dict().items():
            plain = type(value) is torch.Tensor and not value.is_meta  # neither quantised nor offloaded
            if plain and value.is_floating_point() and not value.isfinite().all():
                raise ValueError(
                    f'The checkpoint {pretrained_model_name_or_path} has values that are not finite in {name}.'
                )
        for value in model.parameters():
            if value.device.type == 'cpu' and value.data_ptr() % 64:
                value.data = value.data.clone()  # mapped from the file; unaligned, some CPUs round differently
        return loaded if output_loading_info else model

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.gradient_checkpointing = enable  # what is_gradient_checkpointing reads
        self.set_grad_checkpointing(enable)

    def keep_initialization(self, part: nn.Module) -> None:
        """Leave a part to timm, which has initialised or loaded it, and on one device."""
        module: Any
        for module in part.modules():
            module.of_timm = True
        self._no_split_modules = [*self._no_split_modules, type(part).__name__]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's default initialisation, with functions that do not change loaded tensors."""
        if getattr(module, 'of_timm', False):
            if hasattr(module, 'init_non_persistent_buffers'):  # checkpoints do not hold these
                module.init_non_persistent_buffers()
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if getattr(module, 'bias', None) is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, DistinctTokenizer):
            init.normal_(module.filters, std=module.scale)
        elif isinstance(module, LayerScale):
            init.constant_(module.gamma, module.init_values)
        else:
            super()._init_weights(module)
            if getattr(module, 'zero_init', False):
                init.zeros_(module.weight)

    def get_input_embeddings(self) -> Any:
        return None  # pixels have no embedding table


class VTClassifierPreTrainedModel(VTBody, VTPreTrainedModel):
    """Base of the models with a VT stage: builds and runs them."""

    if TYPE_CHECKING:
        config: VTClassifierConfig

    def build_from(self, config: VTClassifierConfig, num_classes: int) -> None:
        self.build(**config.build_args, num_classes=num_classes)

    @property
    def weight_dtype(self) -> torch.dtype:
        weight: Any = self.get_submodule(self.first_conv).weight  # replicas of DataParallel have no self.dtype
        return weight.dtype

    def encode(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None, output_attentions: bool | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """Tokens (B, L, D) and, if requested, the maps after stem and stages and each module's token attention."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x, maps = pixel_values.to(self.weight_dtype), list[torch.Tensor]()
        if output_hidden_states:
            maps = self.forward_levels(x, len(self.feature_info) - 2)
            x = maps[-1]
        else:
            x = self.forward_trunk(x)
        size = x.shape[-2:]
        x, tokens, attns = self.vt.forward_tokens(x)
        hidden_states = (*maps, self.last_pool(x)) if output_hidden_states else None
        attentions = tuple(attn.unflatten(2, size) for attn in attns) if output_attentions else None
        return tokens[-1], hidden_states, attentions


class VTModel(VTClassifierPreTrainedModel):
    """A network without classifier: visual tokens and their mean."""

    _keys_to_ignore_on_load_unexpected = [r'^fc\.']

    def __init__(self, config: VTClassifierConfig):
        super().__init__(config)
        self.build_from(config, num_classes=0)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: Images, (B, channels, H, W).
            output_hidden_states: Return the maps of all feature levels, (B, C, H / r, W / r).
            output_attentions: Return the token attention (B, L, H / 16, W / 16) of each VT module.

        Returns:
            `last_hidden_state`, the visual tokens (B, L, D), and `pooler_output`, their mean (B, D).
        """
        tokens, hidden_states, attentions = self.encode(pixel_values, output_hidden_states, output_attentions)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=self.forward_head(tokens),
            hidden_states=hidden_states,
            attentions=attentions,
        )


class VTForImageClassification(VTClassifierPreTrainedModel):
    """A network with a linear classifier on the mean of its visual tokens."""

    def __init__(self, config: VTClassifierConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.build_from(config, num_classes=config.num_labels)
        self.post_init()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.num_labels = self.config.num_labels = num_classes

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values: Images, (B, channels, H, W).
            labels: Class indices (B,), multi-hot floats (B, num_labels) or regression targets; see `problem_type`.
            output_hidden_states: Return the maps of all feature levels, (B, C, H / r, W / r).
            output_attentions: Return the token attention (B, L, H / 16, W / 16) of each VT module.

        Returns:
            `logits` (B, num_labels) and, with labels, `loss`.
        """
        tokens, hidden_states, attentions = self.encode(pixel_values, output_hidden_states, output_attentions)
        logits = self.forward_head(tokens)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)


class VTBackbone(BackboneMixin, VTClassifierPreTrainedModel):  # type: ignore[misc]  # BackboneMixin sets num_features to None
    """A network as a backbone: returns the maps after the stages in `config.out_features`, without unneeded layers."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r'^fc\.', r'^vt\.', r'^trunk\.', r'^layer[123]\.']

    def __init__(self, config: VTClassifierConfig):
        super().__init__(config)
        self.build_from(config, num_classes=0)
        self.prune_intermediate_layers(config.out_indices)
        self.num_features = [info['num_chs'] for info in self.feature_info]  # of every stage, as in other backbones
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> BackboneOutput:
        """
        Args:
            pixel_values: Images, (B, channels, H, W).
            output_hidden_states: Return all maps up to the last requested one.

        Returns:
            `feature_maps`, one (B, C, H / r, W / r) per entry of `out_features`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        levels = len(self.feature_info)
        last = max(index % levels for index in self.out_indices)
        maps = self.forward_intermediates(
            pixel_values.to(self.weight_dtype),
            indices=list(range(last + 1)),
            stop_early=True,
            intermediates_only=True,
        )
        return BackboneOutput(
            feature_maps=tuple(maps[index % levels] for index in self.out_indices),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )


class VTResNetPreTrainedModel(VTResNetBody, VTClassifierPreTrainedModel):
    """Base of the VT-ResNets: initialises them."""

    config_class: type[VTResNetConfig] = VTResNetConfig

    def build_from(self, config: VTClassifierConfig, num_classes: int) -> None:
        super().build_from(config, num_classes)
        for module in self.modules():
            if hasattr(module, 'zero_init_last'):  # marks the norm, since _init_weights sees leaf modules only
                (module.bn3 if hasattr(module, 'bn3') else module.bn2).zero_init = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):  # as timm's ResNet
            init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        else:
            super()._init_weights(module)


class VTResNetModel(VTResNetPreTrainedModel, VTModel):
    """VT-ResNet without classifier: visual tokens and their mean."""


class VTResNetForImageClassification(VTResNetPreTrainedModel, VTForImageClassification):
    """VT-ResNet with a linear classifier on the mean of its visual tokens."""


class VTResNetBackbone(VTResNetPreTrainedModel, VTBackbone):  # type: ignore[misc]
    """VT-ResNet as a backbone."""


class VTNetPreTrainedModel(VTNetBody, VTClassifierPreTrainedModel):
    """Base of the VT-Nets: leaves their trunk to timm."""

    config_class: type[VTNetConfig] = VTNetConfig

    def build_from(self, config: VTClassifierConfig, num_classes: int) -> None:
        super().build_from(config, num_classes)
        self.keep_initialization(self.trunk)


class VTNetModel(VTNetPreTrainedModel, VTModel):
    """VT-Net without classifier: visual tokens and their mean."""


class VTNetForImageClassification(VTNetPreTrainedModel, VTForImageClassification):
    """VT-Net with a linear classifier on the mean of its visual tokens."""


class VTNetBackbone(VTNetPreTrainedModel, VTBackbone):  # type: ignore[misc]
    """VT-Net as a backbone."""


def segmentation_loss(
    logits: torch.Tensor, labels: torch.Tensor, ignored: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy over the labelled pixels, 0 without any.

    Args:
        logits: (B, num_classes, h, w).
        labels: Class of each pixel, (B, H, W).
        ignored: Label of the other pixels.
        weights: Weight of each class, (num_classes); default: 1.
    """
    upsampled = F.interpolate(logits.float(), size=labels.shape[-2:], mode='bilinear', align_corners=False)
    total = F.cross_entropy(upsampled, labels, weights, ignore_index=ignored, reduction='sum')
    known = labels != ignored
    if weights is None:
        return total / known.sum().clamp(min=1)
    return total / (known * weights[labels.where(known, 0)]).sum().clamp(min=1e-6)


class VTFPNForSemanticSegmentation(VTFPNBody, VTPreTrainedModel):
    """VT-FPN, or the panoptic FPN baseline, for semantic segmentation."""

    config_class: type[VTFPNConfig] = VTFPNConfig
    if TYPE_CHECKING:
        config: VTFPNConfig

    def __init__(self, config: VTFPNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.build(**config.build_args, num_classes=config.num_labels)
        self.keep_initialization(self.backbone)
        self.post_init()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.num_labels = self.config.num_labels = num_classes

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SemanticSegmenterOutput:
        """
        Args:
            pixel_values: Images, (B, channels, H, W).
            labels: Class of each pixel, (B, H, W), or the configuration's `semantic_loss_ignore_index`.
            output_hidden_states: Return the decoder's four maps, (B, dim, H / r, W / r), r = 4, 8, 16, 32.
            output_attentions: Return the token attention of each level, (B, L, H / r, W / r); not for the panoptic FPN.

        Returns:
            `logits` (B, num_labels, H / 4, W / 4) and, with labels, `loss`: the mean cross-entropy over the labelled
            pixels, of logits upsampled to the size of the labels.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        dtype = self.head.predictor.weight.dtype
        maps, attns = self.forward_maps(self.forward_features(pixel_values.to(dtype)), output_attentions)
        logits, loss = self.head(maps), None
        if labels is not None:
            loss = segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(maps) if output_hidden_states else None,
            attentions=tuple(attns) if attns else None,
        )
