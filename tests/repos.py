"A small repository with a finished run, for tests of what is written, published and shown."

import json, subprocess, time

from papers_lib.engine.stats import Row, mean_t, median_interval
from papers_lib.lab import results
from papers_lib.lab.results import notebook_hash, sealed, write_results

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


def claim(values=(0.8, 1.0, 1.2), **kw):
    "A claim with the values of its seeds, or with a number that is said."
    fields = dict(
        paper='toy',
        kind='claim',
        id='C1',
        says='Section 1',
        tests='A < B & "C" <script>',
        metric='gain',
        rule='greater',
        margin=0.0,
        **mean_t(values).facts(),
    )
    return Row(**fields | kw)


def speed(rounds=(1.9, 2.0, 2.1), **kw):
    "A speed with its rounds."
    fields = dict(
        paper='toy',
        kind='speed',
        id='S.step',
        tests='It is fast',
        metric='time',
        unit='ratio',
        rule='at_least',
        bound=1.0,
        **median_interval(rounds).facts(),
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
    "Change a JSON file, and seal it again if it has rows."
    d = json.loads(path.read_text())
    f(d)
    path.write_text(json.dumps(sealed(d) if 'rows' in d else d, indent=2))
