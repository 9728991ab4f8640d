"""The tokens of a prediction as HTML without scripts. The mouse or the arrow keys choose a token."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from ..figures import colours
from ..inference.explain import Explanation
from ..inference.explanation_figure import COLOURS, OPACITY

__all__ = ['legend', 'token_figure']

PALETTE = np.rint(255 * colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)


def data_uri(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def map_picture(values: torch.Tensor) -> Image.Image:
    """Values from 0 to 1 of a map's cells, (H, W), in the colours of the scale, a pixel each."""
    picture = Image.fromarray((255 * values).round().to(torch.uint8).numpy()).convert('P')
    picture.putpalette(PALETTE.tobytes())
    return picture


def untemplated(html: str) -> str:
    """HTML without double braces, which Gradio would take for a template."""
    return html.replace('{{', '{ {')


def legend(labels: Sequence[str], found: Sequence[str]) -> str:
    """The colours of some of a model's classes as HTML."""
    table = dict(zip(labels, colours(len(labels)).tolist(), strict=True))
    parts = [f'<span><i style="background: rgb{tuple(table[label])}"></i>{escape(label)}</span>' for label in found]
    return untemplated(f'<div class="vt-legend">{"".join(parts)}</div>')


def bar(value: float, values: list[float]) -> str:
    """One bar of a chart. All bars share one zero line."""
    top, bottom = max(0.0, *values), min(0.0, *values)
    unit = 100 / ((top - bottom) or 1)
    start = unit * (top - max(0.0, value))
    sign = 'plus' if value >= 0 else 'minus'
    return (
        f'<span class="chart"><span class="zero" style="top:{unit * top:.1f}%"></span>'
        f'<span class="bar {sign}" style="top:{start:.1f}%;height:{unit * abs(value):.1f}%"></span></span>'
    )


def token_figure(explanation: Explanation) -> str:
    """The image, where the chosen token looks in each module, and what every token adds to the most likely class.

    All maps share one colour scale; see `Explanation.highest`. At first, the token that adds the most is chosen. The
    styles are in `style.css`.
    """
    label = escape(explanation.predictions[0]['label'])
    logit, bias = explanation.predictions[0]['logit'], explanation.biases[0].item()
    adds = explanation.contributions[0].tolist()
    chosen = int(np.argmax(adds))
    height, width = explanation.image.shape[:2]
    shares, highest = explanation.relative, explanation.highest
    modules, tokens = range(1, len(shares) + 1), range(1, len(adds) + 1)

    rules = [
        f'.vt .image {{ background-image: url({data_uri(Image.fromarray(explanation.image))}) }}',
        '.vt .map, .vt .said span { visibility: hidden }',  # not in style.css, whose rules Gradio makes more specific
    ]
    views = ['<figure><div class="view"><div class="image"></div></div><figcaption>input</figcaption></figure>']
    columns = []
    for module, part in zip(modules, shares, strict=True):
        for token, share in zip(tokens, (part / highest).clamp(max=1), strict=True):
            rules.append(f'.vt .map{module}-{token} {{ background-image: url({data_uri(map_picture(share))}) }}')
    for module in modules:
        maps = ''.join(f'<div class="map map{module}-{token} of{token}"></div>' for token in tokens)
        view = f'<div class="view"><div class="image grey"></div>{maps}</div>'
        views.append(f'<figure>{view}<figcaption>module {module}</figcaption></figure>')
    for token, value in zip(tokens, adds, strict=True):
        for state in (f':has(.pick{token}:hover)', f':not(:has(.pick:hover)):has(.pick{token} :checked)'):
            rules.append(f'.vt{state} .of{token} {{ visibility: visible }}')
        thumbnails = ''.join(f'<span class="thumbnail map{module}-{token}"></span>' for module in modules)
        checked = ' checked' if token == chosen + 1 else ''
        columns.append(
            f'<label class="pick pick{token}" title="token {token}: {value:+.2f}">'
            f'<input type="radio" name="vt-token" aria-label="token {token}"{checked}>'
            f'{bar(value, adds)}{thumbnails}<span class="number">{token}</span></label>'
        )
    differ = '; '.join(f'module {i}: {found}' for i, found in enumerate(explanation.diversity, 1))
    differ = f'How much tokens differ: {differ}.'
    said = ''.join(
        f'<span class="of{token}">Token {token} adds <b>{value:+.2f}</b> to the logit of <b>{label}</b>.</span>'
        for token, value in zip(tokens, adds, strict=True)
    )
    stops = ', '.join(f'rgb{tuple(PALETTE[i].tolist())}' for i in np.linspace(0, 255, 11).astype(int))
    html = f"""\
<div class="vt" style="--columns: {min(len(adds), 16)}; --ratio: {width} / {height}; --opacity: {OPACITY}">
<style>{' '.join(rules)}</style>
<div class="views">{''.join(views)}</div>
<div class="scale"><span>0</span><span class="colours" style="background: linear-gradient(90deg, {stops})"></span>
<span>{highest:.1f} times an even share or more</span></div>
<p class="said">{said}</p>
<div class="picks" role="radiogroup" aria-label="token">{''.join(columns)}</div>
<p class="note">A column is a token: what it adds, and where it looks in {' and '.join(f'module {m}' for m in modules)}.
All columns and the bias ({bias:+.2f}) sum to the logit of {label}, {logit:.2f}. {explanation.even}</p>
<p class="note">{differ}</p>
</div>"""
    return untemplated(html)
