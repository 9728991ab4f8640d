"""Reading weights that may be anything: refused by name unless they are whole, finite and fit the model."""

import argparse
import re
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..files import read_json
from ..network.vt_fpn import ARCHITECTURES as VT_FPN_ARCHITECTURES
from ..network.vt_fpn import VTFPN, Network
from ..network.vt_net import ARCHITECTURES as VT_NET_ARCHITECTURES
from ..network.vt_resnet import ARCHITECTURES as VT_RESNET_ARCHITECTURES
from ..network.vt_stage import VTClassifier

WRAPPERS = ('module.', '_orig_mod.', 'model.', 'net.', 'network.')  # of DDP, torch.compile, Lightning, and habit

__all__ = [
    'TimmModel',
    'create_network',
    'load_folder',
    'load_into',
    'read_foreign',
    'read_safetensors',
    'stored_dtype',
]

TimmModel = Any  # a model of timm's own: none of its classes has what all of them have, such as pretrained_cfg
Model = TypeVar('Model', bound=torch.nn.Module)


def find_not_finite(state_dict: dict[str, torch.Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinite values."""
    return next((k for k, v in state_dict.items() if v.is_floating_point() and not v.isfinite().all()), None)


def check_finite(state_dict: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    if name := find_not_finite(state_dict):
        raise ValueError(f'{path} has values that are not finite in {name}; it was not loaded.')
    return state_dict


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a pickle, is damaged, or has values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There are no weights at {path}.')
    with open(path, 'rb') as file:
        start = file.read(9)
    if start.startswith((b'PK', b'\x80')) and start[8:] != b'{':  # a safetensors header may be 0x80 bytes long, too
        raise ValueError(
            f'{path} is a pickle and may run code; only safetensors is read here, `vt-hub export` converts training '
            f'checkpoints.'
        )
    try:
        state_dict = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f'{path} is not a whole safetensors file: {str(error).rstrip(".")}.') from error
    return check_finite(state_dict, path)


def read_foreign(path: str | Path, weights: str = 'ema') -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a checkpoint of timm's train script or another state dict: safetensors, or a pickle of tensors only.

    Args:
        path: The file.
        weights: 'ema' for the averaged weights where the checkpoint has them, 'raw' for the trained ones.

    Returns:
        The state dict, and what else the checkpoint holds: `weights` ('ema' or 'raw'), and timm's `arch`, `epoch`,
        `metric` and `args` where present.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds more than tensors and plain values, or has values that are not finite.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        return without_wrappers(read_safetensors(path)), {'weights': 'raw'}
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint at {path}.')
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # damaged pickles raise almost anything
        found = re.search(r'Unsupported global: GLOBAL (\S+)', str(error))
        reason = f'it holds a {found[1]}' if found else 'it is damaged, or it is another kind of file'
        raise ValueError(f'{path} is not a checkpoint of tensors and plain values: {reason}.') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint.')
    keys = ['state_dict_ema'] * (weights == 'ema') + ['state_dict', 'model_state_dict', 'model']
    key = next((key for key in keys if key in checkpoint), '')
    state_dict = checkpoint.get(key, checkpoint)
    if not isinstance(state_dict, dict):
        raise ValueError(f'{path} is not a checkpoint: its {key} is a {type(state_dict).__name__}.')
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f'{path} is not a state dict: {name} is a {type(value).__name__}.')
    state_dict = without_wrappers(state_dict)
    facts = {k: checkpoint[k] for k in ('arch', 'epoch', 'metric') if key and k in checkpoint}
    if key and isinstance(checkpoint.get('args'), argparse.Namespace):
        facts['args'] = vars(checkpoint['args'])
    return check_finite(state_dict, path), {'weights': 'ema' if key == 'state_dict_ema' else 'raw', **facts}


def without_wrappers(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the names of what the network was wrapped in, where all tensors have them."""
    while wrapper := next((w for w in WRAPPERS if state_dict and all(name.startswith(w) for name in state_dict)), ''):
        state_dict = {name.removeprefix(wrapper): value for name, value in state_dict.items()}
    return state_dict


def load_into(model: Model, state_dict: dict[str, torch.Tensor], path: str | Path) -> Model:
    """Load a state dict that must fit the model exactly; otherwise the model is left as it was.

    Only the `num_batches_tracked` of BatchNorms may be missing: they do not matter, and other packages leave them out.

    Raises:
        ValueError: Keys are missing or unexpected, or shapes differ.
    """
    own = model.state_dict()
    state_dict = {name: own[name] for name in own if name.endswith('num_batches_tracked')} | state_dict
    faults = [f'{name} is missing' for name in own.keys() - state_dict.keys()]
    faults += [f'{name} is unexpected' for name in state_dict.keys() - own.keys()]
    faults += [
        f'{name} is {list(value.shape)} and not {list(own[name].shape)}'
        for name, value in state_dict.items()
        if name in own and value.shape != own[name].shape
    ]
    if faults:
        more = f' and {len(faults) - 3} more' if len(faults) > 3 else ''
        raise ValueError(f'{path} does not fit the model: {", ".join(sorted(faults)[:3])}{more}.')
    model.load_state_dict(state_dict)
    return model


def create_network(name: str, **kwargs: Any) -> Network:
    """`timm.create_model` for the networks of this package.

    Raises:
        ValueError: It is one of another package.
    """
    model = timm.create_model(name, **kwargs)
    if not isinstance(model, (VTClassifier, VTFPN)):
        raise ValueError(f'{name} is a {type(model).__name__}, not a VT-ResNet, VT-Net or VT-FPN.')
    return model


def load_folder(folder: str | Path) -> Network:
    """The timm model of a model folder, in evaluation mode; the weights must fit it exactly.

    Args:
        folder: A local model folder.

    Raises:
        ValueError: The configuration or the weights are damaged, or do not fit together.
    """
    folder = Path(folder)
    config = read_json(folder / 'config.json')
    for key, kind in (('architecture', str), ('num_classes', int), ('pretrained_cfg', dict), ('model_args', dict)):
        if not isinstance(config.get(key), kind):
            raise ValueError(f'{folder / "config.json"} has no {key}; it is not a model folder of vt_hub.')
    if config['architecture'] not in VT_RESNET_ARCHITECTURES | VT_NET_ARCHITECTURES | VT_FPN_ARCHITECTURES:
        raise ValueError(
            f'{folder / "config.json"} names the architecture {config["architecture"]}, which vt_hub does not have.'
        )
    try:
        model = create_network(f'local-dir:{folder}', pretrained=False)
    except TypeError as error:
        raise ValueError(f'{folder / "config.json"} has a key that timm does not know: {error}.') from error
    path, state_dict = read_weights(folder)
    return load_into(model, state_dict, path).eval()


def stored_dtype(folder: Path) -> str:
    """What a folder's weights are stored in: 'fp32', 'fp16' or 'bf16'."""
    _, state_dict = read_weights(folder)
    kinds = {torch.float16: 'fp16', torch.bfloat16: 'bf16'}
    found = {value.dtype for key, value in state_dict.items() if value.is_floating_point() and 'running_' not in key}
    return kinds.get(found.pop(), 'fp32') if len(found) == 1 else 'fp32'


def read_weights(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """The weights of a folder, as transformers may have written them: whole, in shards, or as one variant.

    Returns:
        The file to name in errors, and the state dict.

    Raises:
        FileNotFoundError: There are none.
        ValueError: They are damaged.
    """
    whole, index = folder / 'model.safetensors', folder / 'model.safetensors.index.json'
    if whole.is_file():
        return whole, read_safetensors(whole)
    if index.is_file():
        shards = sorted(set(read_json(index).get('weight_map', {}).values()))
        if outside := [name for name in shards if Path(name).name != name]:
            raise ValueError(f'{index} names a file that is not in its folder: {outside[0]}.')
        return index, {key: value for name in shards for key, value in read_safetensors(folder / name).items()}
    variants = sorted(folder.glob('model.*.safetensors'))
    if len(variants) == 1:
        return variants[0], read_safetensors(variants[0])
    return whole, read_safetensors(whole)
