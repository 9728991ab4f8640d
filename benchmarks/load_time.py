"""Time and memory of loading pretrained weights: python benchmarks/load_time.py [--model NAME] [--json FILE].

The yardstick is to read the embedded file and copy its bytes once, from the page cache. Each measurement is a process
of its own with one thread, and takes the processor's time; the processes run in turn. Memory is the growth of the
process's peak resident size, relative to the size of the model. The peak counts the pages of the mapped file, which the
system can take back, so a second figure gives what the process keeps afterwards. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import timm
import torch

import vt_hub
from vt_hub.reporting import machine, write_result

CODE = """
import json, re, sys, time
from pathlib import Path
import numpy, timm, torch
import vt_hub
torch.set_num_threads(1)
model, file, what = sys.argv[1:]
timm.create_model('test_vt_resnet')  # what is imported on first use
Path('/proc/self/clear_refs').write_text('5')  # forget the peak of the imports
def memory(kind):
    return int(re.search(rf'{kind}:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024
peak, kept, started = memory('VmHWM'), memory('RssAnon'), time.process_time()
if what == 'read':
    read = numpy.fromfile(file, numpy.uint8).copy()
else:
    made = timm.create_model(model, pretrained=what == 'pretrained')
seconds = time.process_time() - started
print(json.dumps({'seconds': seconds, 'peak': memory('VmHWM') - peak, 'kept': memory('RssAnon') - kept}))
"""
KINDS = ('read', 'pretrained', 'random')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='vt_resnet50')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    size = sum(value.nbytes for value in timm.create_model(args.model, pretrained=True).state_dict().values())
    file = vt_hub.pretrained_folder(args.model) / 'model.safetensors'
    found = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind in KINDS:
            command = [sys.executable, '-c', CODE, args.model, str(file), kind]
            found[kind].append(json.loads(subprocess.check_output(command)))
    seconds = {kind: statistics.median(run['seconds'] for run in found[kind]) for kind in KINDS}
    ratios = [a['seconds'] / b['seconds'] for a, b in zip(found['pretrained'], found['read'], strict=True)]
    peak, kept = (statistics.median(run[kind] for run in found['pretrained']) / size for kind in ('peak', 'kept'))
    result = {
        'model': args.model,
        'rounds': args.rounds,
        'file_mb': round(file.stat().st_size / 1e6, 1),
        'model_mb': round(size / 1e6, 1),
        'seconds': {kind: round(value, 3) for kind, value in seconds.items()},
        'time_over_reading': round(statistics.median(ratios), 2),
        'peak_memory_over_model': round(peak, 2),
        'kept_memory_over_model': round(kept, 2),
        **machine(torch.device('cpu')),
    }
    print(
        f'{args.model}, {result["file_mb"]} MB: pretrained {seconds["pretrained"]:.3f} s, '
        f'{result["time_over_reading"]} x reading and copying the file ({seconds["read"]:.3f} s), random weights '
        f'{seconds["random"]:.3f} s; peak memory {peak:.2f} x the model, kept {kept:.2f} x'
    )
    if args.json:
        write_result(args.json, result)


if __name__ == '__main__':
    main()
