"""An explanation as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..figures import new_figure, save_figure
from .diversity import alike
from .explain import Explanation
from .scores import SHOWN

__all__ = ['COLOURS', 'OPACITY', 'draw_explanation', 'save_explanation']

COLUMNS = 8  # pictures of tokens in a row
TILE, GAP, LINE, HEADING, TOP, SCALE = 1.05, 0.06, 0.22, 0.36, 2.7, 0.55  # inches
LABEL_LENGTH = 24  # characters
COLOURS = 'viridis'
OPACITY = 0.65  # of the colours over the image
BAR = '#31688e'


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


class Sheet:
    """A figure on which pictures, lines of text and axes have places in inches, from the upper left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = new_figure(figsize=(width, height), layout='none')  # placed by hand: a layout engine is slow
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.axis('off')

    def put(self, picture: np.ndarray, left: float, top: float, wide: float, high: float) -> None:
        self.axes.imshow(picture, extent=(left, left + wide, top + high, top), aspect='auto')

    def write(self, text: str, left: float, bottom: float, **kwargs: Any) -> None:
        self.axes.text(left, bottom, text, va='bottom', parse_math=False, **kwargs)

    def axes_at(self, left: float, top: float, wide: float, high: float) -> Any:
        place = left / self.width, 1 - (top + high) / self.height, wide / self.width, high / self.height
        return self.figure.add_axes(place)


def draw_explanation(explanation: Explanation, title: str = '') -> Any:
    """Draw the classes, what each token adds to the best one, and beside the image where each token looks.

    For VT-FPN the picture has the overlay in place of what tokens add. Tokens of a module that look at the same place
    share a picture. All pictures have one scale of colours.

    Args:
        explanation: From `explain`.
        title: A line on top, such as the names of the file and of the model.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    image, highest = explanation.image, explanation.highest
    tall = TILE * image.shape[0] / image.shape[1]
    groups = [alike(attention.flatten(1)) for attention in explanation.attention]
    rows = [-(-len(found) // COLUMNS) for found in groups]
    size = min(max(rows), 2)  # of the image, in pictures of tokens
    heights = [HEADING + max(size, count) * (tall + LINE) for count in rows]
    sheet = Sheet((COLUMNS + 2) * (TILE + GAP) + 4 * GAP, TOP + sum(heights) + SCALE)
    sheet.write(title, 2 * GAP, HEADING, fontsize='large')
    draw_classes(sheet.axes_at(0.2 * sheet.width, 2 * HEADING, 0.24 * sheet.width, TOP - 4 * HEADING), explanation)
    if explanation.overlay is None:
        axes = sheet.axes_at(0.52 * sheet.width, 2 * HEADING, 0.46 * sheet.width, TOP - 4 * HEADING)
        draw_contributions(axes, explanation)
    else:
        high = TOP - HEADING
        sheet.put(explanation.overlay, 0.55 * sheet.width, HEADING - 0.1, high * TILE / tall, high)
    top, left = TOP, 4 * GAP + size * (TILE + GAP)
    for place, differ, part, found, height in zip(
        explanation.places, explanation.diversity, explanation.relative, groups, heights, strict=True
    ):
        sheet.write(f'{place}: where its tokens look ({differ})', 2 * GAP, top)
        sheet.put(image, 2 * GAP, top + LINE, size * TILE, size * tall)
        for number, tokens in enumerate(found):
            row, column = divmod(number, COLUMNS)
            x, y = left + column * (TILE + GAP), top + LINE + row * (tall + LINE)
            share = part[tokens].mean(0).numpy() / highest
            sheet.put(heat_over(image, np.minimum(share, 1)), x, y, TILE, tall)
            sheet.write(token_names(tokens), x, y, fontsize='small')
        top += height
    draw_scale(sheet.axes_at(left, top, 2 * TILE, LINE / 2), highest)
    return sheet.figure


def draw_classes(axes: Any, explanation: Explanation) -> None:
    """The scores of the best classes as bars."""
    of_chance = explanation.meaning != 'value'
    key = 'share' if explanation.overlay is not None else 'score'
    found = [(shortened(each['label']), each[key]) for each in explanation.predictions]
    if of_chance:
        found = found[:1] + [(label, score) for label, score in found[1:] if score >= SHOWN]
    labels = [label for label, _ in found]
    scores = [(100 if of_chance else 1) * score for _, score in found]
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
    """The scale of the colours, in multiples of an even share."""
    axes.imshow(np.linspace(0, 1, 256)[None], aspect='auto', cmap=COLOURS, extent=(0, highest, 0, 1))
    axes.set(yticks=[], xticks=[0, highest], xticklabels=['0', f'{highest:.1f} times an even share or more'])
    axes.spines[:].set_visible(False)


def save_explanation(explanation: Explanation, path: str | Path, title: str = '') -> None:
    """Draw an explanation into a file; see `draw_explanation` and `save_figure`."""
    save_figure(draw_explanation(explanation, title), path)
