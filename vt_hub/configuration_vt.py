"""VT-ResNet model configuration"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .vt_resnet import ARCHITECTURES, default_cfgs

__all__ = ['VTResNetConfig']

# written for timm on every save, from the labels and the architecture
DERIVED = ('num_classes', 'label_names', 'label_descriptions', 'num_features', 'global_pool', 'stage_names')


@strict
class VTResNetConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a VT-ResNet. Its `config.json` is timm's as well: both libraries load the same folder.

    The labels live in `id2label` alone; what timm needs of them is written from there on every save.

    Args:
        architecture (`str`, *optional*, defaults to `"vt_resnet50"`):
            Name of the timm architecture.
        model_args (`dict[str, Any]`, *optional*):
            Arguments of `VTResNetBody.build` that differ from the architecture's, such as `{"num_tokens": 32}`.
        pretrained_cfg (`dict[str, Any]`, *optional*):
            timm's description of the weights: preprocessing, licence, origin. Defaults to the architecture's.

    Example:

    ```python
    >>> from vt_hub import VTResNetConfig, VTResNetForImageClassification

    >>> configuration = VTResNetConfig(architecture="vt_resnet18", num_labels=37)
    >>> model = VTResNetForImageClassification(configuration)  # random weights
    >>> model.config.num_labels
    37
    ```"""

    model_type = 'vt_resnet'

    architecture: str = 'vt_resnet50'
    model_args: dict[str, Any] | None = None
    pretrained_cfg: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f'Unknown architecture {self.architecture!r}; use one of {", ".join(map(repr, ARCHITECTURES))}.'
            )
        label_names, descriptions = kwargs.get('label_names'), kwargs.get('label_descriptions') or {}
        if self.id2label is None and label_names and 'num_labels' not in kwargs:
            self.id2label = {i: descriptions.get(name, name) for i, name in enumerate(label_names)}
            self.label2id = {name: i for i, name in self.id2label.items()}
        for key in DERIVED:
            kwargs.pop(key, None)
        self.model_args = dict(self.model_args or {})
        default = default_cfgs[self.architecture].default.to_dict(remove_source=True)
        self.pretrained_cfg = dict(self.pretrained_cfg or default)
        for key in ('num_classes', 'label_names', 'label_descriptions', 'architecture', 'custom_load'):
            self.pretrained_cfg.pop(key, None)
        self.stage_names = ['stem', 'stage1', 'stage2', 'stage3', 'stage4']
        self.set_output_features_output_indices(
            out_indices=kwargs.pop('out_indices', None), out_features=kwargs.pop('out_features', None)
        )
        super().__post_init__(**kwargs)

    @property
    def build_args(self) -> dict[str, Any]:
        """Arguments of `VTResNetBody.build`, all but `num_classes`."""
        in_chans = self.pretrained_cfg.get('input_size', (3,))[0]
        return {**ARCHITECTURES[self.architecture], 'in_chans': in_chans, **self.model_args}

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return [self.id2label[i] for i in range(self.num_labels)]

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output['num_classes'] = self.num_labels
        output['label_names'] = self.label_names
        output['pretrained_cfg'] = {**self.pretrained_cfg, 'num_classes': self.num_labels}
        return output
