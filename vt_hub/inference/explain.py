"""Where visual tokens look (Figures 5 and 7 of the paper), and how much each token adds to a class.

The classifier reads the average of the tokens, so a logit is exactly the sum of each token's contribution and the bias.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ..figures import new_figure, save_figure
from ..network.images import to_channels
from ..network.vt_stage import VTClassifier
from .diversity import TokenDiversity, measure_module
from .preprocessing import data_config, eval_transform
from .scores import label_names, meaning_of, scores_of

__all__ = ['Explanation', 'draw_explanation', 'explain', 'save_explanation']

COLUMNS = 8  # tokens in a row
LABEL_LENGTH = 24  # characters
COLOURS = 'RdYlBu_r'  # red high, blue low, as in the paper
OPACITY = 0.6  # of the attention over the image


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
def explain(model: torch.nn.Module, image: Image.Image, topk: int = 5) -> Explanation:
    """Split a prediction of a VT-ResNet or VT-Net for an image into the contributions of its tokens.

    Args:
        model: A VT-ResNet or VT-Net with a classifier in evaluation mode, through timm.
        image: An image of any mode.
        topk: Number of classes, best first.

    Raises:
        ValueError: The model is not a VT-ResNet or VT-Net with a classifier.
    """
    if not isinstance(model, VTClassifier) or not isinstance(model.fc, nn.Linear) or model.pruned:
        raise ValueError(
            'Only the predictions of a VT-ResNet or VT-Net with a classifier can be explained by its tokens.'
        )
    config = data_config(model)
    pixels, weight = eval_transform(model)(to_channels(image, model.in_chans)), model.fc.weight
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


def draw_explanation(explanation: Explanation) -> Any:
    """Draw the image, its classes, each token's contribution to the best class, and where each token looks.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    maps = explanation.attention
    num_tokens = len(maps[0])
    rows = -(-num_tokens // COLUMNS)
    height, width = explanation.image.shape[:2]
    tile = 1.35  # inches
    tall = (rows * len(maps) * height / width + 2) * tile + 0.4 * len(maps)
    figure = new_figure(figsize=(COLUMNS * tile + 0.9, tall))
    top, *parts = figure.subfigures(1 + len(maps), 1, height_ratios=[2.3] + [rows + 0.3] * len(maps))

    image_axes, class_axes, token_axes = top.subplots(1, 3, width_ratios=[1, 1.2, 2])
    image_axes.imshow(explanation.image)
    image_axes.axis('off')
    labels = [shortened(prediction['label']) for prediction in explanation.predictions]
    places = range(len(labels))
    of_chance = explanation.meaning != 'value'
    scores = [prediction['score'] * (100 if of_chance else 1) for prediction in explanation.predictions]
    class_axes.barh(places, scores, color='0.35')
    class_axes.set_yticks(places, labels, parse_math=False)
    class_axes.invert_yaxis()
    class_axes.set_title(f'{explanation.meaning} (%)' if of_chance else 'value')
    if of_chance:
        class_axes.set_xlim(0, 100)
    token_axes.bar(range(1, num_tokens + 1), explanation.contributions[0].tolist(), color='0.35')
    token_axes.axhline(0, color='0.35', linewidth=0.8)
    logit, bias = explanation.predictions[0]['logit'], explanation.biases[0].item()
    title = f'what each token adds to the logit of\n{labels[0]} ({logit:.2f}, bias {bias:.2f})'
    token_axes.set_title(title, parse_math=False)
    token_axes.set(xlabel='token')
    token_axes.set_xticks(range(1, num_tokens + 1))
    for axes in (class_axes, token_axes):
        axes.spines[['top', 'right']].set_visible(False)
        axes.title.set_size('medium')

    shares = [100 * F.interpolate(part[None], (height, width), mode='bilinear')[0] for part in maps]
    highest = max(part.max().item() for part in shares)
    grey = explanation.image.mean(2)
    for number, (part, subfigure) in enumerate(zip(shares, parts, strict=True), 1):
        differ = explanation.diversity[number - 1]
        subfigure.suptitle(f'Module {number}: where each token looks ({differ})', fontsize='medium')
        grid = subfigure.subplots(rows, COLUMNS, squeeze=False)
        for axes in grid.flat:
            axes.axis('off')
        for token, (axes, share) in enumerate(zip(grid.flat, part, strict=False), 1):
            axes.imshow(grey, cmap='gray', vmin=0, vmax=255)
            heat = axes.imshow(share.numpy(), cmap=COLOURS, vmin=0, vmax=highest, alpha=OPACITY)
            axes.set_title(str(token), fontsize='small', pad=2)
        subfigure.colorbar(heat, ax=grid, label='% of its attention', fraction=0.02, pad=0.01)
    return figure


def save_explanation(explanation: Explanation, path: str | Path) -> None:
    """Draw an explanation into a file; see `save_figure`."""
    save_figure(draw_explanation(explanation), path)
