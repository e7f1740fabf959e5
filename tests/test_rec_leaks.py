"Leaks: each is seen where it is, not seen where it is not, and told with its size."
import warnings

import numpy as np
import pytest

from papers_lib.rec.interactions import Queries, interactions, leave_one_out
from papers_lib.rec.leaks import BOUNDS, appearance_numbering, leak_check, next_number_hits, tied_order

N_USER, N_ITEM = 600, 60


def made(ties='hash', times=None, order=None, seed=0):
    "Random events; `order` renumbers the items."
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(N_ITEM)[:6] for _ in range(N_USER)])
    if order is not None: items = np.asarray(order)[items]
    times = np.zeros(len(items)) if times is None else times
    return interactions(np.repeat(np.arange(N_USER), 6), items, times, ties=ties)


def checked(data, numbering=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        s = leave_one_out(data)
    return {r.id.removeprefix('L.'): r for r in leak_check(s.train, s.valid, s.test, numbering, **options)}, s


def as_they_come(rows=300):
    "Every user meets new items, numbered in the order in which they come, and a few of somebody before."
    users, items, top = [], [], 0
    for u in range(rows):
        items += [*range(top, top + 4)]
        users += [u] * 4
        top += 4
    return interactions(users, items, ties='file')


def test_a_numbering_by_first_appearance_is_found_and_one_of_the_training_events_is_not():
    rows, s = checked(as_they_come())
    assert rows['numbering'].ours == 1 and rows['numbering'].verdict == 'fails'
    assert rows['numbering'].baseline_value < .05
    permuted = np.random.default_rng(0).permutation(s.train.n_item)
    fair, _ = checked(as_they_come(), permuted)
    assert fair['numbering'].ours < .05


def test_items_that_training_never_saw_are_numbered_last():
    s = leave_one_out(as_they_come(3))
    number = appearance_numbering(s.train)
    assert sorted(number) == list(range(s.train.n_item))
    assert number[s.train.item].tolist() == list(range(6)) and min(number[t[0]] for t in s.test.targets) >= 6


def test_the_next_numbers_by_hand():
    targets = [np.array(t) for t in ([5], [9], [10], [0])]
    q = Queries(np.arange(4), [np.array([1, 4])] * 3 + [np.zeros(0, int)], targets, None)
    assert next_number_hits(q, np.arange(20)).tolist() == [True, True, False, True]
    assert next_number_hits(q, np.arange(20), 1).tolist() == [True, False, False, True]


@pytest.mark.parametrize('ties, order, leaks', [
    ('hash', None, False), ('item', None, True), ('item', np.random.default_rng(5).permutation(N_ITEM), True)])
def test_any_order_of_ties_that_users_share_is_found(ties, order, leaks):
    row = checked(made(ties, order=order))[0]['ties']
    assert (row.ours > .99) == leaks and row.verdict == ('fails' if leaks else 'holds')


def test_the_order_of_ties_by_a_slow_count():
    data = made('hash')
    seen, right, of = {}, 0, 0
    rows = [(i, j) for u in range(N_USER) for i, j in zip(data.item[data.user == u], data.item[data.user == u][1:])]
    for i, j in rows: seen[i, j] = seen.get((i, j), 0) + 1
    for i, j in rows:
        same, other = seen[i, j] - 1, seen.get((j, i), 0)
        right, of = right + (same > other), of + (same != other)
    assert tied_order(data) == (right, of)


def test_without_ties_or_times_the_row_says_why():
    row = checked(made(times=np.arange(N_USER * 6)))[0]['ties']
    assert (row.ours, row.verdict, row.why) == (None, 'not attempted', 'no tied neighbours that several users share')
    rows, _ = checked(as_they_come())
    assert rows['ties'].why == rows['future'].why == 'no times'


def test_the_future_and_duplicates():
    rows, s = checked(made(times=np.random.default_rng(1).permutation(N_USER * 6)))
    assert rows['future'].ours == pytest.approx(s.future) and rows['future'].verdict == 'fails'
    assert rows['duplicates'].ours == 0 and rows['duplicates'].verdict == 'holds'
    again = interactions([1, 1, 1, 1], [5, 6, 7, 5], range(4), repeats='keep')
    assert checked(again)[0]['duplicates'].ours == 1


@pytest.mark.parametrize('n', [1, 9, 10])
def test_a_few_test_queries_are_audited_too(n):
    data = made(times=np.random.default_rng(1).permutation(N_USER * 6))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        s = leave_one_out(data)
    told = ['says nothing'] * n
    rows = {r.id.removeprefix('L.'): r for r in leak_check(s.train, s.valid, s.test.keep(range(n)), prompts=told)}
    assert [*rows] == ['numbering', 'ties', 'duplicates', 'future', 'prompts']
    assert rows['duplicates'].ours == rows['prompts'].ours == 0
    if n < 10:
        assert (rows['future'].ours, rows['future'].verdict) == (None, 'not attempted')
        assert rows['future'].why == f'{n} test queries: the interval of a mean needs at least 10'
    else: assert rows['future'].ours > .01 and rows['future'].why == ''


def test_prompts_and_pairs_that_hold_the_answer():
    data = made(times=np.arange(N_USER * 6))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        s = leave_one_out(data)
    told = [f'user met item_{h[0]} and item_{t[0]}1' for h, t in zip(s.test.histories, s.test.targets)]
    names = [f'item_{i}' for i in range(N_ITEM)]
    assert checked(data, prompts=told, names=names)[0]['prompts'].ours == 0           # item_12 is not item_121
    told[:60] = [f'then item_{t[0]}!' for t in s.test.targets[:60]]
    assert checked(data, prompts=told, names=names)[0]['prompts'].ours == .1
    pairs = s.test.user[:30], [t[0] for t in s.test.targets[:30]]
    assert checked(data, pairs=pairs)[0]['pairs'].ours == pytest.approx(.05)
    with pytest.raises(ValueError, match='3 prompts for 600 queries'): checked(data, prompts=['a'] * 3)


@pytest.mark.parametrize('numbering', [[1, 2], np.zeros(N_ITEM, int)])
def test_a_numbering_that_is_none_is_refused(numbering):
    with pytest.raises(ValueError, match='must give each of the 60 items a number of its own'):
        checked(made(times=np.arange(N_USER * 6)), numbering)


def test_every_row_has_the_bound_that_was_fixed():
    rows, _ = checked(made())
    assert {k: r.bound for k, r in rows.items()} == {k: BOUNDS[k] for k in rows}
    assert all(r.kind == 'leak' and r.tests and r.dataset == 'data' for r in rows.values())
