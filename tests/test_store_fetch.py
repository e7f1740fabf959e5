"Downloads: whole or not there, against a server of faults on loopback."

import http.server, socket, subprocess, sys, threading, time, types, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from papers_lib.store import fetch
from papers_lib.store.cache import kept, prune, usage
from papers_lib.store.fetch import NotFound, download, hub_folder, wheel_member
from papers_lib.store.files import CorruptFile, WriteFailed
import hashlib

TEXT = bytes(range(256)) * 40
HASH = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture(autouse=True)
def clean():
    fetch.unreachable.clear()
    yield
    fetch.unreachable.clear()


class Faults(http.server.BaseHTTPRequestHandler):
    "Each path is a fault; `asked` holds (path, Range, If-Range)."

    protocol_version = 'HTTP/1.1'
    asked, version, text = [], '"1"', TEXT

    def log_message(self, *args):
        pass

    def send(self, status, body=b'', length=None, **headers):
        self.send_response(status)
        for k, v in (
            dict(Content_Length=len(body) if length is None else length, Connection='close') | headers
        ).items():
            if v is not None:
                self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = True

    def do_GET(self):
        cls, path, text = type(self), self.path.lstrip('/').split('?')[0], type(self).text
        cls.asked.append((path, self.headers.get('Range'), self.headers.get('If-Range')))
        at = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
        if self.headers.get('If-Range') not in (None, cls.version):
            at = 0
        n, tries = len(text), sum(p == path for p, *_ in cls.asked)
        span = dict(ETag=cls.version, Content_Range=f'bytes {at}-{n - 1}/{n}' if at else None)
        if path == 'busy':
            return self.send(503 if tries < 3 else 200, text if tries > 2 else b'', Retry_After='0')
        if path == 'limit':
            return self.send(429, Retry_After='0')
        if path == 'later':
            return self.send(503, Retry_After='9999')
        if path in ('404', '500', '204', '403'):
            return self.send(int(path))
        if path == 'page':
            return self.send(200, b'<html>log in</html>', Content_Type='text/html; charset=utf-8')
        if path == 'page.html':
            return self.send(200, b'<html>asked for</html>', Content_Type='text/html')
        if path == 'captive':
            return self.send(302, Location='/page')
        if path == 'loop':
            return self.send(302, Location='/loop')
        if path == 'file':
            return self.send(302, Location='file:///etc/passwd')
        if path == 'status':
            self.wfile.write(b'HELLO 200 what\r\n\r\n')
            self.close_connection = True
            return
        if path == 'statusnum':
            self.wfile.write(b'HTTP/1.1 abc OK\r\n\r\n')
            self.close_connection = True
            return
        if path == 'long':
            self.wfile.write(b'HTTP/1.1 200 OK\r\nX: ' + b'y' * 100_000 + b'\r\n\r\n')
            self.close_connection = True
            return
        if path == 'many':
            self.wfile.write(b'HTTP/1.1 200 OK\r\n' + b'X: y\r\n' * 500 + b'\r\n')
            self.close_connection = True
            return
        if path.startswith('length'):
            return self.send(200, text, length=path[6:])
        if path == 'nothing':
            self.close_connection = True
            return
        if path == 'nolength':
            return self.send(200, text, length='', Content_Length=None)
        if path == 'chunkcut':
            self.send(200, b'5\r\nabcde\r\n9\r\nab', Content_Length=None, Transfer_Encoding='chunked')
            return
        if path == 'badchunk':
            self.send(200, b'zz\r\nabcde\r\n', Content_Length=None, Transfer_Encoding='chunked')
            return
        if path == 'endless':
            self.endless(b'x' * 65536, 0)
            return
        if path == 'drip':
            self.endless(b'x', 0.2)
            return
        if path == 'dripheaders':
            try:
                for c in b'HTTP/1.1 200 OK\r\nX: ' + b'y' * 10_000:
                    self.wfile.write(bytes([c]))
                    self.wfile.flush()
                    time.sleep(0.2)
            except OSError:
                pass
            return
        if path == 'cut':
            return self.send(206 if at else 200, text[at : at + 1000], length=n - at, **span)
        if path == 'reset':
            self.send(200, text[:1000], length=n)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
            return
        if path == 'stall':
            self.send(200, text[:1000], length=n)
            time.sleep(8)
            return
        if path == 'wrongrange' and at:
            return self.send(206, text[5:], Content_Range=f'bytes 5-{n - 1}/{n}')
        if path == 'norange' and at:
            return self.send(206, text[at:], Content_Range=None)
        if path == 'always416':
            return self.send(416, Content_Range='bytes */7' if at else None)
        if at >= n:
            return self.send(416, Content_Range=f'bytes */{n}')
        self.send(206 if at else 200, text[at:], **span)

    def endless(self, block, pause):
        self.send(200, block, Content_Length=None)
        try:
            while True:
                self.wfile.write(block)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass


@pytest.fixture
def server(tmp_path):
    faults = type('FaultsOfOneTest', (Faults,), dict(asked=[]))
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), faults)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()

    def get(path, **kw):
        return download(f'http://127.0.0.1:{httpd.server_port}/{path}', tmp_path / 'f', **kw)

    get.site = faults
    get.folder = tmp_path
    get.port = httpd.server_port
    yield get
    httpd.shutdown()
    httpd.server_close()


def left(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith('.lock'))


# ---- what is no good answer is one of two errors, and nothing that a later call would take for the file


@pytest.mark.parametrize(
    'path, words',
    [
        ('404', '404'),
        ('403', '403'),
        ('500', '500'),
        ('204', 'status 204'),
        ('page', 'web page'),
        ('captive', 'web page'),
        ('loop', '302'),
        ('file', '302|unknown|not allowed'),
        ('status', 'HTTP'),
        ('statusnum', 'HTTP'),
        ('long', 'HTTP'),
        ('many', 'HTTP'),
        ('nothing', 'HTTP'),
        ('lengthabc', 'Content-Length'),
        ('length-5', 'Content-Length'),
        ('length1e3', 'Content-Length'),
        ('length' + '9' * 40, 'Content-Length'),
        ('always416', '416|contradicts'),
    ],
)
def test_answers_that_are_none(server, path, words):
    with pytest.raises((NotFound, CorruptFile), match=words):
        server(path)
    assert left(server.folder) == []
    assert not fetch.unreachable and server('whole').read_bytes() == TEXT  # and the next call is not harmed by it


@pytest.mark.parametrize('path', ['cut', 'reset', 'chunkcut', 'badchunk', 'stall'])
def test_answers_that_end_early_say_so_and_are_gone_on_with(server, path):
    with pytest.raises(CorruptFile, match=r'stopped at \d+ bytes.*run again'):
        server(path)
    assert not (server.folder / 'f').exists() and not fetch.unreachable
    assert server('whole', sha256=HASH).read_bytes() == TEXT if path != 'chunkcut' else True
    if path in ('reset', 'cut', 'stall'):
        assert server.site.asked[-1][1] == 'bytes=1000-'


def test_page_that_was_asked_for_is_a_file(server):
    assert b'asked for' in server('page.html').read_bytes()


def test_only_web_addresses(tmp_path):
    for url in ('file:///etc/passwd', 'ftp://h/f', 'data:,x', '/etc/passwd', ''):
        with pytest.raises(ValueError, match='must begin with http'):
            download(url, tmp_path / 'f')


# ---- going on


def test_an_interrupted_download_goes_on_where_it_stopped(server):
    for n in range(1, 4):
        with pytest.raises(CorruptFile, match=f'stopped at {n}000 bytes'):
            server('cut')
    assert server('whole').read_bytes() == TEXT and server.site.asked[-1] == ('whole', 'bytes=3000-', '"1"')
    assert left(server.folder) == ['f']


def test_a_part_of_another_version_is_not_gone_on_with(server):
    with pytest.raises(CorruptFile):
        server('cut')
    server.site.version, server.site.text = '"2"', TEXT[::-1]
    assert server('whole').read_bytes() == TEXT[::-1]


@pytest.mark.parametrize('path', ['wrongrange', 'norange'])
def test_a_rest_that_is_not_the_rest_is_dropped(server, path):
    with pytest.raises(CorruptFile):
        server('cut')
    assert server(path).read_bytes() == TEXT and left(server.folder) == ['f']


@pytest.mark.parametrize('note', [None, 'not json', '[]', '{"version": 5, "bytes": "x"}', '[' * 100_000])
@pytest.mark.parametrize('part', [TEXT, TEXT + b'more', b'x' * len(TEXT), TEXT[:10], b'y' * 10, b''])
def test_whatever_part_lies_there_the_right_file_comes(server, part, note):
    "416 for ever was the fault: a part that is complete, too long, or of something else."
    (server.folder / 'f.part').write_bytes(part)
    if note is not None:
        (server.folder / 'f.part.json').write_text(note)
    for _ in range(2):
        try:
            server('whole', sha256=HASH)
            break
        except CorruptFile as e:
            assert 'sha256 differs' in str(e)  # once: the part was deleted
    assert (server.folder / 'f').read_bytes() == TEXT and left(server.folder) == ['f']


def test_a_wrong_hash_deletes(server):
    with pytest.raises(CorruptFile, match='sha256 differs.*deleted'):
        server('whole', sha256='0' * 64)
    assert left(server.folder) == [] and server('whole', sha256=HASH).read_bytes() == TEXT


# ---- bounds


def test_a_busy_server_is_asked_again_a_few_times(server):
    assert server('busy').read_bytes() == TEXT and len(server.site.asked) == 3
    with pytest.raises(NotFound, match=f'429.*{fetch.TRIES} times'):
        server('limit')
    assert sum(p == 'limit' for p, *_ in server.site.asked) == fetch.TRIES
    began = time.monotonic()
    with pytest.raises(NotFound, match='503'):
        server('later', deadline=60)
    assert time.monotonic() - began < 5  # it asked for more than there is


@pytest.mark.parametrize('path', ['whole', 'endless', 'cut', 'nolength'])
def test_a_file_that_is_too_large_is_refused(server, path):
    with pytest.raises(CorruptFile, match='at most 500|more than 500'):
        server(path, max_bytes=500)
    assert sum(p.stat().st_size for p in server.folder.iterdir() if p.suffix == '.part') <= 500
    assert server('whole', max_bytes=len(TEXT)).read_bytes() == TEXT


@pytest.mark.parametrize('path, error', [('drip', CorruptFile), ('endless', CorruptFile), ('dripheaders', NotFound)])
def test_a_download_has_an_end(server, path, error):
    began = time.monotonic()
    with pytest.raises(error, match='out of time|more than'):
        server(path, deadline=1, max_bytes=2**40 if path != 'endless' else 2**22)
    assert time.monotonic() - began < 6 and not fetch.unreachable


def test_a_full_disk_is_named(server, monkeypatch):
    (server.folder / 'f.part').mkdir()
    with pytest.raises(WriteFailed, match='f could not be written'):
        server('whole')


# ---- in the cache


@pytest.fixture
def cached(server, monkeypatch):
    "Fetch into the cache, as a data set does."
    monkeypatch.setenv('PAPERS_CACHE', str(server.folder / 'cache'))
    url = f'http://127.0.0.1:{server.port}'
    return lambda path: (
        kept('downloads', 'f', lambda tmp: download(f'{url}/{path}', tmp / 'f', sha256=HASH), resume=True) / 'f'
    )


def test_of_many_that_need_a_file_one_fetches_it(server, cached):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cached('whole').read_bytes(), range(8)))
    assert found == [TEXT] * 8 and len(server.site.asked) == 1
    assert left(server.folder / 'cache/downloads') == ['f']


def test_an_interrupted_download_is_kept_and_gone_on_with(server, cached):
    for n in range(1, 4):
        with pytest.raises(CorruptFile, match=f'stopped at {n}000 bytes'):
            cached('cut')
        assert prune(1) == [] and usage()['downloads'].count == 0
    assert cached('whole').read_bytes() == TEXT and server.site.asked[-1] == ('whole', 'bytes=3000-', '"1"')
    assert left(server.folder / 'cache/downloads') == ['f']


def test_a_killed_download_is_gone_on_with_by_another_process(server, cached):
    script = (
        'import sys; from papers_lib.store.cache import kept; from papers_lib.store.fetch import download\n'
        'kept("downloads", "f", lambda tmp: download(sys.argv[1], tmp / "f"), resume=True)'
    )
    url = f'http://127.0.0.1:{server.port}/stall'
    child = subprocess.Popen([sys.executable, '-c', script, url], stderr=subprocess.DEVNULL)
    part = server.folder / 'cache/downloads/.f.unfinished/f.part'
    for _ in range(300):
        if part.exists() and part.stat().st_size == 1000:
            break
        time.sleep(0.1)
    child.kill()
    child.wait()
    assert prune(1) == [] and cached('whole').read_bytes() == TEXT
    assert server.site.asked[-1][1] == 'bytes=1000-'


def test_an_unreachable_host_costs_its_seconds_once(tmp_path):
    silent = socket.socket()
    silent.bind(('127.0.0.1', 0))
    silent.listen(1)  # accepts, never answers
    url, began = f'http://127.0.0.1:{silent.getsockname()[1]}/f', time.monotonic()
    with pytest.raises(NotFound, match='cannot be reached'):
        download(url, tmp_path / 'f')
    assert 2 < time.monotonic() - began < 5
    began = time.monotonic()
    with pytest.raises(NotFound, match='cannot be reached'):
        download(url, tmp_path / 'f')
    assert time.monotonic() - began < 0.2
    silent.close()


# ---- packages


def wheel(folder, name, member='toy/text.txt', harm=None):
    path = folder / f'{name.replace("-", "_")}-1.0-py3-none-any.whl'
    info = f'{name.replace("-", "_")}-1.0.dist-info'
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr(member, TEXT)
        z.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(f'{info}/RECORD', '')
    return path


def test_a_member_is_read_and_the_wheel_not_installed(tmp_path, monkeypatch):
    wheel(tmp_path, 'toy-wheel')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    assert wheel_member('toy-wheel==1.0!toy/text.txt') == TEXT and 'toy' not in sys.modules
    with pytest.raises(ImportError):
        import toy  # noqa: F401
    with pytest.raises(NotFound, match='no member toy/none.txt'):
        wheel_member('toy-wheel==1.0!toy/none.txt')
    with pytest.raises(CorruptFile, match='larger than 5 bytes'):
        wheel_member('toy-wheel==1.0!toy/text.txt', max_bytes=5)
    with pytest.raises(NotFound, match='gone-wheel==1.0'):
        wheel_member('gone-wheel==1.0!x')
    assert wheel_member('toy-wheel==1.0!toy/text.txt') == TEXT  # one that is gone does not take the index with it
    monkeypatch.setattr(fetch.subprocess, 'run', None)  # nor is it asked for again
    with pytest.raises(NotFound, match='gone-wheel==1.0'):
        wheel_member('gone-wheel==1.0!x')


def test_a_damaged_wheel_is_named(tmp_path, monkeypatch):
    good = wheel(tmp_path, 'toy-wheel').read_bytes()
    at = good.find(TEXT)
    for raw in (b'', b'no archive', good[:-30], good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]):

        def pip(wheel, folder):
            (Path(folder) / 'toy_wheel-1.0-py3-none-any.whl').write_bytes(raw)

        monkeypatch.setattr(fetch, '_pip', pip)
        with pytest.raises(CorruptFile, match='toy-wheel==1.0: not a wheel'):
            wheel_member('toy-wheel==1.0!toy/text.txt')


def test_an_index_that_cannot_be_reached_is_asked_once(monkeypatch):
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_NO_INDEX', '0')
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    with pytest.raises(NotFound, match='pip cannot fetch'):
        wheel_member('toy-wheel==1.0!x')
    monkeypatch.setattr(fetch.subprocess, 'run', None)
    with pytest.raises(NotFound, match='the package index cannot be reached'):
        wheel_member('other==1.0!x')


@pytest.mark.parametrize(
    'spec',
    [
        '',
        'toy',
        'toy!x',
        'toy==1.0',
        'toy>=1!x',
        '-r x==1!y',
        '--index-url=http://h==1!y',
        'toy==1.0 evil==2!x',
        '../toy==1!x',
        'toy==1.0!',
    ],
)
def test_a_specification_is_a_name_a_version_and_a_member(spec):
    with pytest.raises(ValueError, match='name==version'):
        wheel_member(spec)


# ---- the hub


@pytest.mark.parametrize(
    'error, network',
    [
        ('httpx.ConnectError', True),
        ('TimeoutError', True),
        ('RepositoryNotFoundError', False),
        ('HFValidationError', False),
        ('MemoryError', False),
    ],
)
def test_only_the_network_makes_the_hub_unreachable(monkeypatch, error, network):
    import huggingface_hub
    from huggingface_hub import errors

    transport = type('ConnectError', (type('TransportError', (Exception,), {}),), {})

    def ask(*args, **kw):
        if error == 'httpx.ConnectError':
            raise errors.LocalEntryNotFoundError('not here') from transport('refused')
        if error == 'RepositoryNotFoundError':
            e = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
            e.args = ('404',)
            raise e
        raise getattr(errors, error, None) or __builtins__[error]

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', ask)
    with pytest.raises((NotFound, MemoryError)) as told:
        hub_folder('someone/model')
    assert ('cannot be reached' in str(told.value)) == network == ('huggingface.co' in fetch.unreachable)


def test_from_the_hub_come_json_and_safetensors_only(monkeypatch, tmp_path):
    import fnmatch, huggingface_hub

    files = [
        'config.json',
        'model.safetensors',
        'model-00001-of-00002.safetensors',
        'tokenizer.json',
        'model.safetensors.index.json',
        'pytorch_model.bin',
        'modeling_x.py',
        'onnx/model.safetensors',
        'onnx/config.json',
        'model.pkl',
        'adapter.safetensors',
    ]

    def ask(name, allow_patterns, ignore_patterns, **kw):
        hit = lambda f, patterns: any(fnmatch.fnmatch(f, p) for p in patterns)
        ask.got = [f for f in files if hit(f, allow_patterns) and not hit(f, ignore_patterns)]
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', ask)
    assert hub_folder('someone/model') == tmp_path and ask.got == files[:5] and isinstance(ask, types.FunctionType)
