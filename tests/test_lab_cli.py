"The command line: a wrong request is one line, what a machine lacks is one line, a program can read what it prints."
import json, os, shutil, signal, subprocess, sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

import papers_lib
from papers_lib.engine.train import TrainConfig
from papers_lib.lab.cli import app, machine_lines, main
from papers_lib.lab.presets import Claim, DataConfig, Paper, RunSpec
from papers_lib.nn.stack import Sizes, Stack
from papers_lib.store import cache
from repos import speed, toy_repo

SIZES = dict(n_vocab=300, ctx_len=16, d_model=32, n_layer=2, n_head=2)


@dataclass(frozen=True)
class Grids:
    widths:tuple = ()


def toy_paper():
    def race(id): return lambda seed: iter([speed(id=id, rounds=[1., 2. + seed, 9.])])

    spec = lambda **grids: RunSpec(
        Sizes(**SIZES),
        TrainConfig(n_step=10, batch_size=4, lr=1e-3),
        DataConfig('books', 300),
        Grids(**grids),
        n_seeds=2,
    )
    return Paper(
        'toy',
        Stack,
        {'tiny': spec(), 'cpu': spec(widths=(8, 16))},
        {'C1': Claim('Section 1', 'It helps', 'greater', 0., needs=('widths',))},
        {id: race(id) for id in ('S.train', 'S.train.memory', 'S.decode', 'S.decode.floor')},
    )


PARAMETERS = "preset = 'tiny'\nseed = 0\nn_seeds = 0\nclaims = 'all'\ndevice = 'cpu'\nout_dir = ''\noverrides = '{}'"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A repository with the paper `toy`, whose module is there; its folder."
    module = ModuleType('papers_lib.toy')
    module.paper = toy_paper()
    monkeypatch.setitem(sys.modules, 'papers_lib.toy', module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, 'signal', lambda *args: None)      # pytest keeps its own answer to SIGTERM
    toy_repo(tmp_path)
    nb = json.loads((tmp_path / 'nbs/01_toy.ipynb').read_text())
    nb['metadata'] = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    nb['cells'].append(
        dict(cell_type='code', source=PARAMETERS, metadata=dict(tags=['parameters']), outputs=[], execution_count=None)
    )
    for i, cell in enumerate(nb['cells']): cell['id'] = str(i)
    (tmp_path / 'nbs/01_toy.ipynb').write_text(json.dumps(nb))
    return tmp_path


def call(*args): return CliRunner().invoke(app, list(args), env=dict(COLUMNS='200', NO_COLOR='1'))


# a wrong request

@pytest.mark.parametrize(
    'args, words',
    [
        (['run', 'toi'], "unknown paper 'toi', did you mean 'toy'"),
        (['run', 'toy', '--preset', 'cpuu'], "did you mean 'cpu'"),
        (['run', 'toy', '--set', 'train.lrr=1'], "did you mean 'lr'"),
        (['run', 'toy', '--set', 'model.n_head=5'], 'n_head=5: must divide'),
        (['run', 'toy', '--set', 'claims=C99'], "no claim 'C99'"),
        (['run', 'toy', '--set', 'seed'], 'write key=value'),
        (['run', 'toy', '--set', 'claims=C1'], 'preset tiny leaves C1 out'),
        (['run', 'toy', '--preset', 'cpu', '--set', 'n_seeds=1'], 'takes at least 2'),
        (['run', 'toy', '--set', 'preset=cpu'], 'use --preset'),
        (['run', 'toy', '--set', 'out_dir=x'], 'use --out'),
        (['run', 'toy', '--set', 'overrides={}'], '--set train.lr=3e-4'),
        (['run', 'toy', '--set', 'seed=-1', '--dry-run'], 'seed=-1: must be a whole number'),
        (['run', 'toy', '--set', 'train.lr=Infinity', '--dry-run'], 'train.lr=inf: must be a finite number'),
        (['run', 'toy', '--set', 'data.name=boks', '--dry-run'], "did you mean 'books'"),
        (['run', 'toy', '--set', 'device=gpu', '--dry-run'], "did you mean 'cuda'"),
        (['data', 'get', 'boks'], "did you mean 'books'"),
        (['data', 'fetch'], "unknown action 'fetch': list, get, build, prune"),
        (['bench', 'toi'], "did you mean 'toy'"),
        (['bench', 'toy', '--only', 'ZZZ'], 'the races are S.decode, S.decode.floor, S.train'),
        (['bench', 'toy', '--only', 'S.decode.nothing'], 'can measure no such speed row'),
        (['bench', 'toy', '--peer', 'nowhere'], 'no model.py there'),
        (['publish', 'nope'], "unknown paper 'nope'"),
        (['publish', 'toy', '--preset', 'gpuu'], "did you mean 'gpu'"),
        (['publish', 'toy', '--preset', 'gpu'], 'no finished run of preset gpu'),
        (['new', 'toy'], 'there already: 01_toy.ipynb'),
        (['new', 'GPT-9'], 'lower-case letters and digits'),
        *[(['new', n], f'{n!r}: ') for n in ('lab', 'class', 'match', 'all', 'os', 'print', 'torch')],
    ],
)
def test_a_wrong_request_is_one_line_and_starts_nothing(toy, args, words):
    p = call(*args)
    assert p.exit_code == 2 and words in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr
    assert not (toy / 'runs/toy/tiny').exists() and not (toy / 'runs/toy/bench').exists()


@pytest.mark.parametrize('option', ['--jobs', '--timeout'])
def test_counts_begin_at_one(toy, option):
    p = call('run', 'toy', option, '0')
    assert p.exit_code == 2 and option in p.stderr


def test_a_paper_that_declares_nothing_or_was_not_exported_is_one_line(toy, monkeypatch):
    monkeypatch.delattr(sys.modules['papers_lib.toy'], 'paper')
    p = call('bench', 'toy')
    assert p.exit_code == 2 and 'papers_lib.toy has no `paper`' in p.stderr
    monkeypatch.delitem(sys.modules, 'papers_lib.toy')
    p = call('bench', 'toy')
    assert p.exit_code == 2 and '`make export` writes it' in p.stderr


# plans

def test_the_plan_is_that_of_the_run_that_was_asked_for(toy):
    plan = lambda *more: json.loads(call('run', 'toy', '--dry-run', *more).stdout)['toy']
    plain, more = plan(), plan('--set', 'model.n_layer=4', '--set', 'train.n_step=30')
    assert plain['parameters'] < more['parameters'] and more['tokens'] == 3 * plain['tokens'] == 30 * 4 * 16
    assert not (toy / 'runs/toy/tiny').exists()


# speed

@pytest.mark.parametrize(
    'only, ids',
    [
        (None, ['S.train', 'S.train.memory', 'S.decode', 'S.decode.floor']),
        ('S.decode.floor', ['S.decode.floor']),
        ('S.train', ['S.train']),
        ('S.d', ['S.decode', 'S.decode.floor']),
    ],
)
def test_a_benchmark_runs_what_was_asked_for(toy, only, ids):
    p = call('bench', 'toy', '--seed', '1', *(['--only', only] if only else []))
    assert p.exit_code == 0, p.stderr
    written = json.loads(next((toy / 'runs/toy/bench').rglob('results.json')).read_text())
    assert sorted(r['id'] for r in written['rows']) == sorted(ids) and {r['ours'] for r in written['rows']} == {3.}
    assert written['provenance']['claims'] == (only or 'all') and written['provenance']['machine']['cpu']


# a file of something else

def test_one_bad_file_breaks_no_command(toy):
    (toy / 'nbs/02_odd.ipynb').write_text('{"cells": [')
    (toy / 'results').mkdir()
    (toy / 'results/toy.cpu.json').write_text('[]')
    listed, shown, ran = call('list', '--json'), call('scoreboard', '--json'), call('run', 'all', '--dry-run')
    assert [r['name'] for r in json.loads(listed.stdout)] == ['toy', 'odd'] and '02_odd.ipynb' in listed.stderr
    assert shown.exit_code == 0 and 'toy.cpu.json' in shown.stderr and len(json.loads(shown.stdout)) == 2
    assert ran.exit_code == 1 and '"toy"' in ran.stdout and '02_odd.ipynb cannot be read' in ran.stderr


# where something is missing

@pytest.mark.parametrize(
    'args', [['list'], ['run', 'gpt2'], ['scoreboard'], ['publish', 'gpt2'], ['new', 'mine'], ['bench', 'gpt2']]
)
def test_outside_a_clone_a_command_says_what_it_needs(tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, 'signal', lambda *args: None)
    monkeypatch.setattr('papers_lib.lab.results._installed', lambda: tmp_path)
    p = call(*args)
    assert p.exit_code == 2 and 'clone it' in p.stderr and len(p.stderr.splitlines()) == 1, p.stderr


def test_the_installed_package_lists_sets_and_is_examined_without_a_clone_and_a_home(tmp_path):
    shutil.copytree(
        Path(papers_lib.__file__).parent, tmp_path / 'site/papers_lib', ignore=shutil.ignore_patterns('__pycache__')
    )
    code = (
        'import sys; from papers_lib.lab.cli import app; from typer.testing import CliRunner\n'
        'for args in (["doctor"], ["data"], ["list"]):\n'
        '    p = CliRunner().invoke(app, args)\n'
        '    print(p.exit_code, *(word in p.output for word in ("cache", "books", "clone it")))'
    )
    env = dict(PATH=os.environ['PATH'], PYTHONPATH=str(tmp_path / 'site'))
    told = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert told.splitlines() == ['0 True False False', '0 False True False', '2 False False True']


def test_a_doctor_names_no_package_that_the_index_does_not_have(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *a: None)
    advice = [a for what, found, a in machine_lines() if what.startswith('extra')]
    assert len(advice) == 3 and all("pip install -e '.[" in a and 'papers-lib' not in a for a in advice)


def test_a_home_that_does_not_exist_is_advice_and_no_error(monkeypatch):
    def nowhere(): raise RuntimeError('Could not determine home directory.')
    monkeypatch.delenv('PAPERS_CACHE', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(cache.Path, 'home', nowhere)
    line, = [r for r in machine_lines() if r[0] == 'cache']
    assert line[1] == 'none' and 'PAPERS_CACHE' in line[2]


def test_an_extra_that_is_not_installed_is_one_line(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'papermill', None)
    p = call('run', 'toy')
    assert p.exit_code == 1 and "pip install -e '.[run]'" in p.stderr and len(p.stderr.splitlines()) == 1, p.stderr


# for programs

def test_sets_are_listed_in_columns():
    lines = call('data').stdout.splitlines()
    assert len({line.index(' records ') for line in lines}) == 1
    assert all('  ' in line[:line.index(' records ')].strip() for line in lines)


def test_commands_for_programs():
    assert {'books', 'wikitext2'} <= {r['name'] for r in json.loads(call('data', '--json').stdout)}
    assert {'torch', 'CPU', 'cache'} <= {what for what, *_ in json.loads(call('doctor', '--json').stdout)}
    assert {'paper', 'id', 'preset', 'published', 'local'} == set(json.loads(call('scoreboard', '--json').stdout)[0])


def test_what_was_not_opened_for_long_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    old, new = (cache.kept('variants', k, lambda tmp: (tmp / 'x').write_text('x')) for k in ('old', 'new'))
    os.utime(old, (0, 0))
    assert '1 things removed' in call('data', 'prune', '--days', '7').stdout and not old.exists() and new.exists()


# the package

def test_import_is_quick_and_needs_neither_torch_nor_notebooks():
    code = (
        "import time; t = time.perf_counter(); import papers_lib, sys; took = time.perf_counter() - t\n"
        "heavy = ('torch', 'nbdev', 'IPython', 'wandb', 'papermill', 'matplotlib')\n"
        "print(took, [m for m in heavy if m in sys.modules])"
    )
    ask = lambda: subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    took, loaded = min(ask().split(' ', 1) for _ in range(3))
    assert float(took) < 0.3 and loaded.strip() == '[]'


def test_the_library_needs_no_notebook_software():
    code = (
        "import sys\n"
        "for m in ('nbdev', 'IPython', 'wandb', 'papermill', 'matplotlib', 'nbformat', 'jupyterlab'):\n"
        "    sys.modules[m] = None\n"
        "import papers_lib.gpt2\n"
        "from papers_lib.lab import bench, cli, plots, run, runner, scoreboard"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_threads_of_a_command_do_not_spin(monkeypatch, capsys):
    monkeypatch.delenv('GOMP_SPINCOUNT', raising=False)
    monkeypatch.setattr(sys, 'argv', ['papers', '--help'])
    with pytest.raises(SystemExit): main()
    assert os.environ['GOMP_SPINCOUNT'] == '1000'
    monkeypatch.setenv('GOMP_SPINCOUNT', '7')
    with pytest.raises(SystemExit): main()
    assert os.environ['GOMP_SPINCOUNT'] == '7'
