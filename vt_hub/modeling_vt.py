"""PyTorch VT-ResNet models for transformers: the network of vt_resnet.py under transformers' base class."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_vt import VTResNetConfig
from .vt_layers import TransformerMixer
from .vt_resnet import VTResNetBody

__all__ = ['VTResNetBackbone', 'VTResNetForImageClassification', 'VTResNetModel', 'VTResNetPreTrainedModel']


class VTResNetPreTrainedModel(VTResNetBody, PreTrainedModel):
    """Base of the VT-ResNet models: how they are built, initialised and run. The state dict is the timm model's."""

    config_class = VTResNetConfig
    base_model_prefix = ''
    main_input_name = 'pixel_values'
    input_modalities = ('image',)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ['BasicBlock', 'Bottleneck', 'VTModule']

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """transformers' own, except that weights other than the classifier's are never silently random.

        Raises:
            ValueError: The checkpoint lacks weights of the network, or has values that are not finite.
        """
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        missing = set(info['missing_keys']) - {name for name, *_ in info['mismatched_keys']}
        if 'VTResNetForImageClassification' not in (model.config.architectures or []):
            missing -= {'fc.weight', 'fc.bias'}  # a new classifier on a checkpoint that never had one
        if missing:
            more = f' and {len(missing) - 1} more weights' if len(missing) > 1 else ''
            raise ValueError(
                f'The checkpoint {pretrained_model_name_or_path} lacks {min(missing)}{more}; '
                f'it does not fit {model.config.architecture}.'
            )
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not value.is_meta and not value.isfinite().all():
                raise ValueError(
                    f'The checkpoint {pretrained_model_name_or_path} has values that are not finite in {name}.'
                )
        return (model, info) if output_loading_info else model

    def build_from(self, config: VTResNetConfig, num_classes: int):
        self.build(**config.build_args, num_classes=num_classes)
        for module in self.modules():
            if hasattr(module, 'zero_init_last'):  # told to the norm itself: _init_weights sees leaf modules only
                (module.bn3 if hasattr(module, 'bn3') else module.bn2).zero_init = True
        self.apply_attn_implementation()

    def apply_attn_implementation(self):
        for module in self.modules():
            if isinstance(module, TransformerMixer):
                module.fused_attn = self.config._attn_implementation != 'eager'

    def set_attn_implementation(self, *args, **kwargs):
        super().set_attn_implementation(*args, **kwargs)
        self.apply_attn_implementation()

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs):
        self.set_grad_checkpointing(enable)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """timm's initialisation, through functions that leave loaded tensors alone."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)
            if getattr(module, 'zero_init', False):
                init.zeros_(module.weight)

    def encode(self, pixel_values: torch.Tensor, output_hidden_states: bool | None, output_attentions: bool | None):
        """Tokens (B, L, D), and if asked for the maps after stem and stages and the token attention of each module."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x, maps = pixel_values.to(self.dtype), []
        if output_hidden_states:
            x, maps = self.forward_intermediates(x, indices=[0, 1, 2, 3], stop_early=True)
        else:
            x = self.forward_trunk(x)
        size = x.shape[-2:]
        x, tokens, attns = self.vt.forward_tokens(x)
        hidden_states = (*maps, x) if output_hidden_states else None
        attentions = tuple(attn.unflatten(2, size) for attn in attns) if output_attentions else None
        return tokens, hidden_states, attentions

    def get_input_embeddings(self):
        return None  # pixels are not embedded by a table


class VTResNetModel(VTResNetPreTrainedModel):
    """VT-ResNet without classifier: visual tokens and their mean."""

    _keys_to_ignore_on_load_unexpected = [r'^fc\.']

    def __init__(self, config: VTResNetConfig):
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
            output_hidden_states: Return the maps after the stem and the four stages, (B, C, H / r, W / r).
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


class VTResNetForImageClassification(VTResNetPreTrainedModel):
    """VT-ResNet with a linear classifier on the mean of its visual tokens."""

    def __init__(self, config: VTResNetConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.build_from(config, num_classes=config.num_labels)
        self.post_init()

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
            output_hidden_states: Return the maps after the stem and the four stages, (B, C, H / r, W / r).
            output_attentions: Return the token attention (B, L, H / 16, W / 16) of each VT module.

        Returns:
            `logits` (B, num_labels) and, with labels, `loss`.
        """
        tokens, hidden_states, attentions = self.encode(pixel_values, output_hidden_states, output_attentions)
        logits = self.forward_head(tokens)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states, attentions=attentions)


class VTResNetBackbone(BackboneMixin, VTResNetPreTrainedModel):
    """VT-ResNet as a backbone: maps after the stages in `config.out_features`; what they do not need is left out."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected = [r'^fc\.', r'^vt\.', r'^layer[123]\.']

    def __init__(self, config: VTResNetConfig):
        super().__init__(config)
        self.build_from(config, num_classes=0)
        self.prune_intermediate_layers(config.out_indices)
        self.num_features = [info['num_chs'] for info in self.feature_info]  # of every stage, as backbones have it
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs: Any):
        """
        Args:
            pixel_values: Images, (B, channels, H, W).
            output_hidden_states: Return all maps up to the last one asked for.

        Returns:
            `feature_maps`, one (B, C, H / r, W / r) per entry of `out_features`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        last = max(index % 5 for index in self.out_indices)
        maps = self.forward_intermediates(
            pixel_values.to(self.dtype), indices=list(range(last + 1)), stop_early=True, intermediates_only=True
        )
        return BackboneOutput(
            feature_maps=tuple(maps[index % 5] for index in self.out_indices),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )
