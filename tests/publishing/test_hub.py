"""`push`, `pull` and `pretrained_folder` against a Hub that fails; see hub_server.py."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import timm
import torch
from helpers import hub_server
from helpers.hub_server import HubServer, damage, drop, lose_reply, refuse, scramble, shorten, truncate
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from safetensors.torch import load_file

import vt_hub
from vt_hub.loading import published as facts
from vt_hub.loading.checkpoints import load_folder
from vt_hub.loading.download import fetch
from vt_hub.network.checksums import check_folder
from vt_hub.publishing import hub as publishing
from vt_hub.publishing import verification as checks
from vt_hub.publishing.model_folder import with_code, write_checksums
from vt_hub.publishing.verification import Check, verify

# the client's own, when it uploads
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = 'org/flowers'
NAME = 'test_vt_resnet.flowers'
COMMIT, RESOLVE = f'POST /api/models/{REPO}/commit/main', f'/{REPO}/resolve/.*/'
WEIGHTS = f'GET {RESOLVE}model.safetensors'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that the client talks to, with an empty cache and no waiting; `hub.waits` has the seconds not waited."""
    with HubServer() as hub:
        hub.waits = []
        for name, value in {
            'ENDPOINT': hub.url,
            'HUGGINGFACE_CO_URL_TEMPLATE': hub.url + '/{repo_id}/resolve/{revision}/{filename}',
            'HF_HUB_CACHE': str(tmp_path / 'cache'),
            'AGENT_HARNESSES_PATH': str(tmp_path / 'cache' / 'agents.json'),
            'HF_HUB_OFFLINE': False,
            'HF_HUB_DISABLE_XET': True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for module in (_http, file_download):
            monkeypatch.setattr(module, 'time', SimpleNamespace(sleep=hub.waits.append))
        monkeypatch.setenv('HF_TOKEN', 'hf_test')
        monkeypatch.setenv('NO_PROXY', '127.0.0.1')
        monkeypatch.setenv('VT_HUB_NAMESPACE', 'org')
        monkeypatch.setattr(publishing, 'verify', lambda *args: [])
        (tmp_path / 'tmp').mkdir()
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
        _http.close_session()
        yield hub
    _http.close_session()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A small model folder without the remote code, as embedded ones are."""
    model = timm.create_model('test_vt_resnet', num_classes=3)
    return vt_hub.export(model, tmp_path_factory.mktemp('tiny') / 'flowers', labels=['a', 'b', 'c'], code=False)


@pytest.fixture
def target(tmp_path):
    """Where to pull to; its parent must be empty if that fails."""
    (tmp_path / 'target').mkdir()
    return tmp_path / 'target' / 'flowers'


def sums(files):
    return ''.join(f'{hashlib.sha256(content).hexdigest()}  {name}\n' for name, content in files.items()).encode()


def small_files(**more):
    """The files of a repository that is whole, but holds no model: what is downloaded need not be one."""
    files = {'config.json': b'{"num_classes": 3}', 'model.safetensors': bytes(range(256)) * 8}
    return {**files, 'README.md': b'# flowers', 'SHA256SUMS': sums(files), **more}


def read_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@contextmanager
def one_sentence(error, pattern):
    with pytest.raises(error, match=pattern) as caught:
        yield
    assert re.fullmatch(r'.+(?<!\.)\.', str(caught.value)), str(caught.value)
    assert not re.search(r'[.!?] [A-Z]', str(caught.value)), str(caught.value)


def cached_blobs(tmp_path):
    return [path.read_bytes() for path in (tmp_path / 'cache').rglob('blobs/*')]


def assert_nothing_written(tmp_path, target, files):
    """Nothing is at the target or beside it, and in the cache only what is published."""
    assert list(target.parent.iterdir()) == []
    assert all(blob in files.values() for blob in cached_blobs(tmp_path) if blob[:1] != b'*')  # .gitattributes


def assert_nothing_published(hub, tmp_path):
    repo = hub.repos.get(REPO)
    assert not repo or (len(repo.commits) == 1 and not repo.pull_requests and not repo.tags)
    assert list((tmp_path / 'tmp').iterdir()) == []


# push


def test_a_new_repository_gets_one_commit_with_the_whole_folder_and_a_tag(hub, tiny, tmp_path):
    url = vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    repo = hub.repos[REPO]
    assert [commit.message for commit in repo.commits] == ['initial commit', 'flowers v1.0.0']
    commit = repo.commits[-1]
    assert url == f'{hub.url}/{REPO}/commit/{commit.sha}'
    assert repo.tags == {'v1.0.0': commit.sha}
    assert repo.visibility == 'public'

    files = dict(commit.files)
    assert files.pop('.gitattributes')
    expected = read_files(with_code(tiny, tmp_path / 'flowers'))
    assert 'modeling_vt.py' in expected
    card = files.pop('README.md').decode()
    assert expected.pop('README.md').decode() not in card
    assert files == expected
    listed = dict(line.split('  ')[::-1] for line in files.pop('SHA256SUMS').decode().splitlines())
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert f"timm.create_model('hf-hub:{REPO}'" in card
    assert f"model='{REPO}'" in card
    assert 'local-dir:' not in card
    assert list((tmp_path / 'tmp').iterdir()) == []


def test_timm_loads_what_was_pushed(hub, tiny):
    vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    model = timm.create_model(f'hf-hub:{REPO}', pretrained=True).eval()
    images = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(model(images), load_folder(tiny)(images))


def test_the_folder_names_the_repository_of_the_namespace(hub, tiny):
    vt_hub.push(tiny, 'v1.0.0')
    assert list(hub.repos) == ['org/flowers']


def test_stale_files_go_in_the_same_commit(hub, tiny):
    repo = hub.add(REPO, {'old.bin': b'old', 'runs/old.txt': b'old', 'config.json': b'{}', 'SHA256SUMS': b''})
    vt_hub.push(tiny, 'v2.0.0', repo_id=REPO)
    assert len(repo.commits) == 2
    assert not {'old.bin', 'runs/old.txt'} & repo.commits[-1].files.keys()
    assert repo.commits[-1].files['config.json'] == (tiny / 'config.json').read_bytes()


def test_a_repository_of_something_else_is_left_alone(hub, tiny):
    repo = hub.add(REPO, {'data.parquet': b'years of work'})
    with one_sentence(ValueError, 'org/flowers holds files that are not a model folder of vt_hub'):
        vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert len(repo.commits) == 1


def test_what_clones_and_the_client_leave_in_a_folder_is_not_published(hub, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / 'flowers')
    for name in ('.git/config', '.cache/huggingface/download/config.json.metadata'):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text('private')
    assert 'private' not in vt_hub.push(folder, 'v1.0.0', dry_run=True)
    vt_hub.push(folder, 'v1.0.0', repo_id=REPO)
    assert b'private' not in hub.repos[REPO].commits[-1].files.values()
    assert b'.cache' not in hub.repos[REPO].commits[-1].files['SHA256SUMS']


def test_a_published_tag_is_not_moved(hub, tiny, tmp_path):
    repo = hub.add(REPO, {})
    repo.tags['v1.0.0'] = repo.commits[0].sha
    with one_sentence(ValueError, r'org/flowers has a version v1\.0\.0 already; choose another --tag'):
        vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert len(repo.commits) == 1
    assert repo.tags == {'v1.0.0': repo.commits[0].sha}
    assert list((tmp_path / 'tmp').iterdir()) == []


def test_an_unchanged_folder_gets_its_new_tag_without_a_commit(hub, tiny):
    first = vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert vt_hub.push(tiny, 'v1.0.1', repo_id=REPO) == first
    assert vt_hub.push(tiny, 'v1.0.2', repo_id=REPO, create_pr=True) == first
    repo = hub.repos[REPO]
    assert (len(repo.commits), len(repo.pull_requests)) == (2, 0)
    assert repo.tags == dict.fromkeys(['v1.0.0', 'v1.0.1'], repo.commits[-1].sha)


def test_a_dry_run_sends_nothing(hub, tiny, tmp_path):
    text = vt_hub.push(tiny, 'v1.0.0', repo_id=REPO, dry_run=True)
    assert text.startswith(f'{REPO}: README.md, SHA256SUMS, checksums.py, config.json, ')
    assert 'modeling_vt.py' in text
    assert hub.requests == []
    assert list((tmp_path / 'tmp').iterdir()) == []


def test_a_pull_request_changes_neither_main_nor_tags(hub, tiny):
    repo = hub.add(REPO, {})
    repo.tags['v1.0.0'] = repo.commits[0].sha  # no tag is set, so none stands in the way
    assert vt_hub.push(tiny, 'v1.0.0', repo_id=REPO, create_pr=True) == f'{hub.url}/{REPO}/discussions/1'
    assert (len(repo.commits), len(repo.pull_requests), len(repo.tags)) == (1, 1, 1)
    assert 'model.safetensors' in repo.pull_requests[0].files


def test_a_private_repository_is_asked_for(hub, tiny):
    vt_hub.push(tiny, 'v1.0.0', repo_id=REPO, private=True)
    assert hub.repos[REPO].visibility == 'private'


def test_a_folder_that_fails_verify_is_refused_before_any_request(hub, tiny, monkeypatch):
    found = [Check('card', True, 'fine'), Check('fixture', False, 'the logits differ.')]
    monkeypatch.setattr(publishing, 'verify', lambda *args: found)
    with one_sentence(ValueError, 'is not published: fixture: the logits differ'):
        vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert hub.requests == []


@pytest.mark.parametrize(
    ('request_', 'fault', 'reason'),
    [
        ('POST /api/repos/create', refuse(401), 'access was denied; log in'),
        ('POST /api/repos/create', refuse(400, 'Bad name.\nTry again.'), 'Bad name'),
        ('.*/refs', refuse(500), '500 Internal Server Error'),
        ('.*/tree/main', drop, 'disconnected'),
        ('.*/validate-yaml', refuse(400), 'Invalid metadata in README.md'),
        ('.*/preupload/.*', refuse(403), 'access was denied'),
        ('.*/preupload/.*', refuse(503), '503 Service Unavailable'),
        ('.*/objects/batch', refuse(500), '500 Internal Server Error'),
        ('PUT .*', drop, r'uploading .*\.safetensors'),
        ('PUT .*', refuse(500), r'uploading .*\.safetensors'),
        (COMMIT, refuse(500), '500 Internal Server Error'),
        (COMMIT, refuse(400, 'The file is too large.'), 'The file is too large'),
        (COMMIT, drop, ''),
    ],
)
def test_a_push_that_fails_publishes_nothing(hub, tiny, tmp_path, request_, fault, reason):
    hub.fail(request_, fault)
    with one_sentence(OSError, f'Cannot publish org/flowers: .*{reason}.*; no version was published'):
        vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert_nothing_published(hub, tmp_path)
    assert len(hub.requests) < 50


def test_a_commit_whose_answer_is_lost_is_finished_by_pushing_again(hub, tiny):
    hub.fail(COMMIT, lose_reply, times=1)
    with one_sentence(OSError, 'no version was published'):
        vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    repo = hub.repos[REPO]
    assert repo.tags == {}
    vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert len(repo.commits) == 2
    assert repo.tags == {'v1.0.0': repo.commits[-1].sha}


@pytest.mark.parametrize('fault', [refuse(500), lose_reply], ids=['500', 'lost'])
def test_a_commit_is_neither_split_nor_repeated_with_xet(hub, tiny, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', False)
    monkeypatch.setattr(hub_server, 'is_lfs', lambda path: False)  # Xet's own servers are not here
    folder = shutil.copytree(tiny, tmp_path / 'flowers')
    for index in range(300):
        (folder / f'{index}.txt').write_text('more files than the client puts into a commit')
    hub.fail(COMMIT, fault, times=1)
    with one_sentence(OSError, 'no version was published'):
        vt_hub.push(folder, 'v1.0.0', repo_id=REPO)
    vt_hub.push(folder, 'v1.0.0', repo_id=REPO)
    assert [len(commit.files) > 300 for commit in hub.repos[REPO].commits] == [False, True]


def test_a_tag_that_fails_leaves_the_whole_commit_and_says_so(hub, tiny):
    hub.fail('POST .*/tag/.*', refuse(500))
    with one_sentence(
        OSError, rf'org/flowers is published at {hub.url}/.*, but the tag v1\.0\.0 could not be set: .*500'
    ):
        vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert len(hub.repos[REPO].commits) == 2
    assert hub.repos[REPO].tags == {}


# push and pull


def test_what_is_pushed_is_what_is_pulled(hub, tiny, target, monkeypatch):
    monkeypatch.setattr(publishing, 'verify', verify)  # the only test that waits for it
    vt_hub.push(tiny, 'v1.0.0', repo_id=REPO)
    assert vt_hub.pull(REPO, target, revision='v1.0.0') == target
    files = dict(hub.repos[REPO].commits[-1].files)
    del files['.gitattributes']
    assert read_files(target) == files
    assert list(target.parent.iterdir()) == [target]
    pixels = torch.randn(1, *load_folder(tiny).pretrained_cfg['input_size'])
    with torch.inference_mode():
        assert torch.equal(load_folder(target)(pixels), load_folder(tiny)(pixels))


def test_a_folder_within_the_folder_is_carried(hub, tiny, target, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / 'flowers')
    (folder / 'onnx').mkdir()
    (folder / 'onnx' / 'model.onnx').write_bytes(b'a graph')
    write_checksums(folder)
    vt_hub.push(folder, 'v1.0.0', repo_id=REPO)
    vt_hub.pull(REPO, target)
    assert (target / 'onnx' / 'model.onnx').read_bytes() == b'a graph'
    assert '  onnx/model.onnx\n' in (target / 'SHA256SUMS').read_text()


# pull and pretrained_folder


@pytest.mark.parametrize('stopped', [False, True], ids=['HF_HUB_OFFLINE', 'no connection'])
def test_the_cache_is_enough_after_one_download(hub, target, monkeypatch, stopped):
    files = small_files()
    hub.add(REPO, files)
    fetch(REPO)
    if stopped:
        hub.stop()
    else:
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    asked = len(hub.requests)
    vt_hub.pull(REPO, target)
    assert read_files(target) == files
    assert len(hub.requests) == asked


@pytest.mark.parametrize('stopped', [False, True], ids=['HF_HUB_OFFLINE', 'no connection'])
def test_offline_without_a_cache(hub, target, tmp_path, monkeypatch, stopped):
    hub.add(REPO, small_files())
    if stopped:
        hub.stop()
    else:
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with one_sentence(OSError, 'Cannot download org/flowers: it is not in the cache and the Hub cannot be reached'):
        vt_hub.pull(REPO, target)
    assert_nothing_written(tmp_path, target, {})


@pytest.mark.parametrize(
    ('request_', 'fault', 'reason'),
    [
        (WEIGHTS, truncate, 'Cannot download org/flowers: peer closed connection'),
        (WEIGHTS, shorten, 'Cannot download org/flowers: Consistency check failed: .* 2048 but has size 1024'),
        (WEIGHTS, refuse(500), "Cannot download org/flowers: Server error '500 Internal Server Error'"),
        (WEIGHTS, drop, 'Cannot download org/flowers: Server disconnected'),
        (WEIGHTS, refuse(429, Retry_After='1'), 'Cannot download org/flowers: 429 Too Many Requests'),
        (f'HEAD {RESOLVE}.*', refuse(500), 'Cannot download org/flowers: it is not in the cache and the Hub cannot be'),
        (f'HEAD {RESOLVE}.*', drop, 'Cannot download org/flowers: Server disconnected'),
        ('GET /api/.*', refuse(401), 'Cannot download org/flowers: access was denied; log in with `hf auth login`'),
        ('GET /api/.*', refuse(401, X_Error_Code='RepoNotFound'), 'there is no such repository, or it is private'),
        ('GET /api/.*', refuse(503), 'Cannot download org/flowers: it is not in the cache and the Hub cannot be'),
        (WEIGHTS, damage, 'model.safetensors is damaged: its sha256 is'),
        (f'GET {RESOLVE}config.json', damage, 'config.json is damaged: its sha256 is'),
        (
            f'GET {RESOLVE}SHA256SUMS',
            damage,
            'config.json is damaged: its sha256 is|does not name a file',
        ),
        (f'GET {RESOLVE}SHA256SUMS', scramble, 'SHA256SUMS has a line that does not name a file of the folder'),
    ],
)
def test_a_download_that_fails_leaves_nothing_wrong_and_can_be_repeated(hub, target, tmp_path, request_, fault, reason):
    files = small_files()
    hub.add(REPO, files)
    hub.fail(request_, fault)
    with one_sentence(OSError, reason):
        vt_hub.pull(REPO, target)
    assert_nothing_written(tmp_path, target, files)
    assert len(hub.requests) < 50

    hub.heal()
    vt_hub.pull(REPO, target)
    assert read_files(target) == files
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ('request_', 'fault', 'times', 'wait'),
    [
        (WEIGHTS, refuse(429, Retry_After='7'), 1, 8),
        (WEIGHTS, truncate, 1, 1),
        (f'HEAD {RESOLVE}model.safetensors', refuse(429, Retry_After='7'), 2, 8),  # the first is repeated at once
        (f'HEAD {RESOLVE}model.safetensors', refuse(503), 2, 1),
    ],
)
def test_a_download_outlasts_what_passes(hub, target, request_, fault, times, wait):
    files = small_files()
    hub.add(REPO, files)
    hub.fail(request_, fault, times)
    vt_hub.pull(REPO, target)
    assert read_files(target) == files
    assert hub.waits == [wait]


def test_a_missing_repository(hub, target, tmp_path):
    with one_sentence(OSError, 'Cannot download org/flowers: there is no such repository, or it is private'):
        vt_hub.pull(REPO, target)
    assert_nothing_written(tmp_path, target, {})


def test_a_missing_revision(hub, target, tmp_path):
    hub.add(REPO, small_files())
    with one_sentence(OSError, 'Cannot download org/flowers: there is no such revision'):
        vt_hub.pull(REPO, target, revision='v9')
    assert_nothing_written(tmp_path, target, {})


def test_what_is_no_repository_id(hub, target):
    with one_sentence(OSError, 'Cannot download a/b/c: Repo id must be'):
        vt_hub.pull('a/b/c', target)
    assert hub.requests == []


@pytest.mark.parametrize('name', ['../evil.txt', 'a/../../../evil.txt', '..\\evil.txt', '/{tmp}/evil.txt'])
def test_file_names_that_leave_the_folder_are_not_written(hub, target, tmp_path, name):
    name = name.replace('/{tmp}', str(tmp_path))
    files = small_files()
    hub.add(REPO, files | {name: b'evil'})
    with one_sentence(OSError, 'Cannot download org/flowers: Invalid filename'):
        vt_hub.pull(REPO, target)
    assert list(tmp_path.rglob('*evil*')) == []
    assert_nothing_written(tmp_path, target, files)


@pytest.mark.parametrize('name', ['../evil', 'a/../../evil', '/{tmp}/evil'])
def test_checksums_of_files_outside_of_the_folder_are_refused(hub, target, tmp_path, name):
    (tmp_path / 'evil').write_bytes(b'evil')
    name = name.replace('/{tmp}', str(tmp_path))
    files = small_files(SHA256SUMS=sums({name: b'evil'}))
    hub.add(REPO, files)
    with one_sentence(OSError, 'SHA256SUMS has a line that does not name a file of the folder'):
        vt_hub.pull(REPO, target)
    assert list(tmp_path.rglob('*evil*')) == [tmp_path / 'evil']
    assert (tmp_path / 'evil').read_bytes() == b'evil'
    assert_nothing_written(tmp_path, target, files)


def test_a_repository_without_checksums_is_refused(hub, target, tmp_path):
    files = small_files()
    del files['SHA256SUMS']
    hub.add(REPO, files)
    with one_sentence(OSError, 'has no SHA256SUMS, so it is not a model folder of vt_hub'):
        vt_hub.pull(REPO, target)
    assert_nothing_written(tmp_path, target, files)


def test_an_existing_target_is_left_alone(hub, target):
    target.mkdir()
    (target / 'mine').write_text('mine')
    with one_sentence(FileExistsError, 'exists already; name another folder or remove it'):
        vt_hub.pull(REPO, target)
    assert read_files(target) == {'mine': b'mine'}
    assert hub.requests == []


def fill_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ('function', 'reason'),
    [
        ('shutil.copyfile', r'Cannot write .*flowers: No space left on device; nothing was written'),
        ('huggingface_hub.file_download.http_get', 'Cannot download org/flowers: No space left on device'),
    ],
)
def test_a_full_disk_leaves_nothing(hub, target, tmp_path, monkeypatch, function, reason):
    files = small_files()
    hub.add(REPO, files)
    with monkeypatch.context() as patch:
        patch.setattr(function, fill_disk)
        with one_sentence(OSError, reason):
            vt_hub.pull(REPO, target)
    assert_nothing_written(tmp_path, target, files)
    vt_hub.pull(REPO, target)
    assert read_files(target) == files


@pytest.fixture
def published(hub, tmp_path, monkeypatch):
    """The files of NAME, which is published but not embedded, and not yet on the Hub."""
    files = small_files()
    monkeypatch.setattr(facts, 'EMBEDDED', tmp_path / 'embedded')
    monkeypatch.setitem(facts.PRETRAINED, NAME, hashlib.sha256(files['model.safetensors']).hexdigest())
    return files


def publish(hub, name, files):
    repo = hub.add(f'org/{name}', files)
    repo.tags[facts.VERSION] = repo.commits[-1].sha


def test_published_weights_that_are_not_embedded_are_downloaded(hub, published, target):
    publish(hub, NAME, published)
    for name in (NAME, 'test_vt_resnet'):
        folder = vt_hub.pretrained_folder(name)
        assert (folder / 'model.safetensors').read_bytes() == published['model.safetensors']
    vt_hub.pull(NAME, target)
    assert read_files(target) == published


def test_embedded_weights_are_copied_without_the_hub(hub, target):
    vt_hub.pull('vt_resnet10', target)
    assert hub.requests == []
    assert (target / 'modeling_vt.py').is_file()  # so that it works without this package
    check_folder(target, facts.PRETRAINED['vt_resnet10.digits'])
    assert (target / 'README.md').is_file()
    with pytest.raises(OSError, match=r'Cannot download org/vt_resnet10\.digits'):
        vt_hub.pull('vt_resnet10', target.with_name('main'), revision='main')  # is asked for there


def test_the_published_weights_themselves_load_from_the_hub(hub, tmp_path, monkeypatch):
    embedded = facts.EMBEDDED / 'vt_resnet10.digits'
    publish(hub, 'vt_resnet10.digits', read_files(embedded))
    monkeypatch.setattr(facts, 'EMBEDDED', tmp_path / 'embedded')
    state = timm.create_model('vt_resnet10', pretrained=True).state_dict()
    assert 'GET /org/vt_resnet10.digits/resolve/' in ''.join(hub.requests)
    assert all(torch.equal(value, state[key]) for key, value in load_folder(embedded).state_dict().items())


@pytest.mark.parametrize('get', [vt_hub.pretrained_folder, lambda name: vt_hub.pull(name, 'x')], ids=['load', 'pull'])
def test_other_weights_than_the_published_ones_are_refused(hub, published, target, tmp_path, monkeypatch, get):
    monkeypatch.chdir(target.parent)
    files = {'config.json': published['config.json'], 'model.safetensors': b'other weights'}
    files |= {'README.md': b'', 'SHA256SUMS': sums(files)}
    publish(hub, NAME, files)
    assert fetch(f'org/{NAME}')  # whole in itself
    with one_sentence(OSError, f'model.safetensors is damaged: .*, the published one is {facts.PRETRAINED[NAME]}'):
        get(NAME)
    assert list(target.parent.iterdir()) == []
    assert b'other weights' not in cached_blobs(tmp_path)


# the command


def test_the_command_tries_a_push(hub, tiny, run):
    code, out, err = run('push', tiny, '--dry-run')
    assert (code, err) == (0, '')
    assert out.startswith('org/flowers: README.md, ')
    assert len(out.splitlines()) == 1
    assert hub.requests == []


def test_the_command_publishes_code_of_another_version_if_told_to(hub, tiny, run, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, 'verify', verify)
    monkeypatch.setattr(checks, '_subprocess', lambda _, folder: load_file(folder / 'fixture.safetensors')['logits'])
    folder = with_code(tiny, tmp_path / 'flowers')
    with open(folder / 'images.py', 'a') as file:
        file.write('# an earlier version\n')
    write_checksums(folder)
    code, _, err = run('push', folder, '--dry-run')
    assert code == 1
    assert 'images.py is not the code of this version of vt_hub; read it, then pass --trust-remote-code' in err
    assert run('push', folder, '--dry-run', '--trust-remote-code')[0] == 0


def test_the_command_does_not_guess_an_organisation(hub, tiny, run, monkeypatch):
    monkeypatch.delenv('VT_HUB_NAMESPACE')
    code, out, err = run('push', tiny, '--dry-run')
    assert (code, out) == (1, '')
    assert err.startswith('error: Name a repository, such as --repo your-name/flowers, or an organisation in VT_HUB_')
    assert run('push', tiny, '--dry-run', '--repo', REPO)[0] == 0


def test_the_command_says_in_one_line_why_a_pull_failed(hub, target, run):
    code, out, err = run('pull', REPO, target)
    assert (code, out) == (1, '')
    assert re.fullmatch('error: Cannot download org/flowers: there is no such repository.*\n', err)
    assert list(target.parent.iterdir()) == []
