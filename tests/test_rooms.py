"""Which room of the package may import which, and how long a function may be."""

import ast
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'vt_hub'
LONGEST = 60  # lines of a function, with signature and docstring
TRAVEL = {'PIL', 'huggingface_hub', 'numpy', 'timm', 'torch', 'transformers'}  # what a folder's code may ask for
FORBIDDEN = {  # room: rooms that it must not import
    'network': {'cli', 'demo', 'inference', 'loading', 'paper', 'publishing', 'synthesis', 'training'},
    'loading': {'cli', 'demo', 'paper', 'publishing', 'synthesis', 'training'},
    'inference': {'cli', 'demo', 'paper', 'publishing', 'synthesis', 'training'},
    'synthesis': {'cli', 'demo', 'inference', 'loading', 'network', 'paper', 'publishing', 'training'},
    'paper': {'cli', 'demo', 'publishing', 'synthesis', 'training'},
    'publishing': {'cli', 'demo', 'paper', 'training'},
    'demo': {'cli', 'paper', 'publishing', 'training'},
    'training': {'cli', 'demo', 'paper'},
}


def imports(path):
    """What a file of the package imports, with what is imported within functions: dotted names from the top."""
    package = ['vt_hub', *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = '.'.join([*above, *filter(None, [node.module])])
            yield from (f'{module}.{name.name}' for name in node.names)


@pytest.mark.parametrize('room', FORBIDDEN)
def test_rooms_import_what_stands_below(room):
    for path in (PACKAGE / room).rglob('*.py'):
        rooms = {name.split('.')[1] for name in imports(path) if name.startswith('vt_hub.')}
        assert not rooms & FORBIDDEN[room], path


def test_networks_can_travel():
    for path in (PACKAGE / 'network').glob('*.py'):
        for name in imports(path):
            top, *inner = name.split('.')
            assert inner[:1] == ['network'] if top == 'vt_hub' else top in TRAVEL | sys.stdlib_module_names, (
                path,
                name,
            )


def test_nothing_imports_the_commands():
    for path in PACKAGE.rglob('*.py'):
        if path.parent.name != 'cli' and path.name != '__main__.py':
            assert not any(name.startswith('vt_hub.cli') for name in imports(path)), path


def test_functions_fit_on_a_page():
    long = [
        f'{path.relative_to(PACKAGE)}: {node.name} has {node.end_lineno - node.lineno + 1} lines'
        for path in sorted(PACKAGE.rglob('*.py'))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= LONGEST
    ]
    assert not long, long
