"""Export a model to one ONNX file for onnxruntime, in fp32 or int8, and compare it with torch.

The input is `pixel_values` (B, C, H, W), normalised as in the model's transform. The output is `logits`. B, H and W can
vary; with a backbone that takes one image size only, such as a ViT, H and W are fixed. The fp32 weights are inside the
file.
"""

import copy
import itertools
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn as nn

from ..files import check_new, replaced_whole
from ..inference.preprocessing import eval_transform
from ..network.images import read_image
from ..network.vt_fpn import VTFPN, Network
from ..network.vt_stage import VTClassifier

__all__ = ['ONNX_FILE', 'OnnxExport', 'export_onnx', 'open_onnx']

ONNX_FILE = 'onnx/model.onnx'  # in a model folder, as is usual on the Hub
TOLERANCE = 1e-4  # largest difference from torch's output, relative to the largest value
TRACED_SIZE = (96, 128)  # height and width; any other would give the same graph
CHECKED_BATCHES = (1, 3)
CHECKED_SIZES = ((64, 96), (75, 107))  # besides the model's own size: the graph must not depend on the traced size
OPSET = 18  # onnxruntime 1.14 (2023) and later
TRACED_OPSET = 18  # lowest of torch's exporter; its older exporter, used below that, lacks adaptive pooling
LOWEST_OPSET = 17  # first one with LayerNormalization
CALIBRATION_IMAGES = 128  # at most
QUANTIZED = ['Conv', 'MatMul', 'Gemm', 'Add', 'MaxPool', 'Resize']  # norms and softmaxes stay fp32


@dataclass(frozen=True)
class OnnxExport:
    """A written file, and how close it is to torch.

    Args:
        path: The file.
        difference: Largest difference of any output of the fp32 graph from torch.
        agreement: For int8, the share of the calibration images (in segmentation, of their pixels) with the same class
            as in fp32.
    """

    path: Path
    difference: float
    agreement: float | None = None

    def __str__(self) -> str:
        if self.agreement is None:
            return f'{self.path}: fp32, within {self.difference:.1e} of torch'
        return f'{self.path}: int8, the class of fp32 in {100 * self.agreement:.1f} % of the calibration images'


class AttentionGraph(nn.Module):
    """A network that also outputs the attention of its modules, (B, L, H / 16, W / 16) each."""

    def __init__(self, model: VTClassifier):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.model.forward_trunk(x)
        _, tokens, attns = self.model.vt.forward_tokens(x)
        return self.model.forward_head(tokens[-1]), *(attn.unflatten(2, x.shape[-2:]) for attn in attns)


def pooling_weights(pixels: int, cells: int) -> torch.Tensor:
    """Weight of each pixel in each cell of adaptive average pooling, (cells, pixels)."""
    cell, pixel = torch.arange(cells)[:, None], torch.arange(pixels)
    inside = (pixel >= cell * pixels // cells) & (pixel < ((cell + 1) * pixels + cells - 1) // cells)
    return inside / inside.sum(1, keepdim=True)


# torch's exporter would keep the pooling cells of the traced size for all sizes
DECOMPOSITIONS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.aten.adaptive_avg_pool1d.default: lambda x, size: x @ pooling_weights(x.shape[-1], size[0]).t(),
    torch.ops.aten.adaptive_avg_pool2d.default: lambda x, size: (
        pooling_weights(x.shape[-2], size[0]) @ x @ pooling_weights(x.shape[-1], size[1]).t()
    ),
}


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """timm's padding for networks from TensorFlow in whole numbers; with its floats, an export does not end."""
    return max((kernel_size - 1) * dilation + 1 - stride + -size % stride, 0)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    attention: bool = False,
    calibration: Sequence[Path] = (),
    opset: int = OPSET,
) -> OnnxExport:
    """Write a model as one .onnx file, and compare onnxruntime with torch. If it fails, no file is left behind.

    Args:
        model: A timm VT-ResNet, VT-Net or VT-FPN with a classifier; it is not changed.
        path: Destination; must not exist.
        attention: Also output the token attention of each VT module, `attention_1` etc., (B, L, H / 16, W / 16).
        calibration: Image files typical for the model. If given, weights and activations are quantised to int8 (per
            channel, statically); at most 128 are read, evenly spread over the list.
        opset: Version of ONNX's operators, 17 or higher. The file declares the lowest IR version that supports it.

    Raises:
        FileExistsError: The file exists.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: The model is of another kind, torch cannot export it, onnxruntime's outputs differ, or no image can
            be read.
        OSError: The file cannot be written.
    """
    path = Path(path)
    check_new(path, 'file')
    if opset < LOWEST_OPSET:
        raise ValueError(f'These networks need ONNX opset {LOWEST_OPSET} or higher, not {opset}.')
    model = getattr(model, '_orig_mod', model)  # what torch.compile wraps
    if not isinstance(model, (VTClassifier, VTFPN)) or model.num_classes == 0:
        raise ValueError(
            f'Only a VT-ResNet, VT-Net or VT-FPN with a classifier exports to ONNX, not a {type(model).__name__}.'
        )
    if attention and isinstance(model, VTFPN):
        raise ValueError('VT-FPN cannot export attention maps to ONNX; leave them out.')
    with needs_extra():
        import onnx  # noqa: F401  torch's exporter needs these two
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(model).cpu().float().eval()
        model.set_grad_checkpointing(False)
        maps = len(model.vt.blocks) if attention and isinstance(model, VTClassifier) else 0
        names = ['logits'] + [f'attention_{i + 1}' for i in range(maps)]
        graph, fused = (
            AttentionGraph(network) if attention and isinstance(network, VTClassifier) else network
            for network in (model, copy.deepcopy(model).fuse())
        )
        pixels = read_calibration(calibration, model)
        try:
            with replaced_whole(path) as unfinished:
                write(fused, model, names, opset, unfinished)
                difference = compare(graph, model, names, unfinished)
                agreement = quantize(unfinished, pixels) if pixels else None
        except OSError as error:
            raise OSError(f'Cannot write {path}: {error.strerror or error}; nothing was written.') from error
    return OnnxExport(path, difference, agreement)


@contextmanager
def needs_extra() -> Iterator[None]:
    """Around imports of the extra `onnx`: the error names a missing package and how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'ONNX needs {error.name}: pip install "vt_hub[onnx]".') from error


def open_onnx(path: Path) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """A function from pixels (B, C, H, W) to the outputs that onnxruntime computes for them on the CPU."""
    with needs_extra():
        import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda pixels: [torch.from_numpy(out) for out in session.run(None, {'pixel_values': pixels.numpy()})]


def own_size(model: Network) -> tuple[int, int]:
    """Height and width of a model's input."""
    return timm.data.resolve_model_data_config(model)['input_size'][1:]


def has_fixed_size(model: Network) -> bool:
    """Whether the backbone takes only images of one size."""
    return any(getattr(part, 'pretrained_cfg', {}).get('fixed_input_size') for part in model.children())


def write(graph: nn.Module, model: Network, names: list[str], opset: int, path: Path) -> None:
    """Write the graph with torch's exporter, without stack traces, since they name folders of this machine."""
    import onnx

    fixed = has_fixed_size(model)
    size = own_size(model) if fixed else TRACED_SIZE
    example = torch.zeros(2, model.in_chans, *size)  # a batch size of one would become a constant
    inputs: dict[str, Any] = {'input_names': ['pixel_values'], 'output_names': names, 'verbose': False}
    free = {0: 'batch'} if fixed else {0: 'batch', 2: 'height', 3: 'width'}
    try:
        if opset < TRACED_OPSET:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # torch warns that this exporter is old
                torch.onnx.export(
                    graph,
                    (example,),
                    path,
                    dynamo=False,
                    opset_version=opset,
                    dynamic_axes={'pixel_values': free},
                    **inputs,
                )
            written = onnx.load(path)
        else:
            dynamic = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
            with mock.patch('timm.layers.padding.get_same_padding', same_padding):
                exported = torch.export.export(graph, (example,), dynamic_shapes=(dynamic,))
            exported = exported.run_decompositions(DECOMPOSITIONS)
            program = torch.onnx.export(exported, dynamo=True, opset_version=opset, dynamic_shapes=(free,), **inputs)
            written = program.model_proto  # type: ignore[union-attr]  # None only with dynamo=False
    except Exception as error:  # of any class, with pages of advice
        reason = str(error).strip().partition('\n')[0]
        raise ValueError(f'torch cannot export this {type(model).__name__} to ONNX: {reason}') from error
    for node in written.graph.node:
        del node.metadata_props[:]
        node.doc_string = ''
    if (found := written.opset_import[0].version) != opset:
        raise ValueError(f'torch cannot export this {type(model).__name__} with opset {opset}, only with {found}.')
    written.ir_version = onnx.helper.find_min_ir_version_for(written.opset_import)
    onnx.save(written, path)


def compare(graph: nn.Module, model: Network, names: list[str], path: Path) -> float:
    """The largest difference of any output from torch's.

    Raises:
        ValueError: The difference is above the tolerance.
    """
    run = open_onnx(path)
    generator = torch.Generator().manual_seed(0)
    sizes = [*([] if has_fixed_size(model) else CHECKED_SIZES), own_size(model)]
    largest = 0.0
    for batch, (height, width) in itertools.product(CHECKED_BATCHES, sizes):
        pixels = torch.randn(batch, model.in_chans, height, width, generator=generator)
        expected = graph(pixels)
        seen = f'a batch of {batch} at {height} x {width} pixels'
        try:
            outputs = run(pixels)
        except Exception as error:  # onnxruntime's errors have no common class
            raise ValueError(f'onnxruntime cannot run the graph on {seen} ({error}); nothing was written.') from error
        for name, ours, found in zip(names, expected if len(names) > 1 else [expected], outputs, strict=True):
            difference = (ours - found).abs().max().item() if ours.shape == found.shape else float('nan')
            if not difference <= TOLERANCE * ours.abs().max().item():  # also fails for NaN
                raise ValueError(
                    f'onnxruntime gives {name} that differ from those of torch by {difference:.2e} on {seen}; '
                    'nothing was written.'
                )
            largest = max(largest, difference)
    return largest


def read_calibration(images: Sequence[Path], model: Network) -> list[torch.Tensor]:
    """Read some images, evenly spread since they may be sorted by class, as model inputs (1, C, H, W).

    Raises:
        ValueError: Images were given, but none can be read.
    """
    transform = eval_transform(model)
    step = -(-len(images) // CALIBRATION_IMAGES) or 1
    pixels, errors = [], []
    for path in images[::step]:
        try:
            pixels.append(transform(read_image(path, model.in_chans))[None])
        except ValueError as error:
            errors.append(str(error))
    if errors and not pixels:
        raise ValueError(errors[0])
    for sentence in errors:
        print(f'warning: {sentence}', file=sys.stderr)
    return pixels


def quantize(path: Path, images: list[torch.Tensor]) -> float:
    """Convert an fp32 file to int8. Returns the share of classes that stay the same.

    Activations are unsigned with 8 bits. Weights have 7 bits, per channel: with more, sums saturate on x86 processors
    without VNNI. benchmarks/int8_digits.py compares this with dynamic quantisation.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        rest = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            pixels = next(self.rest, None)
            return None if pixels is None else {'pixel_values': pixels.numpy()}

    with tempfile.TemporaryDirectory() as tmp:
        prepared, quantized = Path(tmp) / 'prepared.onnx', Path(tmp) / 'quantized.onnx'
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            Reader(),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=QUANTIZED,
        )
        full, reduced = open_onnx(path), open_onnx(quantized)
        same = [(full(pixels)[0].argmax(1) == reduced(pixels)[0].argmax(1)).float().mean() for pixels in images]
        shutil.copyfile(quantized, path)
    return torch.stack(same).mean().item()
