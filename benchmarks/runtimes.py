"""One network in the runtimes that take it: python benchmarks/runtimes.py [--model vt_resnet18] [--json FILE].

Each runtime gets the fused network, through torch.export or ONNX, and runs one image with one thread. The runtimes run
in turn; the time is the processor's, and the result its median. The difference is the largest of any logit from torch's
in fp32, relative to the largest logit. OpenVINO and ExecuTorch are not among the package's own requirements:

    pip install openvino executorch
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from timing import in_turn, session

import vt_hub
from vt_hub.inference.precision import computing_in, laid_out
from vt_hub.publishing import export_onnx
from vt_hub.reporting import machine, write_result

CPU = torch.device('cpu')
PACKAGES = ('onnxruntime', 'openvino', 'executorch')
Run = Callable[[], torch.Tensor]


def load(model: str) -> torch.nn.Module:
    return vt_hub.load_model(model).fuse()


def run_torch(model: str, images: torch.Tensor, folder: Path) -> Iterator[tuple[str, Run, float | None]]:
    plain, last, half = load(model), laid_out(load(model)), laid_out(load(model), 'bf16')

    def mixed() -> torch.Tensor:
        with computing_in('bf16', CPU):
            return half(images)

    yield 'torch', lambda: plain(images), None
    yield 'torch, channels_last, as in `predict`', lambda: last(images), None
    yield 'torch, channels_last, bf16', mixed, None


def run_onnx(model: str, images: torch.Tensor, folder: Path) -> Iterator[tuple[str, Run, float | None]]:
    path = export_onnx(load(model), folder / 'model.onnx').path
    opened, pixels = session(path), {'pixel_values': images.numpy()}
    yield 'onnxruntime', lambda: torch.from_numpy(opened.run(['logits'], pixels)[0]), path.stat().st_size / 1e6


def run_openvino(model: str, images: torch.Tensor, folder: Path) -> Iterator[tuple[str, Run, float | None]]:
    import openvino

    converted = openvino.convert_model(torch.export.export(load(model), (images,)))
    openvino.save_model(converted, folder / 'model.xml', compress_to_fp16=False)
    size = (folder / 'model.bin').stat().st_size / 1e6
    for precision, name in (('f32', 'OpenVINO'), ('bf16', 'OpenVINO, bf16')):
        settings = {'INFERENCE_NUM_THREADS': 1, 'INFERENCE_PRECISION_HINT': precision}
        compiled = openvino.compile_model(converted, 'CPU', settings)
        yield name, lambda compiled=compiled: torch.from_numpy(compiled([images.numpy()])[0]), size


def run_executorch(model: str, images: torch.Tensor, folder: Path) -> Iterator[tuple[str, Run, float | None]]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    program = torch.export.export(load(model), (images,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path = folder / 'model.pte'
    path.write_bytes(lowered.buffer)
    method = Runtime.get().load_program(str(path)).load_method('forward')
    yield 'ExecuTorch, XNNPACK', lambda: method.execute((images,))[0], path.stat().st_size / 1e6


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='vt_resnet18')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = vt_hub.load_model(args.model)
    runs: dict[str, Run] = {}
    sizes: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as tmp:
        for make in (run_torch, run_onnx, run_openvino, run_executorch):
            with suppress(ModuleNotFoundError):
                for name, run, size in make(args.model, images, Path(tmp)):
                    runs[name], sizes[name] = run, size and round(size, 1)
        seconds = in_turn(runs, args.rounds)
        logits = expected(images)
        rows = [
            {
                'runtime': name,
                'mb': sizes[name],
                'ms': round(1000 * seconds[name], 1),
                'difference': float(f'{(run() - logits).abs().max() / logits.abs().max():.1e}'),
            }
            for name, run in runs.items()
        ]
    for row in rows:
        print(row)
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    if args.json:
        write_result(args.json, {'model': args.model, 'rows': rows, **versions, **machine(CPU)})


if __name__ == '__main__':
    main()
