"Sequential baselines: what is declared, the rows of the published file, every cell of the claims in small."
import json

import pytest
import torch

from papers_lib.lab.data import available
from papers_lib.lab.presets import apply_overrides, plan
from papers_lib.lab.results import published
from papers_lib.rec.sequential import SASRecNet
from papers_lib.sequential_baselines import Passes, claims, paper, runs
from shrunken import rows_of_a_small_run


@pytest.mark.parametrize('preset', runs)
def test_every_preset_can_be_built_and_planned(preset):
    with torch.device('meta'): SASRecNet(runs[preset].model)
    told = plan(paper, runs[preset])
    assert told['parameters'] > 1000 and told['tokens'] == runs[preset].train.n_step * 128 * runs[preset].model.ctx_len


def test_one_claim_has_a_design_and_could_fail():
    designed = [id for id, c in claims.items() if c.needs != ('later',)]
    assert designed == ['C5'] and list(claims) == [f'C{i}' for i in range(1, 11)]
    c = claims['C5']
    assert c.power > .5 and set(c.controls.values()) == {'nothing', 'effect'} and c.margin > 0


@pytest.mark.parametrize('field, value', [('n_epoch', 0), ('batch_size', 0), ('lr', -1.), ('n_user', 0)])
def test_a_training_that_is_none_is_named(field, value):
    with pytest.raises(ValueError, match=f'Passes.{field}={value}: must be above 0'):
        Passes(**dict(n_epoch=1) | {field: value})


def test_overrides_reach_the_training():
    spec = apply_overrides(runs['tiny'], {'train.n_epoch': 2, 'model.d_model': 16})
    assert spec.train.n_step == 16 and spec.model.d_model == 16


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
        'claims.tables': ['ml-100k']})
    controls = {c['name']: c['ours'] for c in rows['C5']['controls']}
    assert set(controls) == set(claims['C5'].controls) and None not in controls.values()
    assert json.dumps(rows['C5']['values']) and len(rows['C5']['values']['by item number']) == 943
    assert {'T.ml-100k.ease', 'T.ml-100k.sasrec-ce', 'C5.by-item-number'} <= set(rows)
