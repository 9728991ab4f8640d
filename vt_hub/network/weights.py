"""How timm's builder finds weights: published ones, or those of a model folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ['args_of_source', 'builder_args', 'find_published_with', 'hub_id', 'saved_args']

_find_published: Callable[[str], Path] | None = None  # None in a model folder's copy of this file


def find_published_with(find: Callable[[str], Path]) -> None:
    """Set the function that finds the folder of published weights by name (`arch` or `arch.tag`)."""
    global _find_published
    _find_published = find


def hub_id(name: str) -> str:
    """Hub repository of a published `arch.tag`. The environment variable VT_HUB_NAMESPACE sets the organisation."""
    return f'{os.environ.get("VT_HUB_NAMESPACE", "vt-hub")}/{name}'


def saved_args(config: dict[str, Any]) -> dict[str, Any]:
    """Network arguments in a folder's `config.json`.

    Older folders of this package do not have `distinct_tokens`; it is False for them. Folders that timm wrote have no
    `transformers_version` and leave out default values.
    """
    older = {'distinct_tokens': False} if 'transformers_version' in config else {}
    return older | (config.get('model_args') or {})


def published_weights(
    variant: str, pretrained_cfg: Any, overlay: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make timm's builder load the checked file of published weights, unless the caller named another source.

    Args:
        variant: Architecture name.
        pretrained_cfg: The builder's argument: a tag, None for the default tag, or a whole configuration.
        overlay: The builder's argument: changes to that configuration.

    Returns:
        The overlay that names the file, and the network arguments of the weights.
    """
    overlay = dict(overlay or {})
    own_source = any(overlay.get(key) for key in ('state_dict', 'file', 'url', 'hf_hub_id'))
    if own_source or _find_published is None or not (pretrained_cfg is None or isinstance(pretrained_cfg, str)):
        return overlay, {}
    folder = _find_published(f'{variant}.{pretrained_cfg}' if pretrained_cfg else variant)
    args = saved_args(json.loads((folder / 'config.json').read_text('utf-8')))
    return dict(overlay, file=str(folder / 'model.safetensors')), args


def source_folder(pretrained_cfg: Any) -> Path | None:
    """The model folder, on disk or in the Hub's cache, from which timm's builder got its configuration."""
    cfg = pretrained_cfg.to_dict() if hasattr(pretrained_cfg, 'to_dict') else pretrained_cfg
    source = cfg.get('source') if isinstance(cfg, dict) else None
    if source == 'local-dir':
        return Path(cfg['file'])
    if source == 'hf-hub':  # timm has just fetched it
        from huggingface_hub import try_to_load_from_cache
        from timm.models._hub import hf_split

        repo_id, revision = hf_split(cfg['hf_hub_id'])
        path = try_to_load_from_cache(repo_id, 'config.json', revision=revision)
        return Path(path).parent if isinstance(path, str) else None
    return None


def args_of_source(pretrained_cfg: Any, *keys: str) -> dict[str, Any]:
    """`saved_args` of the folder from which timm's builder got its configuration, and some `keys` of its config.json.

    If the folder has a saved image processor, its preprocessing is added as an overlay: transformers uses it too, and
    it may be newer than config.json.
    """
    folder = source_folder(pretrained_cfg)
    if folder is None:
        return {}
    config = json.loads((folder / 'config.json').read_text('utf-8'))
    args = saved_args(config) | {key: config[key] for key in keys if config.get(key)}
    if (path := folder / 'preprocessor_config.json').is_file():
        args['pretrained_cfg_overlay'] = json.loads(path.read_text('utf-8')).get('pretrained_cfg') or {}
    return args


def builder_args(
    variant: str, pretrained: bool, kwargs: dict[str, Any], *keys: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments for timm's builder that fit the requested weights.

    Args:
        variant: Architecture name.
        pretrained: Whether weights are loaded.
        kwargs: The caller's arguments, which take precedence.
        keys: Keys of a folder's config.json that are network arguments.

    Returns:
        All arguments, and those that come from published weights.
    """
    args = args_of_source(kwargs.get('pretrained_cfg'), *keys)
    overlay = args.pop('pretrained_cfg_overlay', {}) | (kwargs.get('pretrained_cfg_overlay') or {})
    published: dict[str, Any] = {}
    if pretrained:
        overlay, published = published_weights(variant, kwargs.get('pretrained_cfg'), overlay)
    return args | published | kwargs | {'pretrained_cfg_overlay': overlay}, published
