"""Time and memory of loading pretrained weights: python tests/benchmark_load.py [--model NAME] [--json FILE].

The yardstick is reading the file and copying its bytes once. Weights are random, written in fp16 by `vt_hub.export`,
and offered as if they were embedded; the page cache holds the file. Each measurement is a process of its own, in turn,
in one thread, and takes the processor's time; memory is the growth of the process's peak resident size, beside the
model's own. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timm

import vt_hub
from vt_hub import weights
from vt_hub.training.results import machine, write_result

CODE = """
import json, re, sys, time
from pathlib import Path
import numpy, timm, torch
from vt_hub import weights
import vt_hub
torch.set_num_threads(1)
model, folder, sha256, what = sys.argv[1:]
weights.EMBEDDED, weights.PRETRAINED[f'{model}.random'] = Path(folder).parent, sha256
timm.create_model('test_vt_resnet')  # what is imported on first use
Path('/proc/self/clear_refs').write_text('5')  # forget the peak of the imports
peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024
before, started = peak(), time.process_time()
if what == 'read':
    read = numpy.fromfile(Path(folder) / 'model.safetensors', numpy.uint8).copy()
else:
    made = timm.create_model(model, pretrained=what == 'pretrained')
seconds = time.process_time() - started
print(json.dumps({'seconds': seconds, 'bytes': peak() - before}))
"""
KINDS = ('read', 'pretrained', 'random')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='vt_resnet50')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        model = timm.create_model(args.model)
        size = sum(value.nbytes for value in model.state_dict().values())
        folder = vt_hub.export(model, Path(tmp) / f'{args.model}.random', dtype='fp16')
        sha256 = weights.file_sha256(folder / 'model.safetensors')
        found = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind in KINDS:
                command = [sys.executable, '-c', CODE, args.model, str(folder), sha256, kind]
                found[kind].append(json.loads(subprocess.check_output(command)))
        file_mb = (folder / 'model.safetensors').stat().st_size / 1e6
    seconds = {kind: statistics.median(run['seconds'] for run in found[kind]) for kind in KINDS}
    ratios = [a['seconds'] / b['seconds'] for a, b in zip(found['pretrained'], found['read'], strict=True)]
    memory = statistics.median(run['bytes'] for run in found['pretrained']) / size
    result = {
        'model': args.model,
        'rounds': args.rounds,
        'file_mb': round(file_mb, 1),
        'model_mb': round(size / 1e6, 1),
        'seconds': {kind: round(value, 3) for kind, value in seconds.items()},
        'time_over_reading': round(statistics.median(ratios), 2),
        'peak_memory_over_model': round(memory, 2),
        **machine(),
    }
    print(
        f'{args.model}, {result["file_mb"]} MB: pretrained {seconds["pretrained"]:.3f} s, '
        f'{result["time_over_reading"]} x reading and copying the file ({seconds["read"]:.3f} s), random weights '
        f'{seconds["random"]:.3f} s; peak memory {memory:.2f} x the model'
    )
    if args.json:
        write_result(args.json, result)


if __name__ == '__main__':
    main()
