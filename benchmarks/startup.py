"""Where the time goes when a command starts: python benchmarks/startup.py [--rounds 7] [--json FILE].

Each step is a process of its own that imports one package more than the step before. The processes run in turn. The
first round, which reads the files from the disk, does not count.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from vt_hub.reporting import machine, write_result

START = 'import gc; gc.set_threshold(500_000)'  # as the commands do
UNCHANGED = 'import gc; gc.set_threshold = gc.freeze = lambda *_: None; from vt_hub.cli.main import main; main()'
IMAGE = Path(__file__).parents[1] / 'samples' / 'digit_7.png'
STEPS = {  # the arguments of python
    'Python': ['-c', 'pass'],
    'import torch': ['-c', f'{START}; import torch; gc.freeze()'],
    'import torchvision, which timm does': ['-c', f'{START}; import torch, torchvision; gc.freeze()'],
    'import timm': ['-c', f'{START}; import torch, torchvision, timm; gc.freeze()'],
    'import vt_hub': ['-c', f'{START}; import torch, torchvision, timm, vt_hub; gc.freeze()'],
    'predict': ['-m', 'vt_hub', 'predict', str(IMAGE), '--model', 'vt_resnet10'],
    'predict, with the collector as it is': ['-c', UNCHANGED, 'predict', str(IMAGE), '--model', 'vt_resnet10'],
    'help': ['-m', 'vt_hub', '--help'],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(args.rounds + 1):
        for name, arguments in STEPS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values[1:]), 3) for name, values in seconds.items()}
    print(*(f'{name}: {value} s' for name, value in medians.items()), sep='\n')
    if args.json:
        write_result(args.json, {'rounds': args.rounds, 'seconds': medians, **machine(torch.device('cpu'))})


if __name__ == '__main__':
    main()
