"""Where visual tokens look (Figures 5 and 7 of the paper), and how much each token adds to a class.

The classifier reads the average of the tokens, so a logit is exactly the sum of each token's contribution and the bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..figures import new_figure, save_figure
from ..network.vt_fpn import Network
from ..network.vt_stage import VTClassifier
from .diversity import TokenDiversity, alike, measure_module
from .preprocessing import ImageLike, as_image, as_model, data_config, eval_transform
from .scores import label_names, meaning_of, scores_of

__all__ = ['Explanation', 'draw_explanation', 'explain', 'save_explanation']

COLUMNS = 8  # pictures of tokens in a row
TILE, GAP, LINE, HEADING, TOP, SCALE = 1.05, 0.06, 0.22, 0.36, 2.7, 0.55  # inches
LABEL_LENGTH = 24  # characters
COLOURS = 'viridis'
OPACITY = 0.65  # of the colours over the image
BRIGHTEST = 0.99  # quantile of all cells from which the colour is the brightest; a few cells would make the rest dark
BAR = '#31688e'
EVEN = 0.05  # contributions that differ by less, relative to their mean, are called the same


@dataclass(frozen=True)
class Explanation:
    """A prediction and its parts.

    Args:
        image: The resized and cropped input of the network, (H, W, 3) uint8.
        predictions: `label`, `score` (see `scores_of`) and `logit` of the most likely classes, best first.
        attention: For each VT module, where each token looks, (L, H / 16, W / 16); a token's map sums to 1.
        contributions: What each token adds to the logit of each of those classes, (classes, L).
        biases: The rest of each logit, (classes,).
        diversity: How much the tokens of each module differ.
        meaning: Meaning of the scores; see `meaning_of`.
    """

    image: np.ndarray
    predictions: list[dict[str, Any]]
    attention: list[torch.Tensor]
    contributions: torch.Tensor
    biases: torch.Tensor
    diversity: list[TokenDiversity]
    meaning: str

    @property
    def highest(self) -> float:
        """The share of a token's attention from which its cell has the brightest colour: a quantile of all cells."""
        return torch.cat([part.flatten() for part in self.attention]).quantile(BRIGHTEST).item()

    @property
    def even(self) -> str:
        """A sentence if all tokens add nearly the same to the best class; else empty."""
        adds = self.contributions[0]
        if len(adds) < 2 or adds.max() - adds.min() >= EVEN * adds.mean().abs():
            return ''
        return f'All {len(adds)} tokens add nearly the same, about {adds.mean():.2f} each.'

    def to_dict(self) -> dict[str, Any]:
        """Everything except the image, in plain Python types."""
        return {
            'predictions': self.predictions,
            'contributions': self.contributions.tolist(),
            'biases': self.biases.tolist(),
            'attention': [attention.tolist() for attention in self.attention],
            'diversity': [diversity.to_dict() for diversity in self.diversity],
        }


@torch.inference_mode()
def explain(model: Network | str | Path, image: ImageLike, topk: int = 5) -> Explanation:
    """Split a prediction of a VT-ResNet or VT-Net for an image into the contributions of its tokens.

    Args:
        model: A VT-ResNet or VT-Net with a classifier in evaluation mode, through timm; or what `load_model` takes.
        image: An image, or a path.
        topk: Number of classes, best first.

    Raises:
        ValueError: The model is not a VT-ResNet or VT-Net with a classifier, or the image cannot be read.
        LookupError: There is no such model, or it has no weights.
    """
    model = as_model(model)
    if not isinstance(model, VTClassifier) or not isinstance(model.fc, nn.Linear) or model.pruned:
        raise ValueError(
            'Only the predictions of a VT-ResNet or VT-Net with a classifier can be explained by its tokens.'
        )
    config = data_config(model)
    pixels, weight = eval_transform(model)(as_image(image, model.in_chans)), model.fc.weight
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    seen = (pixels * std + mean).clamp(0, 1).expand(3, -1, -1)

    trunk = model.forward_trunk(pixels[None].to(weight.device, weight.dtype))
    _, tokens, attns = model.vt.forward_tokens(trunk)
    diversity = [measure_module(T, attn) for T, attn in zip(tokens, attns, strict=True)]
    last = tokens[-1]
    logits = model.forward_head(last)[0].float().cpu()
    scores, classes = scores_of(model, logits).topk(min(topk, model.num_classes))
    labels = label_names(model)
    return Explanation(
        image=(255 * seen).round().to(torch.uint8).permute(1, 2, 0).numpy(),
        predictions=[
            {'label': labels[c], 'score': round(score, 6), 'logit': logits[c].item()}
            for score, c in zip(scores.tolist(), classes.tolist(), strict=True)
        ],
        attention=[attn[0].unflatten(1, trunk.shape[-2:]).float().cpu() for attn in attns],
        contributions=weight.float().cpu()[classes] @ last[0].float().cpu().T / last.shape[1],
        biases=model.fc.bias.float().cpu()[classes],
        diversity=diversity,
        meaning=meaning_of(model),
    )


def shortened(label: str) -> str:
    return label if len(label) <= LABEL_LENGTH else f'{label[: LABEL_LENGTH - 1]}…'


def token_names(tokens: Sequence[int]) -> str:
    """Numbers of tokens, from 1, in words: 'token 3', 'tokens 1, 4', 'tokens 1 to 16'."""
    first, last = tokens[0] + 1, tokens[-1] + 1
    if len(tokens) == 1:
        return f'token {first}'
    if len(tokens) > 2 and last - first == len(tokens) - 1:
        return f'tokens {first} to {last}'
    if len(tokens) > 4:
        return f'{len(tokens)} tokens'
    return f'tokens {", ".join(str(token + 1) for token in tokens)}'


def heat_over(image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 of a map's cells, (h, w), in colours over a grey image (H, W, 3) uint8; a cell is a block."""
    from matplotlib import colormaps

    rows, columns = (np.arange(side) * cells // side for side, cells in zip(image.shape, share.shape, strict=False))
    heat = 255 * colormaps[COLOURS](share)[..., :3][rows[:, None], columns]
    return np.rint(OPACITY * heat + (1 - OPACITY) * image.mean(2, keepdims=True)).astype(np.uint8)


def draw_explanation(explanation: Explanation, title: str = '') -> Any:
    """Draw the classes, what each token adds to the best one, and beside the image where each token looks.

    Tokens of a module that look at the same place share a picture. All pictures have one scale of colours.

    Args:
        explanation: From `explain`.
        title: A line on top, such as the names of the file and of the model.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    maps = [attention.numpy() for attention in explanation.attention]
    groups = [alike(attention.flatten(1)) for attention in explanation.attention]
    shares = [[part[tokens].mean(0) for tokens in found] for part, found in zip(maps, groups, strict=True)]
    highest = explanation.highest
    image = explanation.image
    tall = TILE * image.shape[0] / image.shape[1]
    tops, height = [], TOP
    for found in groups:
        tops.append(height)
        height += HEADING + max(2, -(-len(found) // COLUMNS)) * (tall + LINE)
    width = (COLUMNS + 2) * (TILE + GAP) + 4 * GAP
    figure = new_figure(figsize=(width, height + SCALE), layout='none')
    sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height + SCALE, 0))  # in inches
    sheet.axis('off')

    def put(picture: np.ndarray, left: float, top: float, size: int = 1) -> None:
        sheet.imshow(picture, extent=(left, left + size * TILE, top + size * tall, top), aspect='auto')

    def write(text: str, left: float, top: float, **kwargs: Any) -> None:
        sheet.text(left, top, text, va='bottom', parse_math=False, **kwargs)

    def axes_at(left: float, top: float, wide: float, high: float) -> Any:
        place = (left / width, 1 - (top + high) / (height + SCALE), wide / width, high / (height + SCALE))
        return figure.add_axes(place)

    write(title, 2 * GAP, HEADING, fontsize='large')
    draw_classes(axes_at(0.2 * width, 2 * HEADING, 0.24 * width, TOP - 4 * HEADING), explanation)
    draw_contributions(axes_at(0.52 * width, 2 * HEADING, 0.46 * width, TOP - 4 * HEADING), explanation)
    for number, (part, found, top) in enumerate(zip(shares, groups, tops, strict=True)):
        write(f'Module {number + 1}: where its tokens look ({explanation.diversity[number]})', 2 * GAP, top)
        put(image, 2 * GAP, top + LINE, 2)
        for place, (share, tokens) in enumerate(zip(part, found, strict=True)):
            row, column = divmod(place, COLUMNS)
            left, upper = 4 * GAP + (column + 2) * (TILE + GAP), top + LINE + row * (tall + LINE)
            put(heat_over(image, np.minimum(share / highest, 1)), left, upper)
            write(token_names(tokens), left, upper, fontsize='small')
    draw_scale(axes_at(4 * GAP + 2 * (TILE + GAP), height, 2 * TILE, LINE / 2), 100 * highest)
    return figure


def draw_classes(axes: Any, explanation: Explanation) -> None:
    """The scores of the best classes as bars."""
    labels = [shortened(prediction['label']) for prediction in explanation.predictions]
    of_chance = explanation.meaning != 'value'
    scores = [prediction['score'] * (100 if of_chance else 1) for prediction in explanation.predictions]
    bars = axes.barh(range(len(labels)), scores, color=BAR)
    axes.bar_label(bars, [f'{score:.1f} %' if of_chance else f'{score:.4g}' for score in scores], padding=3)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.set_title(explanation.meaning if of_chance else 'value', loc='left', fontsize='medium')
    axes.spines[['top', 'right', 'bottom']].set_visible(False)
    if of_chance:
        axes.set_xlim(0, 125)


def draw_contributions(axes: Any, explanation: Explanation) -> None:
    """What each token adds to the best class as bars, or one sentence if all tokens add nearly the same."""
    adds = explanation.contributions[0].tolist()
    label, logit = shortened(explanation.predictions[0]['label']), explanation.predictions[0]['logit']
    axes.spines[['top', 'right']].set_visible(False)
    bias = explanation.biases[0].item()
    title = f'what each token adds to the logit of\n{label} ({logit:.2f}, of which {bias:.2f} is the bias)'
    axes.set_title(title, loc='left', fontsize='medium', parse_math=False)
    if explanation.even:
        axes.axis('off')
        axes.text(0, 0.5, explanation.even, transform=axes.transAxes)
        return
    axes.bar(range(1, len(adds) + 1), adds, color=BAR)
    axes.axhline(0, color='0.35', linewidth=0.8)
    axes.set(xlabel='token', xticks=range(1, len(adds) + 1))


def draw_scale(axes: Any, highest: float) -> None:
    """The scale of the colours, in percent of a token's attention."""
    axes.imshow(np.linspace(0, 1, 256)[None], aspect='auto', cmap=COLOURS, extent=(0, highest, 0, 1))
    axes.set(yticks=[], xticks=[0, highest], xticklabels=['0 %', f"{highest:.1f} % or more of a token's attention"])
    axes.spines[:].set_visible(False)


def save_explanation(explanation: Explanation, path: str | Path, title: str = '') -> None:
    """Draw an explanation into a file; see `draw_explanation` and `save_figure`."""
    save_figure(draw_explanation(explanation, title), path)
