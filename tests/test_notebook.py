"""docs/vt_hub.ipynb runs from top to bottom, here on few images and without the loaders in processes of their own."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / 'docs' / 'vt_hub.ipynb'
FAST = """\
from safetensors.torch import load_file
from vt_hub.publishing import verification
verification._subprocess = lambda code, folder: load_file(folder / 'fixture.safetensors')['logits']
"""


@pytest.fixture(scope='module')
def cells(tmp_path_factory):
    """The cells that ran."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
    parameters.source = f'{FAST}\nnum_train, num_val, epochs = 192, 16, 1'
    folder = tmp_path_factory.mktemp('notebook')
    NotebookClient(notebook, timeout=300, kernel_name='python3', resources={'metadata': {'path': folder}}).execute()
    return notebook.cells


def output_of(cells, part):
    """What the cell with this part printed or returned, as text."""
    outputs = next(cell.outputs for cell in cells if cell.cell_type == 'code' and part in cell.source)
    return ''.join(output.get('text') or output['data'].get('text/plain', '') for output in outputs)


def test_runs(cells):
    assert 'epoch 1: loss' in output_of(cells, 'loss.backward()')
    assert 'README.md' in output_of(cells, 'vt_hub.export')
    assert output_of(cells, 'vt_hub.verify').count('ok ') >= 5
    assert 'FAIL' not in output_of(cells, 'vt_hub.verify')
    assert "'your-name/vt_resnet18.drawn: README.md" in output_of(cells, 'vt_hub.push')


def test_shows_the_tokens(cells):
    outputs = next(cell.outputs for cell in cells if 'draw_explanation(explanation)' in cell.source)
    assert [output for output in outputs if 'image/png' in output.get('data', {})]


def test_is_kept_with_the_outputs_of_one_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert 'error' not in {output.output_type for output in outputs}
    assert any('image/png' in output.get('data', {}) for output in outputs)
    assert 'accuracy' in output_of(notebook.cells, 'loss.backward()')
    assert '/tmp' not in str(outputs)
