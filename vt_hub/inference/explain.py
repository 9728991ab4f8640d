"""Where visual tokens look (Figures 5 and 7 of the paper), and how much each token adds to a class.

A classifier reads the average of the tokens, so a logit is exactly the sum of each token's contribution and the bias.
In VT-FPN the tokens change the maps, and there is no such sum.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..network.vt_fpn import VTFPN, Network, VTDecoder
from ..network.vt_stage import VTClassifier
from .diversity import TokenDiversity, measure_module
from .preprocessing import ImageLike, as_image, as_model, data_config, eval_transform
from .scores import label_names, meaning_of, scores_of
from .segment import class_shares, largest_class, paint

__all__ = ['Explanation', 'explain']

BRIGHTEST = 0.99  # quantile of all cells from which the colour is the brightest; a few cells would make the rest dark
EVEN = 0.05  # contributions that differ by less, relative to their mean, are called the same


@dataclass(frozen=True)
class Explanation:
    """A prediction and its parts.

    Args:
        image: The resized and cropped input of the network, (H, W, 3) uint8.
        predictions: `label`, `score` (see `scores_of`) and `logit` of the most likely classes, best first. For VT-FPN
            `label` and `share` (of the pixels), largest first.
        attention: For each VT module, where each token looks, (L, H / 16, W / 16); a token's map sums to 1. For VT-FPN
            one entry per level, with the size of its map.
        places: Names of the modules or levels.
        contributions: What each token adds to the logit of each of those classes, (classes, L). VT-FPN: (0, L).
        biases: The rest of each logit, (classes,).
        diversity: How much the tokens of each module or level differ.
        meaning: Meaning of the scores; see `meaning_of`. For VT-FPN 'share of the pixels'.
        overlay: For VT-FPN, the image with its classes in colour, (h, w, 3) uint8.
    """

    image: np.ndarray
    predictions: list[dict[str, Any]]
    attention: list[torch.Tensor]
    places: list[str]
    contributions: torch.Tensor
    biases: torch.Tensor
    diversity: list[TokenDiversity]
    meaning: str
    overlay: np.ndarray | None = None

    @property
    def relative(self) -> list[torch.Tensor]:
        """The attention as multiples of an even share: 1 in every cell if a token looks everywhere equally."""
        return [part * part[0].numel() for part in self.attention]

    @property
    def highest(self) -> float:
        """The multiple of an even share from which a cell has the brightest colour: a quantile of all cells."""
        return np.quantile(torch.cat([part.flatten() for part in self.relative]).numpy(), BRIGHTEST).item()

    @property
    def even(self) -> str:
        """A sentence if all tokens add nearly the same to the best class; else empty."""
        adds = self.contributions[:1].flatten()
        if len(adds) < 2 or adds.max() - adds.min() >= EVEN * adds.mean().abs():
            return ''
        return f'All {len(adds)} tokens add nearly the same, about {adds.mean():.2f} each.'

    def to_dict(self) -> dict[str, Any]:
        """Everything except pictures, in plain Python types."""
        return {
            'predictions': self.predictions,
            'contributions': self.contributions.tolist(),
            'biases': self.biases.tolist(),
            'attention': [attention.tolist() for attention in self.attention],
            'diversity': [diversity.to_dict() for diversity in self.diversity],
        }


@torch.inference_mode()
def explain(model: Network | str | Path, image: ImageLike, topk: int = 5) -> Explanation:
    """Show where the tokens of a network look in an image, and split a classifier's prediction into what each adds.

    Args:
        model: A VT-ResNet or VT-Net with a classifier, or a VT-FPN, in evaluation mode, through timm; or what
            `load_model` takes.
        image: An image, or a path.
        topk: Number of classes, best first.

    Raises:
        ValueError: The model has no tokens or no classifier, or the image cannot be read.
        LookupError: There is no such model, or it has no weights.
    """
    model = as_model(model)
    if isinstance(model, VTFPN) and isinstance(model.decoder, VTDecoder):
        return explain_segmenter(model, model.decoder, image, topk)
    if isinstance(model, VTClassifier) and isinstance(model.fc, nn.Linear) and not model.pruned:
        return explain_classifier(model, image, topk)
    raise ValueError('Only a VT-ResNet or VT-Net with a classifier, or a VT-FPN, can be explained by its tokens.')


def prepared(model: Network, image: ImageLike) -> tuple[torch.Tensor, np.ndarray]:
    """The input of a network for an image, (1, C, H, W), and what it shows, (H, W, 3) uint8."""
    config, parameter = data_config(model), next(model.parameters())
    pixels = eval_transform(model)(as_image(image, model.in_chans))
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    seen = (pixels * std + mean).clamp(0, 1).expand(3, -1, -1)
    picture = (255 * seen).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels[None].to(parameter.device, parameter.dtype), picture


def explain_classifier(model: VTClassifier, image: ImageLike, topk: int) -> Explanation:
    pixels, seen = prepared(model, image)
    trunk = model.forward_trunk(pixels)
    _, tokens, attns = model.vt.forward_tokens(trunk)
    last, fc = tokens[-1], cast(nn.Linear, model.fc)
    logits = model.forward_head(last)[0].float().cpu()
    scores, classes = scores_of(model, logits).topk(min(topk, model.num_classes))
    labels = label_names(model)
    return Explanation(
        image=seen,
        predictions=[
            {'label': labels[c], 'score': round(score, 6), 'logit': logits[c].item()}
            for score, c in zip(scores.tolist(), classes.tolist(), strict=True)
        ],
        attention=[attn[0].unflatten(1, trunk.shape[-2:]).float().cpu() for attn in attns],
        places=[f'Module {number}' for number in range(1, len(attns) + 1)],
        contributions=fc.weight.float().cpu()[classes] @ last[0].float().cpu().T / last.shape[1],
        biases=fc.bias.float().cpu()[classes],
        diversity=[measure_module(T, attn) for T, attn in zip(tokens, attns, strict=True)],
        meaning=meaning_of(model),
    )


def explain_segmenter(model: VTFPN, decoder: VTDecoder, image: ImageLike, topk: int) -> Explanation:
    pixels, seen = prepared(model, image)
    levels, together, attns = decoder.forward_tokens(model.forward_features(pixels))
    mask = largest_class(model.head(levels).float().cpu(), (seen.shape[0], seen.shape[1])).numpy()
    tokens = together.split(decoder.num_tokens, dim=1)
    return Explanation(
        image=seen,
        predictions=class_shares(mask, label_names(model))[:topk],
        attention=[
            attn[0].unflatten(1, level.shape[-2:]).float().cpu() for attn, level in zip(attns, levels, strict=True)
        ],
        places=[f'Level of stride {pixels.shape[-1] // level.shape[-1]}' for level in levels],
        contributions=torch.empty(0, decoder.num_tokens),
        biases=torch.empty(0),
        diversity=[measure_module(T, attn) for T, attn in zip(tokens, attns, strict=True)],
        meaning='share of the pixels',
        overlay=np.asarray(paint(Image.fromarray(seen), mask, model.num_classes)[1]),
    )
