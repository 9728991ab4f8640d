"""What `mkdocs build` does beside mkdocs: README.md is the first page, and links out of docs/ become names of files."""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config) -> Files:
    """Add README.md as index.md. Its links to pages lose `docs/`, since index.md stands beside them."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    files.append(File.generated(config, 'index.md', content=re.sub(r'(\]\(|src=")docs/', r'\1', text)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Replace links to files that are not part of the site by the name of the file in the repository."""

    def named(match: re.Match) -> str:
        text, target = match['text'], match['target'].removeprefix('../')
        if files.get_file_from_path(match['target']):
            return match[0]
        return f'`{target}`' if text == Path(target).name else f'{text} (`{target}`)'

    return re.sub(r'(?<!!)\[(?P<text>[^][]*)\]\((?P<target>[^):#]+\.\w+)\)', named, markdown)
