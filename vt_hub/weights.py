"""Where pretrained weights come from, and the check that they are the published ones."""

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    'PRETRAINED',
    'args_of_source',
    'check_folder',
    'fetch',
    'hub_id',
    'list_pretrained',
    'pretrained_folder',
    'published_weights',
    'saved_args',
]

# published `arch.tag` -> sha256 of its model.safetensors; the first of an architecture is its default
PRETRAINED: dict[str, str] = {
    'vt_fpn_resnet10t.shapes': '99e4f5713833c5dfaa0e4f6c5a520e4bdebe545cb0ca830f0c6c468e129a9502',
    'vt_resnet10.digits': 'ca8727b5de5381b072e0fe3f3485615280ad767a69949534dc04c68ce558420f',
    'vt_resnet18.scenes': '82b8bdc33426a8574242c8121c131bd1aabadd1a960330036d1e1ce07a01a9e4',
    'vt_resnet50.scenes': '8ab86e0611210c163bbb82472fb651ec1c669f39e949779b84d11948e98071b6',
}
VERSION = 'v1.0.0'  # the tag under which these are published; newer weights get a newer tag
EMBEDDED = Path(__file__).parent / 'pretrained'
CHUNK = 1 << 20


def hub_id(name: str) -> str:
    """Hub repository of a published `arch.tag`; VT_HUB_NAMESPACE in the environment names another organisation."""
    return f'{os.environ.get("VT_HUB_NAMESPACE", "vt-hub")}/{name}'


def list_pretrained() -> list[str]:
    """Names (`arch.tag`) of all published weights."""
    return list(PRETRAINED)


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
        f'`vt-hub pretrain` or `vt-hub convert` makes a start; in Python, pretrained=False gives random weights.'
    )


def read_checksums(folder: Path) -> dict[str, str]:
    """File names and sha256 from a folder's SHA256SUMS.

    Raises:
        OSError: There is none, or it names files outside of the folder.
    """
    path = folder / 'SHA256SUMS'
    if not path.is_file():
        raise FileNotFoundError(f'{folder} has no SHA256SUMS; it is no model folder of ours.')
    sums = {}
    for line in path.read_text('utf-8', errors='replace').splitlines():
        digest, _, name = line.partition('  ')
        parts = PurePosixPath(name).parts
        if not re.fullmatch('[0-9a-f]{64}', digest) or not parts or parts[0] == '/' or '..' in parts:
            raise OSError(f'{path} has a line that names no file of the folder: {line!r}.')
        sums[name] = digest
    return sums


def find_damage(folder: Path, weights_sha256: str | None = None) -> dict[Path, str]:
    """The files of a folder that are not what its SHA256SUMS says, each with a sentence that names it and its sha256.

    Args:
        folder: A model folder.
        weights_sha256: What the weights must be, whatever SHA256SUMS says.
    """
    sums = read_checksums(folder)
    if weights_sha256:
        sums['model.safetensors'] = weights_sha256
    damage = {}
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            damage[path] = f'{path} is missing, but SHA256SUMS lists it.'
        elif (digest := file_sha256(path)) != expected:
            damage[path] = f'{path} is damaged: its sha256 is {digest}, the published one is {expected}.'
    return damage


def check_folder(folder: Path, weights_sha256: str | None = None):
    """Raise OSError with the first sentence of `find_damage`, if there is any."""
    for sentence in find_damage(folder, weights_sha256).values():
        raise OSError(sentence)


def hub_reason(error: Exception) -> str:
    """What went wrong with the Hub, in half a sentence."""
    from huggingface_hub.errors import (
        BadRequestError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, RepositoryNotFoundError):
        return 'there is no such repository, or it is private and you are not logged in (`hf auth login`)'
    if isinstance(error, RevisionNotFoundError):
        return 'there is no such revision'
    if isinstance(error, LocalEntryNotFoundError):
        return 'it is not in the cache and the Hub cannot be reached'
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return 'access was denied; log in with `hf auth login`'
    if isinstance(error, BadRequestError) and error.server_message:
        reason = error.server_message
    else:
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return reason.splitlines()[0].split('. ')[0].rstrip('.')


def fetch(repo_id: str, revision: str | None = None, weights_sha256: str | None = None) -> Path:
    """Download a model folder from the Hub into its cache and check every file; offline, from the cache alone.

    Args:
        repo_id: Repository, `organisation/name`.
        revision: Branch, tag or commit.
        weights_sha256: What the weights must be, whatever the repository says.

    Raises:
        OSError: It cannot be had, or a file is damaged; damaged files do not stay in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision))
    except Exception as error:  # besides the Hub's errors, those of the connection and of the disk
        raise OSError(f'Cannot download {repo_id}: {hub_reason(error)}.') from error
    try:
        damage = find_damage(folder, weights_sha256)
    except OSError as error:
        damage = {folder / 'SHA256SUMS': str(error)}
    if damage:  # nothing wrong stays in the cache: neither a damaged file nor the sums that may be wrong
        for path in (*damage, folder / 'SHA256SUMS'):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise OSError(next(iter(damage.values())))
    return folder


def pretrained_folder(name: str) -> Path:
    """The local folder of a published model, embedded or downloaded, its weights compared with the recorded sha256.

    Args:
        name: `arch.tag`, or `arch` for its default tag.

    Raises:
        LookupError: Nothing is published under that name.
        OSError: The weights are not the published ones, or cannot be had.
    """
    name = resolve_name(name)
    folder = EMBEDDED / name
    if not folder.is_dir():
        return fetch(hub_id(name), VERSION, PRETRAINED[name])
    try:
        check_folder(folder, PRETRAINED[name])
    except OSError as error:
        raise OSError(f'{str(error).rstrip(".")}; reinstall vt_hub.') from error
    return folder


def saved_args(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the network in a folder's `config.json`.

    Folders that the package wrote before it knew `distinct_tokens` do not name it: their tokens are the paper's. timm's
    own folders, which have no `transformers_version`, leave out what is the default.
    """
    older = {'distinct_tokens': False} if 'transformers_version' in config else {}
    return older | (config.get('model_args') or {})


def published_weights(
    variant: str, pretrained_cfg: Any, overlay: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How timm's builder loads the checked file of published weights, unless the caller named a source of their own.

    Args:
        variant: Architecture name.
        pretrained_cfg: The builder's argument: a tag, None for the default tag, or a whole configuration.
        overlay: The builder's argument, changes to that configuration.

    Returns:
        The overlay that names the file, and the arguments of the network that the weights are of.
    """
    overlay = dict(overlay or {})
    own_source = any(overlay.get(key) for key in ('state_dict', 'file', 'url', 'hf_hub_id'))
    if own_source or not (pretrained_cfg is None or isinstance(pretrained_cfg, str)):
        return overlay, {}
    folder = pretrained_folder(f'{variant}.{pretrained_cfg}' if pretrained_cfg else variant)
    args = saved_args(json.loads((folder / 'config.json').read_text('utf-8')))
    return dict(overlay, file=str(folder / 'model.safetensors')), args


def source_folder(pretrained_cfg: Any) -> Path | None:
    """The model folder, on disk or in the Hub's cache, that timm's builder was given the configuration of."""
    cfg = pretrained_cfg.to_dict() if hasattr(pretrained_cfg, 'to_dict') else pretrained_cfg
    source = cfg.get('source') if isinstance(cfg, dict) else None
    if source == 'local-dir':
        return Path(cfg['file'])
    if source == 'hf-hub':  # timm has just fetched it
        from huggingface_hub import try_to_load_from_cache
        from timm.models import hf_split

        repo_id, revision = hf_split(cfg['hf_hub_id'])
        path = try_to_load_from_cache(repo_id, 'config.json', revision=revision)
        return Path(path).parent if isinstance(path, str) else None
    return None


def args_of_source(pretrained_cfg: Any, *keys: str) -> dict[str, Any]:
    """`saved_args` of the folder that timm's builder was given the configuration of, and some keys of its config.json.

    With what a processor that was saved beside the weights says of preprocessing, as an overlay: it is what
    transformers uses, and may be of a later training than config.json.
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
    """What timm's builder is to be given for the weights that are asked for.

    Args:
        variant: Architecture name.
        pretrained: Whether weights are loaded.
        kwargs: What the caller gave, which wins.
        keys: Of a folder's config.json, that are arguments of the network.

    Returns:
        The arguments, and those of them that published weights bring.
    """
    args = args_of_source(kwargs.get('pretrained_cfg'), *keys)
    overlay = args.pop('pretrained_cfg_overlay', {}) | (kwargs.get('pretrained_cfg_overlay') or {})
    published: dict[str, Any] = {}
    if pretrained:
        overlay, published = published_weights(variant, kwargs.get('pretrained_cfg'), overlay)
    return args | published | kwargs | {'pretrained_cfg_overlay': overlay}, published
