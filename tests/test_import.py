import subprocess
import sys

import pytest


def test_import_is_silent_and_leaves_heavy_packages_unimported(tmp_path):
    code = (
        'import sys, timm, logging; logging.basicConfig(level=0)\n'
        'import warnings; warnings.simplefilter("error")\n'
        'import vt_hub; assert "transformers" not in sys.modules\n'
        'import vt_hub.cli.main; assert not {"gradio", "matplotlib"} & sys.modules.keys()'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_optional_packages_are_imported_where_they_are_needed(tmp_path):
    code = (
        'import sys, vt_hub.cli.main, vt_hub.publishing\n'
        'assert not {"onnx", "onnxruntime", "onnxscript"} & sys.modules.keys()'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


def test_the_command_starts_without_torch(tmp_path):
    code = 'import sys, vt_hub.cli.main; assert not {"timm", "torch", "huggingface_hub"} & sys.modules.keys()'
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')


@pytest.mark.parametrize('first', ['network.vt_layers', 'loading.published', 'inference.preprocessing', 'publishing'])
def test_models_are_registered_whatever_is_imported_first(tmp_path, first):
    code = f'import vt_hub.{first}, timm; assert timm.is_model("vt_resnet50") and timm.is_model("vt_fpn_resnet50")'
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')
