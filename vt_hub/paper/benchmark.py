"""Measure speed and memory of the networks and their baselines. They take turns, so that drifts of the machine cancel.

A VT-ResNet is compared with timm's ResNet of the same depth and with its own trunk (stem to layer3, pooled and
classified). A VT-Net is compared with its whole backbone and its trunk, and a VT-FPN with the panoptic FPN. In each
round every network runs once, in rotating order. The report has the median and quartiles of the ratios within a round.

In inference, the trunk is not the limit of the speed: the stage must also read its weights and compute. The limit is
the time of the trunk, plus that of reading the stage's weights once, measured in the same round, plus that of the
stage's multiply-accumulates at the speed that the trunk reaches.
"""

import csv
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from ..figures import new_figure, save_figure
from ..files import replaced_whole
from ..inference.precision import DTYPES
from ..loading.checkpoints import TimmModel
from ..loading.cost import count
from ..loading.source import list_models
from ..network.vt_fpn import is_segmenter
from ..network.vt_fuse import fuse
from ..network.vt_net import VTNet
from ..reporting import Progress, find_device, no_progress

__all__ = ['Setting', 'benchmark', 'build', 'measure', 'plot', 'write_csv']

RESNETS = {f'vt_resnet{depth}': f'resnet{depth}' for depth in (18, 34, 50, 101)}
WARM_UP = 2  # rounds that are not counted
SHORTEST = 0.05  # seconds; faster networks run several times per round
NAMES = {
    'vt': 'VT',
    'resnet': 'ResNet',
    'backbone': 'backbone',
    'trunk': 'trunk',
    'fpn': 'panoptic FPN',
    'limit': 'limit',
}


@dataclass(frozen=True)
class Setting:
    """What to run, and how.

    Args:
        model: A network of this package.
        batch_size: Images in a batch.
        size: Their height and width in pixels.
        dtype: A key of DTYPES, for weights and images, or in training for autocast.
        device: 'cpu' or 'cuda'.
        channels_last: Use the channels_last memory format for weights and images.
        compiled: Use torch.compile.
        fused: First fold norms, in all networks with the same function.
        training: Run a step of SGD with momentum instead of inference.
        backbone: A timm model, as the trunk of `vt_net` or the backbone of a VT-FPN; if empty, the model's own.
        backbone_args: Further arguments of `timm.create_model` for the backbone.
    """

    model: str
    batch_size: int = 1
    size: int = 224
    dtype: str = 'fp32'
    device: str = 'cpu'
    channels_last: bool = False
    compiled: bool = False
    fused: bool = False
    training: bool = False
    backbone: str = ''
    backbone_args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model not in list_models():
            raise ValueError(f'There is no model {self.model!r} to measure; use one of {", ".join(list_models())}.')
        if self.fused and self.training:
            raise ValueError('Norms are folded for inference only; measure training without --fuse.')
        find_device(self.device)


def create(setting: Setting, **on: Any) -> dict[str, TimmModel]:
    """The networks that are compared, with random weights: 'vt' first. `on` says on which device."""
    args: dict[str, Any] = {}
    if setting.backbone:
        args = {'backbone': setting.backbone, 'backbone_args': setting.backbone_args}
    vt: TimmModel = timm.create_model(setting.model, **args, **on)
    networks = {'vt': vt}
    if is_segmenter(setting.model):
        return {**networks, 'fpn': timm.create_model(setting.model, decoder='fpn', **args, **on)}
    if isinstance(vt, VTNet):
        networks['backbone'] = timm.create_model(vt.backbone, **vt.backbone_args, **on)
    elif setting.model in RESNETS:
        networks['resnet'] = timm.create_model(RESNETS[setting.model], **on)
    trunk: TimmModel = timm.create_model(setting.model, **args, **on)
    trunk.prune_intermediate_layers([len(vt.feature_info) - 2])
    trunk.reset_classifier(vt.num_classes, 'avg')
    return {**networks, 'trunk': trunk}


def build(setting: Setting) -> dict[str, TimmModel]:
    """The networks of `create`, ready to run in turn."""
    networks = create(setting)
    for name, network in networks.items():
        network.train(setting.training)
        if setting.fused:
            fuse(network)
        network.to(
            setting.device,
            torch.float32 if setting.training else DTYPES[setting.dtype],
            memory_format=torch.channels_last if setting.channels_last else torch.preserve_format,
        )
        if setting.compiled:
            networks[name] = torch.compile(network)
    return networks


class Timed:
    """Something that is done repeatedly, by `step`, and its time."""

    def __init__(self, device: str):
        self.cuda = device == 'cuda'

    def step(self) -> None:
        raise NotImplementedError

    def seconds(self, repeats: int) -> float:
        """Mean time of one step. With one CPU thread it is CPU time, which other programs do not change."""
        clock = time.process_time if not self.cuda and torch.get_num_threads() == 1 else time.perf_counter
        if self.cuda:
            torch.cuda.synchronize()
        started = clock()
        for _ in range(repeats):
            self.step()
        if self.cuda:
            torch.cuda.synchronize()
        return (clock() - started) / repeats


class Reader(Timed):
    """Reads as many weights as a VT stage has, once in each step."""

    def __init__(self, num_weights: int, setting: Setting):
        super().__init__(setting.device)
        self.weights = torch.zeros(num_weights, device=setting.device, dtype=DTYPES[setting.dtype])

    def step(self) -> None:
        self.weights.sum()


class Runner(Timed):
    """Runs one network repeatedly on one batch."""

    def __init__(self, network: nn.Module, setting: Setting):
        super().__init__(setting.device)
        self.network = network
        self.training = setting.training
        self.images = torch.randn(setting.batch_size, 3, setting.size, setting.size, device=setting.device)
        if setting.channels_last:
            self.images = self.images.to(memory_format=torch.channels_last)
        self.context: AbstractContextManager[Any] = nullcontext()
        if setting.training:
            self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
            if setting.dtype != 'fp32':
                self.context = torch.autocast(setting.device, DTYPES[setting.dtype])
        else:
            self.images = self.images.to(DTYPES[setting.dtype])

    def step(self) -> None:
        if not self.training:
            with torch.inference_mode():
                self.network(self.images)
            return
        with self.context:
            logits = self.network(self.images)
            F.cross_entropy(logits, logits.detach().argmax(1)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def peak_mb(self) -> float:
        """Peak memory of the tensors in a step, by torch's allocator, without weights and images."""
        if self.cuda:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        os.environ.setdefault('KINETO_LOG_LEVEL', '6')  # otherwise it prints a log
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        with tempfile.NamedTemporaryFile(suffix='.json') as file:
            profiler.export_chrome_trace(file.name)
            events = json.loads(Path(file.name).read_text())['traceEvents']
        changes = [(event['ts'], event['args']['Bytes']) for event in events if event['name'] == '[memory]']
        return max(itertools.accumulate(size for _, size in sorted(changes))) / 1e6


def quartiles(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [round(ordered[len(ordered) // 4], 4), round(ordered[-1 - len(ordered) // 4], 4)]


def measure(setting: Setting, rounds: int, progress: Progress = no_progress) -> dict[str, Any]:
    """Run the networks of a setting in turn.

    Args:
        setting: What to run.
        rounds: How often each network runs.
        progress: Wraps the loop over rounds.

    Returns:
        The setting, and for each network parameters and multiply-accumulates of one image in millions, `params_m` and
        `macs_m`, `images_per_second` (median), `peak_mb` and, except for 'vt', `ratios`: speed of VT divided by the
        network's, as `median` and `quartiles` over the rounds. Speed and ratio are also given for the `limit`.
    """
    costs = {name: count(net, (setting.size, setting.size)) for name, net in create(setting, device='meta').items()}
    networks = {name: Runner(network, setting) for name, network in build(setting).items()}
    runners: dict[str, Timed] = {**networks}
    limited = 'trunk' in runners and not setting.training
    if limited:
        runners['reading'] = Reader(round(1e6 * (costs['vt'][0] - costs['trunk'][0])), setting)
    for runner in runners.values():
        for _ in range(WARM_UP):
            runner.step()
    repeats = {name: max(1, math.ceil(SHORTEST / runner.seconds(1))) for name, runner in runners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    for _ in progress(range(rounds), rounds, f'{setting.model}, batch {setting.batch_size}, {setting.size} pixels'):
        for name in order:
            seconds[name].append(runners[name].seconds(repeats[name]))
        order.append(order.pop(0))
    if limited:
        whole = costs['vt'][1] / costs['trunk'][1]
        reading = seconds.pop('reading')
        seconds['limit'] = [trunk * whole + read for trunk, read in zip(seconds['trunk'], reading, strict=True)]
    ratios = {
        name: [other / vt for other, vt in zip(values, seconds['vt'], strict=True)]
        for name, values in seconds.items()
        if name != 'vt'
    }
    return {
        **asdict(setting),
        'rounds': rounds,
        'params_m': {name: round(params, 3) for name, (params, _) in costs.items()},
        'macs_m': {name: round(macs, 1) for name, (_, macs) in costs.items()},
        'images_per_second': {
            name: float(f'{setting.batch_size / statistics.median(values):.4g}') for name, values in seconds.items()
        },
        'peak_mb': {name: round(runner.peak_mb(), 1) for name, runner in networks.items()},
        'ratios': {
            name: {'median': round(statistics.median(values), 4), 'quartiles': quartiles(values)}
            for name, values in ratios.items()
        },
    }


def benchmark(settings: Iterable[Setting], rounds: int, progress: Progress = no_progress) -> list[dict[str, Any]]:
    """`measure` each setting. Compiled code and memory are released before the next one."""
    rows = []
    for setting in settings:
        rows.append(measure(setting, rounds, progress))
        torch.compiler.reset()
        if setting.device == 'cuda':
            torch.cuda.empty_cache()
    return rows


def write_csv(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Write a line for each network of each row. An older file is replaced once the new one is complete."""
    lines = []
    for row in rows:
        common = {key: value for key, value in row.items() if not isinstance(value, dict)}
        for name, speed in row['images_per_second'].items():
            ratio = row['ratios'].get(name, {'median': 1.0, 'quartiles': [1.0, 1.0]})
            low, high = ratio['quartiles']
            lines.append(
                {
                    **common,
                    'network': name,
                    'params_m': row['params_m'].get(name, ''),
                    'macs_m': row['macs_m'].get(name, ''),
                    'images_per_second': speed,
                    'peak_mb': row['peak_mb'].get(name, ''),
                    'vt_is_as_fast': ratio['median'],
                    'lower_quartile': low,
                    'upper_quartile': high,
                }
            )
    with replaced_whole(path) as unfinished, open(unfinished, 'w', newline='') as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def plot(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Draw time per image and the relative speed of VT, by size or, if there is only one size, by batch size.

    Args:
        rows: Results of `benchmark`.
        path: Picture to write; see `save_figure`.
    """
    over = 'size' if len({row['size'] for row in rows}) > 1 else 'batch_size'
    fixed = [key for key in ('model', 'size', 'batch_size') if key != over]
    figure = new_figure(figsize=(9.5, 3.6))
    times, ratios = figure.subplots(1, 2)
    for key in dict.fromkeys(tuple(row[name] for name in fixed) for row in rows):
        line = sorted((row for row in rows if tuple(row[name] for name in fixed) == key), key=lambda row: row[over])
        x = [row[over] for row in line]
        label = key[0] + ''.join(
            f', {name.replace("_", " ")} {value}'
            for name, value in zip(fixed[1:], key[1:], strict=True)
            if len({row[name] for row in rows}) > 1
        )
        for name in line[0]['images_per_second']:
            milliseconds = [1000 / row['images_per_second'][name] for row in line]
            times.plot(x, milliseconds, marker='o', markersize=3, label=f'{label}: {NAMES[name]}')
        for name in line[0]['ratios']:
            found = [row['ratios'][name] for row in line]
            middle = [ratio['median'] for ratio in found]
            spread = [[abs(ratio['median'] - ratio['quartiles'][side]) for ratio in found] for side in (0, 1)]
            ratios.errorbar(x, middle, spread, marker='o', markersize=3, capsize=3, label=f'{label} / {NAMES[name]}')
    times.set(ylabel='ms per image', yscale='log')
    times.yaxis.get_major_locator().set_params(subs=(1, 1.5, 2, 3, 5, 7))
    times.yaxis.set_major_formatter('{x:g}')
    ratios.set(ylabel='speed of VT, relative')
    ratios.axhline(1, color='0.35', linewidth=0.8)
    for axes in (times, ratios):
        axes.set(xlabel='pixels, height and width' if over == 'size' else 'batch size', xscale='log')
        ticks = sorted({row[over] for row in rows})
        axes.set_xticks(ticks, ticks)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False, fontsize='x-small')
    save_figure(figure, path)
