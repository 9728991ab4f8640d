"""Model folders from the Hub."""

from pathlib import Path

from ..network.checksums import find_damage

__all__ = ['fetch', 'hub_reason']


def hub_reason(error: Exception) -> str:
    """What went wrong with the Hub, in half a sentence."""
    from huggingface_hub.errors import (
        BadRequestError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, RepositoryNotFoundError):
        return 'there is no such repository, or it is private and you are not logged in (`hf auth login`)'
    if isinstance(error, RevisionNotFoundError):
        return 'there is no such revision'
    if isinstance(error, LocalEntryNotFoundError):
        return 'it is not in the cache and the Hub cannot be reached'
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return 'access was denied; log in with `hf auth login`'
    if isinstance(error, BadRequestError) and error.server_message:
        reason = error.server_message
    else:
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return reason.splitlines()[0].split('. ')[0].rstrip('.')


def fetch(repo_id: str, revision: str | None = None, weights_sha256: str | None = None) -> Path:
    """Download a model folder from the Hub into its cache and check every file; offline, from the cache alone.

    Args:
        repo_id: Repository, `organisation/name`.
        revision: Branch, tag or commit.
        weights_sha256: The sha256 that the weights must have, whatever the repository says.

    Raises:
        OSError: It cannot be had, or a file is damaged; damaged files do not stay in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision))
    except Exception as error:  # besides the Hub's errors, those of the connection and of the disk
        raise OSError(f'Cannot download {repo_id}: {hub_reason(error)}.') from error
    try:
        damage = find_damage(folder, weights_sha256)
    except OSError as error:
        damage = {folder / 'SHA256SUMS': str(error)}
    if damage:  # nothing wrong stays in the cache: neither a damaged file nor the sums that may be wrong
        for path in (*damage, folder / 'SHA256SUMS'):
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise OSError(next(iter(damage.values())))
    return folder
