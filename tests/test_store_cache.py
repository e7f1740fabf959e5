"The cache: made once, verified, noted, pruned."

import multiprocessing, os, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest

from papers_lib.store import cache
from papers_lib.store.cache import cache_dir, kept, note_read, prune, reading, usage
from papers_lib.store.files import CorruptFile, WriteFailed, locked, seal, unfinished, unseal

SPAWN = multiprocessing.get_context('spawn')


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    cache._verified.cache_clear()
    return tmp_path / 'cache'


def write(text='x'):
    return lambda folder: (folder / 'x').write_text(text)


def never(folder):
    raise AssertionError('it was made again')


# ---- where


@pytest.mark.parametrize('value', ['cache', './cache', '../cache', '~/cache', '.'])
def test_a_cache_that_moves_with_the_working_folder_is_refused(monkeypatch, value):
    monkeypatch.setenv('PAPERS_CACHE', value)
    for ask in (cache_dir, usage, lambda: prune(1), lambda: kept('a', 'b', never)):
        with pytest.raises(ValueError, match=f'PAPERS_CACHE={value}: must be an absolute path'):
            ask()


def test_the_users_cache_is_the_default(monkeypatch, tmp_path):
    monkeypatch.delenv('PAPERS_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert cache_dir() == tmp_path / 'xdg/papers_lib'
    for unset in ('', 'relative'):  # which the standard says to ignore
        monkeypatch.setenv('XDG_CACHE_HOME', unset)
        assert cache_dir() == tmp_path / '.cache/papers_lib'
    monkeypatch.setattr(Path, 'home', lambda: (_ for _ in ()).throw(RuntimeError()))
    with pytest.raises(ValueError, match='no home folder: PAPERS_CACHE'):
        cache_dir()


# ---- kept


@pytest.mark.parametrize(
    'field, kind, key',
    [('key', 'a', v) for v in ('', '.', '..', '../b', 'a/b', '.hidden', 'a\0', 'a\n', 'x' * 201)]
    + [('kind', '../a', 'b'), ('kind', '', 'b')],
)
def test_names_that_lead_elsewhere_are_refused(place, field, kind, key):
    with pytest.raises(ValueError, match=f'{field}='):
        kept(kind, key, never)
    assert not place.exists()


def test_what_fails_leaves_nothing_and_is_made_the_next_time(place):
    def half(folder):
        (folder / 'x').write_text('half')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept('k', 'a', half)
    assert [p.name for p in (place / 'k').glob('[!.]*')] == []
    assert (kept('k', 'a', write('whole')) / 'x').read_text() == 'whole'
    assert kept('k', 'a', never) == place / 'k/a'


def test_what_can_be_resumed_is_given_the_folder_as_it_was_left(place):
    def step(folder):
        n = len(list(folder.iterdir()))
        (folder / str(n)).write_text('x')
        if n < 2:
            raise KeyboardInterrupt

    for n in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            kept('k', 'a', step, resume=True)
        assert not (place / 'k/a').exists() and usage()['k'] == (0, n)
        assert prune(1) == []
    folder = kept('k', 'a', step, resume=True)
    assert sorted(p.name for p in folder.iterdir()) == ['0', '1', '2', 'manifest.json']
    assert kept('k', 'a', never, resume=True) == folder and not unfinished(folder).exists()


def test_an_attempt_that_was_killed_after_its_seal_is_sealed_anew(place):
    begun = unfinished(place / 'k/a')
    begun.mkdir(parents=True)
    (begun / 'manifest.json').write_text('{"files": {"gone": {"bytes": 1, "sha256": ""}}}')
    assert list(unseal(kept('k', 'a', write(), resume=True))['files']) == ['x']


def test_a_damaged_thing_that_can_be_resumed_is_mended(place):
    (kept('k', 'a', write(), resume=True) / 'x').write_text('y')
    assert (kept('k', 'a', write(), resume=True, repair=True) / 'x').read_text() == 'x'
    assert [p.name for p in (place / 'k').iterdir() if p.is_dir()] == ['a']


def test_what_was_begun_long_ago_is_pruned_and_what_is_discarded_goes_whole(place):
    for kind in ('k', 'l'):
        unfinished(place / kind / 'a').mkdir(parents=True)
        (unfinished(place / kind / 'a') / 'part').write_text('x')
    old(unfinished(place / 'k/a'))
    assert prune(30) == [unfinished(place / 'k/a')]
    kept('l', 'b', write())
    cache.discard('l', 'a')
    cache.discard('l', 'b')
    cache.discard('l', 'never-made')
    assert [p for p in (place / 'l').iterdir() if not p.name.endswith('.lock')] == []
    with pytest.raises(ValueError, match='key='):
        cache.discard('l', '../b')


def _slow(place, log):
    os.environ['PAPERS_CACHE'] = str(place)

    def make(folder):
        time.sleep(0.3)
        (folder / 'x').write_text('x')
        open(log, 'a').write('made\n')

    kept('k', 'a', make)


def test_of_many_that_ask_at_once_one_makes(place, tmp_path):
    jobs = [SPAWN.Process(target=_slow, args=(place, tmp_path / 'log')) for _ in range(3)]
    jobs += [threading.Thread(target=_slow, args=(place, tmp_path / 'log')) for _ in range(3)]
    for j in jobs:
        j.start()
    for j in jobs:
        j.join()
    assert (tmp_path / 'log').read_text() == 'made\n'


def test_a_seal_with_facts_is_the_makers(place):
    def make(folder):
        (folder / 'x').write_text('x')
        seal(folder, source='mirror')

    assert unseal(kept('k', 'a', make))['source'] == 'mirror'


HARMS = dict(
    altered=lambda p: (p / 'x').write_text('y'),
    cut=lambda p: (p / 'x').write_text(''),
    gone=lambda p: (p / 'x').unlink(),
    manifest=lambda p: (p / 'manifest.json').write_text('{'),
    unsealed=lambda p: (p / 'manifest.json').unlink(),
)


@pytest.mark.parametrize('harm', HARMS)
def test_damage_is_named_or_mended(place, harm, capsys):
    folder = kept('k', 'a', write())
    HARMS[harm](folder)
    with pytest.raises(CorruptFile, match=f'remove {folder} and it will be made again'):
        kept('k', 'a', never)
    capsys.readouterr()
    assert (kept('k', 'a', write(), repair=True) / 'x').read_text() == 'x'
    told = capsys.readouterr()
    assert told.err.count('\n') == 1 and 'made again' in told.err and not told.out
    assert kept('k', 'a', never) == folder


def test_hashes_are_compared_once_a_process_and_when_a_file_was_touched(place, monkeypatch):
    folder = kept('k', 'a', write())
    asked = []
    monkeypatch.setattr(cache, 'unseal', lambda f: asked.append(f))
    for _ in range(3):
        kept('k', 'a', never)
    assert not asked
    os.utime(folder / 'x')
    kept('k', 'a', never)
    kept('k', 'a', never)
    assert asked == [folder]


def test_a_complete_cache_may_be_read_only(place, monkeypatch):
    kept('k', 'a', write())

    def refuse(*args, **kw):
        raise OSError(30, 'Read-only file system')

    for name in ('utime', 'mkdir', 'rename', 'open'):
        monkeypatch.setattr(os, name, refuse)
    assert kept('k', 'a', never) == place / 'k/a'
    with pytest.raises(WriteFailed, match='Read-only'):
        kept('k', 'b', never)


# ---- reading


def test_reads_of_two_threads_do_not_mix(place):
    barrier = threading.Barrier(8)

    def work(n):
        with reading() as mine:
            for i in range(50):
                barrier.wait()
                note_read(f'{n}.{i}', str(n))
        return mine

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert all(f == {f'{n}.{i}': str(n) for i in range(50)} for n, f in enumerate(found))


def test_reads_reach_every_block_around_them_and_none_beside():
    with reading() as a:
        note_read('one', 'h1')
        with pytest.raises(KeyError):
            with reading() as b:
                note_read('two', None)
                raise KeyError
        with reading() as c:
            note_read('one', 'h2')
        thread = threading.Thread(target=copy_context().run, args=(note_read, 'three', 'h3'))
        thread.start()
        thread.join()
    note_read('four', 'h4')
    assert (a, b, c) == ({'one': 'h2', 'two': None, 'three': 'h3'}, {'two': None}, {'one': 'h2'})


# ---- usage and pruning


def old(path, days=100):
    os.utime(path, (time.time() - days * 86_400,) * 2)
    return path


def test_what_was_not_opened_goes_and_what_was_opened_stays(place):
    assert usage() == {} and prune(0) == []
    stale, fresh, opened = (kept('k', n, write(n * 100)) for n in ('a', 'b', 'c'))
    for p in (stale, opened):
        old(p)
    kept('k', 'c', never)  # opening it counts
    (place / 'choices').mkdir()
    (place / 'choices/cpu.json').write_text('{}')
    assert usage()['k'].count == 3 and usage()['choices'] == (1, 2)
    assert prune(30) == [stale] and not stale.exists() and fresh.exists() and opened.exists()
    old(place / 'choices/cpu.json')
    assert prune(30) == [place / 'choices/cpu.json']
    assert [p.name for p in (place / 'k').iterdir() if 'a' in p.name.split('.')] == []  # nor its lock
    with pytest.raises(ValueError, match='days=-1'):
        prune(-1)
    assert {p.name for p in prune(0)} == {'b', 'c'} and usage()['k'].count == 0


def test_leftovers_of_killed_writers_go_and_living_ones_stay(place):
    script = (
        "import os, time; from papers_lib.store.cache import kept\n"
        "def make(f): (f / 'x').write_text('half'); print('begun', flush=True); time.sleep(60)\n"
        "kept('k', 'a', make)"
    )
    child = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    assert prune(0) == [] and usage()['k'].bytes > 0
    child.kill()
    child.wait()
    child.stdout.close()
    assert [p.name[:3] for p in prune(0)] == ['.a-']
    assert (kept('k', 'a', write()) / 'x').read_text() == 'x'


def test_what_is_being_made_or_mended_is_not_pruned(place):
    folder = old(kept('k', 'a', write()))
    held = threading.Event()
    done = threading.Event()

    def hold():
        with locked(folder):
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    assert prune(1) == [] and folder.exists()
    done.set()
    holder.join()
    assert prune(1) == [folder]


def test_making_and_pruning_at_once(place):
    "A user may find a thing gone between asking and reading, never a part of it."
    for _ in range(150):
        folder = kept('k', 'a', write('w' * 5000))
        assert (folder / 'x').read_text() == 'w' * 5000
        workers = [threading.Thread(target=prune, args=(0,)) for _ in range(2)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        assert not folder.exists()
