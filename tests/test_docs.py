"""What the documents say is what the code does: snippets run as printed, and figures are the computed ones."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from vt_hub import tables
from vt_hub.models import list_models
from vt_hub.weights import list_pretrained

SNIPPET = re.compile(r'^```(python|sh)\n(.*?)^```', re.MULTILINE | re.DOTALL)
PAGES = ['README.md']


def snippets(page):
    return [
        pytest.param(*match, id=f'{page}-{i}') for i, match in enumerate(SNIPPET.findall((ROOT / page).read_text()))
    ]


@pytest.mark.parametrize(('language', 'code'), [snippet for page in PAGES for snippet in snippets(page)])
def test_snippets_run_as_printed(language, code):
    if language == 'python':
        commands = [[sys.executable, '-c', code]]
    else:
        commands = [
            [sys.executable, '-m', 'vt_hub.cli', *shlex.split(line)[1:]]
            for line in code.splitlines()
            if line.startswith('vt-hub ')
        ]
    for command in commands:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for printed in re.findall(r'print\(.*\)  # (.*)', code):
            assert printed in result.stdout


def test_paper_fidelity_is_what_the_command_prints():
    assert (ROOT / 'docs' / 'paper_fidelity.md').read_text() == tables.markdown()


def model_table():
    lines = ['| model | params (M) | MACs (M) | weights |', '|---|---:|---:|---|']
    for name in list_models():
        if not name.startswith('test_'):
            params, macs = tables.cost(name)
            weights = ', '.join(f'`{tag}`' for tag in list_pretrained() if tag.split('.')[0] == name)
            lines.append(f'| `{name}` | {params:.2f} | {macs:.0f} | {weights} |')
    return '\n'.join(lines)


def test_readme_lists_the_models():
    assert f'<!-- models -->\n\n{model_table()}\n\n<!-- /models -->' in (ROOT / 'README.md').read_text()


def test_links_lead_somewhere():
    for page in [*PAGES, *(str(path.relative_to(ROOT)) for path in (ROOT / 'docs').glob('*.md'))]:
        for target in re.findall(r'\]\(([^)#]+)\)', (ROOT / page).read_text()):
            if not target.startswith('http'):
                assert (ROOT / page).parent.joinpath(target).exists(), f'{page}: {target}'
