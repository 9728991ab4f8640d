import subprocess
import sys

import pytest
import torch
from conftest import ROOT

ENTRIES = [
    'vt_efficientnet_lite0',
    'vt_fpn_resnet101',
    'vt_fpn_resnet10t',
    'vt_fpn_resnet18',
    'vt_fpn_resnet50',
    'vt_net',
    'vt_resnet10',
    'vt_resnet101',
    'vt_resnet18',
    'vt_resnet34',
    'vt_resnet50',
]


def python(code, cwd):
    return subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True)


def test_menu():
    hubconf = torch.hub._import_module('hubconf', str(ROOT / 'hubconf.py'))
    public = sorted(name for name in vars(hubconf) if not name.startswith('_') and name != 'dependencies')
    assert public == ENTRIES
    for name in public:
        assert f"torch.hub.load('.', '{name}', source='local'" in getattr(hubconf, name).__doc__


def test_pretrained_is_the_timm_model(tmp_path):
    result = python(
        f'import torch; torch.manual_seed(0); x = torch.randn(1, 3, 64, 64)\n'
        f"model = torch.hub.load({str(ROOT)!r}, 'vt_resnet10', source='local', pretrained=True).eval()\n"
        f'import timm\n'
        f"assert torch.equal(model(x), timm.create_model('vt_resnet10', pretrained=True).eval()(x))\n"
        f"assert torch.hub.load({str(ROOT)!r}, 'vt_resnet18', source='local', num_classes=3).num_classes == 3\n",
        tmp_path,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


@pytest.mark.parametrize('package', ['timm', 'safetensors'])
def test_a_missing_dependency_is_named(tmp_path, package):
    result = python(
        f'import importlib.util, torch\n'
        f'find_spec = importlib.util.find_spec\n'
        f'importlib.util.find_spec = lambda name, *args: None if name == {package!r} else find_spec(name, *args)\n'
        f"torch.hub.load({str(ROOT)!r}, 'vt_resnet10', source='local')",
        tmp_path,
    )
    assert f'Missing dependencies: {package}' in result.stderr
