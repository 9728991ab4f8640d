import subprocess
import sys


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
