"""A Hugging Face Hub in memory, served on 127.0.0.1 to the real client, that can be told to fail."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Request:
    line: str  # method and path
    query: dict[str, list[str]]
    body: bytes

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Reply:
    """What the server sends; `length` is the Content-Length, where it is not that of the body."""

    status: int = 200
    body: bytes = b''
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


def send(value: object, status: int = 200, **headers: str) -> Reply:
    headers = {name.replace('_', '-'): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), {'Content-Type': 'application/json', **headers})


Fault = Callable[[Callable[[], Reply]], Reply | None]  # what to do instead of answering; None ends the connection


def refuse(status: int, message: str = '', **headers: str) -> Fault:
    """Answer with a status, and do nothing."""

    def fault(answer: Callable[[], Reply]) -> Reply:
        return send({'error': message} if message else {}, status, **headers)

    fault.__name__ = str(status)  # what pytest calls it
    return fault


def drop(answer: Callable[[], Reply]) -> None:
    """End the connection while the client is still sending, and do nothing."""


def lose_reply(answer: Callable[[], Reply]) -> None:
    """Do what was asked, but end the connection without an answer."""
    answer()


def truncate(answer: Callable[[], Reply]) -> Reply:
    """End the connection in the middle of the body."""
    reply = answer()
    return replace(reply, body=reply.body[: len(reply.body) // 2], length=len(reply.body))


def shorten(answer: Callable[[], Reply]) -> Reply:
    """Send half of the body as if it were all."""
    reply = answer()
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def damage(answer: Callable[[], Reply]) -> Reply:
    """Send a body of the right size with one wrong bit."""
    reply = answer()
    return replace(reply, body=bytes([reply.body[0] ^ 1]) + reply.body[1:])


def scramble(answer: Callable[[], Reply]) -> Reply:
    """Send a body of the right size that is no text, and of which no byte is right."""
    reply = answer()
    return replace(reply, body=b'\xff' * len(reply.body))


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository: its visibility, the commits of `main` from the first to the last, those of pull requests, tags."""

    url: str
    visibility: str = 'public'
    commits: list[Commit] = field(default_factory=list)
    pull_requests: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, message: str, files: dict[str, bytes], pull_request: bool = False) -> Commit:
        log = self.pull_requests if pull_request else self.commits
        sha = hashlib.sha1(f'{message} {pull_request} {len(log)}'.encode()).hexdigest()
        log.append(Commit(sha, message, files))
        return log[-1]

    def find(self, revision: str) -> Commit | None:
        sha = self.commits[-1].sha if revision == 'main' else self.tags.get(revision, revision)
        return next((commit for commit in self.commits + self.pull_requests if commit.sha == sha), None)


def is_lfs(path: str) -> bool:
    return path.endswith('.safetensors')


def etag(path: str, content: bytes) -> str:
    """What the Hub knows a file by: its sha256 if it is in LFS, else git's own hash."""
    if is_lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


REPO = '(?P<repo>[^/]+/[^/]+)'
COMMIT = '(?P<commit>[^/]+)'
ROUTES: list[tuple[re.Pattern, Callable[..., Reply]]] = []


def route(pattern: str) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    """Let a method answer the requests that a pattern matches; the pattern's groups are its arguments."""

    def register(method: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.append((re.compile(pattern), method))
        return method

    return register


class HubServer:
    """The server, from `with` to its end. `requests` has every request as `METHOD /path`, in order."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[list] = []

    def __enter__(self) -> 'HubServer':
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), type('BoundHandler', (Handler,), {'hub': self}))
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object):
        self.stop()

    def stop(self):
        """Refuse connections from now on."""
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes]) -> Repo:
        """Commit these files, and the one that the Hub puts into every new repository."""
        repo = self.repos.setdefault(repo_id, Repo(f'{self.url}/{repo_id}'))
        repo.commit('initial commit', {'.gitattributes': b'*.safetensors filter=lfs\n', **files})
        return repo

    def fail(self, pattern: str, fault: Fault, times: int = 1000):
        """Let the next requests that a pattern matches meet a fault."""
        self.faults.append([re.compile(pattern), fault, times])

    def heal(self):
        self.faults.clear()

    def answer(self, request: Request) -> Reply:
        for pattern, method in ROUTES:
            if match := pattern.fullmatch(request.line):
                found = match.groupdict()
                if 'repo' in found:
                    found['repo'] = self.repos.get(found['repo'])
                    if not found['repo']:
                        return send({}, 404, X_Error_Code='RepoNotFound')
                if 'commit' in found:
                    found['commit'] = found['repo'].find(found['commit'])
                    if not found['commit']:
                        return send({}, 404, X_Error_Code='RevisionNotFound')
                return method(self, request, **found)
        return send({}, 404)

    @route('POST /api/repos/create')
    def create(self, request: Request) -> Reply:
        asked = request.json()
        repo_id = f'{asked["organization"]}/{asked["name"]}'
        exists = repo_id in self.repos
        if not exists:
            self.add(repo_id, {}).visibility = asked['visibility']
        return send({'url': self.repos[repo_id].url}, 409 if exists else 200)

    @route('POST /api/validate-yaml')
    def validate_yaml(self, request: Request) -> Reply:
        return send({'errors': [], 'warnings': []})

    @route(f'GET /api/models/{REPO}/refs')
    def refs(self, request: Request, repo: Repo) -> Reply:
        tags = [{'name': tag, 'ref': f'refs/tags/{tag}', 'targetCommit': sha} for tag, sha in repo.tags.items()]
        return send({'branches': [], 'converts': [], 'tags': tags})

    @route(f'GET /api/models/{REPO}')
    def model(self, request: Request, repo: Repo) -> Reply:
        return self.revision(request, repo, repo.commits[-1])

    @route(f'GET /api/models/{REPO}/revision/{COMMIT}')
    def revision(self, request: Request, repo: Repo, commit: Commit) -> Reply:
        return send({'id': 'id', 'sha': commit.sha, 'siblings': [{'rfilename': path} for path in commit.files]})

    @route(f'GET /api/models/{REPO}/tree/{COMMIT}')
    def tree(self, request: Request, repo: Repo, commit: Commit) -> Reply:
        entries = []
        for path, content in commit.files.items():
            oid, size = etag(path, content), len(content)
            lfs = {'lfs': {'oid': oid, 'size': size, 'pointerSize': 134}} if is_lfs(path) else {}
            entries.append({'type': 'file', 'path': path, 'oid': oid, 'size': size, **lfs})
        return send(entries)

    @route(f'(GET|HEAD) /{REPO}/resolve/{COMMIT}/(?P<path>.+)')
    def resolve(self, request: Request, repo: Repo, commit: Commit, path: str) -> Reply:
        if path not in commit.files:
            return send({}, 404, X_Error_Code='EntryNotFound')
        content = commit.files[path]
        headers = {'X-Repo-Commit': commit.sha, 'ETag': f'"{etag(path, content)}"'}
        if is_lfs(path):
            headers |= {'X-Linked-Etag': headers['ETag'], 'X-Linked-Size': str(len(content))}
        return Reply(200, content, headers)

    @route(f'POST /api/models/{REPO}/preupload/{COMMIT}')
    def preupload(self, request: Request, repo: Repo, commit: Commit) -> Reply:
        files = []
        for path in (file['path'] for file in request.json()['files']):
            oid = etag(path, commit.files[path]) if path in commit.files else None
            mode = 'lfs' if is_lfs(path) else 'regular'
            files.append({'path': path, 'uploadMode': mode, 'shouldIgnore': False, 'oid': oid})
        return send({'files': files})

    @route(f'POST /{REPO}.git/info/lfs/objects/batch')
    def lfs_batch(self, request: Request, repo: Repo) -> Reply:
        objects = request.json()['objects']
        for entry in objects:
            if entry['oid'] not in self.blobs:
                entry['actions'] = {'upload': {'href': f'{self.url}/lfs/{entry["oid"]}'}}
        return send({'transfer': 'basic', 'objects': objects})

    @route('PUT /lfs/(?P<oid>[0-9a-f]{64})')
    def lfs_put(self, request: Request, oid: str) -> Reply:
        if hashlib.sha256(request.body).hexdigest() != oid:
            return send({}, 400)
        self.blobs[oid] = request.body
        return send({})

    @route(f'POST /api/models/{REPO}/commit/{COMMIT}')
    def commit(self, request: Request, repo: Repo, commit: Commit) -> Reply:
        files = dict(commit.files)
        header, *operations = map(json.loads, request.body.splitlines())
        for operation in operations:
            value = operation['value']
            if operation['key'] == 'deletedFile':
                del files[value['path']]
            elif operation['key'] == 'lfsFile':
                files[value['path']] = self.blobs[value['oid']]
            else:
                files[value['path']] = base64.b64decode(value['content'])
        made = repo.commit(header['value']['summary'], files, pull_request='create_pr' in request.query)
        url = f'{repo.url}/commit/{made.sha}'
        return send({'commitOid': made.sha, 'commitUrl': url, 'pullRequestUrl': f'{repo.url}/discussions/1'})

    @route(f'POST /api/models/{REPO}/tag/{COMMIT}')
    def tag(self, request: Request, repo: Repo, commit: Commit) -> Reply:
        repo.tags[request.json()['tag']] = commit.sha
        return send({})


class Handler(BaseHTTPRequestHandler):
    """One connection, for one request."""

    hub: HubServer

    def handle_any(self):
        split = urlsplit(self.path)
        line = f'{self.command} {unquote(split.path)}'
        self.hub.requests.append(line)
        fault = next((entry for entry in self.hub.faults if entry[2] and entry[0].fullmatch(line)), None)
        if fault:
            fault[2] -= 1
            if fault[1] is drop:
                return
        request = Request(line, parse_qs(split.query), self.rfile.read(int(self.headers.get('Content-Length', 0))))
        reply = fault[1](lambda: self.hub.answer(request)) if fault else self.hub.answer(request)
        if not reply:
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(reply.body) if reply.length is None else reply.length))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, *_: object):
        """Say nothing."""
