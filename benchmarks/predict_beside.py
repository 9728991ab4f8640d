"""`vt-hub predict --output` beside a bare loop: python benchmarks/predict_beside.py --pictures DIR --work DIR.

The bare loop is timm's ImageDataset and loader around the same network, which keeps the best classes in a list; the
numbers of all are those of `--precision auto`. With Ray, the same images go through
`vt_hub.inference.ray_data.Classify` on one node. All are processes of their own and run in turn, from the first import
to the last row; the ratio is that of one round. All get as many cores as there are workers. Memory is that of the
largest process. Ray is only measured where it is installed.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from vt_hub.image_files import find_images
from vt_hub.reporting import machine, write_result

BARE = """
import sys, timm, torch, vt_hub
from vt_hub.inference.precision import computing_in
folder, model, batch_size, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
network = vt_hub.load_model(model).fuse().to(memory_format=torch.channels_last)
config = timm.data.resolve_model_data_config(network)
loader = timm.data.create_loader(
    timm.data.ImageDataset(folder), batch_size=batch_size, is_training=False, use_prefetcher=False,
    num_workers=workers, device=torch.device('cpu'), **config,
)
rows = []
with torch.inference_mode(), computing_in('auto', torch.device('cpu')):
    for images, _ in loader:
        logits = network(images.to(memory_format=torch.channels_last))
        rows += zip(*(found.tolist() for found in logits.float().softmax(1).topk(5)))
print(len(rows))
"""
RAY = """
import sys, ray
from vt_hub.inference.ray_data import Classify
folder, model, batch_size, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ray.init(num_cpus=workers + 1, log_to_driver=False)  # one of them starts the tasks that read
images = ray.data.read_binary_files(folder, include_paths=True)
found = images.map_batches(
    Classify, fn_constructor_args=(model, 5, 'auto'), batch_size=batch_size, concurrency=workers, num_cpus=1
)
print(sum(batch.num_rows for batch in found.iter_batches(batch_format='pyarrow')))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pictures', type=Path, required=True, help='folder of photographs')
    parser.add_argument('--work', type=Path, required=True, help='folder for the table')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--model', default='vt_resnet18')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    count = len(find_images([str(args.pictures)]))
    table = args.work / 'table.jsonl'
    rows = []
    for workers in args.workers:
        settings = [str(args.pictures), args.model, str(args.batch_size), str(workers)]
        cores = sorted(os.sched_getaffinity(0))[:workers]
        ours = ['-m', 'vt_hub', 'predict', settings[0], '--model', args.model, '--output', str(table)]
        options = ['--precision', 'auto', '--batch-size', settings[2], '--workers', settings[3]]
        commands = {
            'vt-hub predict': [*ours, *options],
            'bare timm loop': ['-c', BARE, *settings],
        }
        if find_spec('ray'):
            commands['Ray'] = ['-c', RAY, *settings]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        peak = dict.fromkeys(commands, 0.0)
        for _ in range(args.rounds):
            for name, command in commands.items():
                table.unlink(missing_ok=True)
                shutil.rmtree(f'{table}.parts', ignore_errors=True)
                started = time.perf_counter()
                process = subprocess.Popen(
                    [sys.executable, *command],
                    stdout=subprocess.DEVNULL,
                    preexec_fn=partial(os.sched_setaffinity, 0, cores),
                )
                _, status, usage = os.wait4(process.pid, 0)
                if status:
                    raise SystemExit(f'{name} ended with status {os.waitstatus_to_exitcode(status)}.')
                seconds[name].append(time.perf_counter() - started)
                peak[name] = max(peak[name], usage.ru_maxrss / 1024)
        for name, values in seconds.items():
            ratios = sorted(bare / value for bare, value in zip(seconds['bare timm loop'], values, strict=True))
            rows.append(
                {
                    'workers': workers,
                    'what': name,
                    'images_per_second': round(count / statistics.median(values), 1),
                    'peak_mb': round(peak[name]),
                    'of_the_bare_loop': [round(ratio, 3) for ratio in ratios],
                }
            )
            print(rows[-1], flush=True)
    if args.json:
        settings = {'model': args.model, 'images': count, 'batch_size': args.batch_size, 'cores': os.cpu_count()}
        write_result(args.json, {**settings, 'rows': rows, **machine(torch.device('cpu'))})


if __name__ == '__main__':
    main()
