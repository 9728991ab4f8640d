"""`vt-hub predict --output` at scale: python benchmarks/predict_scale.py --work DIR [--json FILE].

The script draws small pictures into DIR once, and classifies a quarter of them, and then all. It measures the speed and
the share of the cores' time that was used, from the first import to the last row, and the peak memory of the main
process and of the largest worker. A worker shares most of its memory with the main process. Memory is all that is
resident, except what is mapped from files (libraries). Then SIGKILL ends a run half way, and the run is started again.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vt_hub.reporting import machine, write_result

CORES = len(os.sched_getaffinity(0))
FIGURES = ('main_peak_mb', 'main_anonymous_mb', 'worker_peak_mb', 'worker_anonymous_mb')


def draw(folder: Path, images: int, size: int):
    """Four folders of JPEGs of smooth noise."""
    for i in range(images):
        path = folder / f'{4 * i // images}' / f'{i:06d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size, size)).save(path)


def start(images: Path, output: Path, arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, '-m', 'vt_hub', 'predict', images, '--output', output, *arguments]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)


def memory(process: int) -> dict[str, float]:
    """MB that a process and its largest child hold: the peak so far, and now without files."""
    found = dict.fromkeys(FIGURES, 0.0)
    children = Path(f'/proc/{process}/task/{process}/children').read_text().split()
    for name, number in [('main', process), *(('worker', child) for child in children)]:
        for line in Path(f'/proc/{number}/status').read_text().splitlines():
            for kind, key in (('VmHWM', f'{name}_peak_mb'), ('RssAnon', f'{name}_anonymous_mb')):
                if line.startswith(f'{kind}:'):
                    found[key] = max(found[key], round(int(line.split()[1]) / 1024, 1))
    return found


def measure(images: Path, output: Path, arguments: list[str]) -> dict[str, Any]:
    """Run to the end, and measure time and memory."""
    output.unlink(missing_ok=True)
    peak = dict.fromkeys(FIGURES, 0.0)
    started = time.perf_counter()
    process = start(images, output, arguments)
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        try:
            now = memory(process.pid)
        except OSError:  # one of the processes has just ended
            continue
        peak = {name: max(peak[name], now[name]) for name in peak}
        time.sleep(0.2)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f'vt-hub predict ended with status {os.waitstatus_to_exitcode(status)}.')
    count = output.read_bytes().count(b'\n')
    return {
        'images': count,
        'seconds': round(seconds, 1),
        'images_per_second': round(count / seconds, 1),
        'busy_percent': round(100 * (usage.ru_utime + usage.ru_stime) / (seconds * CORES), 1),
        **peak,
    }


def wait_for(condition: Callable[[], bool], process: subprocess.Popen):
    while not condition():
        if process.poll() is not None:
            raise SystemExit('The run ended before it could be killed; take more images.')
        time.sleep(0.01)


def restart(images: Path, output: Path, arguments: list[str], expected: Path) -> bool:
    """Kill a run when half of its parts are done, start it again, and compare with a run that nothing cut."""
    parts = Path(f'{output}.parts')
    output.unlink(missing_ok=True)
    shutil.rmtree(parts, ignore_errors=True)
    half = -(-expected.read_bytes().count(b'\n') // 1024) // 2
    process = start(images, output, arguments)
    wait_for(lambda: len(list(parts.glob('0*.jsonl'))) >= half, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if output.exists():
        raise SystemExit('The run was killed too late; take more images.')
    start(images, output, arguments).wait()
    return output.read_bytes() == expected.read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', type=Path, required=True, help='folder of pictures and tables')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--images', type=int, default=20_000)
    parser.add_argument('--size', type=int, default=64, help='height and width of the pictures')
    parser.add_argument('--model', default='vt_resnet10.digits')
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--workers', type=int, default=CORES)
    args = parser.parse_args()
    pictures = args.work / f'{args.images}_of_{args.size}'
    if not pictures.exists():
        draw(pictures, args.images, args.size)
    arguments = ['--model', args.model, '--batch-size', args.batch_size, '--workers', args.workers]
    rows = []
    for folder, name in ((pictures / '0', 'quarter.jsonl'), (pictures, 'all.jsonl')):
        rows.append(measure(folder, args.work / name, arguments))
        print(rows[-1], flush=True)
    equal = restart(pictures, args.work / 'restarted.jsonl', arguments, args.work / 'all.jsonl')
    print(f'killed and started again: {"the same table" if equal else "ANOTHER TABLE"}')
    if args.json:
        settings = {name: getattr(args, name) for name in ('model', 'size', 'batch_size', 'workers')}
        write_result(
            args.json,
            {**settings, 'cores': CORES, 'rows': rows, 'restart_equal': equal, **machine(torch.device('cpu'))},
        )
    if not equal:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
