"Headless runs: what is refused, what fails, what survives."
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

import papers_lib
from papers_lib.lab.cli import TEMPLATE, app, paper_function
from papers_lib.lab.runner import BadRequest, check, code_hash, run_notebooks, variant

PARAMETERS = """preset = 'tiny'
seed = 0
n_seeds = 0
claims = 'all'
device = 'cpu'
wandb_mode = 'offline'
out_dir = ''
overrides = '{}'"""
START = '''
from dataclasses import dataclass
from papers_lib.engine.stats import mean_t
from papers_lib.lab.presets import RunSpec
from papers_lib.lab.runner import start
@dataclass(frozen=True)
class Toy:
    lr:float = 1.
run = start('toy', {'tiny': RunSpec(Toy(), Toy(), Toy(), Toy())}, {'C1': ('One is more than none', 'greater', 0.)}, preset=preset, seed=seed,
            n_seeds=n_seeds, claims=claims, device=device, wandb_mode=wandb_mode, out_dir=out_dir, overrides=overrides)
'''
TRACKED = "t = run.tracker('main', lr=run.spec.train.lr); t.log(dict(loss=1.), 1)"
FINISH = "run.finish(why='tiny')"


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "Make notebooks in a repository of their own."
    (tmp_path / 'settings.ini').write_text(''); (tmp_path / 'nbs').mkdir(); monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache')); monkeypatch.setenv('WANDB_MODE', 'offline')

    def add(name, *cells, number=1, tag='parameters'):
        first = new_code_cell(PARAMETERS, metadata=dict(tags=[tag] if tag else []))
        nb = new_notebook(cells=[first, *map(new_code_cell, cells)], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
        nbformat.write(nb, tmp_path / f'nbs/{number:02d}_{name}.ipynb')
    add.root = tmp_path
    return add


def run(repo, names=('all',), **kw): return {s['paper']: s for s in run_notebooks(list(names), root=repo.root, report=lambda line: None, **kw)}


def wandb_exits(folder):
    "Exit codes that a folder's W&B runs recorded, by the tool's own reader."
    found = [json.loads(line) for path in Path(folder).glob('wandb/offline-run-*/*.wandb')
             for line in subprocess.run(['wandb', 'leet', 'inspect', '--json', str(path)], capture_output=True, text=True).stdout.splitlines() if line.startswith('{')]
    return [r['exit'].get('exit_code', 0) for r in found if r['type'] == 'exit']


def test_a_failing_notebook_is_marked_and_the_others_finish(repo):
    repo('bad', START, TRACKED, "raise RuntimeError('too bad')", FINISH)
    repo('good', START, TRACKED, FINISH, number=2)
    repo('dead', START, TRACKED, 'import os, signal, time; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)', number=3)
    repo('slow', START, TRACKED, 'import time; time.sleep(60)', number=4)
    repo('silent', START, TRACKED, number=5)
    repo('deaf', START, TRACKED, "import time\ntry: time.sleep(60)\nexcept BaseException: pass\ntry: run.finish()\nexcept TimeoutError: pass", number=6)
    done = run(repo, jobs=2, timeout=15)
    assert {n: s['status'] for n, s in done.items()} == dict(bad='failed', good='finished', dead='failed', slow='failed', silent='failed', deaf='failed')
    assert 'RuntimeError: too bad' in done['bad']['error'] and {n: s.get('cell') for n, s in done.items()} == dict(bad=4, dead=4, slow=4, deaf=4, good=None, silent=None)
    assert 'kernel died' in done['dead']['error'] and 'without writing results.json' in done['silent']['error']
    assert all('longer than 15 s' in done[n]['error'] for n in ('slow', 'deaf'))
    for name, s in done.items():
        folder = Path(s['folder'])
        assert (folder / 'results.json').exists() == (name == 'good') and (folder / 'run.log').exists()
        assert json.loads((folder / 'status.json').read_text())['status'] == s['status']
        assert wandb_exits(folder) == dict(good=[0], dead=[]).get(name, [1]), name      # a killed kernel says nothing, the others say that they failed
    rows = json.loads((Path(done['good']['folder']) / 'results.json').read_text())['rows']
    assert [(r['id'], r['verdict'], r['why']) for r in rows] == [('C1', 'not attempted', 'tiny')]


def test_parameters_and_overrides_arrive(repo):
    repo('toy', START, "assert seed == 7 and run.spec.train.lr == 3. and run.seeds == [7, 8]", FINISH)
    s = run(repo, parameters=dict(seed=7, n_seeds=2, overrides='{"train.lr": 3}'))['toy']
    assert s['status'] == 'finished', s
    assert json.loads((Path(s['folder']) / 'provenance.json').read_text())['overrides'] == '{"train.lr": 3}'


@pytest.mark.parametrize('names, preset, parameters, words', [
    (['toi'], 'tiny', {}, "unknown paper 'toi', did you mean 'toy'"), (['toy'], 'tini', {}, "unknown preset 'tini', did you mean 'tiny'"),
    (['toy'], 'tiny', dict(sed=1), "no parameter 'sed', did you mean 'seed'"), (['toy'], 'tiny', dict(seed='abc'), "seed='abc': must be a whole number"),
    (['toy'], 'tiny', dict(preset='cpu'), 'use --preset'), (['toy'], 'tiny', dict(out_dir='x'), 'use --out')])
def test_what_cannot_be_started_is_refused_before_anything_starts(repo, names, preset, parameters, words):
    repo('toy', START, FINISH)
    with pytest.raises(BadRequest, match=words): run_notebooks(names, preset, parameters=parameters, root=repo.root)
    assert not (repo.root / 'runs').exists()


@pytest.mark.parametrize('bad', [dict(jobs=0), dict(timeout=0), dict(timeout=-1)])
def test_no_jobs_and_no_time_are_refused(repo, bad):
    repo('toy', START, FINISH)
    with pytest.raises(BadRequest, match='must be at least 1'): run_notebooks(['toy'], root=repo.root, **bad)


LIMITED = """
import json, resource, sys
from pathlib import Path
from papers_lib.lab.runner import run_notebooks
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
print(json.dumps(run_notebooks(['toy'], root=Path(sys.argv[1]), report=lambda line: None)[0]))
"""


def test_a_disk_that_fills_up_is_named_and_leaves_a_whole_notebook(repo):
    repo('toy', START, "print('kept')", "print('x' * 100_000)", FINISH)
    status = json.loads(subprocess.run([sys.executable, '-c', LIMITED, str(repo.root)], capture_output=True, text=True, check=True).stdout)
    folder = Path(status['folder'])
    assert status['status'] == 'failed' and f"{folder / 'toy.ipynb'} could not be written" in status['error'] and status['cell'] == 4
    nb = nbformat.read(folder / 'toy.ipynb', 4); nbformat.validate(nb)
    assert 'kept' in str(nb.cells[3].outputs) and not (folder / 'results.json').exists() and not [p.name for p in folder.glob('.*')]


def test_provenance_names_the_code_that_ran(repo):
    from papers_lib.lab.results import notebook_hash
    repo('toy', START, FINISH); s = run(repo, parameters=dict(seed=3))['toy']; folder = Path(s['folder'])
    ran = json.loads((folder / 'provenance.json').read_text())['notebook']
    assert ran == notebook_hash((repo.root / 'nbs/01_toy.ipynb').read_text()) == notebook_hash((folder / 'toy.ipynb').read_text())
    assert any('injected-parameters' in c.metadata.get('tags', []) for c in nbformat.read(folder / 'toy.ipynb', 4).cells)


def test_a_relative_folder_of_runs(repo):
    repo('toy', START, FINISH); s = run(repo, out='elsewhere')['toy']
    assert s['status'] == 'finished' and (repo.root / s['folder'] / 'results.json').exists(), s


def test_a_lost_parameters_tag_is_refused(repo):
    repo('toy', START, FINISH, tag=None)
    with pytest.raises(BadRequest, match="01_toy.ipynb: no cell is tagged 'parameters'"): check(['toy'], 'tiny', {}, repo.root)


def test_two_runs_at_once_keep_apart(repo):
    repo('toy', START, FINISH)
    code = f"from papers_lib.lab.runner import run_notebooks; print(run_notebooks(['toy'], root=__import__('pathlib').Path({str(repo.root)!r}), report=lambda l: None)[0]['folder'])"
    both = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {p.communicate()[0].strip() for p in both}
    assert len(folders) == 2 and all((Path(f) / 'results.json').exists() for f in folders)


VARIANT = """
import os, sys; sys.path.insert(0, os.getcwd())
from pathlib import Path
Path('sleepy.py').write_text("import os, time\\ndef nap(*, n): open(f'pid{n}', 'w').write(str(os.getpid())); time.sleep(120); return {}")
os.environ['PYTHONPATH'] = os.getcwd()
import sleepy
run.map(sleepy.nap, [dict(n=0), dict(n=1)])
"""


def gone(pid):
    "Wait for a process to end."
    for _ in range(150):
        if not Path(f'/proc/{pid}').exists() or ' Z ' in Path(f'/proc/{pid}/stat').read_text(): return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_what_is_finished_and_leaves_nobody_behind(repo, sign):
    repo('good', START, FINISH)
    repo('long', START, TRACKED, VARIANT, number=2)
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)     # a shell starts background jobs deaf to it
    p = subprocess.Popen([str(Path(sys.executable).parent / 'papers'), 'run', 'all'], cwd=repo.root, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    for line in p.stderr:
        if 'long: started' in line: break
    for _ in range(300):
        if len(pids := [f for f in repo.root.rglob('pid?') if f.read_text()]) == 2: break
        time.sleep(0.1)
    pids = [int(f.read_text()) for f in pids]; assert len(pids) == 2
    p.send_signal(sign); _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'finished runs are kept' in err
    assert list(repo.root.glob('runs/good/tiny/*/results.json'))
    assert json.loads(next(repo.root.glob('runs/long/tiny/*/status.json')).read_text())['status'] == 'interrupted'
    assert all(map(gone, pids))


def papers(*args, cwd=None): return subprocess.run([str(Path(sys.executable).parent / 'papers'), *args], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize('args, words', [
    (['run', 'gpt22'], "unknown paper 'gpt22', did you mean 'gpt2'"), (['run', 'gpt2', '--preset', 'cpuu'], "did you mean 'cpu'"),
    (['run', 'gpt2', '--set', 'train.lrr=1'], "did you mean 'lr'"), (['run', 'gpt2', '--set', 'model.n_head=5'], 'GPT2Config.n_head=5: must divide'),
    (['run', 'gpt2', '--set', 'claims=C99'], "no claim 'C99'"), (['run', 'gpt2', '--set', 'seed'], 'write key=value'), (['data', 'get', 'boks'], "did you mean 'books'"),
    (['run', 'gpt2', '--set', 'preset=cpu'], 'use --preset'), (['run', 'gpt2', '--set', 'out_dir=x'], 'use --out'), (['run', 'gpt2', '--set', 'overrides={}'], '--set train.lr=3e-4'),
    (['run', 'gpt2', '--set', 'seed=-1', '--dry-run'], 'seed=-1: must be a whole number'), (['run', 'gpt2', '--set', 'train.lr=Infinity', '--dry-run'], 'train.lr=inf: must be a finite number'),
    (['run', 'gpt2', '--set', 'data.name=boks', '--dry-run'], "did you mean 'books'"), (['run', 'gpt2', '--set', 'device=gpu', '--dry-run'], "did you mean 'cuda'"),
    (['bench', 'gtp2'], "did you mean 'gpt2'"), (['bench', 'gpt2', '--only', 'ZZZ'], 'they begin with S.generate, S.score, S.train'),
    (['publish', 'nope'], "unknown paper 'nope'"), (['publish', 'gpt22'], "did you mean 'gpt2'"), (['publish', 'gpt2', '--preset', 'gpuu'], "did you mean 'gpu'"),
    (['new', 'GPT-9'], 'lower-case letters and digits'), *[(['new', n], f'{n!r}: ') for n in ('lab', 'class', 'match', 'all', 'os', 'print', 'torch')]])
def test_the_command_line_names_what_is_wrong(args, words, monkeypatch):
    monkeypatch.setattr(signal, 'signal', lambda *args: None)      # pytest keeps its own answer to SIGTERM
    p = CliRunner().invoke(app, args)
    assert p.exit_code == 2 and words in p.stderr and len(p.stderr.strip().splitlines()) == 1, p.stderr


@pytest.mark.parametrize('option', ['--jobs', '--timeout'])
def test_counts_begin_at_one(option, monkeypatch):
    monkeypatch.setattr(signal, 'signal', lambda *args: None)
    p = CliRunner().invoke(app, ['run', 'gpt2', option, '0'], env=dict(COLUMNS='200', NO_COLOR='1')); assert p.exit_code == 2 and option in p.stderr


def test_a_paper_without_speed_rows_or_a_plan_is_one_line():
    with pytest.raises(BadRequest, match='gpt2 has no `nosuch`: its notebook'): paper_function('gpt2', 'nosuch')
    with pytest.raises(BadRequest, match='papers_lib has no module nopaper'): paper_function('nopaper', 'bench')


def test_a_benchmark_without_rows_leaves_no_run(repo, monkeypatch):
    from papers_lib import gpt2
    from papers_lib.engine.stats import Row
    repo('gpt2', START)
    def bench(only, seed): yield from (Row('gpt2', 'speed', f'S.{n}', ours=1., ci95=[1., 1.], values=[1.], n_seeds=1, rule='at_least', bound=.9) for n in ('one', 'two'))
    monkeypatch.setattr(gpt2, 'bench', bench)
    told = CliRunner().invoke(app, ['bench', 'gpt2', '--only', 'three']); assert told.exit_code == 2 and not (repo.root / 'runs').exists()
    assert CliRunner().invoke(app, ['bench', 'gpt2', '--only', 'two']).exit_code == 0
    assert [r['id'] for r in json.loads(next((repo.root / 'runs').rglob('results.json')).read_text())['rows']] == ['S.two']


def test_sets_are_listed_in_columns():
    lines = papers('data').stdout.splitlines()
    assert len({line.index(' records ') for line in lines}) == 1 and all('  ' in line[:line.index(' records ')].strip() for line in lines)


def test_commands_for_programs():
    assert 'gpt2' in [r['name'] for r in json.loads(papers('list', '--json').stdout)]
    assert {'books', 'wikitext2'} <= {r['name'] for r in json.loads(papers('data', '--json').stdout)}
    assert any(what == 'torch' for what, *_ in json.loads(papers('doctor', '--json').stdout))
    plan = json.loads(papers('run', 'gpt2', '--preset', 'paper', '--dry-run').stdout)['gpt2']
    assert plan['parameters'] == 1_557_611_200
    assert "'openwebtext' is not among those of `papers data`" in papers('run', 'gpt2', '--preset', 'paper', '--dry-run').stderr
    assert {'paper', 'id', 'preset', 'published', 'local'} == set(json.loads(papers('scoreboard', '--json').stdout)[0])


def test_new_lays_down_a_notebook_that_exports_and_runs(repo):
    assert papers('new', 'toy', cwd=repo.root).returncode == 0 and 'there already' in papers('new', 'toy', cwd=repo.root).stderr
    nb = nbformat.read(repo.root / 'nbs/01_toy.ipynb', 4); nbformat.validate(nb)
    assert sum('parameters' in c.metadata.get('tags', []) for c in nb.cells) == 1 and TEMPLATE.count('\n## ') == sum(c.source.startswith('## ') for c in nb.cells)
    titles = [c.source.splitlines()[0][3:].split(',')[0] for c in nb.cells if c.source.startswith('## ')]
    assert titles == ['Parameters', 'Symbols', 'Data', 'Model', 'Same numbers as the reference', 'Claims', 'Train', 'Results', 'Look inside', 'Where we differ from the paper']
    assert nb.cells[-1].source.endswith('results.provenance')
    s = run(repo)['toy']
    assert s['status'] == 'finished', s


def counted(*, path):
    with open(path, 'a') as f: f.write('x')
    return dict(n=1)


def test_a_variant_is_computed_once_and_a_damaged_one_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path)); log = tmp_path / 'log'
    for _ in range(3): assert variant(counted, dict(path=str(log))) == dict(n=1)
    assert log.read_text() == 'x'
    kept = next((tmp_path / 'variants').glob('*.json')); kept.write_text(kept.read_text()[:20])
    variant(counted, dict(path=str(log))); assert log.read_text() == 'xx' and 'damaged' in capsys.readouterr().err
    monkeypatch.setattr('papers_lib.lab.runner.code_hash', lambda module: 'changed')
    variant(counted, dict(path=str(log))); assert log.read_text() == 'xxx'


def test_code_hash_is_of_the_code():
    assert code_hash('papers_lib.gpt2') == code_hash('papers_lib.gpt2') != code_hash('papers_lib.lab.presets')


def test_code_hash_follows_what_is_imported(tmp_path):
    "A change in a backbone throws away what was computed through it; a change in the lab does not."
    shutil.copytree(Path(papers_lib.__file__).parent, tmp_path / 'papers_lib')
    def hashes():
        ask = 'from papers_lib.lab.runner import code_hash; print(*map(code_hash, ("papers_lib.gpt3", "papers_lib.llama", "papers_lib.gpt2")))'
        return subprocess.run([sys.executable, '-c', ask], cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(tmp_path)}, capture_output=True, text=True, check=True).stdout.split()
    def changed(file):
        before = hashes(); path = tmp_path / 'papers_lib' / file; path.write_text(path.read_text() + '\nadded = 1\n')
        return [a != b for a, b in zip(before, hashes())]
    assert changed('llama.py') == [True, True, False]
    assert changed('nn/masks.py') == [True, True, True]
    assert changed('lab/plots.py') == [False, False, False]
