"""vt-hub benchmark: what runs beside what, and the files that it writes; the figures themselves are not asserted."""

import csv
import json
import statistics
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vt_hub.paper import benchmark
from vt_hub.paper.benchmark import Setting


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(benchmark, 'SHORTEST', 0.0)


def test_the_trunk_is_the_networks_own_and_resnet_is_timms():
    networks = benchmark.build(Setting('vt_resnet18', size=64))
    assert list(networks) == ['vt', 'resnet', 'trunk']
    trunk = {key: value.shape for key, value in networks['trunk'].state_dict().items()}
    shared = {key: value.shape for key, value in networks['resnet'].state_dict().items() if 'layer4' not in key}
    assert trunk | {'fc.weight': 0} == shared | {'fc.weight': 0}
    with torch.no_grad():
        assert networks['trunk'](torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_fused_and_formatted_alike():
    setting = Setting('test_vt_resnet', dtype='bf16', channels_last=True, fused=True)
    for network in benchmark.build(setting).values():
        assert not network.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert network.conv1.weight.dtype == torch.bfloat16
        assert network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def timed(monkeypatch, **setting):
    """A measurement in which the time of each run is its number, so the order of runs can be read off the figures."""
    calls = []

    def seconds(runner, repeats):
        calls.append(runner)
        return float(len(calls))

    monkeypatch.setattr(benchmark.Timed, 'seconds', seconds)
    row = benchmark.measure(Setting('test_vt_resnet', batch_size=2, size=64, **setting), rounds=3)
    return row, [calls[: len(set(calls))].index(runner) for runner in calls]


def summary(ratios):
    ratios = sorted(ratios)
    return {'median': round(statistics.median(ratios), 4), 'quartiles': [round(ratios[0], 4), round(ratios[2], 4)]}


def test_rounds_interleave_and_ratios_are_of_one_round(monkeypatch):
    row, order = timed(monkeypatch, training=True)
    # two runs to see how long one takes, then vt, trunk; trunk, vt; vt, trunk
    assert order == [0, 1, 0, 1, 1, 0, 0, 1]
    assert row['ratios'] == {'trunk': summary([4 / 3, 5 / 6, 8 / 7])}
    assert row['images_per_second']['vt'] == float(f'{2 / 6:.4g}')


def test_the_limit_is_the_trunk_the_stages_arithmetic_and_reading_its_weights(monkeypatch):
    row, order = timed(monkeypatch)
    assert order == [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1]  # the third reads weights
    whole = row['macs_m']['vt'] / row['macs_m']['trunk']
    assert row['ratios']['trunk'] == summary([5 / 4, 7 / 9, 12 / 11])
    expected = summary([(5 * whole + 6) / 4, (7 * whole + 8) / 9, (12 * whole + 10) / 11])
    assert row['ratios']['limit']['median'] == pytest.approx(expected['median'], rel=2e-3)  # MACs are rounded
    assert 'limit' not in row['peak_mb']
    network = benchmark.create(Setting('test_vt_resnet'))['vt']
    stage = sum(p.numel() for p in network.vt.parameters())
    reader = benchmark.Reader(stage, Setting('test_vt_resnet', dtype='bf16'))
    assert (reader.weights.numel(), reader.weights.dtype) == (stage, torch.bfloat16)


def test_memory_of_training_is_more_than_of_inference():
    peaks = [
        benchmark.measure(Setting('test_vt_resnet', 2, 96, training=training), 1)['peak_mb']
        for training in (False, True)
    ]
    assert all(peaks[1][name] > 2 * peaks[0][name] > 0 for name in ('vt', 'trunk'))


def test_files(run, tmp_path):
    arguments = ('--size', 64, '--size', 96, '--rounds', 2)
    code, out, err = run(
        'benchmark', 'test_vt_resnet', 'test_vt_fpn', *arguments, '--json', '--result', tmp_path / 'result.json',
        '--csv', tmp_path / 'result.csv', '--plot', tmp_path / 'plot.png',
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert result == json.loads((tmp_path / 'result.json').read_text())
    assert result['command'].startswith('vt-hub benchmark test_vt_resnet test_vt_fpn --size 64')
    assert {'hardware', 'torch', 'timm'} < set(result)
    assert [(row['model'], row['size'], list(row['ratios'])) for row in result['rows']] == [
        ('test_vt_resnet', 64, ['trunk', 'limit']),
        ('test_vt_resnet', 96, ['trunk', 'limit']),
        ('test_vt_fpn', 64, ['fpn']),
        ('test_vt_fpn', 96, ['fpn']),
    ]
    for row in result['rows']:
        for ratio in row['ratios'].values():
            assert 0 < ratio['quartiles'][0] <= ratio['median'] <= ratio['quartiles'][1]
    with open(tmp_path / 'result.csv', newline='') as file:
        lines = list(csv.DictReader(file))
    assert [line['network'] for line in lines] == ['vt', 'trunk', 'limit'] * 2 + ['vt', 'fpn'] * 2
    rows = dict(zip(((r['model'], str(r['size'])) for r in result['rows']), result['rows'], strict=True))
    for line in lines:
        row = rows[line['model'], line['size']]
        if line['network'] == 'vt':
            continue
        assert float(line['vt_is_as_fast']) == row['ratios'][line['network']]['median']
        assert float(line['images_per_second']) == row['images_per_second'][line['network']]
    with Image.open(tmp_path / 'plot.png') as image:
        assert image.width > 1000


def test_what_cannot_be_measured_is_named(run):
    code, out, err = run('benchmark', 'resnet18')
    assert (code, out) == (1, '')
    assert err.startswith("error: There is no model 'resnet18' to measure; use one of test_vt_resnet")
    code, out, err = run('benchmark', 'test_vt_resnet', '--fuse', '--train')
    assert (code, out) == (1, '')
    assert err == 'error: Norms are folded for inference only; measure training without --fuse.\n'
    with pytest.raises(ValueError, match='Norms are folded for inference only'):
        Setting('test_vt_resnet', fused=True, training=True)
    if not torch.cuda.is_available():
        assert 'use --device cpu' in run('benchmark', 'test_vt_resnet', '--device', 'cuda')[2]


def test_outputs_that_cannot_be_written_are_found_before_it_runs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'benchmark', None)
    for option, path in (('--plot', tmp_path / 'plot.xyz'), ('--result', tmp_path), ('--csv', tmp_path)):
        code, out, err = run('benchmark', 'test_vt_resnet', option, path)
        assert (code, out) == (1, '')
        assert str(path) in err


def test_nothing_but_the_table_is_printed():
    command = [sys.executable, '-m', 'vt_hub', 'benchmark', 'test_vt_resnet', '--size', '32', '--rounds', '1']
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stderr, result.stdout.splitlines()[0]) == ('', 'test_vt_resnet, batch 1, 32 pixels')


def test_a_vt_net_runs_beside_its_backbone():
    args = {'layers': (1, 1, 1, 3)}
    row = benchmark.measure(Setting('vt_net', size=64, backbone='test_resnet', backbone_args=args), 1)
    assert list(row['params_m']) == ['vt', 'backbone', 'trunk']
    assert list(row['images_per_second']) == ['vt', 'backbone', 'trunk', 'limit']
    backbone = timm.create_model('test_resnet', **args)
    assert row['params_m']['backbone'] == pytest.approx(sum(p.numel() for p in backbone.parameters()) / 1e6, abs=1e-3)
    assert row['macs_m']['trunk'] < row['macs_m']['vt']
