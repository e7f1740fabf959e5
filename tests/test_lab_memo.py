"Kept results: what changes their key, what they remember, what is computed side by side."
import ast
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from papers_lib.lab import data, memo
from papers_lib.lab.memo import definitions, definitions_hash, map_variants, measure, remembered, variant
from papers_lib.store.cache import note_read, reading

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "An empty cache."
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('PAPERS_WORKERS', raising=False)
    return tmp_path / 'cache'


# what the key depends on

ROOM = '''
"A room."
from __future__ import annotations
from dataclasses import dataclass
from fastcore.basics import patch
import math

START = (1, 2)
kinds = dict(a=len)
kinds |= dict(b=max)
unused = 5

@dataclass
class Size:
    "Sizes."
    width:int = 4      # of it

class Other:
    def run(self): return 1

class Model:
    "A model."
    def __init__(self, size:Size): self.size = size
    def run(self): return self.twice() + START[0]

@patch
def twice(self:Model):
    "Twice."
    return 2 * helper(self.size.width)

@patch
def area(self:Other): return 3

def helper(x:int)->int:
    "Help."
    if x < 0: raise ValueError(f'{x} is too small')
    return x + math.floor(1.5)

def noise(x): return x

try: import numpy as array
except ImportError: array = None
'''

PAPER = '''
"A paper."
from .room import Model, Size, kinds
from . import room as the_room
from fastcore.basics import patch

table = {'T1': 'accuracy, as the paper writes it'}
Model.factor = 3

@patch
def more(self:Model): return 4

def value(model, noise=1):
    table = model.run()                # a local name, not the table
    return table + the_room.array.ones(1).sum() + noise

def demo_run(*, width):
    "Measure."
    from .far import distant
    return dict(y=float(value(Model(Size(width))) + kinds['b'](1, 2) + distant()))

def race(seed): yield 'as fast as before'

def rows(): return table['T1']
'''

FAR = '''
def distant(): return DEEP
DEEP = 7
OTHER = 8
'''


def house(folder, **changed):
    "Write a package, import it anew and give the hash of its function."
    files = dict(room=ROOM, paper=PAPER, far=FAR) | changed
    (folder / 'toyhouse').mkdir(parents=True, exist_ok=True)
    (folder / 'toyhouse/__init__.py').write_text('', encoding='utf-8')
    for name, text in files.items(): (folder / f'toyhouse/{name}.py').write_text(text, encoding='utf-8')
    for name in [n for n in sys.modules if n.partition('.')[0] == 'toyhouse']: del sys.modules[name]
    importlib.invalidate_caches()
    memo._source_of.cache_clear()
    memo._hashed_once.cache_clear()
    sys.path.insert(0, str(folder))
    try: return definitions_hash(importlib.import_module('toyhouse.paper').demo_run)
    finally: sys.path.remove(str(folder))


SAME = [
    ('room', '"Help."', '"Help, better said."'), ('room', '# of it', '# of the whole'), ('room', 'x:int)->int', 'x)'),
    ('room', 'is too small', 'must not be negative'), ('room', 'unused = 5', 'unused = 6'),
    ('room', 'unused = 5\n', ''),
    ('room', 'def noise(x): return x', 'def noise(x): return x + 1'),
    ('room', 'def area(self:Other): return 3', 'def area(self:Other): return 4'),
    ('room', '"A room."', '"Another room."'), ('room', 'unused = 5', 'new = 1'),
    ('room', 'START = (1, 2)', 'START = (1,\n         2)'),
    ('paper', 'as the paper writes it', 'better said'), ('paper', 'as fast as before', 'faster'),
    ('paper', '"Measure."\n', '"Measure well."\n'),
    ('paper', "def rows(): return table['T1']", "def rows(): return table['T1'].upper()"),
    ('far', 'OTHER = 8', 'OTHER = 9')]
OTHERWISE = [
    ('room', 'return x + math', 'return x - math'), ('room', 'math.floor', 'math.ceil'),
    ('room', 'START = (1, 2)', 'START = (3, 2)'),
    ('room', 'width:int = 4', 'width:int = 5'), ('room', 'return 2 * helper', 'return 3 * helper'),
    ('room', 'dict(b=max)', 'dict(b=min)'),
    ('room', 'kinds |= dict(b=max)', 'kinds |= dict(b=max)\nkinds["c"] = min'),
    ('room', 'kinds |= dict(b=max)', 'kinds |= dict(b=max)\nkinds.update(b=min)'),
    ('room', 'import math', 'import cmath as math'), ('room', 'import numpy as array', 'import torch as array'),
    ('paper', 'Model.factor = 3', 'Model.factor = 4'),
    ('paper', 'def more(self:Model): return 4', 'def more(self:Model): return 5'),
    ('paper', 'noise=1', 'noise=2'), ('far', 'DEEP = 7', 'DEEP = 8'), ('room', 'class Model:', 'class Model(Other):'),
    ('paper', 'from .room import Model, Size, kinds', 'from .room import Other as Model, Size, kinds')]


@pytest.fixture(scope='module')
def plain_key(tmp_path_factory): return house(tmp_path_factory.mktemp('plain'))


@pytest.mark.parametrize('file, old, new', SAME)
def test_what_moves_no_number_changes_no_key(tmp_path, plain_key, file, old, new):
    text = dict(room=ROOM, paper=PAPER, far=FAR)[file]
    assert old in text
    assert house(tmp_path, **{file: text.replace(old, new)}) == plain_key


@pytest.mark.parametrize('file, old, new', OTHERWISE)
def test_what_the_function_reaches_changes_its_key(tmp_path, plain_key, file, old, new):
    text = dict(room=ROOM, paper=PAPER, far=FAR)[file]
    assert old in text
    assert house(tmp_path, **{file: text.replace(old, new)}) != plain_key


def test_a_helper_that_moves_into_a_room_keeps_every_result(tmp_path, plain_key):
    helper = ROOM[ROOM.index('def helper'):ROOM.index('def noise')]
    moved = ROOM.replace(helper, '').replace('import math', 'from .other import helper')
    assert house(tmp_path, room=moved, other='import math\n' + helper) == plain_key


def test_definitions_that_use_each_other(tmp_path):
    far = 'def distant(): return again(3)\ndef again(n): return distant() if n else {}\n'
    a, b, c = (house(tmp_path / name, far=far.format(n)) for name, n in (('a', 1), ('b', 1), ('c', 2)))
    assert a == b != c


def test_two_helpers_that_change_places_change_the_key(tmp_path):
    "Names do not enter, but who uses what does."
    far = 'def one(): return {}\ndef two(): return {}\ndef distant(): return one() - two()\n'
    assert house(tmp_path / 'a', far=far.format(1, 2)) != house(tmp_path / 'b', far=far.format(2, 1))


def test_what_runs_is_what_is_hashed(tmp_path, monkeypatch):
    house(tmp_path)
    fn = sys.modules['toyhouse.paper'].demo_run
    path = tmp_path / 'toyhouse/room.py'
    path.write_text(ROOM.replace('return x + math', 'return x - math'), encoding='utf-8')
    os.utime(path, (time.time() + 5,) * 2)
    memo._source_of.cache_clear()
    memo._hashed_once.cache_clear()
    monkeypatch.syspath_prepend(str(tmp_path))
    words = r'toyhouse.room was changed after it was imported \(helper differs\): restart'
    with pytest.raises(ValueError, match=words):
        definitions_hash(fn)


def test_only_what_can_be_named_is_hashed():
    def inside(): pass
    for fn in (inside, lambda: 1, Path.exists):
        with pytest.raises(ValueError, match='top level|cannot be read'): definitions_hash(fn)


REAL = '''
import json, re, sys
from pathlib import Path
from papers_lib import gpt2, llama
from papers_lib.engine import train
from papers_lib.lab import memo
memo._check_loaded = lambda *args: None          # this process runs none of what it changes
root = Path('papers_lib')

def keys():
    memo._source_of.cache_clear(); memo._hashed_once.cache_clear()
    return [memo.definitions_hash(f) for f in (gpt2.GPT2, train.fit)]

def changed(file, old, new):
    path = root / file
    text = path.read_text(encoding='utf-8')
    assert re.search(old, text), (file, old)
    before = keys()
    path.write_text(re.sub(old, new, text, count=1), encoding='utf-8')
    after = keys()
    path.write_text(text, encoding='utf-8')
    return [a != b for a, b in zip(before, after)]

found = dict(
    docstring=changed('engine/train.py', '"Multiplier of the chosen schedule at a step."', '"Said better."'),
    sets=changed('lab/sets.toml', r'\\A', '[new]\\nlicence = "CC0"\\n[new.files]\\n'),
    presets=changed('lab/presets.py', 'finite', 'is_finite'),
    plots=changed('lab/plots.py', r'\\Z', '\\nadded = 1\\n'),
    store=changed('store/files.py', 'LOCK_NB', 'LOCK_UN'),
    schedule=changed('engine/train.py', r'0\\.5 \\* \\(1 \\+ math\\.cos', '0.4 * (1 + math.cos'),
    blocks=changed('nn/blocks.py', r'class Block\\(nn\\.Module\\):', 'class Block(nn.Module):\\n    new = 1'),
)
print(json.dumps(found))
'''


def test_of_the_real_library_only_what_is_reached_counts(tmp_path):
    subprocess.run(['cp', '-r', str(ROOT / 'papers_lib'), str(tmp_path)], check=True)
    env = os.environ | dict(PYTHONPATH=str(tmp_path))
    told = subprocess.run([sys.executable, '-c', REAL], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found == dict(docstring=[False, False], sets=[False, False], presets=[False, False], plots=[False, False],
                         store=[False, False], schedule=[False, True], blocks=[True, False])


def test_keys_are_the_same_in_every_process_and_quick():
    ask = ('import time\nfrom papers_lib import gpt2\nfrom papers_lib.engine.train import fit\n'
           'from papers_lib.lab.memo import definitions_hash\nbegan = time.process_time()\n'
           'print(definitions_hash(fit), definitions_hash(gpt2.GPT2), time.process_time() - began)')
    told = [subprocess.run([sys.executable, '-c', ask], env=os.environ | dict(PYTHONHASHSEED=str(i)),
                           capture_output=True,
                           text=True, check=True).stdout.split() for i in (1, 2)]
    assert told[0][:2] == told[1][:2]
    assert min(float(t[2]) for t in told) < 0.8


def test_what_fetches_and_keeps_is_not_followed():
    found = definitions(data._tokenise)
    assert 'papers_lib.lab.data.documents' in found and 'papers_lib.text.tokenizers.train_fast_bpe' in found
    assert not [f for f in found if f.startswith('papers_lib.store') or f.endswith(('.get', '.registry', '._fetch'))]


# what is kept

def counted(*, path, x=1.):
    "Leave a mark at each call."
    with open(path, 'a', encoding='utf-8') as f: f.write('x')
    return dict(n=1, nothing=float('nan'), much=[float('-inf')], x=x)


def marks(path): return len(Path(path).read_text(encoding='utf-8')) if Path(path).exists() else 0


def test_a_variant_is_computed_once_numbers_that_are_none_included(tmp_path):
    log = str(tmp_path / 'log')
    results = [variant(counted, dict(path=log)) for _ in range(3)]
    assert marks(log) == 1
    assert all(r['n'] == 1 and math.isnan(r['nothing']) and r['much'] == [float('-inf')] for r in results)
    variant(counted, dict(path=log, x=2.))
    assert marks(log) == 2


def record(cache): return sorted(cache.glob('variants/counted-*/record.json'))


@pytest.mark.parametrize('harm', [lambda text: text[:20], lambda text: '',
                                  lambda text: text.replace('"n": 1', '"n": 2'),
                                  lambda text: '{}', lambda text: 'null'])
def test_a_damaged_record_is_said_and_computed_again(tmp_path, cache, capsys, harm):
    log = str(tmp_path / 'log')
    variant(counted, dict(path=log))
    path, = record(cache)
    path.write_text(harm(path.read_text(encoding='utf-8')), encoding='utf-8')
    assert variant(counted, dict(path=log))['n'] == 1 and marks(log) == 2
    assert 'computed again' in capsys.readouterr().err
    variant(counted, dict(path=log))
    assert marks(log) == 2


@pytest.mark.parametrize('field, value', [('config', dict(path='elsewhere')), ('fn', 'another'),
                                          ('definitions', '0' * 64)])
def test_a_record_of_something_else_is_not_taken(tmp_path, cache, capsys, field, value):
    "Even where its seal is right: another's record under this one's name."
    log = str(tmp_path / 'log')
    variant(counted, dict(path=log))
    path, = record(cache)
    told = json.loads(path.read_text(encoding='utf-8')) | {field: value}
    path.write_text(json.dumps(told), encoding='utf-8')
    (path.parent / 'manifest.json').unlink()
    memo.kept.__globals__['seal'](path.parent)
    variant(counted, dict(path=log))
    assert marks(log) == 2 and 'computed again' in capsys.readouterr().err


def test_a_record_says_how_it_came_about(tmp_path, cache):
    variant(counted, dict(path=str(tmp_path / 'log')))
    told = json.loads(record(cache)[0].read_text(encoding='utf-8'))
    assert set(told) == {'fn', 'config', 'definitions', 'reads', 'result', 'seconds', 'machine', 'versions', 'commit'}
    assert told['versions']['torch'] and told['machine'] and told['result']['nothing'] == {'$float': 'nan'}


def odd(*, what): return dict(a=object()) if what == 'object' else {'$float': 1}


@pytest.mark.parametrize('what', ['object', 'key'])
def test_what_cannot_be_kept_is_named(what):
    with pytest.raises(ValueError, match='result of odd: must be plain values|cannot be a key'):
        variant(odd, dict(what=what))


def test_a_configuration_is_the_same_however_it_is_written(tmp_path):
    from dataclasses import dataclass

    import numpy as np

    @dataclass
    class Size: width:int = 3
    log = str(tmp_path / 'log')
    for x in (Size(), dict(width=3), dict(width=np.int64(3))): variant(counted, dict(path=log, x=x))
    for x in ((1, 2), [1, 2]): variant(counted, dict(path=log, x=x))
    assert marks(log) == 2


# data that were read

def looks(*, path):
    "Read a set if it is at hand."
    counted(path=path)
    return dict(found=data.available('toy') and data.get('toy').path('t').read_text(encoding='utf-8'))


def test_a_result_without_a_set_is_not_taken_for_one_with_it(tmp_path, monkeypatch):
    import hashlib
    log = str(tmp_path / 'log')
    file = lambda text: data.SetSpec('CC0', {'t': data.FileSpec(hashlib.sha256(text).hexdigest(), 1, 't')})
    monkeypatch.setenv('PAPERS_MIRROR', str(tmp_path / 'mirror'))
    monkeypatch.setitem(data.registry, 'toy', file(b'here'))
    place = tmp_path / 'mirror/toy/t'
    ask = lambda: variant(looks, dict(path=log))['found']
    assert [ask(), ask(), marks(log)] == [False, False, 1]
    place.parent.mkdir(parents=True)
    place.write_bytes(b'here')
    assert [ask(), ask(), marks(log)] == ['here', 'here', 2]
    monkeypatch.setitem(data.registry, 'toy', file(b'there'))
    place.write_bytes(b'there')
    assert [ask(), ask(), marks(log)] == ['there', 'there', 3]
    monkeypatch.setitem(data.registry, 'new', file(b'of nobody'))
    assert [ask(), marks(log)] == ['there', 3]                        # a further set is nobody's business
    monkeypatch.setitem(data.registry, 'toy', file(b'here'))
    assert [ask(), marks(log)] == ['here', 3]                         # the records lie side by side


@remembered
def slow_text(name):
    note_read(name, None)
    return object()


def test_what_is_remembered_is_noted_again():
    with reading() as first: a = slow_text('gone')
    with reading() as second: b = slow_text('gone')
    assert a is b and first == second == dict(gone=None)
    for i in range(5): slow_text(f'{i}')
    assert slow_text('gone') is not a                                 # four are kept


# side by side

def threads(*, n, log):
    import torch
    counted(path=f'{log}{n}')
    return dict(n=n, torch=torch.get_num_threads(), omp=os.environ.get('OMP_NUM_THREADS'), pid=os.getpid())


def test_many_at_once_come_in_order_each_computed_once(tmp_path):
    log = str(tmp_path / 'log')
    configs = [dict(n=n, log=log) for n in (3, 1, 2, 1, 3)]
    first = measure(threads, configs, workers=2)
    assert [m.result['n'] for m in first] == [3, 1, 2, 1, 3]
    assert all(m.result['torch'] == 1 and m.result['omp'] == '1' and m.result['pid'] != os.getpid() for m in first)
    again = measure(threads, configs, workers=2)
    assert all(m.carried for m in again) and not any(m.carried for m in first)
    assert [m.result for m in again] == [m.result for m in first]
    assert [marks(f'{log}{n}') for n in (1, 2, 3)] == [1, 1, 1]
    assert map_variants(threads, []) == []


def fails(*, n, log):
    counted(path=f'{log}{n}')
    if n == 1: raise ArithmeticError('too much')
    return dict(n=n)


def test_a_failing_variant_is_named_and_the_finished_are_kept(tmp_path):
    log = str(tmp_path / 'log')
    with pytest.raises(RuntimeError, match=r"fails\(.*'n': 1.*ArithmeticError: too much"):
        map_variants(fails, [dict(n=n, log=log) for n in (0, 1)], workers=2)
    for _ in range(50):
        if marks(f'{log}0'): break
        time.sleep(0.1)
    assert map_variants(fails, [dict(n=0, log=log)]) == [dict(n=0)] and marks(f'{log}0') <= 2


@pytest.mark.parametrize('where, words', [('many', "PAPERS_WORKERS='many': must be"), ('ray://', 'must be'),
                                          ('ftp://x', 'must be')])
def test_a_cluster_that_is_none_is_refused(monkeypatch, tmp_path, where, words):
    monkeypatch.setenv('PAPERS_WORKERS', where)
    with pytest.raises(ValueError, match=words): map_variants(counted, [dict(path=str(tmp_path / 'log'))])


SCRIPT = '''
import sys, time, os
from papers_lib.lab.memo import map_variants
factor = 3
def helper(x): return factor * x
def nap(*, n, seconds, out):
    open(f'{out}/pid{n}', 'w').write(str(os.getpid()))
    time.sleep(seconds)
    return dict(y=helper(n))
configs = [dict(n=n, seconds=float(sys.argv[1]), out=sys.argv[2]) for n in (1, 2)]
print(map_variants(nap, configs, workers=2), flush=True)
'''


def test_a_plain_script_needs_no_guard(tmp_path):
    path = tmp_path / 'script.py'
    run = lambda text: (path.write_text(text, encoding='utf-8'), subprocess.run(
        [sys.executable, str(path), '0', str(tmp_path)], capture_output=True, text=True))[1]
    first = run(SCRIPT)
    assert first.stdout.strip() == "[{'y': 3}, {'y': 6}]", first.stderr
    assert run(SCRIPT.replace('factor = 3', 'factor = 4')).stdout.strip() == "[{'y': 4}, {'y': 8}]"
    assert run(SCRIPT.replace('factor * x', 'factor + x')).stdout.strip() == "[{'y': 4}, {'y': 5}]"


def alive(pid):
    path = Path(f'/proc/{pid}/stat')
    return path.exists() and ' Z ' not in path.read_text(encoding='utf-8')


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_worker(tmp_path, sign):
    (tmp_path / 'script.py').write_text(SCRIPT, encoding='utf-8')
    p = subprocess.Popen([sys.executable, str(tmp_path / 'script.py'), '300', str(tmp_path)])
    for _ in range(300):
        pids = [int(f.read_text()) for f in tmp_path.glob('pid?') if f.read_text()]
        if len(pids) == 2: break
        time.sleep(0.1)
    assert len(pids) == 2
    time.sleep(0.5)
    p.send_signal(sign)
    p.wait(20)
    ends = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < ends: time.sleep(0.1)
    assert not any(map(alive, pids))


CELLS = [
    'from dataclasses import dataclass\nimport json\nimport numpy as np\nfrom fastcore.basics import patch\n'
    'from papers_lib.lab.memo import definitions_hash, map_variants',
    'widths = (1, 2)\nkinds = dict(a=abs)',
    '@dataclass(frozen=True)\nclass Size:\n    width:int = 2',
    'class Net:\n    def __init__(self, size): self.size = size',
    '@patch\ndef out(self:Net): return 10 * self.size.width',
    'def helper(net): return net.out() + len(widths) + kinds["a"](-1)',
    'def net_run(*, width, seed): return dict(y=helper(Net(Size(width))) + seed)']


def executed(tmp_path, *cells):
    "Execute a notebook; the JSON of its last cell."
    import papermill
    nb = new_notebook(cells=[new_code_cell(c) for c in cells],
                      metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nbformat.write(nb, tmp_path / 'nb.ipynb')
    done = papermill.execute_notebook(str(tmp_path / 'nb.ipynb'), str(tmp_path / 'out.ipynb'), kernel_name='python3',
                                      progress_bar=False)
    printed = [o.text for o in done.cells[-1].outputs if o.output_type == 'stream' and o.name == 'stdout']
    return json.loads(''.join(printed))


def test_a_notebooks_own_functions_are_hashed_and_shipped(tmp_path):
    changes = [(1, '(1, 2)', '(1, 2, 3)'), (1, 'abs', 'round'), (2, 'width:int = 2', 'width:int = 3'),
               (4, '10 *', '11 *'),
               (5, 'net.out() +', 'net.out() -')]
    cells = [*CELLS, 'keys = {}', 'results = map_variants(net_run, [dict(width=w, seed=0) for w in (1, 2)], workers=2)']
    note = lambda name: f'keys[{name!r}] = definitions_hash(net_run)'
    cells += [note('first'), CELLS[4].replace(': return', ':\n    "Ten times."\n    return'), note('better said'),
              CELLS[3], CELLS[4], note('again')]
    for i, old, new in changes:
        assert old in CELLS[i]
        cells += [CELLS[i].replace(old, new), note(new), CELLS[i], note(f'back from {new}')]
    cells += ['raise_later = 1\ndef helper(net): return 1 / 0', CELLS[5]]
    keys, results = executed(tmp_path, *cells, note('last'), 'print(json.dumps([keys, results]))')
    assert results == [dict(y=13), dict(y=23)]
    for name, key in keys.items(): assert (key == keys['first']) == (name not in {new for *_, new in changes}), name


def test_a_cached_helper_of_a_notebook_is_refused(tmp_path):
    cells = ['import json\nfrom functools import lru_cache\nfrom papers_lib.lab.memo import definitions_hash',
             '@lru_cache\ndef once(): return 1', 'def run(*, x): return dict(y=once())',
             'try: definitions_hash(run)\nexcept ValueError as e: print(json.dumps(str(e)))']
    assert 'use lab.memo.remembered' in executed(tmp_path, *cells)


CLUSTER = '''
import json, os, sys
from papers_lib.lab.memo import map_variants
def helper(x): return x * x
def square(*, x):
    import time, torch
    torch.manual_seed(x)
    time.sleep(0.2)                  # another variant of this process would draw in between
    return dict(y=helper(x), drawn=float(torch.rand(3).sum()), threads=torch.get_num_threads())
configs = [dict(x=x) for x in range(6)]
def compare():
    os.environ['PAPERS_CACHE'] = sys.argv[1] + '/far'
    far = map_variants(square, configs)
    os.environ['PAPERS_WORKERS'] = ''
    os.environ['PAPERS_CACHE'] = sys.argv[1] + '/here'
    print(json.dumps([far, map_variants(square, configs, workers=2)]))
'''
RAY = '''
import ray
ray.init(address='local', num_cpus=2, include_dashboard=False)
os.environ['PAPERS_WORKERS'] = 'ray://local'
compare()
'''
DASK = '''
from distributed import LocalCluster
if __name__ == '__main__':           # its workers begin by importing this file
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        os.environ['PAPERS_WORKERS'] = cluster.scheduler_address.replace('tcp', 'dask')
        compare()
'''


@pytest.mark.cluster
@pytest.mark.parametrize('library, body', [('ray', RAY), ('distributed', DASK)])
def test_the_workers_of_a_cluster_give_the_same_results(tmp_path, library, body):
    pytest.importorskip(library, reason=f"needs the extra 'cluster' ({library})")
    (tmp_path / 'cluster.py').write_text(CLUSTER + body, encoding='utf-8')
    told = subprocess.run([sys.executable, str(tmp_path / 'cluster.py'), str(tmp_path)], capture_output=True,
                          text=True, timeout=300)
    assert told.returncode == 0 and 'ERROR' not in told.stderr, told.stderr
    far, near = json.loads(told.stdout.strip().splitlines()[-1])
    assert far == near and [r['y'] for r in far] == [0, 1, 4, 9, 16, 25] and all(r['threads'] == 1 for r in far)


def test_a_process_that_maps_ends_when_it_is_done(tmp_path, monkeypatch):
    "As a worker of `nbdev_test` is: multiprocessing joins what it began, and idle workers stay for five minutes."
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    (tmp_path / 'mapped.py').write_text(
        'from papers_lib.lab.memo import map_variants\n'
        'def double(*, x): return dict(y=2 * x)\n'
        'def both(): assert [r["y"] for r in map_variants(double, [dict(x=1), dict(x=2)], workers=2)] == [2, 4]\n',
        encoding='utf-8',
    )
    code = (
        'import multiprocessing, mapped\n'
        'p = multiprocessing.get_context("fork").Process(target=mapped.both)\n'
        'p.start(); p.join(100); print(p.exitcode)'
    )
    env = os.environ | {'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])}
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=150)
    assert done.stdout.strip() == '0', done.stderr


def test_a_field_that_another_python_has_and_leaves_empty_changes_no_text():
    stmt = ast.parse('def f(x, *, y=None):\n    return x + 1.5').body[0]
    before = memo._spelt(stmt)
    stmt._fields, stmt.new_in_this_python = (*stmt._fields, 'new_in_this_python'), []
    assert memo._spelt(stmt) == before and 'y' in before and '1.5' in before
    stmt.new_in_this_python = [ast.Name('T')]
    assert memo._spelt(stmt) != before
    assert memo._spelt(ast.parse('f(None)')) != memo._spelt(ast.parse('f()'))
