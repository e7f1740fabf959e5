"Headless runs: what is refused, what fails, what survives, what is left behind."
import json, os, re, signal, subprocess, sys, time
from pathlib import Path

import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook

from papers_lib.lab.results import notebook_hash, read_object
from papers_lib.lab.runner import BadRequest, check_request, run_notebooks

PARAMETERS = """preset = 'tiny'
seed = 0
n_seeds = 0
claims = 'all'
device = 'cpu'
wandb_mode = 'offline'
out_dir = ''
overrides = '{}'"""
WRITE = "open(out_dir + '/results.json', 'w').write('{}')"                                   # a paper in a line
SLEEP = 'import os, time; from pathlib import Path; Path(out_dir, "pid").write_text(str(os.getpid())); time.sleep(120)'
START = '''
from dataclasses import dataclass
from papers_lib.lab.presets import Claim, Paper, RunSpec
from papers_lib.lab.run import start
@dataclass(frozen=True)
class Toy:
    lr:float = 1.
one = {'C1': Claim('Section 1', 'One is more than none', 'greater', 0.)}
toy = Paper('toy', Toy, {'tiny': RunSpec(Toy(), Toy(), Toy(), Toy())}, one)
run = start(toy, preset=preset, seed=seed, n_seeds=n_seeds, claims=claims, device=device, wandb_mode=wandb_mode,
            out_dir=out_dir, overrides=overrides)
'''
TRACKED = "t = run.tracker('main', lr=run.spec.train.lr); t.log(dict(loss=1.), 1)"
FINISH = "run.finish(why='tiny')"
DEAF = """import time
from pathlib import Path
try: time.sleep(600)
except BaseException: pass
Path(out_dir, 'seen.json').write_text(Path(out_dir, 'status.json').read_text())"""


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "Make notebooks in a repository of their own."
    (tmp_path / 'settings.ini').write_text('')
    (tmp_path / 'nbs').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('WANDB_MODE', 'offline')

    def add(name, *cells, number=1, tag='parameters'):
        first = new_code_cell(PARAMETERS, metadata=dict(tags=[tag] if tag else []))
        spec = dict(name='python3', display_name='python3', language='python')
        nb = new_notebook(cells=[first, *map(new_code_cell, cells)], metadata=dict(kernelspec=spec))
        nbformat.write(nb, tmp_path / f'nbs/{number:02d}_{name}.ipynb')
    add.root = tmp_path
    return add


def run(repo, names=('all',), **kw):
    return {s['paper']: s for s in run_notebooks(list(names), root=repo.root, report=lambda line: None, **kw)}


def wandb_exits(folder):
    "Exit codes that a folder's W&B runs recorded, by the tool's own reader."
    read = lambda path: (
        subprocess.run(['wandb', 'leet', 'inspect', '--json', str(path)], capture_output=True, text=True).stdout
    )
    found = [json.loads(line) for path in Path(folder).glob('wandb/offline-run-*/*.wandb')
             for line in read(path).splitlines() if line.startswith('{')]
    return [r['exit'].get('exit_code', 0) for r in found if r['type'] == 'exit']


# what fails, and what it leaves

def test_a_failing_notebook_is_marked_and_the_others_finish(repo):
    repo('bad', "raise RuntimeError('too bad')", WRITE)
    repo('good', WRITE, number=2)
    repo('dead', 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)', number=3)
    repo('silent', '1', number=4)
    repo('lesson', WRITE, "assert 1 == 2, 'a lesson'", number=5)
    done = run(repo, jobs=2)
    want = dict(bad='failed', good='finished', dead='failed', silent='failed', lesson='failed')
    assert {n: s['status'] for n, s in done.items()} == want
    cells = {n: s.get('cell') for n, s in done.items()}
    assert cells == dict(bad=2, dead=2, lesson=3, good=None, silent=None), done        # one is injected
    assert 'RuntimeError: too bad' in done['bad']['error'] and 'a lesson' in done['lesson']['error']
    assert 'kernel died' in done['dead']['error'] and 'without writing results.json' in done['silent']['error']
    for name, s in done.items():
        folder = Path(s['folder'])
        # a lesson that fails does not remove the rows before it
        assert (folder / 'results.json').exists() == (name in ('good', 'lesson')) and (folder / 'run.log').exists()
        assert read_object(folder / 'status.json')['status'] == s['status']


def test_a_kernel_that_does_not_come_up_is_begun_again_and_a_cell_is_never_run_twice(repo, monkeypatch):
    from papers_lib.lab import runner
    repo('good', WRITE)
    class Unlucky(runner._kernel_of_this_python()):
        begun = 0
        @property
        def kernel_spec(self):
            spec = super().kernel_spec
            Unlucky.begun += 1
            return spec if Unlucky.begun > deaths else type(spec)(**{**spec.to_dict(), 'argv': ['false']})
    monkeypatch.setattr(runner, '_kernel_of_this_python', lambda: Unlucky)
    for name in ('PAPERS_PROGRESS', 'PAPERS_TELL'): monkeypatch.setenv(name, '')       # `execute` sets them in here
    go = lambda name: runner.execute('good', repo.root / 'nbs/01_good.ipynb', repo.root / name, dict(preset='tiny'))
    deaths = 1
    assert go('second')['status'] == 'finished' and Unlucky.begun > 1
    Unlucky.begun, deaths = 0, 100
    assert 'Kernel died' in (failed := go('never'))['error'] and failed['status'] == 'failed'
    repo('good', "open(out_dir + '/ran', 'a').write('x')", 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)')
    deaths = 0
    assert go('once')['status'] == 'failed' and (repo.root / 'once/ran').read_text() == 'x'


def test_a_cell_that_takes_too_long_is_given_up_before_it_is_told(repo):
    repo('deaf', DEAF)
    s = run(repo, timeout=4)['deaf']
    assert (s['status'], s['cell']) == ('failed', 2) and 'longer than 4 s' in s['error']
    assert (
        read_object(Path(s['folder']) / 'seen.json')['status'] == 'failed'
    )  # by which `finish` knows that it must not write


def test_a_run_that_fails_says_so_to_its_tracker_and_writes_no_rows(repo):
    repo('bad', START, TRACKED, "raise RuntimeError('too bad')", FINISH)
    repo('toy', START, TRACKED, FINISH, number=2)
    done = run(repo, jobs=2)
    assert {n: s['status'] for n, s in done.items()} == dict(bad='failed', toy='finished'), done
    for name, s in done.items():
        folder = Path(s['folder'])
        assert (folder / 'results.json').exists() == (name == 'toy')
        assert wandb_exits(folder) == ([0] if name == 'toy' else [1]), name
    rows = read_object(Path(done['toy']['folder']) / 'results.json')['rows']
    assert [(r['id'], r['verdict'], r['why'], r['rule']) for r in rows] == [('C1', 'not attempted', 'tiny', 'greater')]
    ran = read_object(Path(done['toy']['folder']) / 'provenance.json')['notebook']
    notebook = repo.root / 'nbs/02_toy.ipynb'
    assert (
        ran
        == notebook_hash(notebook.read_text())
        == notebook_hash((Path(done['toy']['folder']) / 'toy.ipynb').read_text())
    )


def test_parameters_arrive_in_a_kernel_of_this_interpreter_whatever_kernels_are_installed(repo, monkeypatch, tmp_path):
    foreign = dict(
        argv=[sys.executable, '-c', 'raise SystemExit(1)', '{connection_file}'],
        display_name='python3',
        language='python',
    )
    (spec := tmp_path / 'jupyter/kernels/python3/kernel.json').parent.mkdir(parents=True)
    spec.write_text(json.dumps(foreign))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path / 'jupyter'))
    repo('toy', """assert (seed, n_seeds, overrides) == (7, 2, '{"train.lr": 3}')""",
         f'import sys; assert sys.executable == {sys.executable!r}', WRITE)
    s = run(repo, parameters=dict(seed=7, n_seeds=2, overrides='{"train.lr": 3}'))['toy']
    assert s['status'] == 'finished', s
    nb = nbformat.read(Path(s['folder']) / 'toy.ipynb', 4)
    assert any('injected-parameters' in c.metadata.get('tags', []) for c in nb.cells)


@pytest.mark.parametrize(
    'names, preset, parameters, words',
    [
        (['toi'], 'tiny', {}, "unknown paper 'toi', did you mean 'toy'"),
        (['toy'], 'tini', {}, "unknown preset 'tini', did you mean 'tiny'"),
        (['toy'], 'tiny', dict(sed=1), "no parameter 'sed', did you mean 'seed'"),
        (['toy'], 'tiny', dict(seed='abc'), "seed='abc': must be a whole number"),
        (['toy'], 'tiny', dict(preset='cpu'), 'use --preset'),
        (['toy'], 'tiny', dict(out_dir='x'), 'use --out'),
    ],
)
def test_what_cannot_be_started_is_refused_before_anything_starts(repo, names, preset, parameters, words):
    repo('toy', WRITE)
    with pytest.raises(BadRequest, match=words): run_notebooks(names, preset, parameters=parameters, root=repo.root)
    assert not (repo.root / 'runs').exists()


@pytest.mark.parametrize('bad', [dict(jobs=0), dict(timeout=0), dict(timeout=-1)])
def test_no_jobs_and_no_time_are_refused(repo, bad):
    repo('toy', WRITE)
    with pytest.raises(BadRequest, match='must be at least 1'): run_notebooks(['toy'], root=repo.root, **bad)


def test_a_lost_parameters_tag_is_refused(repo):
    repo('toy', WRITE, tag=None)
    with pytest.raises(BadRequest, match="01_toy.ipynb: no cell is tagged 'parameters'"):
        check_request(['toy'], 'tiny', {}, repo.root)


# one that cannot be read or placed does not stop the others

@pytest.mark.parametrize('text', ['', '{"cells": [', '[]', '{"cells": 3}', '\x00\x01', '[' * 100_000])
def test_an_unreadable_notebook_is_named_and_the_others_run(repo, text):
    repo('good', WRITE)
    (repo.root / 'nbs/02_odd.ipynb').write_text(text)
    runnable, unfit = check_request(['all'], 'tiny', {}, repo.root)
    assert list(runnable) == ['good'] and list(unfit) == ['odd'] and unfit['odd'].startswith('02_odd.ipynb')
    with pytest.raises(BadRequest, match='02_odd.ipynb'): check_request(['good', 'odd'], 'tiny', {}, repo.root)


def test_papers_after_one_that_cannot_begin_run_all_the_same(repo):
    for number, name in enumerate(('odd', 'blocked', 'good'), 1): repo(name, WRITE, number=number)
    (repo.root / 'nbs/01_odd.ipynb').write_text('no notebook')
    (repo.root / 'runs').mkdir()
    (repo.root / 'runs/blocked').write_text('a file where a folder must be')
    done = run(repo)
    assert {n: s['status'] for n, s in done.items()} == dict(odd='failed', blocked='failed', good='finished')


def test_a_closed_terminal_and_a_relative_folder(repo):
    repo('toy', WRITE)
    def closed(line): raise OSError(5, 'Input/output error')
    s, = run_notebooks(['toy'], root=repo.root, report=closed, out='elsewhere')
    assert s['status'] == 'finished' and (repo.root / s['folder'] / 'results.json').exists(), s


LIMITED = """
import json, resource, sys
from pathlib import Path
from papers_lib.lab.runner import run_notebooks
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
print(json.dumps(run_notebooks(['toy'], root=Path(sys.argv[1]), report=lambda line: None)[0]))
"""


def test_a_disk_that_fills_up_is_named_and_leaves_a_whole_notebook(repo):
    repo('toy', "print('kept')", "print('x' * 100_000)", WRITE)
    told = subprocess.run(
        [sys.executable, '-c', LIMITED, str(repo.root)], capture_output=True, text=True, check=True
    ).stdout
    status = json.loads(told)
    folder = Path(status['folder'])
    assert (
        status['status'] == 'failed'
        and f"{folder / 'toy.ipynb'} could not be written" in status['error']
        and status['cell'] == 3
    )
    nb = nbformat.read(folder / 'toy.ipynb', 4)
    nbformat.validate(nb)
    assert 'kept' in str(nb.cells[2].outputs) and not (folder / 'results.json').exists()
    assert not [p.name for p in folder.glob('.*')]


def test_two_runs_at_once_keep_apart(repo):
    repo('toy', WRITE)
    code = ("import sys; from pathlib import Path; from papers_lib.lab.runner import run_notebooks\n"
            "print(run_notebooks(['toy'], root=Path(sys.argv[1]), report=lambda line: None)[0]['folder'])")
    both = [
        subprocess.Popen([sys.executable, '-c', code, str(repo.root)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {p.communicate()[0].strip() for p in both}
    assert len(folders) == 2 and all((Path(f) / 'results.json').exists() for f in folders)


# nobody is left behind

VARIANT = """
def nap(*, n, folder):
    import os, time
    from pathlib import Path
    Path(folder, f'pid{n}').write_text(str(os.getpid()))
    time.sleep(240)
    return {}
run.map(nap, [dict(n=n, folder=out_dir) for n in (0, 1)])
"""


def gone(pid):
    "Wait for a process to end."
    for _ in range(300):
        if not Path(f'/proc/{pid}').exists() or ' Z ' in Path(f'/proc/{pid}/stat').read_text(): return True
        time.sleep(0.1)
    return False


def found(root, pattern, n):
    "Wait for files to appear and hold something."
    for _ in range(1800):
        files = [f for f in root.rglob(pattern) if f.stat().st_size]
        if len(files) == n: return files
        time.sleep(0.1)
    raise AssertionError(f'{pattern}: {files}')


def papers_run(root):
    "Start `papers run all`; a shell starts background jobs deaf to Ctrl-C, and nohup starts what does not hang up."
    def listen():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    command = [str(Path(sys.executable).parent / 'papers'), 'run', 'all']
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listen
    )


def test_a_stop_keeps_what_is_finished_and_leaves_no_variant_behind(repo):
    repo('good', WRITE)
    repo('long', START, TRACKED, VARIANT, number=2)
    p = papers_run(repo.root)
    pids = [int(f.read_text()) for f in found(repo.root, 'pid?', 2)]
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=240)
    assert p.returncode == 130 and 'finished runs are kept' in err
    assert list(repo.root.glob('runs/good/tiny/*/results.json'))
    assert read_object(next(repo.root.glob('runs/long/tiny/*/status.json')))['status'] == 'interrupted'
    assert all(map(gone, pids))


@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_kernel_outlives_papers_and_no_status_says_running(repo, sign):
    repo('long', SLEEP)
    p = papers_run(repo.root)
    pid_file, = found(repo.root, 'pid', 1)
    worker = read_object(pid_file.parent / 'status.json')['pid']
    p.send_signal(sign)
    _, err = p.communicate(timeout=240)
    assert p.returncode == (-sign if sign == signal.SIGKILL else 130)
    assert gone(worker) and gone(int(pid_file.read_text()))
    assert read_object(pid_file.parent / 'status.json')['status'] == 'interrupted'


def test_a_run_whose_process_is_gone_is_closed_by_the_next(repo):
    repo('toy', WRITE)
    ended = subprocess.Popen(['true'])
    ended.wait()
    lost = repo.root / 'runs/toy/tiny/20200101-000000/status.json'
    lost.parent.mkdir(parents=True)
    lost.write_text(json.dumps(dict(paper='toy', preset='tiny', status='running', pid=ended.pid)))
    (mine := lost.parent.with_name('20200101-000001') / 'status.json').parent.mkdir()
    mine.write_text(json.dumps(dict(paper='toy', preset='tiny', status='running', pid=os.getpid())))
    run(repo)
    assert read_object(lost)['status'] == 'interrupted' and read_object(mine)['status'] == 'running'


# how far it is

FAR = '''
def train(*, n, folder):
    import time
    from pathlib import Path
    from papers_lib.store.progress import end_progress, tell_progress
    for step in range(5):
        tell_progress('step', step, 5, loss=1. + step)
        time.sleep(0.6)
    end_progress('step')
    return {}
run.map(train, [dict(n=n, folder=out_dir) for n in range(4)])
'''


def test_whoever_waits_is_told_the_cell_the_variant_the_step_and_the_time_left(repo, monkeypatch):
    monkeypatch.setenv('PAPERS_WORKERS', '2')
    repo('toy', START, FAR, FINISH)
    told, said = [], []
    s, = run_notebooks(['toy'], root=repo.root, report=said.append, progress=told.append)
    assert s['status'] == 'finished', s
    lines = [t['toy'] for t in told if t]
    assert all(set(t) <= {'toy'} for t in told) and lines[0] == 'starting'
    assert any(re.fullmatch(r'cell 4/5, variant [0-4]/4( \(\d+ s left\))?, step \d/5 \(loss \d(, \d s left)?\)', line)
               for line in lines), lines
    assert any(', variant 2/4 (' in line for line in lines), lines
    assert not list(Path(s['folder']).glob('progress*')) and not (Path(s['folder']) / 'progress').exists()
    assert said == ['toy: started', f"toy: finished after {s['seconds']:.0f} s"]


def test_a_failure_says_in_which_cell_of_how_many(repo):
    repo('bad', "raise RuntimeError('too bad')", WRITE)
    said = []
    run_notebooks(['bad'], root=repo.root, report=said.append)
    assert re.fullmatch(r'bad: failed after \d+ s in cell 3/4: RuntimeError: too bad', said[-1])


def test_what_a_killed_run_told_does_not_stay(repo):
    repo('dead', 'import os, signal; from papers_lib.store.progress import tell_progress; tell_progress("step", 1, 2)\n'
                 'assert list(__import__("pathlib").Path(out_dir, "progress").iterdir())\n'
                 'os.kill(os.getppid(), signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)')
    s = run(repo)['dead']
    assert s['status'] == 'failed' and 'ended early' in s['error'] and s['cell'] == 2
    assert not (Path(s['folder']) / 'progress').exists()
