"""Do the visual tokens of a network differ? Three measures for each VT module, and a warning if they do not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from ..network.vt_fpn import VTDecoder, VTFPNBody
from ..network.vt_stage import VTBody

__all__ = ['TokenDiversity', 'alike', 'average', 'measure_module', 'token_diversity', 'token_figures', 'warning_of']

ALIKE = 0.95  # above this cosine of the maps, tokens look at the same place
EQUAL = 0.02  # below this spread, tokens are nearly equal


@dataclass(frozen=True)
class TokenDiversity:
    """How much the tokens of one VT module differ, as a mean over images.

    Args:
        cosine: Mean cosine between the attention maps of two tokens; 1 if all look at the same place.
        spread: |T - mean_L T| / |T| of the module's output tokens, with Frobenius norms; 0 if all are equal.
        entropy: Entropy of the maps, relative to a uniform map; 1 if tokens look at all pixels equally.
        num_tokens: Number of tokens compared.
    """

    cosine: float
    spread: float
    entropy: float
    num_tokens: int

    @property
    def collapsed(self) -> bool:
        """Whether the tokens are nearly the same."""
        return self.num_tokens > 1 and (self.cosine > ALIKE or self.spread < EQUAL)

    def __str__(self) -> str:
        return f'cosine {self.cosine:.3f}, spread {self.spread:.3f}, entropy {self.entropy:.2f}'

    def to_dict(self) -> dict[str, float]:
        return {key: round(value, 4) for key, value in asdict(self).items()}


@torch.no_grad()
def measure_module(tokens: torch.Tensor, attention: torch.Tensor) -> TokenDiversity:
    """Diversity of a module's tokens (B, L, D) and of their attention maps (B, L, P). The cosine is 1 for one token."""
    T, A = tokens.float(), attention.float()
    num_tokens, num_pixels = A.shape[1:]
    unit = F.normalize(A, dim=2)
    pairs = max(num_tokens * (num_tokens - 1), 1)
    cosine = ((unit @ unit.transpose(1, 2)).sum((1, 2)) - num_tokens) / pairs if num_tokens > 1 else torch.ones(1)
    spread = (T - T.mean(dim=1, keepdim=True)).norm(dim=(1, 2)) / T.norm(dim=(1, 2)).clamp(min=1e-12)
    entropy = torch.special.entr(A).sum(dim=2) / torch.tensor(float(max(num_pixels, 2))).log()
    return TokenDiversity(cosine.mean().item(), spread.mean().item(), entropy.mean().item(), num_tokens)


def alike(attention: torch.Tensor) -> list[list[int]]:
    """The tokens of an image in groups that look at the same place: maps (L, P) with a cosine above that of `ALIKE`.

    A token joins the first group whose first token it is like.
    """
    unit = F.normalize(attention.float(), dim=1)
    cosine = unit @ unit.T
    groups: list[list[int]] = []
    for token in range(len(unit)):
        group = next((group for group in groups if cosine[group[0], token] > ALIKE), None)
        groups.append([token]) if group is None else group.append(token)
    return groups


@torch.no_grad()
def token_diversity(model: torch.nn.Module, images: torch.Tensor) -> list[TokenDiversity]:
    """How much the visual tokens of a network differ on some images.

    Args:
        model: A VT-ResNet, VT-Net or VT-FPN in evaluation mode, timm's or transformers'.
        images: (B, C, H, W), from the model's transform.

    Returns:
        One entry per VT module, or for VT-FPN one per level, finest first. Empty if the network has no tokens.
    """
    if isinstance(model, VTBody):
        _, tokens, attention = model.vt.forward_tokens(model.forward_trunk(images))
    elif isinstance(model, VTFPNBody) and isinstance(model.decoder, VTDecoder):
        _, together, attention = model.decoder.forward_tokens(model.forward_features(images))
        tokens = list(together.split(model.decoder.num_tokens, dim=1))
    else:
        return []
    return [measure_module(T, A) for T, A in zip(tokens, attention, strict=True)]


def average(found: Sequence[Sequence[TokenDiversity]]) -> list[TokenDiversity]:
    """The mean over several batches, for each module."""
    means = []
    for module in zip(*found, strict=True):
        sums = {key: sum(asdict(one)[key] for one in module) / len(module) for key in ('cosine', 'spread', 'entropy')}
        means.append(TokenDiversity(**sums, num_tokens=module[0].num_tokens))
    return means


def token_figures(found: Sequence[TokenDiversity]) -> dict[str, float]:
    """Cosine and spread of each module, with names for a log: cosine_1, spread_1, cosine_2, ..."""
    return {
        f'{key}_{number}': round(getattr(module, key), 4)
        for number, module in enumerate(found, 1)
        for key in ('cosine', 'spread')
    }


def warning_of(found: Sequence[TokenDiversity]) -> str:
    """A warning that names the modules whose tokens are nearly the same; empty if there are none."""
    alike = [f'{number} ({diversity})' for number, diversity in enumerate(found, 1) if diversity.collapsed]
    if not alike:
        return ''
    return f'the tokens are nearly the same in {"module" if len(alike) == 1 else "modules"} {", ".join(alike)}'
