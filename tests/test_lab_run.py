"What a notebook calls: rows, claims, variants, and what is refused at the start."
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from papers_lib.engine.stats import effect, look_level, mean_t, over_units, paired_t
from papers_lib.lab import run as lab_run
from papers_lib.lab.presets import Claim, DataConfig, Paper, RunSpec
from papers_lib.lab.results import read_results
from papers_lib.lab.run import start


@dataclass(frozen=True)
class Toy:
    lr:float = 1.


@dataclass(frozen=True)
class Grids:
    widths:tuple = ()


spec = RunSpec(Toy(), Toy(), DataConfig(), Grids())
toy = Paper('toy', Toy, {'tiny': spec, 'cpu': replace(spec, claims=Grids((1, 2)), n_seeds=3)},
            dict(C1=Claim('Section 1', 'One is more than none', 'greater', 0.25, n=3, needs=('widths',)),
                 C2=Claim('Section 2', 'Alike to within 0.1', 'equal', 0.1),
                 C3=Claim('Section 3', 'Every string comes back', 'exact', bound=1.)))


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A repository with nothing in it."
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'settings.ini').write_text('', encoding='utf-8')
    subprocess.run(['git', 'init', '-q'], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    return tmp_path


def test_no_folder_is_made_until_something_is_written(root):
    before = sorted(root.rglob('*'))
    run = start(toy, device='cpu')
    assert sorted(root.rglob('*')) == before and run.seeds == [0] and run.out.parent == root / 'runs/toy/tiny'
    run.finish()
    assert (run.out / 'results.json').exists() and (run.out / 'provenance.json').exists()


def test_a_paper_is_handed_over_as_what_it_is(root):
    with pytest.raises(ValueError, match="paper='toy': must be a Paper"): start('toy')


def test_a_claim_is_what_was_declared_with_a_number_or_without(root):
    run = start(toy, preset='cpu', device='cpu')
    assert run.claim('C1', mean_t([1., 1.1, .9]), metric='gain').verdict == 'holds'
    run.not_attempted('C2', 'no minimum inside the grid', dataset='books@embedded')
    run.table('C1.size', 3.)
    rows = {r.id: r for r in run.finish('not measured').rows}
    for id, claim in toy.claims.items():
        r = rows[id]
        declared = ('claim', claim.says, claim.tests, claim.rule, claim.margin, claim.bound, claim.design)
        assert (r.kind, r.says, r.tests, r.rule, r.margin, r.bound, r.design) == declared
    assert rows['C2'].why == 'no minimum inside the grid' and rows['C2'].dataset == 'books@embedded'
    assert rows['C3'].why == 'not measured'
    assert [r.id for r in read_results(run.out / 'results.json')[0]] == ['C1', 'C2', 'C3', 'C1.size']


def test_a_claim_is_measured_on_the_seeds_that_its_design_asks_for(root):
    run = start(toy, preset='cpu', device='cpu')
    assert run.seeds_of('C1') == [0, 1, 2] and run.seeds_of('C1', 'C2', further=20) == [20, 21, 22, 23, 24]
    run.finish()
    told = json.loads((run.out / 'provenance.json').read_text(encoding='utf-8'))
    assert told['seeds'] == [0, 1, 2, 20, 21, 22, 23, 24]
    assert start(toy, preset='cpu', device='cpu', n_seeds=2).seeds_of('C2') == [0, 1]       # whoever says a number
    assert start(toy, device='cpu', seed=7).seeds_of('C2') == [7]                           # other presets have theirs
    of_units = replace(toy.claims['C1'], over='units', n=943)                               # its n counts no seeds
    run = start(replace(toy, claims=dict(toy.claims, C1=of_units)), preset='cpu', device='cpu')
    assert run.seeds_of('C1') == run.seeds_of() == run.seeds


def test_what_trains_in_a_run_is_told_where(root, monkeypatch):
    monkeypatch.setenv('PAPERS_DEVICE', 'cuda')
    start(toy, device='cpu')
    assert os.environ['PAPERS_DEVICE'] == 'cpu'


def test_one_model_of_each_arm_is_no_effect_of_training(root):
    run = start(toy, preset='cpu', device='cpu')
    with pytest.raises(ValueError, match='C1: one model of each arm'): run.claim('C1', over_units(np.arange(20.)))
    with pytest.raises(ValueError, match='C1: 4 values of 3 seeds'): run.claim('C1', mean_t([1., 1.1, .9, 1.]))


def test_a_claim_that_looks_more_than_once_is_recorded_at_the_level_of_its_look(root):
    looking = replace(toy.claims['C1'], margin=.6, looks=(3, 5), arms=('a', 'b'))
    run = start(replace(toy, claims=dict(toy.claims, C1=looking)), preset='cpu', device='cpu')
    found = paired_t([1., 1.1, .9], [0., .1, .05], ('a', 'b'))
    row = run.claim('C1', found)
    assert row.ci95 == effect(found.test, found.values, look_level((3, 5), 3)).ci95 and row.looks == [3, 5]
    assert row.ci95[0] < found.ci95[0] and row.verdict == 'inconclusive'            # at 95 % it would hold
    assert [r.ci95 for r in run.finish().rows if r.id == 'C1'] == [row.ci95]
    with pytest.raises(ValueError, match='C1: 2 seeds: this design looks at 3, 5'):
        run.claim('C1', paired_t([1., 1.1], [0., .1], ('a', 'b')))
    plain = start(toy, preset='cpu', device='cpu')
    assert plain.claim('C1', mean_t([1., 1.1, .9])).ci95 == mean_t([1., 1.1, .9]).ci95


def test_an_exact_claim_is_held_against_its_declared_bound(root):
    run = start(toy, claims='C3', device='cpu')
    assert run.claim('C3', 0.99).verdict == 'fails'
    with pytest.raises(ValueError, match='C9: toy declares no such claim'): run.claim('C9', 1.)


def test_what_was_not_asked_for_is_passed_over(root):
    assert start(toy, device='cpu').claim('C3', 1.) is None and not start(toy, device='cpu').wants('C3')
    run = start(toy, preset='cpu', claims='C3', device='cpu')
    assert run.wants('C1', 'C3') and not run.wants('C1') and run.claim('C1', mean_t([1., 2.])) is None
    emptied = start(toy, preset='cpu', overrides='{"claims.widths": []}', device='cpu')
    assert not emptied.wants('C1') and emptied.wants('C2')


def line(*, width, seed, slope, size): return dict(y=slope * width + seed + size['lr'])


def test_a_grid_has_the_shape_of_its_axes(root):
    run = start(toy, preset='cpu', seed=5, device='cpu')
    out = run.grid(line, dict(width=(1, 2), seed=run.seeds), slope=10., size=Toy())
    assert out.shape == (2, 3) and run.seeds == [5, 6, 7]
    assert [[r['y'] for r in row] for row in out] == [[16., 17., 18.], [26., 27., 28.]]
    listed = [dict(width=w, seed=s, slope=10., size=Toy()) for w in (1, 2) for s in run.seeds]
    assert np.array_equal(out.ravel(), run.map(line, listed))
    assert run.grid(line, dict(width=(), seed=run.seeds), slope=1., size=Toy()).shape == (0, 3)
    assert run.grid(line, dict(seed=(1,)), width=1, slope=1., size=Toy()).shape == (1,)


def test_provenance_tells_what_was_carried_over(root):
    for n, computed in ((2, 2), (3, 1)):
        run = start(toy, preset='cpu', n_seeds=n, device='cpu')
        run.map(line, [dict(width=1, seed=s, slope=1., size=dict(lr=1.)) for s in run.seeds])
        run.finish()
        told = json.loads((run.out / 'provenance.json').read_text(encoding='utf-8'))['variants']
        assert told['computed'] == computed and sum(c['n'] for c in told['carried']) == n - computed


def test_a_lesson_asserts_at_the_preset_and_only_says_so_elsewhere(root, capsys):
    start(toy, device='cpu').expect(True, 'the loss falls')
    with pytest.raises(AssertionError, match='the loss falls'): start(toy, device='cpu').expect(False, 'the loss falls')
    start(toy, overrides='{"train.lr": 0.1}', device='cpu').expect(False, 'the loss falls')
    assert 'not so in this overridden run: the loss falls' in capsys.readouterr().err


def test_a_run_that_was_given_up_writes_no_rows(root):
    run = start(toy, device='cpu')
    run.out.mkdir(parents=True)
    (run.out / 'status.json').write_text('{"status": "failed"}', encoding='utf-8')
    with pytest.raises(TimeoutError): run.finish()
    assert not (run.out / 'results.json').exists()


def test_variants_share_a_gpu_as_far_as_its_memory_goes(monkeypatch):
    monkeypatch.delenv('PAPERS_WORKERS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(6)))
    for free, expected in ((79 * 2**30, 4), (200 * 2**30, 6), (3 * 2**30, 1)):
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (free, 2 * free))
        assert lab_run._at_once('cuda') == expected
    assert lab_run._at_once('cpu') is None
    monkeypatch.setenv('PAPERS_WORKERS', '3')
    assert lab_run._at_once('cuda') is None


def test_disabled_tracking_needs_no_wandb(root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)                       # importing it raises
    run = start(toy, device='cpu', wandb_mode='disabled')
    tracker = run.tracker('arm')
    tracker.log(dict(loss=1.), 0)
    tracker.finish()
    assert not list(run.out.glob('wandb*'))
    with pytest.raises(ModuleNotFoundError): start(toy, device='cpu', wandb_mode='offline').tracker('arm')
