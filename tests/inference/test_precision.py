"""In which numbers a command computes."""

import copy
import json

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vt_hub.inference.precision import chosen_precision, computing_in, laid_out

CPU = torch.device('cpu')


@pytest.mark.parametrize(
    ('there', 'chosen'),
    [({'avx512_bf16': True}, 'bf16'), ({'amx_bf16': True}, 'bf16'), ({'avx512_f': True, 'amx_bf16': False}, 'fp32')],
)
def test_auto_asks_the_processor(monkeypatch, there, chosen):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: there)
    assert chosen_precision('auto', CPU) == chosen
    assert [chosen_precision(name, CPU) for name in ('fp32', 'bf16', 'fp16')] == ['fp32', 'bf16', 'fp16']
    with computing_in('auto', CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if chosen == 'bf16' else torch.float32)


def test_weights_are_converted_once():
    torch.manual_seed(0)
    plain = timm.create_model('test_vt_resnet', num_classes=5).eval()
    ready = laid_out(copy.deepcopy(plain), 'bf16')
    images = torch.randn(2, 3, 64, 64)
    assert {module.weight.dtype for module in ready.modules() if isinstance(module, (nn.Conv2d, nn.Linear))} == {
        torch.bfloat16
    }
    assert {p.dtype for name, p in ready.named_parameters() if 'norm' in name or 'bn' in name} == {torch.float32}
    with torch.inference_mode(), computing_in('bf16', CPU):
        assert torch.equal(ready(images), laid_out(plain)(images))


def test_segment_in_bf16(run, samples):
    def shares(*options):
        found = json.loads(run('segment', samples / 'scene.png', '--json', *options)[1])
        return {part['label']: part['share'] for part in found['classes']}

    exact, mixed = shares(), shares('--precision', 'bf16')
    assert mixed != exact
    assert sum(abs(mixed.get(label, 0) - share) for label, share in exact.items()) < 0.02


def test_evaluate_in_bf16(run, samples, tmp_path):
    for digit in range(10):
        (tmp_path / 'val' / str(digit)).mkdir(parents=True)
        turned = Image.open(samples / f'digit_{digit}.png').rotate(
            20
        )  # less certain, so that rounding shows in the loss
        turned.save(tmp_path / 'val' / str(digit) / 'digit.png')

    def found(*options):
        return json.loads(run('evaluate', 'vt_resnet10', '--data-dir', tmp_path, '--workers', 0, '--json', *options)[1])

    exact, mixed = found(), found('--precision', 'bf16')
    assert (exact['precision'], mixed['precision']) == ('fp32', 'bf16')
    assert exact['metrics']['top1'] == mixed['metrics']['top1'] == 100
    assert exact['metrics']['loss'] != mixed['metrics']['loss']
    assert exact['metrics']['loss'] == pytest.approx(mixed['metrics']['loss'], abs=0.05)
