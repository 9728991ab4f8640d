"""Time and peak memory of VT-FPN against the panoptic FPN: python tests/benchmark_fpn.py [--json FILE].

Same backbone, same image, CPU, fp32, batch 1; rounds of one and the other in turn, so that the machine's drift cancels.
Peak memory is that of the tensors alive at a time within a forward pass, as torch's allocator counts them: weights and
the image are not in it.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch

import vt_hub  # noqa: F401  registers the models
from vt_hub.training.results import machine

DECODERS = ('fpn', 'vt')


def build(backbone: str, decoder: str) -> torch.nn.Module:
    return timm.create_model(f'vt_fpn_{backbone}', decoder=decoder).eval()


def peak_memory(model: torch.nn.Module, image: torch.Tensor) -> float:
    """MB of the tensors that a forward pass holds at its peak."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(image)
    with tempfile.NamedTemporaryFile(suffix='.json') as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())['traceEvents']
    changes = [(event['ts'], event['args']['Bytes']) for event in events if event['name'] == '[memory]']
    return max(itertools.accumulate(size for _, size in sorted(changes))) / 1e6


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backbones', nargs='+', default=['resnet50', 'resnet101'])
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    image = torch.randn(1, 3, args.size, args.size)
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
        memory = {decoder: peak_memory(model, image) for decoder, model in models.items()}
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
