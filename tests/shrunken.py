"A paper's notebook at a size that teaches nothing: every claim's cells run, every row has a number or a reason."
import json, math

from papers_lib.lab.presets import paper_of
from papers_lib.lab.runner import run_notebooks


def rows_of_a_small_run(name, out, overrides, n_seeds=2, claims='all'):
    "Execute the notebook at preset cpu, shrunken by overrides; its rows by id."
    parameters = dict(n_seeds=n_seeds, claims=claims, wandb_mode='disabled', overrides=json.dumps(overrides))
    status, = run_notebooks([name], 'cpu', parameters=parameters, out=out)
    assert status['status'] == 'finished', status
    results = next(out.glob(f'{name}/cpu/*/results.json'))
    rows = {r['id']: r for r in json.loads(results.read_text(encoding='utf-8'))['rows']}
    for id, claim in paper_of(name).claims.items():
        told = [rows[id][k] for k in ('kind', 'tests', 'rule', 'margin', 'design')]
        assert told == ['claim', claim.tests, claim.rule, claim.margin, claim.design]
    for r in rows.values():
        if r['ours'] is None: assert r['why'], r['id']
        else: assert math.isfinite(r['ours']) and r['verdict'] and r['protocol'] and r['dataset'], r['id']
    return rows
