"A small repository with a finished run, for tests of what is written, published and shown."

import json, subprocess, time

from papers_lib.engine.stats import Row
from papers_lib.lab import results
from papers_lib.lab.results import notebook_hash, write_results

NOTEBOOK = dict(
    cells=[
        dict(cell_type='markdown', source='# Toy paper\n\n> Nobody, 2020', metadata={}),
        dict(cell_type='code', source='effect = 1.', metadata={}, outputs=[], execution_count=None),
    ],
    metadata={},
    nbformat=4,
    nbformat_minor=5,
)
README = '# x\n<!-- papers:begin -->\nOUTDATED\n<!-- papers:end -->\nend\n'


def claim(**kw):
    fields = dict(
        paper='toy',
        kind='claim',
        id='C1',
        statement='A < B & "C" <script>',
        metric='gain',
        ours=1.0,
        ci95=[0.5, 1.5],
        values=[1.0],
        n_seeds=3,
        rule='greater',
        margin=0.0,
    )
    return Row(**fields | kw)


def speed(**kw):
    fields = dict(
        paper='toy',
        kind='speed',
        id='S.step',
        statement='It is fast',
        metric='time',
        unit='ratio',
        ours=2.0,
        ci95=[1.9, 2.1],
        values=[2.0],
        n_seeds=1,
        rule='at_least',
        bound=1.0,
    )
    return Row(**fields | kw)


def git(root, *args):
    subprocess.run(['git', '-c', 'user.name=t', '-c', 'user.email=t@t', *args], cwd=root, check=True)


def toy_repo(root, commit=True):
    "Make it; the folder of its run."
    (root / 'nbs').mkdir()
    (root / 'settings.ini').write_text('')
    (root / 'README.md').write_text(README)
    (root / 'nbs/01_toy.ipynb').write_text(json.dumps(NOTEBOOK))
    if commit:
        git(root, 'init', '-q')
        git(root, 'add', '.')
        git(root, 'commit', '-qm', 'x')
    return add_run(root)


def add_run(root, name='20200101-000000', preset='cpu', rows=None):
    "Add a finished run to it."
    folder = root / f'runs/toy/{preset}/{name}'
    prov = results.provenance(preset, [0, 1, 2], time.time(), notebook=notebook_hash(NOTEBOOK))
    write_results(folder / 'results.json', rows or [claim(), Row('toy', 'table', 'T1', why='no data')], prov)
    (folder / 'status.json').write_text(json.dumps(dict(paper='toy', preset=preset, status='finished')))
    (folder / 'toy.ipynb').write_text(json.dumps(NOTEBOOK))
    return folder


def change(path, f):
    "Change a JSON file."
    d = json.loads(path.read_text())
    f(d)
    path.write_text(json.dumps(d, indent=2))
