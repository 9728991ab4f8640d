"""Time and peak memory of VT-FPN against the panoptic FPN: python tests/benchmark_fpn.py [--json FILE].

Same backbone, same image, CPU, fp32, batch 1; rounds of one and the other in turn, so that the machine's drift cancels.
Peak memory is what one forward pass adds in a fresh process.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch

import vt_hub  # noqa: F401  registers the models
from vt_hub.training.results import machine

DECODERS = ('fpn', 'vt')


def build(backbone: str, decoder: str) -> torch.nn.Module:
    return timm.create_model(f'vt_fpn_{backbone}', decoder=decoder).eval()


def resident(key: str) -> float:
    """MB of this process that are, or at most were, in memory."""
    return int(re.search(rf'{key}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def peak_memory(backbone: str, decoder: str, size: int) -> float:
    """MB that a forward pass adds to a fresh process."""
    command = [sys.executable, __file__, '--memory', backbone, decoder, '--size', str(size)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbones', nargs='+', default=['resnet50', 'resnet101'])
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--memory', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    image = torch.randn(1, 3, args.size, args.size)
    if args.memory:
        model = build(*args.memory)
        Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far (Linux)
        before = resident('VmRSS')
        model(image)
        print(resident('VmHWM') - before)
        return
    rows = []
    for backbone in args.backbones:
        models = {decoder: build(backbone, decoder) for decoder in DECODERS}
        seconds: dict[str, list[float]] = {decoder: [] for decoder in DECODERS}
        for i in range(args.rounds + 2):
            for decoder, model in models.items():
                started = time.perf_counter()
                model(image)
                if i >= 2:  # warm
                    seconds[decoder].append(time.perf_counter() - started)
        ratios = sorted(fpn / vt for fpn, vt in zip(seconds['fpn'], seconds['vt'], strict=True))
        memory = {decoder: peak_memory(backbone, decoder, args.size) for decoder in DECODERS}
        row = {
            'backbone': backbone,
            'size': args.size,
            'rounds': args.rounds,
            'seconds': {decoder: round(statistics.median(seconds[decoder]), 4) for decoder in DECODERS},
            'speedup': round(statistics.median(ratios), 3),
            'speedup_quartiles': [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
            'peak_mb': {decoder: round(memory[decoder]) for decoder in DECODERS},
        }
        rows.append(row)
        print(
            f'{backbone} at {args.size}: FPN {row["seconds"]["fpn"]:.3f} s, VT-FPN {row["seconds"]["vt"]:.3f} s, '
            f'{row["speedup"]:.2f} x as fast ({row["speedup_quartiles"][0]:.2f} to {row["speedup_quartiles"][1]:.2f}); '
            f'peak memory {row["peak_mb"]["fpn"]} and {row["peak_mb"]["vt"]} MB'
        )
    if args.json:
        args.json.write_text(json.dumps({'rows': rows, **machine()}, indent=2) + '\n')


if __name__ == '__main__':
    main()
