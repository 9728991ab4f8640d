"""ONNX: a model as one file for onnxruntime, compared with torch when it is written; and its int8 form.

The graph takes `pixel_values` (B, C, H, W), normalised as the model's transform does, and gives `logits`; B, H and W
are free. Weights are fp32 and inside the file.
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

import timm
import torch
import torch.nn as nn

from ..files import replaced_whole
from ..inference.preprocessing import eval_transform
from ..network.images import read_image
from ..network.vt_fpn import VTFPN
from ..network.vt_resnet import VTResNet

__all__ = ['ONNX_FILE', 'OnnxExport', 'export_onnx', 'open_onnx']

ONNX_FILE = 'onnx/model.onnx'  # in a model folder, as on the Hub
TOLERANCE = 1e-4  # largest difference of an output from torch's, in parts of its largest value
TRACED_SIZE = (96, 128)  # height and width; any other would give the same graph
CHECKED_BATCHES = (1, 3)
CHECKED_SIZES = ((64, 96), (75, 107))  # beside the model's own: what was traced must not have stuck
OPSET = 18  # onnxruntime 1.14, of 2023, and later
TRACED_OPSET = 18  # the lowest that torch's exporter writes; below, its older one does, which cannot pool adaptively
LOWEST_OPSET = 17  # the first with LayerNormalization
CALIBRATION_IMAGES = 128  # at most
QUANTIZED = ['Conv', 'MatMul', 'Gemm', 'Add', 'MaxPool', 'Resize']  # norms and softmaxes stay fp32


@dataclass(frozen=True)
class OnnxExport:
    """A written file, and how near it is to torch.

    Args:
        path: The file.
        difference: Of the fp32 graph from torch, the largest of any output.
        agreement: Of int8, the share of the calibration images (of their pixels, in segmentation) that are given the
            class that fp32 gives.
    """

    path: Path
    difference: float
    agreement: float | None = None

    def __str__(self) -> str:
        if self.agreement is None:
            return f'{self.path}: fp32, within {self.difference:.1e} of torch'
        return f'{self.path}: int8, the class of fp32 in {100 * self.agreement:.1f} % of the calibration images'


class AttentionGraph(nn.Module):
    """A VT-ResNet with the attention of its modules, (B, L, H / 16, W / 16) each, as further outputs."""

    def __init__(self, model: VTResNet):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.model.forward_trunk(x)
        _, tokens, attns = self.model.vt.forward_tokens(x)
        return self.model.forward_head(tokens[-1]), *(attn.unflatten(2, x.shape[-2:]) for attn in attns)


def pooling_weights(pixels: int, cells: int) -> torch.Tensor:
    """What adaptive average pooling to that many cells takes of each pixel, (cells, pixels)."""
    cell, pixel = torch.arange(cells)[:, None], torch.arange(pixels)
    inside = (pixel >= cell * pixels // cells) & (pixel < ((cell + 1) * pixels + cells - 1) // cells)
    return inside / inside.sum(1, keepdim=True)


# torch's exporter would fix the cells of adaptive pooling to those of the traced size
DECOMPOSITIONS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.aten.adaptive_avg_pool1d.default: lambda x, size: x @ pooling_weights(x.shape[-1], size[0]).t(),
    torch.ops.aten.adaptive_avg_pool2d.default: lambda x, size: (
        pooling_weights(x.shape[-2], size[0]) @ x @ pooling_weights(x.shape[-1], size[1]).t()
    ),
}


def export_onnx(
    model: nn.Module,
    path: str | Path,
    attention: bool = False,
    calibration: Sequence[Path] = (),
    opset: int = OPSET,
) -> OnnxExport:
    """Write a model as one .onnx file, and compare it with torch in onnxruntime. If it fails, nothing is left behind.

    Args:
        model: A VT-ResNet or VT-FPN with a classifier, timm's; it stays as it is.
        path: Where to; must not exist.
        attention: Give the token attention of each VT module too, `attention_1` and so on, (B, L, H / 16, W / 16).
        calibration: Image files like those the model is for. With them weights and activations are quantised to int8
            (per channel, statically); at most 128 are read, spread over all.
        opset: Version of ONNX's operators, 17 or higher; the file says the lowest IR version that has it.

    Raises:
        FileExistsError: The file exists.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: It is no such model, torch cannot export it, onnxruntime computes something else, or no image can
            be read.
        OSError: The file cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f'{path} exists already; name another file or remove it.')
    if opset < LOWEST_OPSET:
        raise ValueError(f'The operators of these networks are in ONNX from opset {LOWEST_OPSET} on, not in {opset}.')
    model = getattr(model, '_orig_mod', model)  # what torch.compile wraps
    if not isinstance(model, (VTResNet, VTFPN)) or model.num_classes == 0:
        raise ValueError(f'Only a VT-ResNet or VT-FPN with a classifier becomes ONNX, not this {type(model).__name__}.')
    if attention and isinstance(model, VTFPN):
        raise ValueError('Only a VT-ResNet gives attention maps in ONNX; leave them out.')
    with needs_extra():
        import onnx  # noqa: F401  torch's exporter needs these two
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    with torch.inference_mode(False), torch.no_grad():
        model = copy.deepcopy(model).cpu().float().eval()
        model.set_grad_checkpointing(False)
        names = ['logits'] + [f'attention_{i + 1}' for i in range(len(model.vt.blocks) if attention else 0)]
        graph, fused = (
            AttentionGraph(network) if attention else network for network in (model, copy.deepcopy(model).fuse())
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
    """Imports of what the extra `onnx` brings; a missing one is named."""
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


def write(graph: nn.Module, model: nn.Module, names: list[str], opset: int, path: Path):
    """The graph as torch's exporter writes it, without the stack traces, which name folders of this machine."""
    import onnx

    example = torch.zeros(2, model.in_chans, *TRACED_SIZE)  # a batch of one would be taken for a constant
    inputs: dict[str, Any] = {'input_names': ['pixel_values'], 'output_names': names, 'verbose': False}
    free = {0: 'batch', 2: 'height', 3: 'width'}
    try:
        if opset < TRACED_OPSET:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # it is the older one
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
            exported = torch.export.export(graph, (example,), dynamic_shapes=(dynamic,))
            exported = exported.run_decompositions(DECOMPOSITIONS)
            program = torch.onnx.export(exported, dynamo=True, opset_version=opset, dynamic_shapes=(free,), **inputs)
            written = program.model_proto
    except Exception as error:  # of any kind, with pages of advice
        reason = str(error).strip().partition('\n')[0]
        raise ValueError(f'torch cannot export this {type(model).__name__} to ONNX: {reason}') from error
    for node in written.graph.node:
        del node.metadata_props[:]
        node.doc_string = ''
    if (found := written.opset_import[0].version) != opset:
        raise ValueError(f'torch cannot export this {type(model).__name__} with opset {opset}, only with {found}.')
    written.ir_version = onnx.helper.find_min_ir_version_for(written.opset_import)
    onnx.save(written, path)


def compare(graph: nn.Module, model: nn.Module, names: list[str], path: Path) -> float:
    """The largest difference of any output from torch's.

    Raises:
        ValueError: It is more than the tolerance.
    """
    run = open_onnx(path)
    generator = torch.Generator().manual_seed(0)
    own = timm.data.resolve_model_data_config(model)['input_size'][1:]
    largest = 0.0
    for batch, (height, width) in itertools.product(CHECKED_BATCHES, (*CHECKED_SIZES, own)):
        pixels = torch.randn(batch, model.in_chans, height, width, generator=generator)
        expected = graph(pixels)
        seen = f'a batch of {batch} at {height} x {width} pixels'
        try:
            outputs = run(pixels)
        except Exception as error:  # onnxruntime's have no common class
            raise ValueError(f'onnxruntime cannot run the graph on {seen} ({error}); nothing was written.') from error
        for name, ours, found in zip(names, expected if len(names) > 1 else [expected], outputs, strict=True):
            difference = (ours - found).abs().max().item() if ours.shape == found.shape else float('nan')
            if not difference <= TOLERANCE * ours.abs().max().item():  # NaN is no fit either
                raise ValueError(
                    f'onnxruntime gives {name} that differ from those of torch by {difference:.2e} on {seen}; '
                    'nothing was written.'
                )
            largest = max(largest, difference)
    return largest


def read_calibration(images: Sequence[Path], model: nn.Module) -> list[torch.Tensor]:
    """Some of the images, spread over all, which may be sorted by class; each as the model takes it, (1, C, H, W).

    Raises:
        ValueError: There are images, and none can be read.
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
    for error in errors:
        print(f'warning: {error}', file=sys.stderr)
    return pixels


def quantize(path: Path, images: list[torch.Tensor]) -> float:
    """Make an fp32 file int8; returns the share of classes that stay as they were.

    Activations are unsigned of 8 bits, and weights of 7, per channel: with more, sums saturate on x86 processors
    without VNNI. benchmarks/int8_digits.py measures it beside dynamic quantisation.
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
