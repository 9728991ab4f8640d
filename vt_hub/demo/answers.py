"""The answers of the demo for an image, independent of the browser."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard
from PIL import Image

from ..inference.explain import explain
from ..inference.precision import laid_out
from ..inference.scores import SHOWN, label_names, shown
from ..inference.segment import paint, segment_image
from ..loading.published import list_pretrained
from ..loading.source import Source, load_model
from ..network.images import read_image
from ..network.vt_fpn import VTFPN, Network
from ..synthesis.shapes import scene
from .figure import legend, token_figure

__all__ = ['Offer', 'classify', 'load_models', 'open_upload', 'segment', 'write_samples']

TOPK = 5
MAX_SIDE = 768  # pixels of a segmented image; a larger one is slow to draw and to send
MAX_RATIO = 10  # ratio of the sides of an image
SAMPLED_TAGS = ('dist_in1k', 'digits', 'shapes')  # other weights are a start for fine-tuning
SCENES = (2026, [0, 4, 5, 11])  # seed and numbers; the published weights never saw this seed


@dataclass(frozen=True)
class Offer:
    """A model that the page offers, and its card without metadata, which is empty if there is none."""

    network: Network
    card: str


def load_models(sources: Sequence[str] = ()) -> dict[str, Offer]:
    """Load the demo's models, by their shown names.

    Args:
        sources: Sources for `vt_hub.load_model`, in the order of the page; default: the published weights that need no
            fine-tuning.

    Raises:
        ValueError: Two folders have the same name, or a folder is damaged.
        LookupError: There is no such model, or it has no weights.
    """
    sources = sources or [name for name in list_pretrained() if name.split('.')[1] in SAMPLED_TAGS]
    models: dict[str, Offer] = {}
    for source in sources:
        parsed = Source.parse(source)
        name = parsed.path.resolve().name if parsed.kind == 'folder' else parsed.repo or parsed.text
        if name in models:
            raise ValueError(f'Two models are called {name}; name another folder than {source}.')
        network, card = laid_out(load_model(source)), parsed.folder() / 'README.md'
        models[name] = Offer(network, ModelCard.load(card).text.strip() if card.is_file() else '')
    return models


def write_samples(folder: Path) -> dict[str, list[Path]]:
    """Write sample images to a folder. Returns the samples for each tag of published weights."""
    own = [Path(shutil.copy(path, folder)) for path in sorted((Path(__file__).parent / 'samples').glob('*.png'))]
    digits = [path for path in own if path.name.startswith('digit_')]
    photographs = [path for path in own if path not in digits]
    samples: dict[str, list[Path]] = {'dist_in1k': photographs, 'digits': digits, 'shapes': []}
    seed, numbers = SCENES
    for number in numbers:
        path = folder / f'scene_{number}.png'
        Image.fromarray(scene(seed, number, 256, 'val')[0]).save(path)
        samples['shapes'].append(path)
    return samples


def open_upload(path: str | Path, channels: int) -> Image.Image:
    """Read an image from an unknown user. Error messages have its file name, but not its folder.

    Raises:
        ValueError: As `vt_hub.network.images.read_image`, or one side is more than ten times as long as the other.
    """
    try:
        image = read_image(path, channels)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), Path(path).name)) from error
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(f'{Path(path).name} is a strip of {image.width} x {image.height} pixels; crop it.')
    return image


def classify(model: Network, path: str | Path) -> tuple[dict[str, float] | str, str]:
    """The most likely classes of an image file with their scores, and the figure of the tokens as HTML."""
    explanation = explain(model, open_upload(path, model.in_chans), TOPK)
    scores: dict[str, float] | str = {found['label']: found['score'] for found in reversed(explanation.predictions)}
    if explanation.meaning == 'value':  # not a share
        scores = ', '.join(f'{found["label"]} {shown(model, found["score"])}' for found in explanation.predictions)
    return scores, token_figure(explanation)


def segment(model: VTFPN, path: str | Path) -> tuple[dict[str, float], str, Image.Image]:
    """The classes of an image file with their shares of the pixels, the legend as HTML, and the overlay."""
    image = open_upload(path, model.in_chans)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    mask, classes = segment_image(model, image)
    shares = {found['label']: found['share'] for found in classes}
    labels = label_names(model)
    named = [label for label, share in shares.items() if share >= SHOWN]
    return shares, legend(labels, named), paint(image, mask, len(labels))[1]
