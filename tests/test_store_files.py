"Files: whole or not there, a folder that is never missing, seals that any manifest is held against."

import errno, json, multiprocessing, os, random, signal, stat, subprocess, sys, threading, time
from pathlib import Path

import pytest
from filelock import Timeout

from papers_lib.store import files
from papers_lib.store.files import (
    CorruptFile,
    WriteFailed,
    atomic_folder,
    atomic_write,
    locked,
    seal,
    sha256,
    sweep,
    unseal,
)

SPAWN = multiprocessing.get_context('spawn')


def make(path, text, replace=True):
    with atomic_folder(path, replace=replace) as tmp:
        (tmp / 'x').write_text(text)
        seal(tmp)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- files

LIMITED = """
import resource, signal, sys
from papers_lib.store.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
atomic_write(sys.argv[1], b'x' * 5000)
"""


def test_a_write_past_the_disk_keeps_the_old_file(tmp_path):
    atomic_write(tmp_path / 'f', 'old')
    child = subprocess.run([sys.executable, '-c', LIMITED, str(tmp_path / 'f')], capture_output=True, text=True)
    assert child.returncode == 1 and 'WriteFailed' in child.stderr and 'could not be written' in child.stderr
    assert names(tmp_path) == ['f'] and (tmp_path / 'f').read_text() == 'old'


def _write(path, letter):
    for _ in range(50):
        atomic_write(path, letter * 100_000)


def test_two_writers_never_mix(tmp_path):
    jobs = [SPAWN.Process(target=_write, args=(tmp_path / 'f', x)) for x in 'ab']
    for j in jobs:
        j.start()
    seen = set()
    while any(j.is_alive() for j in jobs):
        if (tmp_path / 'f').exists():
            seen.add((tmp_path / 'f').read_text())
    assert all(j.exitcode == 0 for j in jobs) and seen <= {'a' * 100_000, 'b' * 100_000} and seen
    assert names(tmp_path) == ['f']


def test_permissions_are_those_that_any_program_would_give(tmp_path):
    "Not the owner's alone, as a temporary file has; and those of a file that is replaced stay."
    old = os.umask(0o022)
    try:
        atomic_write(tmp_path / 'f', '')
        make(tmp_path / 'd', '')
        assert (
            stat.S_IMODE((tmp_path / 'f').stat().st_mode) == 0o644
            and stat.S_IMODE((tmp_path / 'd').stat().st_mode) == 0o755
        )
        (tmp_path / 'f').chmod(0o640)
        atomic_write(tmp_path / 'f', 'new')
        assert stat.S_IMODE((tmp_path / 'f').stat().st_mode) == 0o640
    finally:
        os.umask(old)


# ---- replacing a folder


@pytest.fixture(params=['exchange', 'aside'])
def way(request, monkeypatch):
    "With the system's exchange of names, and as where there is none."
    if request.param == 'exchange' and not files._renameat2:
        pytest.skip('no renameat2 here')
    if request.param == 'aside':
        monkeypatch.setattr(files, '_renameat2', None)
    return request.param


def test_replacing_leaves_the_new_one_and_nothing_else(tmp_path, way):
    for text in 'abc':
        make(tmp_path / 'd', text)
        assert (tmp_path / 'd/x').read_text() == text
    assert names(tmp_path) == ['d']
    with pytest.raises(WriteFailed, match='there is one already'):
        make(tmp_path / 'd', 'e', replace=False)
    assert (tmp_path / 'd/x').read_text() == 'c' and names(tmp_path) == ['d']
    (tmp_path / 'link').symlink_to('d')
    make(tmp_path / 'link', 'e')
    assert (tmp_path / 'd/x').read_text() == 'e' and names(tmp_path) == ['d', 'link']


def test_a_folder_or_file_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / 'd').mkdir()
    make(tmp_path / 'd', 'a')                                    # empty: nothing is lost
    for path in (tmp_path / 'd/thesis.txt', tmp_path / 'f'): path.write_text('mine')
    for path, file in ((tmp_path / 'd', 'thesis.txt'), (tmp_path / 'f', 'f')):
        with pytest.raises(WriteFailed, match=f'{file} is there, which no save wrote'): make(path, 'b')
    assert (tmp_path / 'd/thesis.txt').read_text() == (tmp_path / 'f').read_text() == 'mine'
    assert (tmp_path / 'd/x').read_text() == 'a' and names(tmp_path) == ['d', 'f']


@pytest.mark.parametrize('nth', range(3))
def test_whatever_renaming_fails_the_old_or_the_new_folder_is_there(tmp_path, way, monkeypatch, nth):
    make(tmp_path / 'd', 'old')
    rename, calls = os.rename, []

    def failing(a, b):
        calls.append(b)
        if len(calls) == nth + 1:
            raise OSError(errno.EIO, 'I/O error')
        rename(a, b)

    monkeypatch.setattr(os, 'rename', failing)
    try:
        make(tmp_path / 'd', 'new')
    except WriteFailed as e:
        assert 'I/O error' in str(e)
    monkeypatch.setattr(os, 'rename', rename)
    sweep(tmp_path)
    assert (tmp_path / 'd/x').read_text() == ('old' if len(calls) > nth < 2 else 'new') and names(tmp_path) == ['d']


@pytest.mark.parametrize(
    'code, words', [(errno.EINVAL, None), (errno.ENOSYS, None), (errno.EACCES, 'Permission denied')]
)
def test_a_file_system_without_exchange_has_the_other_way(tmp_path, monkeypatch, code, words):
    def refuses(*args):
        files.ctypes.set_errno(code)
        return -1

    make(tmp_path / 'd', 'old')
    monkeypatch.setattr(files, '_renameat2', refuses)
    if words is None:
        make(tmp_path / 'd', 'new')
        assert (tmp_path / 'd/x').read_text() == 'new'
        return
    with pytest.raises(WriteFailed, match=words):
        make(tmp_path / 'd', 'new')
    assert (tmp_path / 'd/x').read_text() == 'old' and names(tmp_path) == ['d']


@pytest.mark.skipif(not files._renameat2, reason='needs renameat2')
def test_a_reader_never_misses_the_folder(tmp_path):
    make(tmp_path / 'd', '0')
    stop, missed, reads = threading.Event(), [], [0]

    def read():
        while not stop.is_set():
            reads[0] += 1
            try:
                os.stat(tmp_path / 'd/x')
            except FileNotFoundError:
                missed.append(reads[0])

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(300):
        make(tmp_path / 'd', str(n))
    stop.set()
    reader.join()
    assert reads[0] > 300 and not missed, (reads, len(missed))


ENDLESS = """
import sys
from papers_lib.store.files import atomic_folder, seal
for n in range(100_000):
    with atomic_folder(sys.argv[1], replace=True) as tmp:
        (tmp / 'x').write_text(str(n)); seal(tmp)
    print(n, flush=True)
"""


@pytest.mark.skipif(not files._renameat2, reason='needs renameat2')
def test_a_kill_at_any_moment_leaves_a_whole_folder(tmp_path):
    rng = random.Random(0)
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, '-c', ENDLESS, str(tmp_path / 'd')], stdout=subprocess.PIPE, text=True
        )
        child.stdout.readline()
        time.sleep(rng.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert unseal(tmp_path / 'd', required=['x'])
    sweep(tmp_path)
    assert names(tmp_path) == ['d']


def test_the_error_of_a_block_is_its_own(tmp_path):
    "Only what could not be written is WriteFailed; a file that the block wanted to read is not."
    for error in (
        FileNotFoundError(2, 'gone', '/elsewhere/x'),
        ConnectionResetError(),
        KeyboardInterrupt(),
        ValueError('no'),
    ):
        with pytest.raises(type(error)) as told:
            with atomic_folder(tmp_path / 'd'):
                raise error
        assert told.value is error and names(tmp_path) == []
    with pytest.raises(WriteFailed, match='free some space'):
        with atomic_folder(tmp_path / 'd'):
            raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(WriteFailed, match='Is a directory'):
        with atomic_folder(tmp_path / 'd') as tmp:
            tmp.write_text('x')
    assert names(tmp_path) == []


# ---- leftovers and locks


def _sweep_for_ever(folder, stop):
    while not stop.is_set():
        sweep(folder)


def test_a_sweep_takes_nothing_that_is_being_written(tmp_path):
    stop = SPAWN.Event()
    other = SPAWN.Process(target=_sweep_for_ever, args=(tmp_path, stop))
    other.start()
    try:
        for n in range(200):
            make(tmp_path / 'd', str(n))
            atomic_write(tmp_path / 'f', str(n))
            assert (tmp_path / 'd/x').read_text() == str(n)
    finally:
        stop.set()
        other.join()
    assert names(tmp_path) == ['d', 'f'] and other.exitcode == 0


def test_a_sweep_takes_only_temporary_names(tmp_path):
    for name in ('.git', '.a-notes', '.a-0123456', 'a-01234567', '.a.lock'):
        (tmp_path / name).mkdir()
    (tmp_path / '.a-01234567').mkdir()
    (tmp_path / '.b-01234567').write_text('half')
    (tmp_path / '.c-01234567').symlink_to('.git')
    assert [p.name for p in sweep(tmp_path)] == ['.a-01234567', '.b-01234567']
    (tmp_path / '.d-e-01234567-old').mkdir()
    assert sweep(tmp_path) == [] and (tmp_path / 'd-e').is_dir()
    (tmp_path / '.d-e-01234567-old').mkdir()
    assert len(sweep(tmp_path, 'd-e')) == 1 and (tmp_path / 'd-e').is_dir()


def _count(path):
    for _ in range(50):
        with locked(path):
            n = int(path.read_text())
            time.sleep(0.0005)
            path.write_text(str(n + 1))


def test_one_at_a_time_in_processes_and_threads(tmp_path):
    path = tmp_path / 'n'
    path.write_text('0')
    workers = [SPAWN.Process(target=_count, args=(path,)) for _ in range(2)] + [
        threading.Thread(target=_count, args=(path,)) for _ in range(2)
    ]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert path.read_text() == '200'


def test_a_lock_can_be_waited_for_in_vain_and_dies_with_its_holder(tmp_path):
    hold = (
        'import time; from papers_lib.store.files import locked\n'
        f'with locked({str(tmp_path / "n")!r}): print("held", flush=True); time.sleep(60)'
    )
    child = subprocess.Popen([sys.executable, '-c', hold], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    with pytest.raises(Timeout):
        with locked(tmp_path / 'n', timeout=0.1):
            pass
    child.kill()
    child.wait()
    child.stdout.close()
    with locked(tmp_path / 'n', timeout=5):
        pass
    (tmp_path / 'file').write_text('')
    with pytest.raises(WriteFailed, match='file/n could not be written'):
        with locked(tmp_path / 'file/n'):
            pass


# ---- seals


@pytest.fixture
def sealed(tmp_path):
    with atomic_folder(tmp_path / 's') as tmp:
        (tmp / 'sub').mkdir()
        (tmp / 'a').write_bytes(b'aaaa')
        (tmp / 'sub/b').write_bytes(b'bb')
        (tmp / 'sub/manifest.json').write_text('{}')
        seal(tmp, note=1)
    return tmp_path / 's'


@pytest.mark.parametrize('name', ['a', 'sub/b', 'sub/manifest.json'])
def test_every_file_is_sealed_those_of_subfolders_too(sealed, name):
    manifest = unseal(sealed, required=['a', 'sub/b'])
    assert manifest['note'] == 1 and manifest['files'][name]['sha256'] == sha256(sealed / name)
    path = sealed / name
    raw = path.read_bytes()
    for n in range(len(raw)):
        path.write_bytes(raw[:n] + bytes([raw[n] ^ 1]) + raw[n + 1 :])
        with pytest.raises(CorruptFile, match=f'{name}: its content was altered'):
            unseal(sealed)
    path.write_bytes(raw + b'x')
    with pytest.raises(CorruptFile, match=f'{name}: {len(raw) + 1} bytes, {len(raw)} were written'):
        unseal(sealed, verify=False)
    path.unlink()
    with pytest.raises(CorruptFile, match=f'{name}: missing'):
        unseal(sealed, verify=False)
    path.mkdir()
    with pytest.raises(CorruptFile, match=f'{name}: missing'):
        unseal(sealed)


HASH = '0' * 64
BAD = [
    '',
    'null',
    '5',
    '"x"',
    '[]',
    '[{"files": {}}]',
    '{}',
    '{"files": []}',
    '{"files": null}',
    '{"files": "a"}',
    '{"files": {"a": null}}',
    '{"files": {"a": []}}',
    '{"files": {"a": {}}}',
    '{"files": {"a": {"bytes": 4}}}',
    '{"files": {"a": {"bytes": "4", "sha256": "x"}}}',
    '{"files": {"a": {"bytes": true, "sha256": "x"}}}',
    '{"files": {"a": {"bytes": 4, "sha256": 5}}}',
    '{"files": {"a": {"bytes": 4.0, "sha256": "x"}}}',
    '{"files": {"a": {"bytes": ' + '9' * 5000 + ', "sha256": "x"}}}',
    '{"a":' * 50_000,
    '[' * 1_000_000,
    '{"files": ' + '{"a": ' * 100_000 + '}' * 100_001,
    '\ufeff{}',
    '{"files": {"a": {"bytes": 4, "sha256": "' + HASH + '"}',
]


@pytest.mark.parametrize('text', BAD, ids=lambda t: t[:40])
def test_any_malformed_manifest_is_a_corrupt_file(sealed, text):
    (sealed / 'manifest.json').write_text(text, encoding='utf-8')
    with pytest.raises(CorruptFile, match='manifest.json: (unreadable|missing|it)') as told:
        unseal(sealed)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize('name', ['../a', '/etc/passwd', '..', '', 'sub/../../a', 'a\0b', '.', './..', 'sub\\b', '//x'])
def test_a_manifest_may_not_name_what_is_not_in_its_folder(sealed, name):
    (sealed.parent / 'a').write_bytes(b'aaaa')
    (sealed / 'manifest.json').write_text(json.dumps(dict(files={name: dict(bytes=4, sha256=sha256(sealed / 'a'))})))
    with pytest.raises(CorruptFile, match='not a file of this folder'):
        unseal(sealed)


def test_any_damage_to_a_manifest_is_a_corrupt_file_or_changes_no_file(sealed):
    path, rng = sealed / 'manifest.json', random.Random(0)
    raw, files_then, named = path.read_bytes(), unseal(sealed)['files'], 0
    for _ in range(3000):
        a = rng.randrange(len(raw))
        b = a + rng.randrange(40)
        path.write_bytes(
            rng.choice(
                [
                    raw[:a],
                    raw[:a] + raw[b:],
                    raw[:a] + bytes([raw[a] ^ 1 << rng.randrange(8)]) + raw[a + 1 :],
                    raw[:a] + rng.randbytes(3) + raw[a:],
                    raw[:b] + raw[a:],
                    raw[:a] + b'[' * 20_000 + raw[a:],
                ]
            )
        )
        try:
            found = unseal(sealed)
        except CorruptFile:
            named += 1
            continue
        same = lambda f, g: all(f[k] == g[k] for k in ('bytes', 'sha256'))
        assert all(same(files_then.get(n, f), f) for n, f in found['files'].items())
    assert named > 2000


def test_a_manifest_that_leaves_a_file_out_proves_nothing_about_it(sealed):
    manifest = json.loads((sealed / 'manifest.json').read_text())
    del manifest['files']['a']
    (sealed / 'manifest.json').write_text(json.dumps(manifest))
    (sealed / 'a').write_bytes(b'evil')
    assert unseal(sealed)
    with pytest.raises(CorruptFile, match='does not list a'):
        unseal(sealed, required=['sub/b', 'a'])


def test_no_folder_and_unreadable_places_are_corrupt_files(tmp_path):
    with pytest.raises(CorruptFile, match='manifest.json: missing'):
        unseal(tmp_path / 'nothing')
    (tmp_path / 'manifest.json').mkdir()
    with pytest.raises(CorruptFile, match='manifest.json: unreadable'):
        unseal(tmp_path)
    assert Path(tmp_path).is_dir()
