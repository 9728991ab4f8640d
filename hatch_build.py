"""What the build changes: the links of the README, which lead nowhere on PyPI as they are."""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = 'VT_HUB_REPOSITORY'


class CustomMetadataHook(MetadataHookInterface):
    """Fill in `readme`, and with the address of the repository in `VT_HUB_REPOSITORY` also `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / 'README.md').read_text(encoding='utf-8')
        metadata['urls'] = {'Paper': 'https://arxiv.org/abs/2006.03677'}
        if repository := os.environ.get(VARIABLE, '').rstrip('/'):
            text = absolute(text, repository, f'v{metadata["version"]}')
            metadata['urls']['Source'] = repository
        metadata['readme'] = {'content-type': 'text/markdown', 'text': text}


def absolute(text: str, repository: str, tag: str) -> str:
    """Make the relative links and pictures of a Markdown text lead to a tag of a repository on GitHub."""
    text = re.sub(r'(!\[[^]]*\]\()(?!\w+:)', rf'\1{repository}/raw/{tag}/', text)
    return re.sub(r'(?<!!)(\[[^]]*\]\()(?!\w+:|#)', rf'\1{repository}/blob/{tag}/', text)
