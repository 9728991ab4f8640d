"""Where pretrained weights come from, and the check that they are the published ones."""

import hashlib
import os
from pathlib import Path
from typing import Any

__all__ = ['PRETRAINED', 'hub_id', 'list_pretrained', 'pretrained_cfg_overlay', 'pretrained_folder']

# published `arch.tag` -> sha256 of its model.safetensors
PRETRAINED: dict[str, str] = {
    'vt_resnet10.digits': 'ca8727b5de5381b072e0fe3f3485615280ad767a69949534dc04c68ce558420f',
}
EMBEDDED = Path(__file__).parent / 'pretrained'
CHUNK = 1 << 20


def hub_id(name: str) -> str:
    """Hub repository of a published `arch.tag`; VT_HUB_NAMESPACE in the environment names another organisation."""
    return f'{os.environ.get("VT_HUB_NAMESPACE", "vt-hub")}/{name}'


def list_pretrained() -> list[str]:
    """Names (`arch.tag`) of all published weights."""
    return sorted(PRETRAINED)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def resolve_name(name: str) -> str:
    """`arch` or `arch.tag` to a published `arch.tag`; the first tag of an architecture is its default.

    Raises:
        LookupError: Nothing is published under that name.
    """
    if name in PRETRAINED:
        return name
    for published in PRETRAINED:
        if published.split('.')[0] == name:
            return published
    raise LookupError(
        f'No pretrained weights exist for {name}; they exist for {", ".join(list_pretrained())}. '
        f'Use pretrained=False for random weights.'
    )


def pretrained_folder(name: str) -> Path:
    """The local folder of a published model, its weights compared with the sha256 that the package records.

    Args:
        name: `arch.tag`, or `arch` for its default tag.

    Raises:
        LookupError: Nothing is published under that name.
        OSError: The weights are not the published ones, or missing.
    """
    name = resolve_name(name)
    weights = EMBEDDED / name / 'model.safetensors'
    if not weights.is_file():
        raise FileNotFoundError(f'The weights of {name} are missing at {weights}; reinstall vt_hub.')
    digest = file_sha256(weights)
    if digest != PRETRAINED[name]:
        raise OSError(
            f'The weights of {name} at {weights} are damaged: their sha256 is {digest}, '
            f'the published one is {PRETRAINED[name]}; reinstall vt_hub.'
        )
    return weights.parent


def pretrained_cfg_overlay(variant: str, pretrained_cfg: Any, overlay: dict[str, Any] | None) -> dict[str, Any]:
    """The overlay that makes timm's builder load the checked file, unless the caller named a source of their own.

    Args:
        variant: Architecture name.
        pretrained_cfg: The builder's argument: a tag, None for the default tag, or a whole configuration.
        overlay: The builder's argument, changes to that configuration.
    """
    overlay = dict(overlay or {})
    own_source = any(overlay.get(key) for key in ('state_dict', 'file', 'url', 'hf_hub_id'))
    if own_source or not (pretrained_cfg is None or isinstance(pretrained_cfg, str)):
        return overlay
    folder = pretrained_folder(f'{variant}.{pretrained_cfg}' if pretrained_cfg else variant)
    return dict(overlay, file=str(folder / 'model.safetensors'))
