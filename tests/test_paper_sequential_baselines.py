"Sequential baselines: what is declared, the rows of the published file, every cell of the claims in small."
import json
import sys

import pytest
import torch

from papers_lib import sequential_baselines
from papers_lib.lab.data import available
from papers_lib.lab.presets import apply_overrides, plan
from papers_lib.lab.results import published
from papers_lib.rec.sequential import SASRecConfig, SASRecNet
from papers_lib.sequential_baselines import Passes, claims, paper, race_sasrec, runs
from shrunken import rows_of_a_small_run


@pytest.mark.parametrize('preset', runs)
def test_every_preset_can_be_built_and_planned(preset):
    with torch.device('meta'): SASRecNet(runs[preset].model)
    told = plan(paper, runs[preset])
    assert told['parameters'] > 1000 and told['tokens'] == runs[preset].train.n_step * 128 * runs[preset].model.ctx_len


def test_every_claim_has_a_design_and_could_fail():
    assert list(claims) == [f'C{i}' for i in range(1, 11)]
    for id, c in claims.items():
        assert c.controls and c.needs and (c.arms or c.rule == 'trend'), id
        assert c.power is None or c.power > .5 or id in ('C1', 'C10'), id    # the article says so
    assert set(claims['C5'].controls.values()) == {'nothing', 'effect'}


@pytest.mark.parametrize('field, value', [('n_epoch', 0), ('batch_size', 0), ('lr', -1.), ('n_user', 0)])
def test_a_training_that_is_none_is_named(field, value):
    with pytest.raises(ValueError, match=f'Passes.{field}={value}: must be above 0'):
        Passes(**dict(n_epoch=1) | {field: value})


def test_overrides_reach_the_training():
    spec = apply_overrides(runs['tiny'], {'train.n_epoch': 2, 'model.d_model': 16})
    assert spec.train.n_step == 16 and spec.model.d_model == 16


def test_without_recbole_its_race_says_so_and_has_no_number(monkeypatch):
    monkeypatch.setitem(sys.modules, 'recbole.model.sequential_recommender', None)      # an import of it fails
    row, = race_sasrec(cfg=SASRecConfig(20, ctx_len=5, d_model=8))
    assert row.ours is None and 'pip install recbole' in row.why and row.id == 'S.sasrec'


def test_both_arms_of_the_race_learn_as_many_places(monkeypatch):
    learnt = []
    class Public(torch.nn.Module):
        "A stand-in that counts the places it is asked to learn."
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(20))
        def calculate_loss(self, b):
            learnt.append(len(b['item']))
            return torch.nn.functional.cross_entropy(self.w.expand(len(b['item']), 20), b['item'] - 1)
    monkeypatch.setattr(sequential_baselines, 'public_sasrec', lambda cfg: Public())
    seen, loss = [], sequential_baselines.NextItem.__call__
    def counted(self, net, batch):
        seen.append(int((batch['targets'] != -100).sum()))
        return loss(self, net, batch)
    monkeypatch.setattr(sequential_baselines.NextItem, '__call__', counted)
    step, places = race_sasrec(cfg=SASRecConfig(20, ctx_len=5, d_model=8), n=3)
    assert {*learnt} == {128} and {*seen} == {128, 640}
    assert step.bound == .95 and places.bound == 2. and step.ours > 0 < places.ours


def test_published_tables_hold_the_trivial_rows():
    rows = {r.id: r for r in published('sequential_baselines').rows}
    if not rows: pytest.skip('nothing is published yet')
    for name in ('ml-100k', 'amazon_beauty'):
        hit = {m: rows[f'T.{name}.{m}'].ours for m in ('random', 'popularity', 'largest_id', 'markov', 'last_item_knn')}
        assert hit['random'] < hit['popularity'] < hit['markov'], name
    assert rows['L.numbering.amazon_beauty.as-published'].verdict == 'fails'
    assert rows['L.numbering.amazon_beauty.by-training-events'].ours < .01


@pytest.mark.slow
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    if not available('ml-100k'): pytest.skip('needs ml-100k')
    rows = rows_of_a_small_run('sequential_baselines', tmp_path, {
        'train.n_epoch': 1, 'model.d_model': 8, 'model.ctx_len': 5, 'claims.ties': 'ml-100k',
        'claims.orders': 'ml-100k', 'claims.tables': ['ml-100k'], 'claims.closed': ['ml-100k', 'ml-100k'],
        'claims.rivals': ['BERT4Rec'], 'claims.network': ['ce'], 'claims.negatives': ['bce', 'gbce', 'ce'],
        'claims.passes': [1, 2, 3], 'claims.recurrent': [1, 2], 'claims.recurrent_ce': [1, 2], 'claims.long': 1,
        'train.batch_size': 943})
    for id, c in claims.items():
        controls = {x['name']: x['ours'] for x in rows[id]['controls']}
        assert set(controls) == set(c.controls) and None not in controls.values(), id
        assert json.dumps(rows[id]['values']), id
    assert len(rows['C5']['values']['by item number']) == 943 and len(rows['C8']['values']['SASRec bce']) == 2
    assert {'T.ml-100k.ease', 'T.ml-100k.sasrec-ce', 'C5.by-item-number', 'C3.100.ease',
            'C6.by-time.markov'} <= set(rows)
