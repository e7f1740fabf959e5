"Rows in files: what is written, what is read with suspicion, what may be published."
import json, subprocess, sys
from pathlib import Path
from dataclasses import dataclass, fields, replace

import pytest

from papers_lib.engine.stats import Row, control, mean_t
from papers_lib.lab import results, scoreboard
from papers_lib.lab.results import (
    Card, card_of, declare, dirty, fresh_folder, newest, paper_notebooks, publish, published, read_results, redesigned,
    renewed, repo_root, run_of, run_order, runs_of, verify, with_races, write_results)
from papers_lib.lab.presets import Claim, Paper, RunSpec
from repos import add_run, change, claim, git, speed, toy_repo

OTHERS = [
    '',
    '{',
    '[]',
    '3',
    '{"schema": 3}',
    '{"schema": 1, "provenance": {"preset": "cpu"}, "rows": []}',
    '{"schema": 2, "provenance": {}, "rows": []}',
    '{"schema": 2, "provenance": {"preset": "cpu", "seeds": [1, 1]}, "rows": []}',
    '{"schema": 2, "provenance": {"preset": "cpu"}, "rows": []}',
    '[' * 100_000,
    '{"schema": 2, "provenance": {"preset": "cpu"}, "rows": 3}',
    '{"schema": 2, "provenance": {"preset": "cpu"}, "rows": [3]}',
    '{"schema": 2, "provenance": [], "rows": []}',
    '{"version": "1.0", "results": {}}',
]


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy_repo(tmp_path)


# the notebook belongs to the code

def test_a_notebook_is_changed_by_its_code_and_by_nothing_else(repo, tmp_path):
    notebook = tmp_path / 'nbs/01_toy.ipynb'
    printed = [dict(output_type='stream', name='stdout', text='1')]
    assert dirty() is False
    change(notebook, lambda d: d['cells'][1].update(outputs=printed, execution_count=7))
    change(
        notebook, lambda d: (d['metadata'].update(kernel='x'), d['cells'][0].update(source='# Toy paper, better said'))
    )
    assert dirty() is False
    change(notebook, lambda d: d['cells'][1].update(source='effect = 2.'))
    assert dirty() is True
    with pytest.raises(ValueError, match='the notebooks.*commit'): publish(repo)
    git(tmp_path, 'commit', '-qam', 'y')
    assert dirty() is False
    (tmp_path / 'nbs/02_new.ipynb').write_text(notebook.read_text())
    assert dirty() is True


def test_a_run_is_published_with_the_notebook_of_its_commit_only(repo):
    def ran(hash): change(repo / 'results.json', lambda d: d['provenance'].update(notebook=hash))
    right = json.loads((repo / 'results.json').read_text())['provenance']['notebook']
    ran('0' * 64)
    with pytest.raises(ValueError, match='nbs/01_toy.ipynb as it ran is not the one that is committed'): publish(repo)
    change(repo / 'results.json', lambda d: d['provenance'].pop('notebook'))
    publish(repo)  # an older run: its executed copy tells
    injected = dict(cell_type='code', source='seed = 3', metadata=dict(tags=['injected-parameters']))
    change(repo / 'toy.ipynb', lambda d: d['cells'].insert(0, injected))
    publish(repo)
    change(repo / 'toy.ipynb', lambda d: d['cells'][2].update(source='effect = 3.'))
    with pytest.raises(ValueError, match='as it ran'): publish(repo)
    ran(right)
    publish(repo)


# what git cannot tell is unknown, never clean

@pytest.mark.parametrize('place', ['no repository', 'inside another', 'no git', 'no commit'])
def test_a_commit_that_nobody_can_name_is_unknown_and_is_not_published(tmp_path, monkeypatch, place):
    root = tmp_path / 'clone'
    root.mkdir()
    monkeypatch.chdir(root)
    if place == 'inside another':
        git(tmp_path, 'init', '-q')
        (tmp_path / 'other.txt').write_text('x')
        git(tmp_path, 'add', 'other.txt')
        git(tmp_path, 'commit', '-qm', 'of something else')
    if place == 'no commit': git(root, 'init', '-q')
    if place == 'no git': monkeypatch.setenv('PATH', str(tmp_path / 'nothing'))
    folder = toy_repo(root, commit=False)
    prov = read_results(folder / 'results.json')[1]
    assert prov['commit'] == prov['dirty'] == 'unknown' and dirty() is None
    with pytest.raises(ValueError, match='the commit is unknown'): publish(folder)
    assert not (root / 'results').exists()


def test_a_run_of_an_unknown_commit_is_not_published_from_a_clean_clone(repo):
    change(repo / 'results.json', lambda d: d['provenance'].update(commit='unknown', dirty='unknown'))
    with pytest.raises(ValueError, match='the commit is unknown'): publish(repo)


# order of runs

def test_runs_are_ordered_by_number(tmp_path):
    names = ['20200101-000000', '20200101-000000-2', '20200101-000000-9', '20200101-000000-11', '20200101-000001']
    assert [n for n in sorted(names[::-1], key=lambda n: run_order(tmp_path / n))] == names


def test_a_clock_that_was_set_back_does_not_publish_an_older_run(repo, tmp_path, monkeypatch):
    base = repo.parent
    stamp = dict(at='20300101-000000')
    monkeypatch.setattr(results.time, 'strftime', lambda form, *a: stamp['at'])
    for _ in range(12): first = fresh_folder(base)
    assert first.name == '20300101-000000-11'
    stamp['at'] = '20250101-000000'
    later = fresh_folder(base)
    assert later.name == '20300101-000000-12'
    for folder in (first, later): add_run(tmp_path, folder.name)
    assert newest('toy', 'cpu') == later
    stamp['at'] = '20300101-000001'
    assert fresh_folder(base).name == '20300101-000001'


def test_the_newest_run_that_may_be_published_is_taken(repo, tmp_path):
    later = add_run(tmp_path, '20200101-000000-2')
    assert newest('toy', 'cpu') == later
    change(later / 'results.json', lambda d: d['provenance'].update(overrides='{"train.lr": 1}'))
    assert newest('toy', 'cpu') == repo
    change(repo / 'status.json', lambda d: d.update(status='failed'))
    assert newest('toy', 'cpu') == later                                 # publish then says what is wrong with it
    with pytest.raises(ValueError, match='no finished run of preset gpu'): newest('toy', 'gpu')


# files of others

@pytest.mark.parametrize('text', OTHERS)
def test_a_file_of_something_else_is_one_sentence_that_names_it(tmp_path, text):
    (tmp_path / 'odd.json').write_text(text)
    with pytest.raises(ValueError, match=r'^odd\.json: .') as told: read_results(tmp_path / 'odd.json')
    assert '\n' not in str(told.value)


@pytest.mark.parametrize('text', OTHERS)
def test_a_foreign_file_beside_the_others_is_named_and_passed_over(repo, tmp_path, capsys, text):
    good = publish(repo)
    (tmp_path / 'results/toy.tiny.json').write_text(text)
    half = tmp_path / 'runs/toy/cpu/20300101-000000'
    half.mkdir()
    (half / 'status.json').write_text(text)
    assert [r.id for r in published('toy').rows] == ['C1', 'T1'] and newest('toy', 'cpu') == repo
    told = capsys.readouterr().err
    assert 'toy.tiny.json' in told and 'passed over' in told
    assert publish(newest('toy', 'cpu')) == good


def test_a_verdict_that_was_edited_by_hand_is_refused(repo, capsys):
    path = publish(repo)
    path.write_text(path.read_text().replace('"holds"', '"fails"'))
    words = "toy.cpu.json: row C1 says 'fails', its numbers say 'holds'"
    with pytest.raises(ValueError, match=words): read_results(path)
    assert published('toy').rows == [] and words in capsys.readouterr().err
    path.write_text(path.read_text().replace('"fails"', '"holds"').replace('"margin"', '"margins"'))
    with pytest.raises(ValueError, match="row 'C1': field"): read_results(path)


@pytest.mark.parametrize('harm, words', [(dict(overrides='{"train.lr": 1}'), 'overridden'),
                                         (dict(claims='C1'), 'run the preset whole first'),
                                         (dict(dirty=True), 'commit')])
def test_what_must_not_be_published(repo, tmp_path, harm, words):
    change(repo / 'results.json', lambda d: d['provenance'].update(harm))
    with pytest.raises(ValueError, match=words): publish(repo)
    assert not (tmp_path / 'results').exists()


def test_a_run_of_chosen_claims_renews_these_and_nothing_else(repo, tmp_path):
    first = publish(repo)
    change(repo / 'results.json', lambda d: d['provenance'].update(claims='C1', date='2030-01-02'))
    change(repo / 'results.json', lambda d: [r.update(metric='other') for r in d['rows']])
    assert publish(repo) == first
    rows, prov = read_results(first)
    assert {r.id: r.metric == 'other' for r in rows} == dict(C1=True, T1=False)
    assert run_of(prov, 'C1')['date'] == run_of(prov, 'C1.arm')['date'] == '2030-01-02'
    assert run_of(prov, 'T1')['date'] != '2030-01-02' and run_of(prov, 'T1')['claims'] == 'all'
    publish(repo)                                    # once more: of the run before it nothing is left
    assert len(runs_of(read_results(first)[1])) == 2


def bench_run(repo, *rows, machine=None):
    "Publish a benchmark that gave these rows."
    prov = results.provenance('bench', [0], 0., claims=','.join(r.id for r in rows))
    write_results(repo / 'results.json', rows, prov | (dict(machine=dict(cpu=machine, cores=2)) if machine else {}))
    change(repo / 'status.json', lambda d: d.update(preset='bench'))
    return publish(repo)


@pytest.mark.parametrize('a, b, wide', [('S.a', 'S.b', 'S.b.wide'), ('onnx.gap', 'onnx.int8', 'onnx.int8.wide')])
def test_races_are_published_one_by_one(repo, a, b, wide):
    first = bench_run(repo, speed(id=a), speed(id=b), machine='A')              # no run of all of them is needed
    old = {r.id: r.ours for r in read_results(first)[0]}
    assert bench_run(repo, speed(id=b, rounds=[5., 5.1, 5.2]), speed(id=wide), machine='B') == first
    rows, prov = read_results(first)
    assert {r.id: r.ours for r in rows} == {a: old[a], b: 5.1, wide: speed().ours}
    assert [run_of(prov, id)['machine']['cpu'] for id in (a, b, wide)] == ['A', 'B', 'B'] and len(runs_of(prov)) == 2
    cpu = {line.split(' | ')[0].split()[-1]: line for line in scoreboard._speed_table(
        [('toy', [replace(r, baseline_name='transformers') for r in rows], prov)]).splitlines()[2:]}
    assert [' A, 2 cores' in cpu[a], ' B, 2 cores' in cpu[b]] == [True, True]
    bench_run(repo, speed(id=a), machine='C')                                   # of the first run nothing is left
    assert [run['machine']['cpu'] for run in runs_of(read_results(first)[1])] == ['C', 'B']


def test_what_could_not_be_raced_takes_nobodys_place(repo):
    absent = lambda id: Row('toy', 'speed', id, tests='It is fast', metric='time', why='RecBole is not installed')
    with pytest.raises(ValueError, match='no number'): bench_run(repo, absent('S.sasrec'))
    first = bench_run(repo, speed(id='S.sasrec.step'), speed(id='S.x'))
    bench_run(repo, absent('S.sasrec'), speed(id='S.x', rounds=[5., 5.1, 5.2]))
    assert {r.id: r.ours for r in read_results(first)[0]} == {'S.sasrec.step': 2., 'S.x': 5.1}
    declared = lambda *keys: {r.id for r in with_races(first, [speed(id='S.new')], read_results(first)[1], keys)[0]}
    assert declared('S.new', 'S.sasrec') == {'S.new', 'S.sasrec.step'} and declared('S.new') == {'S.new'}


def test_a_claim_that_nobody_measured_yet_is_as_it_is_declared_now(repo):
    later = Row(paper='toy', kind='claim', id='C2', says='Section 2', tests='B < C', metric='gain', rule='greater',
                margin=0., why='no data')
    path = publish(repo)
    rows, prov = read_results(path)
    write_results(path, [*rows, later], prov)
    later.tests, later.why = 'told in other words', 'not selected'
    found, _ = renewed(path, [*rows, later], prov | dict(claims='C1'))
    mine = next(r for r in found if r.id == 'C2')
    assert (mine.tests, mine.why) == ('told in other words', 'not measured yet')


def test_chosen_claims_without_a_number_and_older_files_are_not_renewed(repo):
    path = publish(repo)
    rows, prov = read_results(path)
    with pytest.raises(ValueError, match='no number for C2'): renewed(path, rows, prov | dict(claims='C1,C2'))
    write_results(path, rows, prov | dict(migrated={}))
    with pytest.raises(ValueError, match='older kind'): renewed(path, rows, prov | dict(claims='C1'))
    write_results(path, rows, prov | dict(claims='C1', earlier=[prov | dict(claims='C1')]))
    with pytest.raises(ValueError, match='did not measure all claims'): read_results(path)


def test_a_failed_run_and_a_dirty_tree_are_not_published(repo, tmp_path):
    change(repo / 'status.json', lambda d: d.update(status='failed'))
    with pytest.raises(ValueError, match='only a finished one'): publish(repo)
    change(repo / 'status.json', lambda d: d.update(status='finished'))
    (tmp_path / 'settings.ini').write_text('x')
    with pytest.raises(ValueError, match='commit, run again'): publish(repo)


def test_rows_that_stand_twice_or_are_no_number(tmp_path):
    with pytest.raises(ValueError, match='C1 stand more than once'):
        write_results(tmp_path / 'r', [claim(), claim()], {})
    with pytest.raises(ValueError, match='ci95'): write_results(tmp_path / 'r', [claim(ci95=[0, float('nan')])], {})
    assert not (tmp_path / 'r').exists()


def test_published_rows_come_back_as_they_were_written(repo):
    path = publish(repo)
    assert path.name == 'toy.cpu.json' and published('toy').rows[0].verdict == 'holds'
    assert 'not attempted: no data' in str(published('toy')) and '<script>' not in published('toy')._repr_html_()


# what papers verify finds

@pytest.fixture
def declared():
    "A paper that declares the claim of the toy repository."
    design = Claim('Section 1', 'A < B & "C" <script>', 'greater', 0., n=3)
    spec = RunSpec(Claim, None, None, None)
    return Paper('toy', Claim, dict(cpu=spec), dict(C1=design))


@pytest.fixture
def told(repo, declared):
    "A published file whose claim has a recorded design."
    declare(declared, 'as first declared')
    row = claim(design=declared.claims['C1'].design)
    prov = read_results(repo / 'results.json')[1] | dict(grid=declared.runs['cpu'].grid_hash)
    write_results(repo / 'results.json', [row, speed()], prov)
    return publish(repo, declared)


def edited(row, name, value):
    "Set a field of a row, one level deep where it is asked for."
    place, _, inside = name.partition('.')
    if inside: row[place][inside] = value
    else: row[place] = value


def test_a_file_that_is_as_it_was_published_has_no_problem(told, declared):
    assert verify(dict(toy=declared)) == []


@pytest.mark.parametrize('name', [f.name for f in fields(Row)])
def test_a_row_edited_by_hand_in_any_field_is_found(told, declared, name):
    d = json.loads(told.read_text())
    old = d['rows'][0][name]
    kinds = {str: lambda: old + 'x', dict: lambda: dict(a=[1., 2.]), type(None): lambda: [1., 2.]}
    value = kinds.get(type(old), lambda: 7.)()
    edited(d['rows'][0], name, value)
    told.write_text(json.dumps(d))
    problem, = verify(dict(toy=declared))
    assert problem.startswith('toy.cpu.json: ')


@pytest.mark.parametrize('name, value, words', [
    ('values.effect', [.8, 1., 1.3], 'its values say'), ('values.effect', [.8, True, 1.2], 'must be a finite number'),
    ('values.effect', [.8, None, 1.2], 'must be a finite number'), ('ours', 1.1, 'its values say'),
    ('ci95', [.9, 1.1], 'its values say'), ('n_seeds', 15, 'its values say'), ('rule', 'less', "says 'holds'"),
    ('margin', 2., "says 'holds'"), ('tests', 'A much stronger sentence', 'not judged as its design says'),
    ('margin', .1, 'not judged as its design says'), ('design', '0' * 16, 'does not know'), ('id', 'C7', 'has no row'),
    ('paper', 'other', 'of another paper'), ('test', 'values not kept', 'must be one of'),
])
def test_a_forged_row_is_found_with_the_right_seal_too(told, declared, name, value, words):
    change(told, lambda d: edited(d['rows'][0], name, value))
    assert any(words in problem for problem in verify(dict(toy=declared))), verify(dict(toy=declared))


def test_a_nan_in_one_seed_is_refused_and_named(repo):
    e = mean_t([1., 2.]).facts()
    e['values'] = dict(effect=[1., float('nan')])
    with pytest.raises(ValueError, match="row C1: values of 'effect': nan"):
        write_results(repo / 'results.json', [Row('toy', 'claim', 'C1', rule='greater', margin=0., **e)], {})


def test_seeds_that_are_repeated_are_refused(told, declared):
    change(told, lambda d: d['provenance'].update(seeds=[0, 1, 1]))
    assert 'its seeds [0, 1, 1] are not different ones' in verify(dict(toy=declared))[0]


def test_a_claim_without_a_number_is_told_as_declared_now_and_a_measured_one_is_not(told, declared):
    rows, prov = read_results(told)
    waiting = Row('toy', 'claim', 'C2', says='Section 2', tests='B < C', rule='greater', margin=0., why='no data')
    write_results(told, [*rows, waiting], prov)
    claims = dict(C1=replace(declared.claims['C1'], tests='other words'), C2=Claim('Section 3', 'C < D', 'greater', .1))
    declare(replace(declared, claims=claims), 'other words')
    found = {r.id: (r.tests, r.margin, r.why, r.verdict) for r in read_results(told)[0]}
    before = {r.id: (r.tests, r.margin, r.why, r.verdict) for r in rows}
    assert found.pop('C2') == ('C < D', .1, 'no data', 'not attempted') and found == before


@pytest.mark.parametrize('changed', [dict(margin=.1), dict(tests='Another sentence'), dict(rule='less'), dict(n=9),
                                     dict(controls={'placebo': 'nothing'}), dict(arms=('a', 'b')), dict(looks=(5, 10))])
def test_a_design_that_changes_without_a_line_is_found_and_not_published(told, repo, declared, changed):
    other = replace(declared, claims=dict(C1=replace(declared.claims['C1'], **changed)))
    assert 'the design of C1 has no line' in verify(dict(toy=other))[0]
    with pytest.raises(ValueError, match='the design of C1 has no line.*verify --why'): publish(repo, other)
    assert redesigned('toy', 'C1') == ''
    assert declare(other, 'the margin was too small') == ['C1'] and declare(other, 'again') == []
    assert redesigned('toy', 'C1').endswith(': the margin was too small')
    assert verify(dict(toy=other)) == []                       # the published row was judged by its own design
    with pytest.raises(ValueError, match='C1 was measured under an earlier design'): publish(repo, other)


@dataclass(frozen=True)
class Tried:
    "Grids of a toy paper."
    rates:tuple = (1e-3, 3e-3)
    widths:tuple = ()
    steps:int = 30


def designs_file(): return Path('results/designs.jsonl')


def with_grids(declared, **changed):
    "The toy paper with a grid that its claim reads and one that it does not."
    spec, one = declared.runs['cpu'], replace(declared.claims['C1'], needs=('rates',))
    both = dict(C1=one, C2=replace(one, tests='Another', needs=('widths',)))
    return replace(declared, runs=dict(cpu=replace(spec, claims=Tried(**changed))), claims=both)


def published_with(repo, paper, ids):
    "Publish a run of the toy paper that measured some of its claims."
    rows = [claim(id=id, tests=c.tests, design=c.design) if id in ids else
            Row('toy', 'claim', id, rule=c.rule, margin=c.margin, tests=c.tests, design=c.design, why='no data')
            for id, c in paper.claims.items()]
    prov = read_results(repo / 'results.json')[1] | dict(grid=paper.runs['cpu'].grid_hash)
    write_results(repo / 'results.json', rows, prov)
    return publish(repo, paper)


def test_a_grid_that_is_widened_after_a_verdict_leaves_a_line_and_marks_the_claims_that_read_it(repo, declared):
    before, after = with_grids(declared), with_grids(declared, rates=(1e-3, 3e-3, 1e-2))
    assert declare(before, 'first') == ['C1', 'C2', 'cpu'] and redesigned('toy', 'C1', 'cpu') == ''
    published_with(repo, before, ['C1', 'C2'])
    assert 'the design of cpu has no line' in verify(dict(toy=after))[0]
    with pytest.raises(ValueError, match='the design of cpu has no line'): publish(repo, after)
    assert declare(after, 'the best lay at the edge') == ['cpu'] and declare(after, 'again') == []
    told = redesigned('toy', 'C1', 'cpu')
    assert told.startswith('grid changed ') and told.endswith(
        ': claims.rates was 0.001, 0.003, is 0.001, 0.003, 0.01; the best lay at the edge')
    assert redesigned('toy', 'C2', 'cpu') == redesigned('toy', 'C1', 'gpu') == redesigned('toy', 'C1') == ''


def test_a_grid_that_changes_before_a_verdict_has_a_line_and_no_mark(repo, declared):
    declare(with_grids(declared), 'first')
    assert declare(with_grids(declared, rates=(1e-3, 3e-3, 1e-2)), 'wider') == ['cpu']
    assert redesigned('toy', 'C1', 'cpu') == '' and '"why": "claims.rates was' in designs_file().read_text()


def test_a_number_that_no_claim_names_concerns_all_that_were_judged_and_a_new_one_those_that_name_it(repo, declared):
    declare(with_grids(declared), 'first')
    published_with(repo, with_grids(declared), ['C2'])
    declare(with_grids(declared, steps=60), 'longer')
    assert 'steps was 30, is 60; longer' in redesigned('toy', 'C2', 'cpu') and redesigned('toy', 'C1', 'cpu') == ''
    published_with(repo, with_grids(declared, steps=60), ['C1', 'C2'])
    declare(with_grids(declared, steps=60, widths=(8,)), 'a grid of its own')      # C2 names it, C1 does not
    assert redesigned('toy', 'C2', 'cpu').endswith('claims.widths is new: 8; a grid of its own')
    assert redesigned('toy', 'C1', 'cpu') == ''


def test_a_run_with_other_grids_is_not_published(repo, declared):
    declare(declared, 'as first declared')
    row = claim(design=declared.claims['C1'].design)
    for grid in ({}, dict(grid='0' * 16)):
        write_results(repo / 'results.json', [row, speed()], read_results(repo / 'results.json')[1] | grid)
        with pytest.raises(ValueError, match='other grids than preset cpu has now: run again'): publish(repo, declared)


def test_a_claim_of_fewer_seeds_than_its_design_asks_for_is_not_published(repo, declared):
    wider = replace(declared, claims=dict(C1=replace(declared.claims['C1'], n=4)))
    declare(wider, 'one seed more')
    prov = read_results(repo / 'results.json')[1] | dict(grid=wider.runs['cpu'].grid_hash)
    write_results(repo / 'results.json', [claim(design=wider.claims['C1'].design), speed()], prov)
    with pytest.raises(ValueError, match='C1 was measured on 3 seeds, its design asks for 4'): publish(repo, wider)


def test_a_published_file_of_unknown_grids_is_found(told, declared):
    change(told, lambda d: d['provenance'].update(grid='0' * 16))
    assert 'measured with grids that results/designs.jsonl does not know' in verify(dict(toy=declared))[0]


def test_words_that_cite_change_no_design(declared):
    one = declared.claims['C1']
    assert replace(one, says='Section 2', flaw='no control', free=True, expected=1., spread=1.).design == one.design


@pytest.mark.parametrize('text', ['{', '[]', '{"paper": "toy"}', '3'])
def test_a_broken_line_of_designs_is_named(told, declared, tmp_path, text):
    with open(tmp_path / 'results/designs.jsonl', 'a') as f: f.write(text + '\n')
    assert 'designs.jsonl: line 3: ' in verify(dict(toy=declared))[0]      # after the claim's and the preset's


def test_a_row_without_values_must_stand_in_the_list_of_an_older_file(told, declared):
    lost = dict(kind='table', id='C1.old', rule='scaled', margin=None, test='values not kept', values=None)
    def put(d): d['rows'].append(d['rows'][0] | lost | dict(verdict='scaled down', design=''))
    change(told, put)
    assert 'rows without values are not those' in verify(dict(toy=declared))[0]
    change(told, lambda d: d['provenance'].update(migrated={'from': 1, 'not_checked': ['C1.old']}))
    assert verify(dict(toy=declared)) == []


def test_a_card_says_the_verdict_and_what_it_follows_from(told, declared):
    rows, prov = read_results(told)
    origins = dict(computed=3, carried=[dict(n=2, commit='abc', machine='x')])
    card = Card(rows[0], prov | dict(variants=origins), 'published')
    text, page = str(card), card._repr_html_()
    for words in ('HOLDS', 'must lie above 0', '1 [0.503, 1.5]', 'one new seed', '3 seeds', '2 of 5 variants carried'):
        assert words in text
    assert '<script>' not in page and '&lt;script&gt;' in page and 'class="verdict-card"' in page and '<svg' in page
    evil = str(Card(claim(why='[/red]\x1b[31m<b>x'), prov, 'this run'))
    assert '\x1b' not in evil and '[/red]' in evil and '<b>x' in evil
    held_back = claim(controls=[control('placebo', 'nothing', None)])
    held_back.verdict = 'not identified'
    assert 'placebo (must show nothing): not measured' in str(Card(held_back, prov, 'this run'))


def test_a_card_takes_the_largest_preset_that_has_a_number(repo, tmp_path):
    publish(add_run(tmp_path, preset='cpu', rows=[Row('toy', 'claim', 'C1', why='too large for a CPU')]))
    assert card_of('toy', 'C1', [], {}).row.verdict == 'not attempted'
    publish(add_run(tmp_path, preset='tiny', rows=[claim(values=(.7, .9, 1.1))]))
    card = card_of('toy', 'C1', [], {})
    assert (card.provenance['preset'], card.row.verdict) == ('tiny', 'holds')
    publish(add_run(tmp_path, preset='gpu', rows=[claim()]))
    assert card_of('toy', 'C1', [Row('toy', 'claim', 'C1', why='x', verdict='not attempted')], {}).row.ours == 1.
    assert card_of('toy', 'C1', [], {}).provenance['preset'] == 'gpu'


# where, and with what

def test_the_machine_is_told_down_to_what_it_multiplies_with(repo):
    machine = read_results(repo / 'results.json')[1]['machine']
    assert (
        machine['cpu'] and machine['threads'] >= 1 and isinstance(machine['instruction_sets'], list) and machine['blas']
    )


def test_peak_memory_counts_the_processes_of_a_run_and_not_the_one_that_started_it():
    ballast = bytearray(900 * 2**20)
    code = ("import subprocess, sys\nfrom papers_lib.lab.results import peak_run_memory\nbefore = peak_run_memory()\n"
            "subprocess.run([sys.executable, '-c', 'x = bytearray(700 * 2**20)'])\nprint(before, peak_run_memory())")
    told = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, told.split())
    assert len(ballast) > 600 * 2**20 > before * 2**20 and after >= 700


def test_outside_a_clone_one_sentence_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, '_installed', lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match='settings.ini and nbs/: clone it'): repo_root()


def test_only_numbered_notebooks_are_papers(repo, tmp_path):
    for name in ('_template.ipynb', 'notes.ipynb', '02_other.txt', '3_odd.ipynb', '02_two_words.ipynb'):
        (tmp_path / 'nbs' / name).touch()
    assert {n: p.name for n, p in paper_notebooks().items()} == dict(toy='01_toy.ipynb', two_words='02_two_words.ipynb')


def test_a_runners_process_loads_nothing_heavy():
    heavy = ('torch', 'scipy', 'numpy', 'transformers')
    code = f'import papers_lib.lab.runner, sys; print([m for m in {heavy} if m in sys.modules])'
    assert (
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    )
