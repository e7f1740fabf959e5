"Questions: how records are written, and what a result depends on that asked them."
import json

import pytest

from papers_lib.engine.choices import Question, Schema
from papers_lib.lab import data
from papers_lib.lab import questions as lab_questions
from papers_lib.lab.memo import definitions, finders
from papers_lib.lab.questions import QuestionSet, question_sets, questions
from papers_lib.store.cache import reading


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A registry with one set of two records."
    import hashlib
    raw = '\n'.join(json.dumps(r, ensure_ascii=False) for r in (
        dict(query='A sky\u2028line is ', choices=['high', 'low'], gold=0),
        dict(query='Snow is', choices=['hot', 'cold'], gold=1))).encode()
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PAPERS_MIRROR', str(tmp_path / 'mirror'))
    (tmp_path / 'mirror/toy').mkdir(parents=True)
    (tmp_path / 'mirror/toy/q.jsonl').write_bytes(raw)
    spec = data.SetSpec('CC0', {'q.jsonl': data.FileSpec(hashlib.sha256(raw).hexdigest(), 2, 'q.jsonl')})
    monkeypatch.setitem(data.registry, 'toy', spec)
    monkeypatch.setitem(question_sets, 'sky', QuestionSet('toy', 'q.jsonl', lab_questions._completes))


def test_records_become_questions_whatever_characters_they_hold(place):
    assert questions('sky') == [Question('A sky\u2028line is', (' high', ' low'), 0),
                                Question('Snow is', (' hot', ' cold'), 1)]
    with pytest.raises(ValueError, match="unknown questions 'skye', did you mean 'sky'"): questions('skye')


def test_a_reading_names_the_records_and_how_they_were_written(place, monkeypatch):
    with reading() as noted: questions('sky')
    assert noted == {'toy': data.known('toy').hash, 'questions/sky': finders['questions']('sky')}
    monkeypatch.setitem(question_sets, 'further', QuestionSet('toy', 'q.jsonl', lab_questions._answers))
    # a new set is nobody's business
    assert finders['questions']('sky') == noted['questions/sky'] != finders['questions']('further')
    monkeypatch.setitem(question_sets, 'sky', QuestionSet('toy', 'q.jsonl', lab_questions._answers))
    assert finders['questions']('sky') != noted['questions/sky']
    assert finders['questions']('gone') is None


def asks(*, name): return dict(n=len(questions(name)))


def test_the_table_of_sets_is_not_part_of_a_key():
    assert definitions(asks) == ['test_lab_questions.asks']


@pytest.mark.parametrize('write, record, wanted', [
    (lab_questions._answers, dict(query='Why? ', choices=['a', 'b'], gold=1),
     Question('Why?\nAnswer:', (' a', ' b'), 1)),
    (lab_questions._blank, dict(text='the end of it'), Question('the end of ____. →', (' it',))),
    (lab_questions._written, dict(context='Q', answer='x', aliases=['y', 'x']), Question('Q', (' x', ' y'))),
    (lab_questions._task, dict(context='1+1=', completion=' 2'), Question('1+1=', (' 2',))),
    (lab_questions._schema, dict(context_options=['A', 'B'], continuation='ran.', gold=1),
     Schema(('A', 'B'), ' ran.', 1)),
    (lab_questions._piqa_train, dict(goal=' Cut ', sol1='a', sol2='b', gold=0),
     Question('Question: Cut\nAnswer:', (' a', ' b'), 0))])
def test_how_each_kind_of_record_is_written(write, record, wanted): assert write(record) == wanted


@pytest.mark.parametrize('name', list(question_sets))
def test_every_set_that_is_at_hand_can_be_asked(name):
    if not data.available(question_sets[name].dataset): pytest.skip(f'{question_sets[name].dataset} is not at hand')
    asked = questions(name)
    assert len(asked) > 50 and all(isinstance(q, (Question, Schema)) for q in asked)
