"""torch.export and torch.compile take every architecture; large ones: pytest -m slow tests/network/test_graphs.py"""

import pytest
import torch
from helpers.networks import build, every_architecture

SIZES = ((1, 64, 96), (3, 75, 107))  # batch, height, width


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        *every_architecture(),
        pytest.param('test_vt_resnet', {'tokenizer': 'pooling'}, id='pooling'),
        pytest.param('test_vt_resnet', {'tokenizer': 'cluster'}, id='cluster'),
    ],
)
def test_exported_program_takes_any_batch_and_size(name, kwargs):
    model = build(name, **kwargs)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(model, (torch.zeros(2, 3, 96, 128),), dynamic_shapes=(free,)).module()
        for batch, height, width in SIZES:
            x = torch.randn(batch, 3, height, width)
            torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize(('name', 'kwargs'), every_architecture())
def test_compiled_whole(name, kwargs):
    """fullgraph=True refuses graph breaks; in training and in evaluation, which compute the projector differently."""
    model = build(name, **kwargs)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        model.train()
        torch.testing.assert_close(compiled(x), model(x))
