"""The weights that are published: their names, their sha256, and the folder that holds them."""

from pathlib import Path

from ..network.weights import hub_id
from .checked import check_once
from .download import fetch

__all__ = ['PRETRAINED', 'list_pretrained', 'pretrained_folder', 'resolve_name']

# published `arch.tag` -> sha256 of its model.safetensors, in the order in which lists and the demo show them; the first
# of an architecture is its default
PRETRAINED: dict[str, str] = {
    'vt_resnet18.dist_in1k': 'fe701e7446815d6ec13ee2c3424189a3c4fa445c7fc927c1d78c2b1219c9510f',
    'vt_efficientnet_lite0.dist_in1k': '80d275341b090805d9cec5af81ed7a5be3c108f47dac8fff772304a0da8580d2',
    'vt_resnet50.scenes': '8ab86e0611210c163bbb82472fb651ec1c669f39e949779b84d11948e98071b6',
    'vt_resnet10.digits': 'd50403fd72a1aa6cde800101495332b49a37e0f7fd3cb621fe46872c7f3d228e',
    'vt_fpn_resnet10t.shapes': '99e4f5713833c5dfaa0e4f6c5a520e4bdebe545cb0ca830f0c6c468e129a9502',
}
VERSION = 'v1.0.0'  # the tag under which these are published; newer weights get a newer tag
EMBEDDED = Path(__file__).parents[1] / 'pretrained'


def list_pretrained() -> list[str]:
    """Names (`arch.tag`) of all published weights."""
    return list(PRETRAINED)


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


def pretrained_folder(name: str) -> Path:
    """The local folder of a published model, embedded or downloaded, its weights checked against the recorded sha256.

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
        check_once(folder, PRETRAINED[name])
    except OSError as error:
        raise OSError(f'{str(error).rstrip(".")}; reinstall vt_hub.') from error
    return folder
