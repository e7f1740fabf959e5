"Questions in a prompt: what is shown, what is chosen, and what is refused."
import math
import random

import numpy as np
import pytest

from decoders import broken, tiny
from papers_lib.engine.choices import (Question, Schema, ask, ask_written, choice_rules, choose, draw_shots, few_shot,
                                       loose, within_budget)
from papers_lib.engine.llm import LocalLLM
from papers_lib.text.tokenizers import ByteTokenizer

SET = [Question(f'Q: {i}?\nA:', (f' {i}', f' {i + 1} or so', f' {i + 2}'), i % 3) for i in range(9)]


@pytest.mark.parametrize('rule', choice_rules)
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_log_probability_that_is_no_number_is_an_error(rule, value):
    choices, fine = (' a', ' b', ' c'), [[-1.], [-2.], [-3.]]
    for at in range(3):
        spoilt = [[*row, value] if i == at else row for i, row in enumerate(fine)]
        with pytest.raises(FloatingPointError, match=f"choice {at} .' {'abc'[at]}'. has the log-probability"):
            choose(spoilt, choices, rule, alone=fine)
    with pytest.raises(FloatingPointError, match='after the answer context'):
        choose(fine, choices, 'answer', alone=[[value], [-1.], [-1.]])


def test_a_model_of_nan_answers_nothing():
    bad = LocalLLM(broken(tiny(n_vocab=257)), ByteTokenizer(), hash='bad')
    with pytest.raises(FloatingPointError): ask(bad, SET)
    with pytest.raises(FloatingPointError): ask_written(bad, SET)


def test_every_choice_needs_its_log_probabilities():
    with pytest.raises(ValueError, match='2 lists of log-probabilities for 3 choices'): choose([[-1.], [-2.]], 'abc')
    with pytest.raises(ValueError, match="rule='best'"): choose([[-1.]], ['a'], 'best')


def test_the_rules_are_their_formulas():
    rng = random.Random(0)
    for _ in range(50):
        choices = [' ' + 'x' * rng.randint(1, 9) for _ in range(4)]
        logp, alone = ([[-rng.random() * 5 for _ in range(rng.randint(1, 5))] for _ in choices] for _ in range(2))
        total = np.array([sum(x) for x in logp])
        ranks = dict(sum=total, token=total / [len(x) for x in logp], char=total / [len(c) for c in choices],
                     answer=total - [sum(x) for x in alone])
        assert set(ranks) == set(choice_rules)
        for rule, r in ranks.items(): assert choose(logp, choices, rule, alone) == r.argmax()


def test_the_first_examples_are_the_same_for_every_number_of_them():
    for number in range(5):
        most = draw_shots(SET, 8, number, skip=SET[2])
        assert SET[2] not in most and len(set(most)) == 8
        for k in range(8): assert draw_shots(SET, k, number, skip=SET[2]) == most[:k]
    assert draw_shots(SET, 4, 0) != draw_shots(SET, 4, 1) and draw_shots(SET, 4, 0, seed=1) != draw_shots(SET, 4, 0)


def test_a_question_that_stands_twice_in_the_pool_costs_no_example():
    pool = [*SET, SET[2], SET[2]]
    for number in range(30):
        shots = draw_shots(pool, 3, number, skip=SET[2])
        assert len(shots) == 3 and SET[2] not in shots
    assert len(draw_shots(pool, len(SET) - 1, 0, skip=SET[2])) == len(SET) - 1
    with pytest.raises(ValueError, match=f'k={len(SET)}'): draw_shots(pool, len(SET), 0, skip=SET[2])


def test_a_prompt_ends_where_the_choices_begin():
    prompt = few_shot(SET[0], SET[1:3], instruction='Count.')
    assert prompt == 'Count.\n\n' + '\n\n'.join([SET[1].solved, SET[2].solved, SET[0].context])
    with pytest.raises(ValueError, match='its own examples'): few_shot(SET[0], SET)
    with pytest.raises(ValueError, match='ends in a space'): Question('A: ', ('x',))
    with pytest.raises(ValueError, match='answer=3'): Question('A:', ('x', 'y', 'z'), 3)


class Counting:
    hash = 'counting'

    def __init__(self): self.prompts, self.stops = [], []

    def complete(self, prompts, *, max_tokens, temperature=0., stop=None, seed=0):
        self.prompts.append(list(prompts))
        self.stops.append(stop)
        return [' The 4!' if '4?' in p.split('\n\n')[-1] else ' 0' for p in prompts]

    def loglik(self, prompt, choices):
        self.prompts.append(prompt)
        return [[-1.] if c == ' 4' else [-2.] for c in choices]


def test_written_answers_are_compared_in_the_form_asked_for():
    llm = Counting()
    right = ask_written(llm, SET, same=loose, batch_size=4)
    assert right.tolist() == [True] + [False] * 3 + [True] + [False] * 4  # ' 0' answers question 0, ' The 4!' number 4
    assert [len(p) for p in llm.prompts] == [4, 4, 1]
    assert not ask_written(llm, SET[4:5])[0]


def test_a_lost_answer_is_not_passed_over():
    llm = Counting()
    llm.complete = lambda prompts, **how: [' 4'] * (len(prompts) - 1)
    with pytest.raises(ValueError): ask_written(llm, SET)


def test_a_schema_is_asked_once_for_each_beginning():
    llm = Counting()
    ask(llm, [Schema(('It is three', 'It is four'), ' 4', 1)], rules=['sum'])
    assert llm.prompts == ['It is three', 'It is four']


def test_a_budget_counts_the_examples_too():
    words = lambda s: len(s.split())
    few = within_budget(SET * 5, 300, words)
    assert 10 <= len(within_budget(SET * 5, 300, words, pool=SET, k=3)) < len(few) < 45
