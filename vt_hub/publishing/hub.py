"""Push model folders to the Hugging Face Hub and pull them from it."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import validate_repo_id

from ..files import check_new, written_whole
from ..loading.download import fetch, hub_reason
from ..loading.published import EMBEDDED, PRETRAINED, VERSION, pretrained_folder, resolve_name
from ..loading.source import Source
from ..network.checksums import read_checksums
from ..network.weights import hub_id
from .card import retarget
from .model_folder import add_code, with_code
from .verification import verify

__all__ = ['pull', 'push']


def push(
    folder: str | Path,
    tag: str,
    repo_id: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    started: Callable[[str], None] = lambda name: None,
) -> str:
    """Verify a model folder and publish it: one commit with all its files and nothing else, and a tag.

    Args:
        folder: A model folder; it must pass `verify`.
        tag: Version of the weights, such as 'v1.0.0'; a published tag is never moved.
        repo_id: Repository, `organisation/name`; default: the folder's name in the organisation VT_HUB_NAMESPACE.
        private: Make the repository private if it is new.
        create_pr: Open a pull request instead of committing; no tag is set.
        dry_run: Only verify, and return what would be published.
        trust_remote_code: As for `verify`.
        started: Called with the name of each step as it starts.

    Returns:
        The address of the commit or pull request; with `dry_run`, the repository and its files.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder does not pass `verify`, the repository name is not valid, the tag is empty or exists, or
            the repository holds other files.
        OSError: The Hub refused or failed. Then the tag is not set. The commit is complete or missing; it is complete
            if only the Hub's answer was lost or the tag failed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'There is no folder {folder}.')
    name = folder.resolve().name
    repo_id = repo_id or default_repository(name)
    validate_repo_id(repo_id)
    if not tag:
        raise ValueError('Name a tag for the version, such as v1.0.0.')
    for check in verify(folder, trust_remote_code, started):
        if not check.passed:
            raise ValueError(f'{folder} is not published: {check.name}: {check.detail.rstrip(".")}.')
        if check.warning:
            warnings.warn(f'{folder}: {check.detail}.', stacklevel=2)
    api = HfApi()
    with tempfile.TemporaryDirectory() as tmp:
        copy = with_code(folder, Path(tmp) / name)
        card = copy / 'README.md'
        card.write_text(retarget(card.read_text('utf-8'), repo_id), 'utf-8')
        if dry_run:
            return f'{repo_id}: {", ".join(published_files(copy))}'
        started('upload')
        commit = commit_folder(api, copy, repo_id, tag, private, create_pr)
    if create_pr:
        return commit.pr_url or commit.commit_url  # without changes there is no pull request
    set_tag(api, repo_id, tag, commit)
    return commit.commit_url


def set_tag(api: HfApi, repo_id: str, tag: str, commit: CommitInfo) -> None:
    """Give a commit its version; raises OSError, with the address of the commit, if the Hub refuses."""
    try:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    except Exception as error:
        raise OSError(
            f'{repo_id} is published at {commit.commit_url}, but the tag {tag} could not be set: {hub_reason(error)}.'
        ) from error


def default_repository(name: str) -> str:
    """The repository of a folder of this name, in our organisation or that of VT_HUB_NAMESPACE."""
    if name not in PRETRAINED and 'VT_HUB_NAMESPACE' not in os.environ:
        raise ValueError(f'Name a repository, such as --repo your-name/{name}, or an organisation in VT_HUB_NAMESPACE.')
    return hub_id(name)


def published_files(folder: Path) -> list[str]:
    """Names of the files of a model folder that are published."""
    return sorted([*read_checksums(folder), 'README.md', 'SHA256SUMS'])


@contextmanager
def unpublished(repo_id: str) -> Iterator[None]:
    """Turn an error of the Hub before the commit is complete into an OSError that says so."""
    try:
        yield
    except Exception as error:
        raise OSError(f'Cannot publish {repo_id}: {hub_reason(error)}; no version was published.') from error


def commit_folder(api: HfApi, folder: Path, repo_id: str, tag: str, private: bool, create_pr: bool) -> CommitInfo:
    """Make one commit with the files of a model folder and nothing else; see `push` for arguments and errors."""
    names = published_files(folder)
    with unpublished(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        refs = api.list_repo_refs(repo_id)
        published = set(api.list_repo_files(repo_id)) - {'.gitattributes', 'README.md'}
    if published and 'SHA256SUMS' not in published:
        raise ValueError(f'{repo_id} holds files that are not a model folder of vt_hub; choose another --repo.')
    if not create_pr and tag in {ref.name for ref in refs.tags}:
        raise ValueError(f'{repo_id} has a version {tag} already; choose another --tag.')
    with unpublished(repo_id):
        return api.create_commit(  # not upload_folder, which may split or repeat a commit
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in names]
            + [CommitOperationDelete(name) for name in sorted(published - set(names))],
            commit_message=f'{folder.name} {tag}',
            create_pr=create_pr,
            parent_commit=next((ref.target_commit for ref in refs.branches if ref.name == 'main'), None),
        )


def pull(source: str, folder: str | Path, revision: str | None = None) -> Path:
    """Download a model folder from the Hub and check every file. Offline, it comes from the Hub client's cache.

    Args:
        source: A published name (`vt_resnet10.digits`) or a repository, `organisation/name`. Published weights are also
            checked against the sha256 in this package, or copied from it if they are embedded.
        folder: Destination; must not exist. It is not created if this fails.
        revision: Branch, tag or commit.

    Raises:
        FileExistsError: The folder exists.
        LookupError: Nothing is published under that name.
        OSError: It cannot be downloaded, or is damaged.
    """
    folder = Path(folder)
    check_new(folder)
    repo = Source.parse(source).repo or ('/' in source and source)
    if repo:
        cached = fetch(repo, revision)
    else:
        name = resolve_name(source)
        published = revision in (None, VERSION)
        cached = pretrained_folder(name) if published else fetch(hub_id(name), revision)
    try:
        with written_whole(folder) as unfinished:
            card = ['README.md'] if (cached / 'README.md').is_file() else []
            for name in [*read_checksums(cached), 'SHA256SUMS', *card]:
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(cached / name, unfinished / name)
            if cached.parent == EMBEDDED:
                add_code(unfinished)
    except OSError as error:
        raise OSError(f'Cannot write {folder}: {error.strerror or error}; nothing was written.') from error
    return folder
