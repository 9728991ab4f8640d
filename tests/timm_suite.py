"""Run timm's own model tests on our architectures: python tests/timm_suite.py [pytest arguments].

Fetches timm's source distribution (the wheel has no tests), adds our names to the lists by which timm's suite knows its
token-output models, the modules with forward_intermediates and the models without TorchScript, and runs the tests of
our models. Exits 0 with a message where pip cannot fetch the source distribution.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import timm

ROOT = Path(__file__).parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as tmp:
        command = [
            sys.executable,
            '-m',
            'pip',
            'download',
            '--quiet',
            '--disable-pip-version-check',
            '--no-deps',
            '--no-binary',
            ':all:',
            '--dest',
            tmp,
            f'timm=={timm.__version__}',
        ]
        if subprocess.run(command).returncode:
            print(f'Skipped: pip cannot fetch the source distribution of timm {timm.__version__}.')
            return 0
        with tarfile.open(next(Path(tmp).glob('timm-*.tar.gz'))) as archive:
            archive.extractall(tmp, filter='data')
        tests = next(Path(tmp).glob('timm-*/tests'))
        suite = tests / 'test_models.py'
        text = suite.read_text()
        for name, ours in (
            ('NON_STD_FILTERS', "'vt_*', 'test_vt*',"),
            ('FEAT_INTER_FILTERS', "'vt_resnet', 'vt_net',"),
            ('EXCLUDE_JIT_FILTERS', "'vt_net', 'test_vt_net', 'vt_efficientnet*',"),
        ):
            text, found = re.subn(rf'^{name} = \[', rf'\g<0>{ours}', text, flags=re.MULTILINE)
            assert found == 1, f'timm {timm.__version__} has no list {name} in tests/test_models.py.'
        suite.write_text(f'import vt_hub\n{text}')
        ours = tests.parent / 'ours'  # outside timm's own tree, which would shadow the installed timm
        ours.mkdir()
        suite = suite.rename(ours / suite.name)
        command = [
            sys.executable,
            '-m',
            'pytest',
            str(suite),
            '-k',
            'vt_resnet or vt_net or vt_efficientnet',
            '-q',
            '-c',
            os.devnull,
            '--rootdir',
            str(ours),
            '-p',
            'no:cacheprovider',
            '-W',
            'ignore',
            *sys.argv[1:],
        ]
        return subprocess.run(command, cwd=ours, env=os.environ | {'PYTHONPATH': str(ROOT)}).returncode


if __name__ == '__main__':
    sys.exit(main())
