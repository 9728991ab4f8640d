"""int8 against fp32 in onnxruntime, on the held-out digits: python benchmarks/int8_digits.py [--json FILE].

Images of the other four fifths calibrate the int8 file. The result also has dynamic quantisation, which needs no
images. Times are medians of the processor time per image. The files run in turn, so the machine's drift cancels.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from timing import in_turn, session

from vt_hub.image_files import find_images
from vt_hub.inference.preprocessing import eval_transform
from vt_hub.network.images import read_image
from vt_hub.publishing import export_onnx
from vt_hub.reporting import machine, write_result

TRAIN = Path(__file__).parent.parent / 'model_cards' / 'vt_resnet10.digits' / 'train.py'
TIMED_SIZE = 224


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=50)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    model = timm.create_model('vt_resnet10', pretrained=True).eval()
    transform = eval_transform(model)
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run([sys.executable, TRAIN, '--images', tmp], check=True)
        held_out = find_images([f'{tmp}/val'])
        pixels = torch.stack([transform(read_image(path)) for path in held_out])
        labels = torch.tensor([int(path.parent.name) for path in held_out])
        with torch.inference_mode():
            in_torch = 100 * (model(pixels).argmax(1) == labels).float().mean().item()

        files = {name: Path(tmp) / f'{name}.onnx' for name in ('fp32', 'int8', 'dynamic')}
        export_onnx(model, files['fp32'])
        export_onnx(model, files['int8'], calibration=find_images([f'{tmp}/train']))
        quantize_dynamic(files['fp32'], files['dynamic'], weight_type=QuantType.QUInt8)  # of convolutions, the only one

        sessions = {name: session(path) for name, path in files.items()}
        logits = {
            name: torch.from_numpy(opened.run(None, {'pixel_values': pixels.numpy()})[0])
            for name, opened in sessions.items()
        }
        image = torch.randn(1, 3, TIMED_SIZE, TIMED_SIZE).numpy()
        runs = {
            name: lambda opened=opened: opened.run(None, {'pixel_values': image}) for name, opened in sessions.items()
        }
        seconds = in_turn(runs, args.rounds)
        rows = [
            {
                'file': name,
                'top1': round(100 * (logits[name].argmax(1) == labels).float().mean().item(), 2),
                'other_classes': int((logits[name].argmax(1) != logits['fp32'].argmax(1)).sum()),
                'mb': round(path.stat().st_size / 1e6, 2),
                'milliseconds': round(1000 * seconds[name], 2),
            }
            for name, path in files.items()
        ]
    for row in rows:
        print(row)
    if args.json:
        result = {
            'model': 'vt_resnet10.digits',
            'num_images': len(labels),
            'torch_top1': round(in_torch, 2),
            'rows': rows,
            'timed_size': TIMED_SIZE,
            'rounds': args.rounds,
            **machine(torch.device('cpu')),
            **{name: version(name) for name in ('onnx', 'onnxscript', 'onnxruntime')},
        }
        write_result(args.json, result)


if __name__ == '__main__':
    main()
