"""The function of a stage of basic blocks inside a stage of bottlenecks, exactly.

A bottleneck of middle width C has 4 C output channels. The first C of them carry the stream x of the basic blocks. Two
bottlenecks do what a basic block y = relu(x + B2(C2 h)), h = relu(B1(C1 x)), does, with 3x3 convolutions C1, C2 and
norms B1, B2:

    first:   u = x,  v = relu(B1(C1 u)) = h,      adds h to C channels that are still 0
    second:  u = h,  v = relu(B2(C2 u) + S),      adds v - S to x; its last ReLU gives y

u and v lie behind the first and the second convolution. x and h are not negative, so the ReLUs pass them. The constant
S lets B2(C2 h) pass with its sign. The first block of a stage may change x by a 1x1 convolution with a norm; the result
has a sign, too, so it carries S until the second bottleneck takes it off.

All else can learn, and changes nothing at first. Output channels that are still 0 have random weights behind a norm
whose scale is 0. Those that the blocks never need are random functions of the middle channels, and the weights that
read them are 0.
"""

from typing import Any

import torch
import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ['embed_map', 'embed_stage', 'num_used']

SHIFT = 12.0  # S: more than any value before the last ReLU of a block; up to 8.5 was seen
MOST_DEVIATIONS = 5.0  # of a value with unit variance
CUT = 1000.0  # more than any value of the stream
MOST_BLOCKS = 3  # each but a shortened one needs C of the 3 C other channels


@torch.no_grad()
def embed_stage(blocks: Any, into: Any, name: str) -> None:
    """Write the function of a stage of basic blocks into a stage of bottlenecks.

    If there is one bottleneck too few, the last one gets the last basic block with the middle of its second convolution
    alone, and has to learn the rest.

    Args:
        blocks: A stage of basic blocks, an nn.Sequential.
        into: A stage of bottlenecks, as it is after initialisation.
        name: Name of the stage, for errors.

    Raises:
        ValueError: The blocks do not fit.
    """
    C: int = into[0].conv2.out_channels
    missing = num_used(blocks) - len(into)
    if missing > 1 or len(blocks) > MOST_BLOCKS or blocks[0].conv1.out_channels != C:
        raise ValueError(
            f'{name} of the source has {len(blocks)} basic blocks of {blocks[0].conv1.out_channels} channels; '
            f'{len(into)} bottlenecks of middle width {C} cannot hold them.'
        )
    needed = slice(0, C * (len(blocks) + 1))
    for bottleneck in into:
        nn.init.zeros_(bottleneck.bn3.weight[needed])
    bottlenecks = iter(into)
    stream = slice(0, C)
    for number, block in enumerate(blocks):
        first, free = next(bottlenecks), slice(C * (number + 1), C * (number + 2))
        read(first, slice(0, block.conv1.in_channels))
        convolve(first, block.conv1, block.bn1)
        shift = shortcut(first, block, needed) if number == 0 else 0.0
        if number == len(blocks) - 1 and missing == 1:
            write(first, stream, block.conv2.weight[:, :, 1, 1], block.bn2)
            continue
        write(first, free)
        second = next(bottlenecks)
        read(second, free)
        convolve(second, block.conv2, block.bn2, SHIFT)
        write(second, stream)
        lower(second, SHIFT)
        second.bn3.bias[stream] -= shift


def identity(norm: Any, channels: slice) -> None:
    """Let some channels of a BatchNorm with initial statistics return their input."""
    norm.weight[channels] = (1 + norm.eps) ** 0.5


def read(bottleneck: Any, channels: slice) -> None:
    """Let the first middle channels be some of the input."""
    count = channels.stop - channels.start
    weight = bottleneck.conv1.weight
    weight[:count] = 0
    weight[:count, channels, 0, 0] = torch.eye(count, dtype=weight.dtype, device=weight.device)
    identity(bottleneck.bn1, slice(0, count))


def convolve(bottleneck: Any, conv: nn.Conv2d, norm: Any, shift: float = 0.0) -> None:
    """Apply a basic block's convolution and norm to the first middle channels."""
    weight = bottleneck.conv2.weight
    weight.zero_()
    weight[:, : conv.in_channels] = conv.weight
    bottleneck.bn2.load_state_dict(norm.state_dict())
    bottleneck.bn2.bias += shift


def write(bottleneck: Any, channels: slice, values: torch.Tensor | None = None, norm: Any = None) -> None:
    """Add the middle channels, or a product of them, to some output channels."""
    weight = bottleneck.conv3.weight
    eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    weight[channels, :, 0, 0] = eye if values is None else values
    identity(bottleneck.bn3, channels)
    if norm is not None:
        put(norm, bottleneck.bn3, channels)


def lower(bottleneck: Any, lift: float | torch.Tensor) -> None:
    """Take off what middle channels that are higher by a constant, or by (C,) constants, add to the output."""
    norm, weight = bottleneck.bn3, bottleneck.conv3.weight[:, :, 0, 0]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    norm.bias -= scale * (weight * lift).sum(1)


def shortcut(bottleneck: Any, block: Any, needed: slice) -> float:
    """Take over the shortcut of a stage's first block. Returns the constant that the stream then carries."""
    conv, norm = bottleneck.downsample
    n, C = block.conv1.in_channels, block.conv1.out_channels
    nn.init.zeros_(norm.weight[needed])
    conv.weight[:C] = 0
    identity(norm, slice(0, C))
    if block.downsample is None:
        conv.weight[:C, :n, 0, 0] = torch.eye(C, dtype=conv.weight.dtype)
        return 0.0
    conv.weight[:C, :n] = block.downsample[0].weight
    put(block.downsample[1], norm, slice(0, C))
    norm.bias[:C] += SHIFT
    return SHIFT


def put(norm: Any, into: Any, channels: slice) -> None:
    """Copy a BatchNorm into some channels of a wider one."""
    for key, value in norm.state_dict().items():
        if value.ndim:
            into.state_dict()[key][channels] = value


def num_used(blocks: Any) -> int:
    """Number of bottlenecks that a stage of basic blocks needs, if none is missing."""
    return 2 * len(blocks)


@torch.no_grad()
def embed_map(
    into: Any,
    number: int,
    embed: Any,
    read_off: torch.Tensor,
    spread: torch.Tensor,
    mean: torch.Tensor,
    shift: torch.Tensor,
) -> None:
    """Let the stream x of a stage become the map [X, U] of a wider VT stage, in the two bottlenecks after `number`.

    X = relu(norm(conv x)) is the map of the smaller stage. U = G R X + s, with a matrix G R of the rank of a
    bottleneck's middle width C.

    Args:
        into: The last stage of bottlenecks, after `embed_stage`.
        number: Number of its bottlenecks that are used.
        embed: 1x1 convolution, norm and ReLU of the smaller stage.
        read_off: R (C, D); the values R X have unit variance.
        spread: G (D, C).
        mean: Mean of R X, (C,).
        shift: s (D,); U is cut off at 0.
    """
    before, first, second = into[number - 1 : number + 2]
    C, D = before.conv2.out_channels, spread.shape[0]
    before.bn3.bias[C:] -= CUT  # only the stream goes on
    conv, norm = embed[:2]
    weight, bias = fuse_conv_bn_weights(
        conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    for bottleneck in (first, second):
        nn.init.zeros_(bottleneck.bn3.weight)
        keep(bottleneck)
    read(first, slice(0, C))
    write(first, slice(0, D), weight[:, :, 0, 0])
    first.conv3.weight[:C, :, 0, 0] -= torch.eye(C, dtype=weight.dtype, device=weight.device)  # takes x off
    first.bn3.bias[:D] += bias
    lift = (MOST_DEVIATIONS - mean).clamp(min=0)
    second.conv1.weight.zero_()
    second.conv1.weight[:, :D, 0, 0] = read_off
    identity(second.bn1, slice(0, C))
    second.bn1.bias += lift
    write(second, slice(D, 2 * D), spread)
    lower(second, lift)
    second.bn3.bias[D : 2 * D] += shift


def keep(bottleneck: Any) -> None:
    """Let the 3x3 convolution pass the middle channels."""
    nn.init.dirac_(bottleneck.conv2.weight)
    identity(bottleneck.bn2, slice(None))
