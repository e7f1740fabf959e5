"Rules of the house that no single room can keep: who may import whom, one meaning a name, what a function says."

import ast, json, re, subprocess
from collections import defaultdict
from pathlib import Path

import hypothesis, pytest

from papers_lib.lab.presets import paper_of
from papers_lib.lab.plots import shown
from papers_lib.lab.results import paper_notebooks, published

root = Path(__file__).resolve().parents[1]
package = root / 'papers_lib'
ROOMS = ('store', 'nn', 'text', 'engine', 'rec', 'lab', '')  # '' is the papers
BACKBONES = {'gpt2', 'bert', 't5', 'glm', 'llama', 'gpt1'}
PER_PAPER = {
    'sizes',
    'runs',
    'claims',
    'races',
    'paper',
    'pretrained',
    'Claims',
    'recipe',
}  # every paper declares its own
modules = [p for p in sorted(package.rglob('*.py')) if p.name not in ('__init__.py', '_modidx.py')]
papers = [p for p in modules if p.parent == package]
room_of = lambda path: '' if path.parent == package else path.parent.name
tree_of = lambda path: ast.parse(path.read_text(encoding='utf-8'))
name_of = lambda path: str(path.relative_to(package))


def imported(path):
    "Modules of the package that a module imports, as paths below the package: ('engine', 'train')."
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            module = (node.module or '').split('.')
            if node.level:
                where = [*path.parent.relative_to(package).parts][
                    : len(path.parent.relative_to(package).parts) - node.level + 1
                ] + module
            elif module[0] == 'papers_lib':
                where = module[1:]
            else:
                continue
            where = tuple(p for p in where if p)
            names = [a.name for a in node.names]
            if (package.joinpath(*where)).is_dir():
                yield from ((*where, n) for n in names)
            else:
                yield where


@pytest.mark.parametrize('path', modules, ids=name_of)
def test_a_room_imports_only_rooms_before_it(path):
    mine = ROOMS.index(room_of(path))
    for target in imported(path):
        theirs = ROOMS.index(target[0] if len(target) > 1 else '')
        assert theirs <= mine, f'{name_of(path)} imports {".".join(target)}, a later room'


def test_no_two_modules_import_each_other():
    edges = {name_of(p).removesuffix('.py').replace('/', '.'): {'.'.join(t) for t in imported(p)} for p in modules}
    reach = {k: set(v) for k, v in edges.items()}
    for _ in edges:
        reach = {k: v | set().union(*(reach.get(t, set()) for t in v)) for k, v in reach.items()}
    assert [k for k, v in reach.items() if k in v] == []


@pytest.mark.parametrize('path', papers, ids=name_of)
def test_a_paper_takes_only_a_backbone_from_another(path):
    for target in imported(path):
        if len(target) == 1:
            assert target[0] in BACKBONES, f'{path.name} imports {target[0]}'


def test_files_of_a_room_have_numbers_of_their_own():
    for room in filter(None, ROOMS):
        numbers = [p.name.partition('_')[0] for p in (root / 'nbs' / room).glob('*.ipynb')]
        assert sorted(numbers) == [f'{i:02d}' for i in range(1, len(numbers) + 1)], room


def test_a_file_that_is_named_is_there():
    told = subprocess.run(['git', 'grep', '-ohE', r'nbs/[a-z]+/[0-9]{2}_[a-z0-9_]+', '--', 'nbs', 'README.md'],
                          cwd=root, text=True, capture_output=True, check=True).stdout.split()
    assert told and [name for name in sorted(set(told)) if not (root / f'{name}.ipynb').exists()] == []


@pytest.mark.parametrize('path', papers, ids=name_of)
def test_a_papers_module_is_short(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= 415, 'experiments stay in the article'


def exported(path):
    "Public names that a module lists."
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            return ast.literal_eval(node.value)
    return []


def test_a_public_name_has_one_meaning():
    where = defaultdict(list)
    for path in modules:
        for name in exported(path):
            where[name].append(name_of(path))
    assert {n: ps for n, ps in where.items() if len(ps) > 1 and n not in PER_PAPER} == {}


@pytest.mark.parametrize('path', modules, ids=name_of)
def test_no_method_is_put_onto_its_class_from_outside(path):
    for node in tree_of(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        flat = [t for x in targets for t in (x.elts if isinstance(x, ast.Tuple) else [x])]
        assert not [t for t in flat if isinstance(t, ast.Attribute) and getattr(t.value, 'id', 'a')[0].isupper()], (
            f'line {node.lineno}: use @patch'
        )


def undocumented(path):
    "Public functions and methods without a docstring, or with a parameter that no comment explains."
    for node in tree_of(path).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith('_') or node.name not in exported(path):
            continue
        if not ast.get_docstring(node):
            yield f'{name_of(path)}: {node.name} has no docstring'


def test_public_functions_say_what_they_do():
    assert [w for p in modules for w in undocumented(p)] == []


def test_nothing_stands_at_the_root_that_the_design_does_not_list():
    listed = {
        '.ci',
        '.gitignore',
        'LICENSE',
        'Makefile',
        'README.md',
        'constraints.txt',
        'data_prep',
        'nbs',
        'papers_lib',
        'pyproject.toml',
        'results',
        'settings.ini',
        'setup.py',
        'tests',
    }
    told = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True).stdout.split()
    if told:
        assert {t.split('/')[0] for t in told} <= listed


def test_links_between_notebooks_lead_somewhere():
    for path in sorted((root / 'nbs').rglob('*.ipynb')):
        text = '\n'.join(''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'])
        for target in set(re.findall(r'`?(nbs/(?:\w+/)?\d\d_\w+)', text)):
            assert (root / f'{target}.ipynb').exists(), f'{path.name} names {target}, which is not there'


@pytest.mark.parametrize('name', [p.stem for p in papers])
def test_published_claims_are_the_ones_declared(name):
    claims = paper_of(name).claims
    rows = [r for r in published(name).rows if r.kind == 'claim']
    if rows: assert {r.id for r in rows} == set(claims)
    for r in rows:
        c = claims[r.id]
        assert (r.tests, r.rule, r.margin) == (c.tests, c.rule, c.margin)


@pytest.mark.parametrize('name', [p.stem for p in papers])
def test_every_published_speed_row_has_a_race(name):
    races = paper_of(name).races
    for id in (r.id for r in published(name).rows if r.kind == 'speed'):
        assert any(f'{id}.'.startswith(f'{key}.') for key in races), f'{name}: no race gives {id}'


def cells_of(name):
    return json.loads(paper_notebooks(root)[name].read_text(encoding='utf-8'))['cells']


def section_of(cells, id):
    "The cells from the heading that begins with a claim's id to the next heading."
    heads = [i for i, c in enumerate(cells)
             if c['cell_type'] == 'markdown' and re.match('#{2,3} ', ''.join(c['source']))]
    start, = (i for i in heads if re.match(rf'#{{2,3}} {id}: ', ''.join(cells[i]['source'])))
    return cells[start:next((i for i in heads if i > start), len(cells))]


measured = [(p.stem, r) for p in papers for r in published(p.stem).rows
            if r.kind == 'claim' and r.verdict != 'not attempted']


@pytest.mark.parametrize('name, row', measured, ids=[f'{name}-{row.id}' for name, row in measured])
def test_a_claims_section_has_a_figure_and_ends_in_its_card_and_a_sentence_with_the_same_verdict(name, row):
    section = section_of(cells_of(name), row.id)
    data = [o['data'] for c in section for o in c.get('outputs', []) if 'data' in o]
    cards = [h for d in data if 'class="verdict-card"' in (h := ''.join(d.get('text/html', '')))]
    assert len(cards) == 1 and f'<b>{name} {row.id}</b>' in cards[0]
    prose = ' '.join(''.join(c['source']) for c in section[1:] if c['cell_type'] == 'markdown')
    assert f'>{row.verdict}</span>' in cards[0] and row.verdict in prose.lower(), row.verdict
    if row.ours is not None: assert any({'image/png', 'image/svg+xml'} & set(d) for d in data)


@pytest.mark.parametrize('name', [p.stem for p in papers])
def test_every_figure_finds_its_rows_among_the_published_ones(name):
    trees = [ast.parse(''.join(c['source'])) for c in cells_of(name) if c['cell_type'] == 'code']
    calls = [n for tree in trees for n in ast.walk(tree)
             if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'shown']
    patterns = [n.args[1].value for n in calls if isinstance(n.args[1], ast.Constant)]
    rows = published(name).rows
    idle = {r.id for r in rows if r.kind == 'claim' and r.verdict == 'not attempted'}     # a figure may wait for them
    due = [p for p in patterns if re.match(r'\w+', p)[0] not in idle]
    assert [p for p in due if rows and not shown([], p, name)[0]] == []


@pytest.mark.parametrize('path', sorted((root / 'nbs').rglob('*.ipynb')), ids=lambda p: p.stem)
def test_no_two_cells_of_a_notebook_have_one_id(path):
    ids = [c['id'] for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
    assert len({*ids}) == len(ids), sorted(i for i in {*ids} if ids.count(i) > 1)


def test_a_busy_machine_is_no_counterexample():
    assert hypothesis.settings().deadline is None and hypothesis.settings(max_examples=5).deadline is None
