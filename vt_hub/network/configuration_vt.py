"""VT-ResNet and VT-FPN model configurations"""

from collections.abc import Iterable
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from timm.models import DefaultCfg
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .images import with_channels
from .vt_fpn import ARCHITECTURES as VT_FPN_ARCHITECTURES
from .vt_fpn import VTFPNBody
from .vt_fpn import default_cfgs as vt_fpn_default_cfgs
from .vt_net import ARCHITECTURES as VT_NET_ARCHITECTURES
from .vt_net import VTNetBody, preprocessing_of, trunk_levels
from .vt_net import default_cfgs as vt_net_default_cfgs
from .vt_resnet import ARCHITECTURES as VT_RESNET_ARCHITECTURES
from .vt_resnet import VTResNetBody
from .vt_resnet import default_cfgs as vt_resnet_default_cfgs
from .vt_stage import VTBody
from .weights import saved_args

__all__ = ['VTConfig', 'VTFPNConfig', 'VTNetConfig', 'VTResNetConfig']

# written for timm on every save, from the labels and the architecture
DERIVED = ('num_classes', 'label_names', 'label_descriptions', 'num_features', 'global_pool', 'stage_names')


def labels_by_number(labels: Any) -> dict[int, str]:
    """Class names by number, from a list or from a dictionary with numbers as keys (strings in JSON).

    Raises:
        ValueError: The numbers do not count up from 0.
    """
    pairs = labels.items() if isinstance(labels, dict) else enumerate(labels)
    try:
        named = {int(number): str(name) for number, name in pairs}
    except ValueError as error:
        raise ValueError(f'id2label has a key that is not a number: {error}.') from error
    if sorted(named) != list(range(len(named))):
        raise ValueError(f'id2label names the classes {sorted(named)}; they must count from 0, without gaps.')
    return dict(sorted(named.items()))


class VTConfig(PreTrainedConfig):
    """Base of the configurations. timm reads their `config.json` too: both libraries load the same folder.

    The labels are stored in `id2label` only. Setting it also sets `label2id`; if two classes share a name, it gets the
    first number. Each save writes the labels that timm needs.
    """

    network: ClassVar[type[VTBody] | type[VTFPNBody]]  # its `build` takes the arguments

    known_architectures: ClassVar[dict[str, dict[str, Any]]] = {}  # arguments of each architecture's `build`
    default_cfgs: ClassVar[dict[str, DefaultCfg]] = {}

    architecture: str = ''
    if TYPE_CHECKING:  # as `__post_init__` leaves them
        id2label: dict[int, str] = {}
        num_labels: int = 2
        model_args: dict[str, Any] = {}
        pretrained_cfg: dict[str, Any] = {}
    else:
        id2label: dict[int, str] | dict[str, str] | list[str] | tuple[str, ...] | None = None
        model_args: dict[str, Any] | None = None
        pretrained_cfg: dict[str, Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'id2label' and value is not None:
            value = labels_by_number(value)
        elif name == 'label2id' and value is not None and self.id2label is not None:
            first: dict[str, int] = {}
            for number, label in self.id2label.items():
                first.setdefault(label, number)
            value = first
        super().__setattr__(name, value)
        if name == 'id2label' and value is not None:
            self.label2id = {}

    @classmethod
    def check_places(cls, keys: Iterable[str]) -> None:
        """Raise ValueError if a network argument is given as a configuration argument."""
        functions = [cls.network.build] + ([cls.network.build_trunk] if issubclass(cls.network, VTBody) else [])
        arguments = {name for function in functions for name in signature(function).parameters}
        for key in keys:
            if key in arguments and not (key in DERIVED or hasattr(cls, key)):
                raise ValueError(f"{key} is an argument of the network; write model_args={{'{key}': ...}}.")

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_places(kwargs)
        if self.architecture not in self.known_architectures:
            raise ValueError(
                f'Unknown architecture {self.architecture!r}; use one of '
                f'{", ".join(map(repr, self.known_architectures))}.'
            )
        label_names, descriptions = kwargs.get('label_names'), kwargs.get('label_descriptions') or {}
        if self.id2label is None and 'num_labels' not in kwargs:
            if label_names:
                self.id2label = dict(enumerate(descriptions.get(name, name) for name in label_names))
            elif kwargs.get('num_classes'):
                kwargs['num_labels'] = kwargs['num_classes']
        for key in DERIVED:
            kwargs.pop(key, None)
        self.model_args = {k: v for k, v in (self.model_args or {}).items() if k not in DERIVED}
        known = self.default_cfgs[self.architecture]
        default = known.cfgs.get('untrained', known.default)  # as timm.create_model without weights
        self.pretrained_cfg = dict(self.pretrained_cfg or default.to_dict(remove_source=True))
        for key in ('num_classes', 'label_names', 'label_descriptions', 'architecture', 'custom_load'):
            self.pretrained_cfg.pop(key, None)
        if in_chans := self.model_args.pop('in_chans', None):  # they are stored in `input_size` only
            self.pretrained_cfg = with_channels({'input_size': default.input_size, **self.pretrained_cfg}, in_chans)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        cls.check_places(kwargs)
        labels: dict[str, Any] = {key: kwargs.pop(key) for key in ('id2label', 'label2id') if key in kwargs}
        return super().from_dict({**config_dict, 'model_args': saved_args(config_dict), **labels}, **kwargs)

    @property
    def build_args(self) -> dict[str, Any]:
        """Arguments of the network's `build`, except `num_classes`."""
        in_chans = self.pretrained_cfg.get('input_size', (3,))[0]
        return {**self.known_architectures[self.architecture], 'in_chans': in_chans, **self.model_args}

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return [self.id2label[i] for i in range(self.num_labels)]

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        output['num_classes'] = self.num_labels
        output['label_names'] = self.label_names
        output['pretrained_cfg'] = {**self.pretrained_cfg, 'num_classes': self.num_labels}
        # a saved model has its own weights
        output['model_args'] = {
            'distinct_tokens': True,
            **{k: v for k, v in self.model_args.items() if k != 'pretrained_backbone'},
        }
        return output


class VTClassifierConfig(BackboneConfigMixin, VTConfig):
    """Base of the configurations of networks with a VT stage, which may also be backbones."""

    @property
    def build_args(self) -> dict[str, Any]:
        return {**super().build_args, 'problem_type': self.problem_type}

    def make_stage_names(self) -> list[str]:
        """Names of the feature levels."""
        raise NotImplementedError

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = self.make_stage_names()
        self.set_output_features_output_indices(
            out_indices=kwargs.pop('out_indices', None), out_features=kwargs.pop('out_features', None)
        )
        super().__post_init__(**kwargs)


@strict
class VTResNetConfig(VTClassifierConfig):
    r"""
    Configuration of a VT-ResNet; see `VTConfig`.

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
    network = VTResNetBody
    known_architectures = VT_RESNET_ARCHITECTURES
    default_cfgs = vt_resnet_default_cfgs

    architecture: str = 'vt_resnet50'

    def make_stage_names(self) -> list[str]:
        return ['stem', 'stage1', 'stage2', 'stage3', 'stage4']


@strict
class VTNetConfig(VTClassifierConfig):
    r"""
    Configuration of a VT-Net, a VT stage on the trunk of another timm model; see `VTConfig`.

    Args:
        architecture (`str`, *optional*, defaults to `"vt_net"`):
            Name of the timm architecture.
        model_args (`dict[str, Any]`, *optional*):
            Arguments of `VTBody.build` and `VTNetBody.build_trunk` that differ from the architecture's, such as
            `{"backbone": "convnext_tiny"}`.
        pretrained_cfg (`dict[str, Any]`, *optional*):
            timm's description of the weights: preprocessing, licence, origin. Defaults to the backbone's preprocessing.

    Example:

    ```python
    >>> from vt_hub import VTNetConfig, VTNetForImageClassification

    >>> configuration = VTNetConfig(model_args={"backbone": "convnext_atto"}, num_labels=37)
    >>> model = VTNetForImageClassification(configuration)  # random weights
    >>> model.config.num_labels
    37
    ```"""

    model_type = 'vt_net'
    network = VTNetBody
    known_architectures = VT_NET_ARCHITECTURES
    default_cfgs = vt_net_default_cfgs

    architecture: str = 'vt_net'

    def make_stage_names(self) -> list[str]:
        args = {**self.known_architectures.get(self.architecture, {}), **(self.model_args or {})}
        chosen = {key: args[key] for key in ('backbone', 'backbone_args') if key in args}
        return [f'stage{number}' for number in range(1, trunk_levels(**chosen) + 2)]

    def __post_init__(self, **kwargs: Any) -> None:
        backbone = (self.model_args or {}).get('backbone')
        if backbone and not self.pretrained_cfg and self.architecture in self.default_cfgs:
            default = self.default_cfgs[self.architecture].default.to_dict(remove_source=True)
            self.pretrained_cfg = default | preprocessing_of(backbone)
        super().__post_init__(**kwargs)


@strict
class VTFPNConfig(VTConfig):
    r"""
    Configuration of a VT-FPN, or of the panoptic FPN baseline; see `VTConfig`.

    Args:
        architecture (`str`, *optional*, defaults to `"vt_fpn_resnet50"`):
            Name of the timm architecture.
        model_args (`dict[str, Any]`, *optional*):
            Arguments of `VTFPNBody.build` that differ from the architecture's, such as `{"decoder": "fpn"}`.
        pretrained_cfg (`dict[str, Any]`, *optional*):
            timm's description of the weights: preprocessing, licence, origin. Defaults to the architecture's.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that the loss ignores.

    Example:

    ```python
    >>> from vt_hub import VTFPNConfig, VTFPNForSemanticSegmentation

    >>> configuration = VTFPNConfig(architecture="vt_fpn_resnet50", num_labels=21)
    >>> model = VTFPNForSemanticSegmentation(configuration)  # random weights
    >>> model.config.num_labels
    21
    ```"""

    model_type = 'vt_fpn'
    network = VTFPNBody
    known_architectures = VT_FPN_ARCHITECTURES
    default_cfgs = vt_fpn_default_cfgs

    architecture: str = 'vt_fpn_resnet50'
    semantic_loss_ignore_index: int = 255
