"How far a run is: told seldom, read from whoever lives, and never in the way."
import json, os, subprocess, sys, time

import pytest

from papers_lib.store import progress
from papers_lib.store.progress import HowFar, end_progress, read_progress, tell_progress


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder that is told, and a clock that stands still."
    monkeypatch.setenv('PAPERS_TELL', str(tmp_path))
    monkeypatch.setattr(progress, '_begun', {})
    monkeypatch.setattr(progress, '_last', {})
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    now = [100.]
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    return now


def test_a_thing_is_told_once_a_second_and_its_rate_counts_from_the_first_call(folder, clock):
    tell_progress('step', 1000, 2000, loss=4.)                # goes on from a checkpoint
    first = read_progress(folder)['step']
    assert (first.done, first.of, first.left, first.facts) == (1000, 2000, None, dict(loss=4.))
    clock[0] += 0.5
    tell_progress('step', 1010, 2000, loss=3.)
    assert read_progress(folder)['step'].done == 1000
    clock[0] += 9.5
    tell_progress('step', 1100, 2000, loss=2.)
    assert read_progress(folder)['step'].left == pytest.approx(90.)      # ten steps a second


def test_what_is_rare_is_told_each_time(folder, clock):
    for n in range(3):
        tell_progress('variant', n, 9, every=0)
        assert read_progress(folder)['variant'].done == n


def test_what_ended_is_taken_back_and_the_next_begins_anew(folder, clock):
    tell_progress('step', 10, 100)
    end_progress('step')
    end_progress('never told')
    assert list(folder.iterdir()) == []
    clock[0] += 10
    tell_progress('step', 20, 100)
    assert read_progress(folder)['step'].left is None


def test_a_loop_of_short_trainings_writes_hardly_a_file(folder, monkeypatch):
    written = []
    monkeypatch.setattr(progress, 'atomic_write', lambda path, *a, **kw: written.append(path))
    for _ in range(500):
        for step in range(20): tell_progress('step', step, 20)
        end_progress('step')
    assert len(written) <= 2


def test_it_costs_a_training_nothing_worth_the_name(folder):
    tell_progress('step', 0, 10**6)
    began = time.perf_counter()
    for step in range(10_000): tell_progress('step', step, 10**6)
    assert (time.perf_counter() - began) / 10_000 < 50e-6     # seconds a call; about one microsecond, two with a file


@pytest.mark.parametrize('there', [False, True])
def test_a_folder_that_is_not_there_or_full_is_no_error(folder, monkeypatch, there):
    def full(*args, **kw): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(progress, 'atomic_write', full)
    if not there: monkeypatch.setenv('PAPERS_TELL', str(folder / 'gone'))
    tell_progress('step', 1, 2)
    assert list(folder.iterdir()) == []


def test_the_newest_of_the_living_is_read(folder):
    ended = subprocess.Popen(['true'])
    ended.wait()
    say = lambda pid, done, at: (folder / f'step-{pid}.json').write_text(
        json.dumps(dict(what='step', done=done, of=9, left=None, facts={}, at=at)))
    say(os.getpid(), 1, 5.)
    say(os.getppid(), 2, 6.)
    say(ended.pid, 3, 7.)
    assert read_progress(folder) == dict(step=HowFar('step', 2, 9, None, {}, 6.))
    assert read_progress(folder / 'nowhere') == {}


@pytest.mark.parametrize('text', [
    '', '{', '[]', 'null', '{"what": "step"}', '[' * 100_000,
    '{"what": "step", "done": "1", "of": 2, "left": null, "facts": {}, "at": 0}'])
def test_what_is_no_such_file_is_passed_over(folder, text):
    (folder / f'step-{os.getpid()}.json').write_text(text)
    (folder / 'step-9999999999999999999999.json').write_text('{}')
    (folder / 'step-x.json').write_text('{}')
    assert read_progress(folder) == {}


FIT = '''
import numpy as np, torch
from papers_lib.engine.train import TrainConfig, fit
from papers_lib.store import progress
from papers_lib.store.progress import read_progress
from papers_lib.text.corpora import TokenBatches
from papers_lib.nn.stack import Sizes, Stack
told = []
write = progress.atomic_write
progress.atomic_write = lambda path, *a, **kw: told.append((write(path, *a, **kw), read_progress(path.parent))[1])
fit(Stack(Sizes(n_vocab=7, ctx_len=16, d_model=8, n_layer=1, n_head=1)), TokenBatches(np.arange(999) % 7, 16, 4),
    TrainConfig(n_step=40, batch_size=4, lr=1e-3, log_every=10))
print(told[0]['step'].done, told[0]['step'].of, sorted(told[0]['step'].facts), len(told))
'''


def test_a_training_tells_its_steps_and_takes_them_back(tmp_path):
    env = os.environ | dict(PAPERS_TELL=str(tmp_path), PAPERS_PROGRESS='off')
    p = subprocess.run([sys.executable, '-c', FIT], env=env, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert p.stdout.startswith("10 40 ['loss'] ") and list(tmp_path.iterdir()) == []
