"""What cheaper numbers cost: python benchmarks/precision.py --photographs DIR [--json FILE].

On the 1,000 photographs of NIPS 2017 (DIR as in model_cards/photographs/measure.py), each model in fp32, in bf16 as
`--precision bf16` computes, and as an int8 ONNX file that 128 photographs of imagenette's train part calibrate. All but
the .onnx file have their norms folded and are in channels_last, as in `predict`. Times are the processor's, one thread,
a batch of 16; the forms run in turn, and the result is their median.

The last rows time one product of 16 tokens with a matrix of 1024 x 1024 in fp32, in bf16, and in bf16 with int8
weights.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import in_turn, session

import vt_hub
from vt_hub.inference.precision import computing_in, laid_out
from vt_hub.inference.preprocessing import eval_transform
from vt_hub.network.images import read_image
from vt_hub.publishing import export_onnx
from vt_hub.reporting import machine, write_result

sys.path.append(str(Path(__file__).parents[1] / 'model_cards' / 'photographs'))
from measure import accuracy, nips

CPU = torch.device('cpu')
BATCH, CALIBRATION = 16, 128
TOKENS, WIDTH = 16, 1024
Run = Callable[[torch.Tensor], torch.Tensor]


def in_torch(model: str, precision: str) -> Run:
    network = laid_out(vt_hub.load_model(model).fuse(), precision)

    def run(images: torch.Tensor) -> torch.Tensor:
        with computing_in(precision, CPU):
            return network(images.contiguous(memory_format=torch.channels_last)).float()

    return run


def in_int8(model: str, photographs: Path, folder: Path) -> Run:
    train = sorted((photographs / 'imagenette' / 'train').glob('*/*.JPEG'))
    calibration = train[:: len(train) // CALIBRATION][:CALIBRATION]
    path = export_onnx(vt_hub.load_model(model), folder / f'{model}.onnx', calibration=calibration).path
    opened = session(path)
    return lambda images: torch.from_numpy(opened.run(['logits'], {'pixel_values': images.numpy()})[0])


def measure(model: str, photographs: Path, rounds: int) -> list[dict[str, Any]]:
    """One row for each form of a model."""
    listed = nips(photographs)
    transform = eval_transform(vt_hub.load_model(model))
    images = torch.stack([transform(read_image(path)) for path, _ in listed])
    labels = torch.tensor([label for _, label in listed])
    with tempfile.TemporaryDirectory() as tmp:
        runs = {precision: in_torch(model, precision) for precision in ('fp32', 'bf16')}
        runs['int8, ONNX'] = in_int8(model, photographs, Path(tmp))
        logits = {name: torch.cat([run(part) for part in images.split(BATCH)]) for name, run in runs.items()}
        batch = images[:BATCH]
        seconds = in_turn({name: lambda run=run: run(batch) for name, run in runs.items()}, rounds)
    exact = logits['fp32']
    return [
        {
            'model': model,
            'form': name,
            'top1': accuracy(found, labels)['top1'],
            'other_answers': int((found.argmax(1) != exact.argmax(1)).sum()),
            'largest_difference_of_a_probability': round((found.softmax(1) - exact.softmax(1)).abs().max().item(), 4),
            'images_per_second': round(BATCH / seconds[name], 1),
        }
        for name, found in logits.items()
    ]


def one_product(rounds: int) -> dict[str, float]:
    """Microseconds of the processor for one product of tokens with a matrix."""
    tokens, weight = torch.randn(TOKENS, WIDTH), torch.randn(WIDTH, WIDTH)
    half, half_weight = tokens.bfloat16(), weight.bfloat16()
    scales = weight.abs().amax(1) / 127
    levels = (weight / scales[:, None]).round().to(torch.int8)
    half_scales = scales.bfloat16()
    runs = {
        'fp32': lambda: F.linear(tokens, weight),
        'bf16': lambda: F.linear(half, half_weight),
        'bf16, weights in int8': lambda: torch.ops.aten._weight_int8pack_mm(half, levels, half_scales),
    }
    return {name: round(1e6 * seconds, 1) for name, seconds in in_turn(runs, rounds).items()}


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photographs', type=Path, required=True)
    parser.add_argument('--models', nargs='+', default=['vt_resnet18', 'vt_efficientnet_lite0'])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in args.models for row in measure(model, args.photographs, args.rounds)]
    product = one_product(100 * args.rounds)
    for row in [*rows, product]:
        print(row)
    if args.json:
        settings = {'batch_size': BATCH, 'rounds': args.rounds, 'tokens': TOKENS, 'width': WIDTH}
        write_result(args.json, {'rows': rows, 'microseconds_of_a_product': product, **settings, **machine(CPU)})


if __name__ == '__main__':
    main()
