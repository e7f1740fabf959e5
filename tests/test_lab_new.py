"A new paper: what `papers new` lays down exports, runs and says what it found."
import json, os, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest

root = Path(__file__).resolve().parents[1]
CELLS = [
    'Parameters',
    'Symbols',
    'Data',
    'Model',
    'Same numbers as the reference',
    'Claims',
    'Train',
    'C1',
    'Results',
    'Look inside',
    'Where we differ from the paper',
]


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the tree in which a paper `toy` was made and exported."
    here = tmp_path_factory.mktemp('clone')
    for name in ('nbs', 'papers_lib'):
        shutil.copytree(
            root / name, here / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'wandb')
        )
    shutil.copy(root / 'settings.ini', here)
    env = os.environ | dict(PYTHONPATH=str(here), WANDB_MODE='disabled')
    call = lambda *args: subprocess.run(
        [str(Path(sys.executable).parent / args[0]), *args[1:]], cwd=here, env=env, capture_output=True, text=True
    )
    call.root = here
    call.told = call('papers', 'new', 'toy'), call('nbdev_export')
    return call


def test_it_is_a_clean_notebook_in_the_houses_cell_order(copy):
    for p in copy.told: assert p.returncode == 0, p.stderr
    path = Path(copy.told[0].stdout.strip())
    last = max(int(p.name[:2]) for p in (root / 'nbs').glob('[0-9][0-9]_*.ipynb'))
    assert path.name == f'{last + 1:02d}_toy.ipynb' and 'there already' in copy('papers', 'new', 'toy').stderr
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    assert sum('parameters' in c.metadata.get('tags', []) for c in nb.cells) == 1
    assert [
        c.source.splitlines()[0][3:].split(',')[0].split(':')[0] for c in nb.cells if c.source.startswith('## ')
    ] == CELLS
    assert nb.cells[-1].source.endswith('results.provenance')
    assert 'NAME' not in path.read_text() and 'CLASS' not in path.read_text()
    before = path.read_text()
    assert copy('nbdev_clean').returncode == 0 and path.read_text() == before


def test_its_module_is_short_and_declares_a_paper(copy):
    module = copy.root / 'papers_lib/toy.py'
    assert len(module.read_text().splitlines()) < 120
    code = ('from papers_lib.lab.presets import paper_of; p = paper_of("toy")\n'
            'print(p.name, p.model.__name__, *p.claims, *p.races, *p.runs)')
    p = copy('python', '-c', code)
    assert p.stdout.split() == ['toy', 'Toy', 'C1', 'S.depth', 'tiny', 'cpu'], p.stderr


def test_it_runs_and_its_rows_are_judged(copy):
    p = copy('papers', 'run', 'toy', '--preset', 'tiny', '--set', 'claims=C1', '--set', 'wandb_mode=disabled', '--json')
    status, = json.loads(p.stdout)
    assert p.returncode == 0 and status['status'] == 'finished', status
    rows = {r['id']: r for r in json.loads((Path(status['folder']) / 'results.json').read_text())['rows']}
    assert set(rows) == {'C1', 'C1.depth.1', 'C1.depth.2', 'T1'} and all(
        r['ours'] is not None and r['verdict'] for r in rows.values()
    )
    assert rows['C1']['margin'] == .02
    assert list(rows['C1']['values']) == ['one block', 'two blocks', 'weights'] and 2 < rows['T1']['ours'] < 7
    control, = rows['C1']['controls']
    assert control['must'] == 'nothing' and control['ours'] is not None
    drawn = [
        o
        for c in nbformat.read(Path(status['folder']) / 'toy.ipynb', 4).cells
        for o in c.get('outputs', [])
        if 'image/png' in o.get('data', {})
    ]
    assert len(drawn) == 1


def test_its_race_runs(copy):
    p = copy('papers', 'bench', 'toy')
    assert p.returncode == 0 and p.stdout.startswith('S.depth'), p.stderr
