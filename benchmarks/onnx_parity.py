"""ONNX against torch for every architecture: python benchmarks/onnx_parity.py [--json FILE].

The networks are untrained ones whose normalisations have values, and all published weights. Each is exported, and
onnxruntime runs it on one and on three images of three sizes, one of which is its own. The result is the largest
difference of any logit from torch's.
"""

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'tests'))
from helpers.networks import architectures, build

import vt_hub
from vt_hub.publishing import export_onnx
from vt_hub.publishing.onnx_file import CHECKED_BATCHES, CHECKED_SIZES
from vt_hub.reporting import machine, write_result

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    rows = []
    published = [(name, {}) for name in vt_hub.list_pretrained()]
    for name, kwargs in architectures() + published:
        model = vt_hub.load_model(name) if '.' in name else build(name, **kwargs)
        own = model.pretrained_cfg['input_size'][1:]
        with tempfile.TemporaryDirectory() as tmp:
            written = export_onnx(model, Path(tmp) / 'model.onnx')
            row = {
                'model': name,
                **kwargs,
                'batches': CHECKED_BATCHES,
                'sizes': [*CHECKED_SIZES, own],
                'largest_logit': round(model(torch.randn(1, 3, *own)).abs().max().item(), 2),
                'difference': float(f'{written.difference:.1e}'),
                'mb': round(written.path.stat().st_size / 1e6, 1),
            }
        rows.append(row)
        print(' '.join([name, *kwargs.values()]), f'{row["difference"]:.1e}, {row["mb"]} MB', flush=True)
    if args.json:
        write_result(
            args.json, {'rows': rows, **machine(torch.device('cpu')), **{name: version(name) for name in PACKAGES}}
        )


if __name__ == '__main__':
    with torch.inference_mode():
        main()
