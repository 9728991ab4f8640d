"""What a VT stage does inside a wider one, nearly, for networks that grew into bottlenecks; see loading/bottlenecks.py.

The map of the wider stage is as wide as its tokens, so it has neither W_C nor W_V, and no weights can be copied. Its
map gets two parts: X, the map of the smaller stage, and U = B X + s, where s keeps U positive. B predicts, from a token
A^T X, what the smaller projector adds to the map for this token. So a wide token has this beside A^T X; the MLP adds
what is not linear. The modules between the first and the last let the map pass. The last one reads the smaller stage's
map off both parts. Its MLP writes to the half of the directions in which tokens vary least.

Each linear layer is a ridge regression, on the tokens or pixels of some views, of what the same layer of the smaller
stage gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ...loading.bottlenecks import embed_map, num_used
from ...loading.growing import goes_into_bottlenecks, silence
from ...network.vt_layers import DistinctTokenizer, TransformerMixer, pixels
from ...network.vt_resnet import VTResNet
from ...reporting import Progress, find_device, no_progress
from ..resumable import autocast
from .data import Folders
from .regression import Regression, view_loader
from .ridge import solve_ridge
from .run import constants

__all__ = ['TAKEOVER', 'stage_fits', 'teach_stage']

TAKEOVER = Regression(steps=36, size=128)
FITTED = 0.9  # share of the views; the others only measure what is left over
EVERY = 8  # of this many pixels one is used
RIDGE = 1e-3  # relative to the mean square of the inputs
DEVIATIONS = 4  # of U between its mean and 0
Rows = tuple[Tensor, Tensor]


def stage_fits(source: nn.Module, grown: nn.Module) -> bool:
    """Whether `teach_stage` can teach the VT stage of what `vt_hub.loading.growing.grow` made of a network."""
    if not (isinstance(source, VTResNet) and isinstance(grown, VTResNet) and goes_into_bottlenecks(source, grown)):
        return False
    ends: list[Any] = [stage.blocks[number] for stage in (source.vt, grown.vt) for number in (0, -1)]
    known = all(
        isinstance(end.tokenizer, DistinctTokenizer) and isinstance(end.mixer, TransformerMixer) for end in ends
    )
    widens = [isinstance(end.tokenizer.proj, nn.Linear) for end in ends] == [True, True, False, False]
    embeds = isinstance(source.vt.embed, nn.Sequential) and isinstance(grown.vt.embed, nn.Identity)
    projects = ends[0].projector is not None and ends[2].projector is not None
    own, wide = (net.feature_info[-1]['num_chs'] for net in (source, grown))
    into: Any = grown.layer3
    free = len(into) - num_used(source.layer3)
    return known and widens and embeds and projects and wide == 2 * own and free >= 2


def as_rows(values: Any) -> Tensor:
    """Tokens (B, L, D), or some of the pixels of a map (B, C, h, w), as rows; of several values the first."""
    values = values if isinstance(values, Tensor) else values[0]
    return (values if values.ndim == 3 else pixels(values)[:, ::EVERY]).flatten(0, 1)


def record(run: Callable[[], Any], *layers: nn.Module) -> list[Rows]:
    """Run a network on all views. Returns the inputs and outputs of some of its layers, as rows."""
    found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in layers]

    def keep(into: tuple[list[Tensor], list[Tensor]], layer: nn.Module, given: Any, output: Any) -> None:
        for rows, values in zip(into, (given, output), strict=True):
            rows.append(as_rows(values))

    handles = [layer.register_forward_hook(partial(keep, into)) for layer, into in zip(layers, found, strict=True)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [(torch.cat(given), torch.cat(output)) for given, output in found]


def ridge(given: Tensor, wanted: Tensor) -> Tensor:
    """The matrix W (out, in) with `given` W^T near `wanted`, rows (N, in) and (N, out)."""
    given = given.double()
    return solve_ridge(given.T @ given, given.T @ wanted.double(), RIDGE).float()


def with_one(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 1), value=1.0)


def left_over(found: Tensor, wanted: Tensor) -> float:
    """Share of the variance of `wanted` that `found` does not explain."""
    return ((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()).item()


@torch.no_grad()
def teach_stage(
    source: VTResNet,
    grown: VTResNet,
    data: Folders,
    unreadable: Path,
    settings: Regression = TAKEOVER,
    seed: int = 0,
    workers: int = 2,
    progress: Progress = no_progress,
) -> float:
    """Give a network's VT stage and classifier the function of the network that it grew from, nearly, in place.

    Args:
        source: The smaller network; `stage_fits` says whether it can be taken over.
        grown: What `vt_hub.loading.growing.grow` made of it, after `teach_layer1`.
        data: Images without labels.
        unreadable: File for the names of images that cannot be read.
        settings: Number and size of the views.
        seed: Random seed of the views.
        workers: Processes that read images.
        progress: Wraps the batches to show progress.

    Returns:
        The share of the variance of the source's pooled features that is left over, on views that were not used.
    """
    device = find_device()
    for net in (source, grown):
        net.eval().to(device).to(memory_format=torch.channels_last)
    loader = view_loader(settings, data, unreadable, seed, workers)
    mean, std = constants(source, device)
    batches = [batch.to(device) for batch in progress(loader, settings.steps, 'Reading images')]

    def stage_inputs(net: VTResNet) -> list[Tensor]:
        with autocast(device):
            return [net.forward_trunk((batch.float() / 255 - mean) / std).float() for batch in batches]

    inside = look_inside(source.vt, stage_inputs(source))
    shift = widen(source, grown, inside)
    maps = stage_inputs(grown)

    def run() -> None:
        for x in maps:
            grown.vt(x)

    modules: Any = grown.vt.blocks
    teach_first(run, modules[0], source.vt.blocks[0], inside, shift)
    for module in modules[1:-1]:
        silence(module.projector.norm)
    teach_last(run, modules[-1], source.vt.blocks[-1], inside)
    [(_, tokens)] = record(run, modules[-1].norm)
    return classify(source, grown, inside.features, tokens)


@dataclass(frozen=True)
class Inside:
    """What the smaller stage computes inside, as rows: pixels of a map or tokens.

    Args:
        first: Outputs of K, Q and F1 in the first module.
        last: Outputs of K, Q and F1 in the last module.
        maps: X, the map before the first module.
        tokens: A^T X of the first module.
        hidden: Values behind the ReLU of its MLP.
        added: What its projector adds to the map for each token.
        queries: W_K and W_Q of that projector, applied to the tokens.
        read: The map that the last module reads.
        features: The last module's tokens.
    """

    first: list[Tensor]
    last: list[Tensor]
    maps: Tensor
    tokens: Tensor
    hidden: Tensor
    added: Tensor
    queries: Tensor
    read: Tensor
    features: Tensor


def look_inside(stage: Any, maps: list[Tensor]) -> Inside:
    """Run the smaller stage on its maps (B, C, h, w)."""
    first, last = stage.blocks[0], stage.blocks[-1]
    layers = [layer for module in (first, last) for layer in (module.mixer.k, module.mixer.q, module.mixer.fc1)]
    layers += [first.tokenizer, first.tokenizer.proj, first.mixer.fc2, first.projector.value, first.projector.query]
    found = record(lambda: [stage(x) for x in maps], *layers, last.tokenizer, last.norm)
    given, outputs = zip(*found, strict=True)
    norm = first.projector.norm
    statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
    return Inside(
        first=list(outputs[:3]),
        last=list(outputs[3:6]),
        maps=given[6],
        tokens=given[7],
        hidden=given[8],
        added=F.batch_norm(outputs[9], *statistics, eps=norm.eps),
        queries=outputs[10],
        read=given[11],
        features=outputs[12],
    )


def widen(source: Any, grown: Any, inside: Inside) -> Tensor:
    """Let the last bottlenecks of a network give the map [X, U]. Returns the shift s of U.

    B has the rank of a bottleneck's middle width, and is the best such matrix for the pixels X.
    """
    maps, tokens = inside.maps, inside.tokens
    B = ridge(with_one(torch.cat([tokens, inside.hidden], dim=1)), inside.added)[:, : tokens.shape[1]].double()
    covariance = maps.double().T.cov()
    covariance.diagonal().add_(1e-6 * covariance.diagonal().mean())
    root = torch.linalg.cholesky(covariance)
    left, strengths, right = torch.linalg.svd(B @ root)
    rank = grown.layer3[-1].conv2.out_channels
    write = (left[:, :rank] * strengths[:rank]).float()
    read = torch.linalg.solve_triangular(root, right[:rank], upper=False, left=False).float()  # unit variances
    U = maps @ read.T @ write.T
    shift = (DEVIATIONS * U.std(0) - U.mean(0)).clamp(min=0)
    embed_map(grown.layer3, num_used(source.layer3), source.vt.embed, read, write, (maps @ read.T).mean(0), shift)
    return shift


def teach_first(run: Callable[[], Any], module: Any, original: Any, inside: Inside, shift: Tensor) -> None:
    """Let the first module of the wider stage make the smaller one's tokens, and add to U what that one adds to X."""
    own = inside.added.shape[1]
    module.tokenizer.filters.copy_(F.pad(original.tokenizer.filters, (0, own)))
    token, hidden = imitate(run, module.mixer, inside.first)
    deviation = token.std(dim=1, keepdim=True)  # the last LayerNorm divides by it
    rest = ridge(with_one(hidden), inside.added * deviation - (token[:, own:] - shift))[:, :-1]
    module.mixer.fc2.weight.copy_(F.pad(rest, (0, 0, own, 0)) / module.mixer.gate2.gamma[:, None])
    [(_, tokens)] = record(run, module.norm)
    project(module, tokens, inside.added, inside.queries)


def teach_last(run: Callable[[], Any], module: Any, original: Any, inside: Inside) -> None:
    """Let the last module of the wider stage read what the smaller one reads, and keep what that one finds."""
    [(read, _)] = record(run, module.tokenizer)
    off = ridge(with_one(read), inside.read)[:, :-1]
    module.tokenizer.filters.copy_(F.normalize(original.tokenizer.filters, dim=1) @ off)
    nn.init.zeros_(module.tokenizer.token_to_filter.weight)
    token, hidden = imitate(run, module.mixer, inside.last)
    variances, directions = torch.linalg.eigh(token.double().T.cov())  # in rising order
    size = variances.mean().sqrt() / hidden.std(dim=0).mean()
    module.mixer.fc2.weight.copy_(directions[:, : hidden.shape[1]] * size / module.mixer.gate2.gamma[:, None])


def imitate(run: Callable[[], Any], mixer: Any, wanted: list[Tensor]) -> Rows:
    """Fit K, Q and F1 of a mixer to what those of the smaller mixer gave.

    Returns:
        The tokens before the MLP, and what is behind its ReLU.
    """
    [(given, _)] = record(run, mixer.k)
    for layer, values in zip((mixer.k, mixer.q), wanted[:2], strict=True):
        layer.weight.copy_(ridge(given, values))
    [(token, given)] = record(run, mixer.norm2)
    mixer.fc1.weight.copy_(ridge(given, wanted[2]))
    return token, F.relu(given @ mixer.fc1.weight.T)


def project(module: Any, tokens: Tensor, added: Tensor, queries: Tensor) -> None:
    """Let a module's tokens add to U what the smaller projector added, where it did.

    Args:
        module: The first module of the wider stage.
        tokens: Its tokens, as rows.
        added: What the smaller projector adds for each of them.
        queries: W_K and W_Q of the smaller projector, applied to its tokens.
    """
    own, norm = added.shape[1], module.projector.norm
    norm.running_mean.copy_(tokens.mean(0))
    norm.running_var.copy_(tokens.var(0))
    U = tokens[:, own:] - norm.running_mean[own:]
    scale = (U * (added - added.mean(0))).mean(0) / norm.running_var[own:]
    nn.init.zeros_(norm.weight)
    nn.init.zeros_(norm.bias)
    norm.weight[own:] = scale * (norm.running_var[own:] + norm.eps).sqrt()
    norm.bias[own:] = added.mean(0)
    nn.init.eye_(module.projector.key.weight)
    module.projector.query.weight.copy_(F.pad(ridge(tokens, queries), (0, 0, 0, own)))


def classify(source: Any, grown: Any, wanted: Tensor, found: Tensor) -> float:
    """Fit the classifier through the smaller network's pooled features. Returns the share of them left over."""
    pooled, features = (
        rows.unflatten(0, (-1, net.num_tokens)).mean(1) for rows, net in ((found, grown), (wanted, source))
    )
    used = round(FITTED * len(pooled))
    weight = ridge(with_one(pooled[:used]), features[:used])
    grown.fc.weight.copy_(source.fc.weight @ weight[:, :-1])
    grown.fc.bias.copy_(source.fc.weight @ weight[:, -1] + source.fc.bias)
    return left_over(with_one(pooled[used:]) @ weight.T, features[used:])
