"Labelled sets: each reader on a small file of the true schema, what it refuses, and the sets as they are published."
import hashlib, json, math, os
from collections import Counter

import pytest

from papers_lib.lab import data
from papers_lib.lab.tasks import (
    ChoiceExample, Example, TaskSet, choice_examples, choice_sets, examples, read_task, task_at_hand, task_metrics,
    task_score, task_sets)
from papers_lib.lab.memo import definitions
from papers_lib.store.cache import reading

mirrored = pytest.mark.skipif(not os.environ.get('PAPERS_MIRROR'), reason='needs PAPERS_MIRROR')

COPA = '''<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE copa-corpus SYSTEM "copa.dtd">
<copa-corpus  version="1.0">

  <item id="6" asks-for="cause" most-plausible-alternative="1">
    <p>My body cast a shadow over the grass.</p>
    <a1>The sun was rising.</a1>
    <a2>The grass was cut.</a2>
  </item>

  <item id="1006" asks-for="effect" most-plausible-alternative="2">
    <p>It rained &amp; poured.</p>
    <a1>The grass was dry.</a1>
    <a2>The grass was wet.</a2>
  </item>

</copa-corpus>
'''
MULTIRC = dict(idx=6, version=1.1, passage=dict(text='A stranger came \u2028 to town . ', questions=[dict(
    question='Who came?', idx=56, answers=[dict(text='A stranger', idx=1, label=1), dict(text='Jo', idx=2, label=0)])]))


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A mirror in which a set's file has the given content."
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PAPERS_MIRROR', str(tmp_path / 'mirror'))

    def put(dataset, file, content):
        text = content if isinstance(content, str) else '\n'.join(json.dumps(r, ensure_ascii=False) for r in content)
        raw, path = text.encode(), tmp_path / 'mirror' / dataset / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        spec = data.SetSpec('CC0', {file: data.FileSpec(hashlib.sha256(raw).hexdigest(), 1, mirror=file)})
        monkeypatch.setitem(data.registry, dataset, spec)
    return put


def test_labelled_lines_are_read_or_refused():
    task = TaskSet('x', {}, (1,), 0, {'0': 'no', '1': 'yes'}, header=False, sep=' ')
    assert read_task(task, '1 how far is it\n0 so')[0].texts == ('how far is it',)
    with pytest.raises(ValueError, match="x/train line 2: label '7' is none of '0', '1'"):
        read_task(task, '1 a\n7 b', 'x/train')
    with pytest.raises(ValueError, match='line 1: 1 column'): read_task(task, '1')
    assert all(len(t.classes) == len(set(t.classes)) > 1 for t in task_sets.values() if not t.scale)
    assert all(t.metric in task_metrics for t in task_sets.values())


LINES = {   # two lines of each file as it is published, and the examples they are
    'sst2': ('sentence\tlabel\nhide new secretions \t0\nrich \t1\n', [Example(('hide new secretions',), 0),
                                                                     Example(('rich',), 1)]),
    'cola': ('gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tThey drank the pub.\n',
             [Example(('The sailors rode.',), 1), Example(('They drank the pub.',), 0)]),
    'rte': ('index\tsentence1\tsentence2\tlabel\n0\tA b.\tC.\tnot_entailment\n1\tD.\tE.\tentailment\n',
            [Example(('D.', 'E.'), 1)]),                                  # the first of ten is the tuning split
    'sick': ('pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\tA.\tB.\t4.5\tNEUTRAL\n'
             '2\tC.\tD.\t1\tCONTRADICTION\n', [Example(('A.', 'B.'), 1), Example(('C.', 'D.'), 0)]),
    'mrpc': ('\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tSo "it\tIt" so\r\n',
             [Example(('So "it', 'It" so'), 1)]),
    'stsb': ('A plane is taking off.,An air plane is taking off.,5.0\r\n"Yes, ""he"" did.",No.,0.75\r\n',
             [Example(('A plane is taking off.', 'An air plane is taking off.'), 5.),
              Example(('Yes, "he" did.', 'No.'), 0.75)]),
    'trec': ('0 What is it ?\n3 Who was Galileo ?\n', [Example(('Who was Galileo ?',), 3)])}


@pytest.mark.parametrize('name', task_sets)
def test_each_set_of_sentences_or_pairs_is_read_as_published(name, place):
    text, wanted = LINES[name]
    place(task_sets[name].dataset, task_sets[name].files['train'], text)
    assert examples(name) == wanted


def test_a_grade_off_the_scale_is_refused(place):
    for written in ('5.1', '-1', 'nan', 'high'):
        place('stsb', 'train.csv', f'A.,B.,{written}\n')
        with pytest.raises(ValueError, match=f"stsb train line 1: label '{written}' is no grade from 0 to 5"):
            examples('stsb')


RECORDS = {   # a file as it is published, the split that holds it, and its examples; records 0 and 5 or 10 are tuned on
    'piqa': ('train', [dict(goal='To boil, ', sol1='heat it', sol2='cool it', label=1, index=0, choices=['A', 'B'],
                            query='Goal: To boil,\n A. heat it\n B. cool it\nAnswer:', gold=1)],
             [ChoiceExample('', 'To boil,', ('heat it', 'cool it'), 1)]),
    'arc_easy': ('train', [dict(id='M_7', query='Question: What\u2028burns?\nAnswer:', choices=['a', 'b', 'c'],
                                gold=2)],
                 [ChoiceExample('', 'What\u2028burns?', ('a', 'b', 'c'), 2)]),
    'winogrande': ('train', [dict(sentence='Ian saw Bo because _ was tall.', option1='Ian', option2='Bo', answer='2',
                                  index=0, gold=1)],
                   [ChoiceExample('', 'Ian saw Bo because', ('Ian was tall.', 'Bo was tall.'), 1)]),
    'boolq': ('train', [dict(idx=0, query='Bees -- Bees fly.\nThey do.\nQuestion: do bees fly?\nAnswer:',
                             choices=['yes', 'no'], gold=0)],
              [ChoiceExample('Bees -- Bees fly.\nThey do.', 'do bees fly?', ('no', 'yes'), 1)]),
    'balanced_copa': ('test', COPA, [
        ChoiceExample('', 'My body cast a shadow over the grass because',
                      ('The sun was rising.', 'The grass was cut.'), 0),
        ChoiceExample('', 'It rained & poured so', ('The grass was dry.', 'The grass was wet.'), 1)]),
    'multirc': ('test', [MULTIRC], [
        ChoiceExample('A stranger came \u2028 to town .', 'Who came?', ('A stranger',), 1),
        ChoiceExample('A stranger came \u2028 to town .', 'Who came?', ('Jo',), 0)])}


def put_choices(place, name, content):
    task = choice_sets[name]
    place(*task.files.get('train') or task.files['all'], content)


@pytest.mark.parametrize('name', choice_sets)
def test_each_set_of_questions_is_read_as_published(name, place):
    split, content, wanted = RECORDS[name]
    put_choices(place, name, content)
    assert choice_examples(name, split) == wanted


def test_the_test_files_of_the_questions_are_prompts(place):
    place('few_shot_choices', 'piqa.jsonl', [dict(choices=['a', 'b'], query='Question: Why? ', gold=1)])
    assert choice_examples('piqa', 'test') == [ChoiceExample('', 'Why?', ('a', 'b'), 1)]
    place('few_shot_choices', 'boolq.jsonl', [
        dict(query='Passage: Bees.\nQuestion: do bees fly?', choices=['no', 'yes'], gold=0)])
    assert choice_examples('boolq', 'test') == [ChoiceExample('Bees.', 'do bees fly?', ('no', 'yes'), 0)]
    place('few_shot_choices', 'winogrande.jsonl', [
        dict(context_options=['Ann met Bo so Ann', 'Ann met Bo so Bo'], continuation='ran.', gold=0),
        dict(context_options=['So so', 'So so so'], continuation='ran.', gold=1)])          # a filling is never empty
    assert choice_examples('winogrande', 'test') == [
        ChoiceExample('', 'Ann met Bo so', ('Ann ran.', 'Bo ran.'), 0),
        ChoiceExample('', 'So', ('so ran.', 'so so ran.'), 1)]


@pytest.mark.parametrize('name, content, words', [
    ('piqa', [dict(goal='x', sol1='a', sol2='b', gold=0), dict(goal='x', sol1='a')], 'piqa train line 2.*sol2'),
    ('piqa', [dict(goal='x', sol1='a', sol2=' ', gold=0)], 'piqa train line 1.*an answer is empty'),
    ('piqa', [dict(goal='x', sol1='a', sol2='b', gold=2)], 'piqa train record 1: label 2 is none of 2'),
    ('boolq', 'no json', 'boolq train line 1: no record'), ('boolq', '[1]', 'boolq train line 1: no record'),
    ('multirc', [dict(passage=dict(text='x', questions=[dict(question='y', answers=[dict(text='z', label=2)])]))],
     'multirc all record 1: label 2 is none of 2'),
    ('balanced_copa', COPA.replace('<a2>The grass was wet.</a2>', ''), "item '1006' is no item of COPA"),
    ('balanced_copa', COPA.replace('"effect"', '"why"'), "item '1006' is no item of COPA.*why"),
    ('balanced_copa', COPA[:-20], 'balanced_copa all: not XML')])
def test_a_broken_record_is_named(name, content, words, place):
    put_choices(place, name, content)
    with pytest.raises(ValueError, match=words): choice_examples(name, 'train')


def test_names_that_are_not_there_get_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'bolq', did you mean 'boolq'"): choice_examples('bolq')
    with pytest.raises(ValueError, match="boolq has no split 'tests', did you mean 'test'"):
        choice_examples('boolq', 'tests')
    with pytest.raises(ValueError, match="did you mean 'stsb'"): task_at_hand('stsbb')


def test_what_is_at_hand_is_noted(place):
    place('stsb', 'train.csv', 'A.,B.,1\n')
    with reading() as noted: assert task_at_hand('stsb') and not task_at_hand('boolq')
    assert noted['stsb'] and noted['few_shot_train'] is None and noted['few_shot_choices'] is None


def test_no_record_is_in_two_splits_and_twins_stay_together(place):
    items = ''.join(COPA.split('\n\n')[1].replace('"6"', f'"{i + k}"') + '\n' for i in range(1, 21) for k in (0, 1000))
    place('balanced_copa', 'balanced-copa-dev-all.xml', f'<copa-corpus>{items}</copa-corpus>')
    assert [len(choice_examples('balanced_copa', s)) for s in ('train', 'tune', 'test')] == [24, 8, 8]
    place('few_shot_train', 'boolq_train.jsonl', [dict(query=f'D{i}\nQuestion: {i}', choices=['yes', 'no'], gold=0)
                                                  for i in range(40)])
    parts = [{e.document for e in choice_examples('boolq', s)} for s in ('train', 'tune')]
    assert len(parts[0]) == 36 and len(parts[1]) == 4 and not parts[0] & parts[1]


def test_scores_are_those_of_their_names():
    from scipy.stats import pearsonr
    truth, said = [1, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 1]
    assert math.isclose(task_score('accuracy', truth, said), 4 / 6)
    assert math.isclose(task_score('f1', truth, said), 6 / 8)
    assert math.isclose(task_score('matthews', truth, said), 0.25)
    assert math.isclose(task_score('matthews', truth, said), pearsonr(truth, said).statistic)   # of two binary columns
    assert math.isclose(task_score('spearman', [1, 2, 3], [1, 10, 100]), 1)
    assert {m: task_score(m, truth, [0] * 6) for m in ('matthews', 'f1', 'pearson', 'spearman')} == dict.fromkeys(
        ('matthews', 'f1', 'pearson', 'spearman'), 0)
    with pytest.raises(ValueError, match="unknown metric 'mathews', did you mean 'matthews'"):
        task_score('mathews', truth, said)
    with pytest.raises(ValueError, match='2 answers to 6 examples'): task_score('f1', truth, [0, 1])
    with pytest.raises(FloatingPointError, match='no number'): task_score('pearson', truth, [math.nan] * 6)


@mirrored
def test_the_published_sets_have_the_examples_they_should():
    assert [len(examples('stsb', s)) for s in ('train', 'tune', 'test')] == [5749, 1500, 1379]
    assert [len(examples('trec', s)) for s in ('train', 'tune')] == [4361, 1091]
    sizes = {name: [len(choice_examples(name, s)) for s in ('train', 'tune', 'test')] for name in choice_sets}
    assert {n: (sum(s[:2]), s[2]) for n, s in sizes.items() if 'all' not in choice_sets[n].files} == {
        'piqa': (16113, 1838), 'arc_easy': (2251, 2376), 'winogrande': (40398, 1267), 'boolq': (9427, 3270)}
    assert sum(sizes['balanced_copa']) == 1000
    found = [e for s in ('train', 'tune', 'test') for e in choice_examples('multirc', s)]
    assert len({(e.document, e.question) for e in found}) == 32
    counts = Counter(e.label for e in choice_examples('boolq', 'test'))
    assert counts == {1: 2033, 0: 1237}                                        # 62.2 % yes, as published
    assert all(e.document and e.question.endswith('?') for e in choice_examples('boolq', 'test'))


def asks(*, name): return dict(n=len(choice_examples(name)))


def test_a_result_depends_on_how_its_records_are_read():
    assert 'papers_lib.lab.tasks._goal' in definitions(asks)
