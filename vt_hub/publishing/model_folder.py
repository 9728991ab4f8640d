"""Write model folders: timm, transformers and torch.hub all load the same folder.

A folder has `config.json` (for timm and transformers), `model.safetensors` (no key prefixes), `README.md` (the card),
`fixture.safetensors` (one input and its logits), the remote code, `SHA256SUMS` of all files except the card, and
optionally `onnx/model.onnx` and a picture for the card, `explanation.webp`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from safetensors.torch import save_file
from timm.models import get_model_args
from transformers import AutoConfig

from .. import network
from ..files import check_new, replaced_whole, written_whole
from ..inference.precision import DTYPES
from ..inference.scores import knowledge
from ..loading.checkpoints import create_network, find_not_finite, load_folder
from ..network.checksums import file_sha256
from ..network.configuration_vt import VTConfig
from ..network.images import with_channels
from ..network.modeling_vt import (
    VTFPNForSemanticSegmentation,
    VTNetForImageClassification,
    VTResNetForImageClassification,
)
from ..network.vt_fpn import VTFPN, Network, is_segmenter, task_of
from ..network.vt_net import VTNet
from ..network.vt_resnet import VTResNet
from . import hubconf_folder
from .card import build_card, retarget
from .onnx_file import ONNX_FILE, export_onnx

__all__ = ['copy_card', 'export', 'export_weights', 'with_code', 'write_checksums']

NETWORK = Path(network.__file__).parent  # its files are the remote code
PICTURE = 'explanation.webp'
AUTO_MAPS = {  # by transformers' model type
    **{
        model_type: {
            'AutoConfig': f'configuration_vt.{name}Config',
            'AutoModel': f'modeling_vt.{name}Model',
            'AutoModelForImageClassification': f'modeling_vt.{name}ForImageClassification',
            'AutoBackbone': f'modeling_vt.{name}Backbone',
            'AutoImageProcessor': 'image_processing_vt.VTResNetImageProcessor',
        }
        for model_type, name in (('vt_resnet', 'VTResNet'), ('vt_net', 'VTNet'))
    },
    'vt_fpn': {
        'AutoConfig': 'configuration_vt.VTFPNConfig',
        'AutoModelForSemanticSegmentation': 'modeling_vt.VTFPNForSemanticSegmentation',
        'AutoImageProcessor': 'image_processing_vt.VTFPNImageProcessor',
    },
}
# keys of timm's configuration that describe the weights that a model started from
OLD_KEYS = (
    'url',
    'file',
    'hf_hub_id',
    'hf_hub_filename',
    'source',
    'state_dict',
    'custom_load',
    'tag',
    'description',
    'notes',
    'origin_url',
)
START_ARGS = ('num_classes', 'global_pool', 'pretrained_backbone', 'problem_type')  # not architecture
TransformersModel = VTResNetForImageClassification | VTNetForImageClassification | VTFPNForSemanticSegmentation
MODELS: dict[type[Network], type[TransformersModel]] = {
    VTResNet: VTResNetForImageClassification,
    VTNet: VTNetForImageClassification,
    VTFPN: VTFPNForSemanticSegmentation,
}
Exportable = Network | TransformersModel
DEFAULT_PROSE = 'The architecture is `{{ architecture }}` of vt_hub.'


def config_of(model: Exportable, labels: Sequence[str] | None = None) -> VTConfig:
    """The configuration of a model in memory, timm's or transformers'.

    Args:
        model: A VT-ResNet, VT-Net or VT-FPN with a classifier.
        labels: Class names; default: those of the model, or else the class numbers.
    """
    kind = next((hf for network, hf in MODELS.items() if isinstance(model, (network, hf))), None)
    config: VTConfig
    if kind is None or model.num_classes == 0:
        raise ValueError(
            'Only a VT-ResNet, VT-Net or VT-FPN with a classifier can become a model folder, '
            f'not a {type(model).__name__}.'
        )
    if isinstance(model, kind):
        config = kind.config_class.from_dict(model.config.to_dict())
    else:
        if not hasattr(model, 'pretrained_cfg'):
            raise ValueError('The model was not made by timm.create_model, so its architecture is not known.')
        args = get_model_args(model)
        cfg = with_channels(model.pretrained_cfg | timm.data.resolve_model_data_config(model), model.in_chans)
        if len(cfg.get('label_names') or ()) != model.num_classes:
            cfg.pop('label_names', None)
        settings: dict[str, Any] = {
            'architecture': cfg['architecture'],
            'model_args': {k: v for k, v in args.items() if k not in START_ARGS}
            | {'distinct_tokens': model.distinct_tokens},  # published weights may set it
            'pretrained_cfg': {k: v for k, v in cfg.items() if k not in OLD_KEYS},
            'problem_type': getattr(model, 'problem_type', None),
            'label_names': cfg.get('label_names'),
            'label_descriptions': cfg.get('label_descriptions'),
        }
        if not cfg.get('label_names'):
            settings['id2label'] = dict(enumerate(map(str, range(model.num_classes))))
        config = kind.config_class(**settings)
    if labels is not None:
        if len(labels) != model.num_classes:
            raise ValueError(f'The model has {model.num_classes} classes, but {len(labels)} labels were given.')
        config.id2label = dict(enumerate(labels))
    config.architectures = [kind.__name__]
    return config


def check_structure(config: VTConfig, state_dict: dict[str, torch.Tensor]) -> None:
    """Raise ValueError if the weights do not fit the network that the configuration describes."""
    network = timm.create_model(config.architecture, num_classes=config.num_labels, device='meta', **config.model_args)
    if other := sorted(network.state_dict().keys() ^ state_dict.keys()):
        raise ValueError(
            f'The weights of this {config.architecture} do not fit its arguments ({other[0]}, ...), as after fuse(); '
            'export the unchanged model.'
        )


def convert_dtype(state_dict: dict[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """Convert parameters to a dtype, contiguous. BatchNorm statistics stay in fp32, since they may need its range."""

    def convert(key: str, value: torch.Tensor) -> torch.Tensor:
        if value.is_floating_point():
            value = value.to(torch.float32 if 'running_' in key else DTYPES[dtype])
        return value.contiguous()  # in a channels_last model they are not

    return {key: convert(key, value) for key, value in state_dict.items()}


def code_files() -> dict[str, Path]:
    """The remote code and the torch.hub entry, by name in a model folder: their files in this package."""
    code = {path.name: path for path in sorted(NETWORK.glob('*.py')) if path.name != '__init__.py'}
    return {**code, 'hubconf.py': Path(hubconf_folder.__file__)}


def copy_code(folder: Path) -> None:
    for name, path in code_files().items():
        shutil.copy(path, folder / name)


def add_code(folder: Path) -> None:
    """Add the remote code to a folder without it, such as an embedded one."""
    if not (folder / 'modeling_vt.py').exists():
        copy_code(folder)
        write_checksums(folder)


def with_code(folder: Path, copy: Path) -> Path:
    """Copy a model folder for publishing, with the remote code, which embedded folders leave out.

    Args:
        folder: A model folder.
        copy: Destination; must not exist.
    """
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns('.git', '.cache', '__pycache__'))  # not part of it
    add_code(copy)
    return copy


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS, in the format of sha256sum(1), for all files except the card and itself."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
    lines = [f'{file_sha256(folder / name)}  {name}\n' for name in names if name not in ('README.md', 'SHA256SUMS')]
    (folder / 'SHA256SUMS').write_text(''.join(lines))


def checked_contents(
    model: Exportable, labels: Sequence[str] | None, license: str | None, dtype: str
) -> tuple[VTConfig, dict[str, torch.Tensor]]:
    """The configuration and the weights of a model for its folder; see `export` for arguments and errors."""
    model = getattr(model, '_orig_mod', model)  # torch.compile wraps the model
    config = config_of(model, labels)
    state_dict = convert_dtype(model.state_dict(), dtype)
    if name := find_not_finite(state_dict):
        raise ValueError(f'The weight {name} has values that are not finite in {dtype}; nothing was written.')
    check_structure(config, state_dict)
    config.pretrained_cfg['license'] = license or config.pretrained_cfg.get('license')
    if not config.pretrained_cfg['license']:
        raise ValueError('The licence of the weights is unknown; name it.')
    config.dtype = 'float32'  # dtype of the loaded weights, whatever the dtype in the file
    config.auto_map = AUTO_MAPS[config.model_type]
    return config, state_dict


def write_network(folder: Path, config: VTConfig, state_dict: dict[str, torch.Tensor], code: bool) -> None:
    """Write the weights, the configuration, the fixture and, if wanted, the remote code."""
    save_file(state_dict, folder / 'model.safetensors', metadata={'format': 'pt'})
    config.save_pretrained(folder)
    if code:
        copy_code(folder)
    save_file(fixture(folder), folder / 'fixture.safetensors')


def export(
    model: Exportable,
    folder: str | Path,
    labels: Sequence[str] | None = None,
    metrics: Sequence[dict[str, Any]] = (),
    prose: str = DEFAULT_PROSE,
    origin: str = '',
    metadata: dict[str, Any] | None = None,
    picture: str | Path | None = None,
    source: str | None = None,
    repo: str | None = None,
    license: str | None = None,
    dtype: str = 'fp32',
    code: bool = True,
    onnx: bool = False,
    attention: bool = False,
) -> Path:
    """Write a model folder that timm, transformers and torch.hub can load. If it fails, no files are left behind.

    Args:
        model: A VT-ResNet or VT-FPN with a classifier, timm's or transformers'.
        folder: Destination; must not exist.
        labels: Class names in the order of the logits.
        metrics: Contents of result files for the card; see `build_card`.
        prose: Markdown for the card, a Jinja template.
        origin: A sentence for the card that says which weights of which training these are.
        metadata: More of the Hub's metadata for the card; see `build_card`.
        picture: A .webp file for the card, such as `vt-hub explain` writes.
        source: What the card's timm snippet loads; default: the folder's name.
        repo: What the card's pipeline snippet loads; default: the folder's name.
        license: Licence of the weights; default: that of the model.
        dtype: 'fp32', 'fp16' or 'bf16'.
        code: Put the remote code into the folder.
        onnx: Also write onnx/model.onnx; see `export_onnx`, also for its errors.
        attention: Add the token attention to the ONNX outputs.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder exists.
        ValueError: The labels do not fit, weights are not finite, or the model was changed after its creation.
    """
    folder = Path(folder)
    check_new(folder)
    config, state_dict = checked_contents(model, labels, license, dtype)
    with written_whole(folder) as unfinished:
        write_network(unfinished, config, state_dict, code)
        if picture:
            shutil.copyfile(picture, unfinished / PICTURE)
        if onnx:
            export_onnx(load_folder(unfinished), unfinished / ONNX_FILE, attention)
        write_card(unfinished, metrics, prose, origin, metadata, source=source, repo=repo, name=folder.name)
        write_checksums(unfinished)
    return folder


def export_weights(model: nn.Module, path: str | Path, dtype: str = 'fp32') -> Path:
    """Write the weights of a model as a plain file, which timm loads as `checkpoint_path`.

    Args:
        model: Any model.
        path: Destination, a .safetensors file; must not exist.
        dtype: 'fp32', 'fp16' or 'bf16'; BatchNorm statistics stay in fp32.

    Raises:
        FileExistsError: The file exists.
    """
    path = Path(path)
    check_new(path, 'file')
    with replaced_whole(path) as unfinished:
        save_file(convert_dtype(model.state_dict(), dtype), unfinished)
    return path


def write_card(
    folder: Path,
    metrics: Sequence[dict[str, Any]] = (),
    prose: str = DEFAULT_PROSE,
    origin: str = '',
    metadata: dict[str, Any] | None = None,
    source: str | None = None,
    repo: str | None = None,
    name: str | None = None,
) -> Path:
    """Write a folder's README.md from its config.json; see `export` for the arguments.

    Returns:
        Its path.
    """
    folder = Path(folder)
    config = AutoConfig.from_pretrained(folder)
    name = name or folder.resolve().name
    card = build_card(
        name=name,
        source=source or (f'hf-hub:{repo}' if repo else f'local-dir:{name}'),
        repo=repo or name,
        prose=prose,
        origin=origin,
        metadata=metadata,
        picture=PICTURE if (folder / PICTURE).is_file() else '',
        summary=knowledge(config.label_names, is_segmenter(config.architecture), config.problem_type),
        results=list(metrics),
        license=config.pretrained_cfg.get('license') or 'other',
        task=task_of(config.architecture),
        architecture=config.architecture,
        num_labels=config.num_labels,
        labels=', '.join(config.label_names),
    )
    return save_card(folder, str(card))


def copy_card(folder: Path, copy: Path, origin: str = '') -> None:
    """Give a copy of a model folder the card of the original, with snippets that load the copy.

    Args:
        folder: The original, with or without a card.
        copy: The copy.
        origin: A sentence that says which weights these are.
    """
    card = folder / 'README.md'
    if not card.is_file():
        return
    text = retarget(card.read_text('utf-8'), copy.name, f'local-dir:{copy.name}')
    if origin:
        text = text.replace('\n## Results\n', f'\n{origin}\n\n## Results\n', 1)
    save_card(copy, text)


def save_card(folder: Path, text: str) -> Path:
    """Write README.md. An older one is replaced once the new one is complete. Returns its path."""
    with replaced_whole(folder / 'README.md') as unfinished:
        unfinished.write_text(text, encoding='utf-8')
    return folder / 'README.md'


@torch.inference_mode()
def fixture(folder: Path) -> dict[str, torch.Tensor]:
    """One fixed input and the logits of the folder's model for it, in fp32 on the CPU."""
    model = create_network(f'local-dir:{folder}', pretrained=True).eval()
    size = model.pretrained_cfg['input_size']
    pixels = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).half()
    return {'pixel_values': pixels, 'logits': model(pixels.float()).contiguous()}
