"""What the documents say is what the code does: snippets run as printed, and figures are the computed ones."""

import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

from vt_hub import cli, tables
from vt_hub.models import list_models
from vt_hub.weights import list_pretrained

SNIPPET = re.compile(r'^```(python|sh)\n(.*?)^```', re.MULTILINE | re.DOTALL)
PAGES = ['README.md']


def snippets(page):
    return [
        pytest.param(*match, id=f'{page}-{i}') for i, match in enumerate(SNIPPET.findall((ROOT / page).read_text()))
    ]


PARAMETERS = [snippet for page in PAGES for snippet in snippets(page)]


@pytest.mark.parametrize(('language', 'code'), PARAMETERS)
def test_snippets_run_as_printed(language, code, monkeypatch, capsys):
    """Python in a new process, as a reader would; commands through the command line's own entry."""
    monkeypatch.chdir(ROOT)
    if language == 'python':
        result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for printed in re.findall(r'print\(.*\)  # (.*)', code):
            assert printed in result.stdout
    for line in code.splitlines():
        if language == 'sh' and line.startswith('vt-hub '):
            monkeypatch.setattr(sys, 'argv', shlex.split(line))
            with pytest.raises(SystemExit) as exit_:
                cli.main()
            assert not exit_.value.code, capsys.readouterr().err


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
