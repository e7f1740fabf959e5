"Metrics over the whole catalogue: equal to a slow reference and to ranx, blind to names, fair to equals, in blocks."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.sparse import csr_matrix

from papers_lib.rec import metrics
from papers_lib.rec.interactions import Queries
from papers_lib.rec.metrics import (
    METRICS, coverage, diversity, gini, label_coverage, mean_ranks, novelty, of_ranks, popularity_lift, rank_queries,
    top_k)

N_ITEM = 40


def asked(n=60, n_target=1, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(N_ITEM) for _ in range(n)]
    return Queries(np.arange(n), [r[:5] for r in rows], [r[5:5 + n_target] for r in rows], None)


def rated(seed=1, levels=None, n=60):
    "A scorer whose scores are a table; few levels make many ties."
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n, N_ITEM)) if levels is None else rng.integers(0, levels, (n, N_ITEM)).astype(float)
    def score(histories):
        score.at += len(histories)
        return table[score.at - len(histories):score.at].astype(np.float32)
    score.at, score.table = 0, table
    return score


def slow(table, q, metric, k):
    "A metric in Python's float64, one query and one item at a time."
    total = 0.
    for row, history, targets in zip(table, q.histories, q.targets):
        places = []
        for t in targets:
            above = alike = 0
            for i in range(N_ITEM):
                if i == t or (i in history and i not in targets): continue
                above += row[i] > row[t]
                alike += row[i] == row[t]
            places.append(1 + above + alike / 2)
        hits = [p for p in places if p <= k]
        ideal = sum(1 / math.log2(j + 2) for j in range(min(len(targets), k)))
        total += dict(hr=float(bool(hits)), recall=len(hits) / len(targets), mrr=1 / min(hits) if hits else 0.,
                      ndcg=sum(1 / math.log2(p + 1) for p in hits) / ideal)[metric]
    return total / len(table)


@pytest.mark.parametrize('n_target', [1, 4])
@pytest.mark.parametrize('levels', [None, 3])
@pytest.mark.parametrize('metric', METRICS)
def test_every_metric_equals_a_slow_reference(metric, levels, n_target):
    q, score = asked(n_target=n_target), rated(levels=levels)
    ranked = rank_queries(score, q, N_ITEM)
    for k in (1, 5, 10, 100):
        assert ranked.each(metric, k).mean() == pytest.approx(slow(score.table, q, metric, k), abs=1e-12)


@pytest.mark.parametrize('n_target', [1, 4])
def test_every_metric_equals_ranx(n_target):
    ranx = pytest.importorskip('ranx', reason='ranx is not installed: pip install ranx')
    q, score = asked(n_target=n_target), rated()
    ranked = rank_queries(score, q, N_ITEM, filter_seen=False)
    qrels = ranx.Qrels({str(i): {str(t): 1 for t in ts} for i, ts in enumerate(q.targets)})
    listed = ranx.Run({str(i): {str(j): float(s) for j, s in enumerate(row)} for i, row in enumerate(score.table)})
    theirs = dict(hr='hit_rate', recall='recall', ndcg='ndcg', mrr='mrr')
    for k in (5, 10):
        told = ranx.evaluate(qrels, listed, [f'{theirs[m]}@{k}' for m in METRICS])
        for m in METRICS: assert ranked.each(m, k).mean() == pytest.approx(told[f'{theirs[m]}@{k}'], abs=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([None, 2, 5]))
def test_renaming_the_items_moves_no_rank(seed, levels):
    q, score = asked(), rated(levels=levels)
    name = np.random.default_rng(seed).permutation(N_ITEM)               # new number of each item
    back = np.argsort(name)
    renamed = Queries(q.user, [name[h] for h in q.histories], [name[t] for t in q.targets], None)
    turn = lambda histories: score(histories)[:, back]
    before = rank_queries(score, q, N_ITEM).ranks
    score.at = 0
    assert (rank_queries(turn, renamed, N_ITEM).ranks == before).all()


def test_renaming_renames_the_lists_where_scores_differ():
    q, score, name = asked(), rated(), np.random.default_rng(3).permutation(N_ITEM)
    renamed = Queries(q.user, [name[h] for h in q.histories], [name[t] for t in q.targets], None)
    before = rank_queries(score, q, N_ITEM).ids
    score.at = 0
    assert (rank_queries(lambda h: score(h)[:, np.argsort(name)], renamed, N_ITEM).ids == name[before]).all()


class Elsewhere(torch.Tensor):
    "Stands in for a tensor on a GPU: NumPy may not read it before `cpu` was asked."
    def cpu(self): return self.as_subclass(torch.Tensor)

    def numpy(self, **options): raise TypeError('it is not on the CPU')


@pytest.mark.parametrize('told', [
    lambda x: torch.from_numpy(x).as_subclass(Elsewhere), lambda x: torch.from_numpy(x).requires_grad_() * 1,
    lambda x: torch.from_numpy(x).bfloat16(), lambda x: torch.from_numpy(x).double(),
    pytest.param(lambda x: torch.from_numpy(x).cuda(), marks=pytest.mark.skipif(not torch.cuda.is_available(),
                                                                               reason='needs a GPU'))],
    ids=['elsewhere', 'with a gradient', 'bfloat16', 'float64', 'cuda'])
def test_scores_may_be_a_tensor_of_any_kind(told):
    q, table = asked(), rated(levels=4)
    one = rank_queries(rated(levels=4), q, N_ITEM, sampled=[('uniform', 7)])
    other = rank_queries(lambda histories: told(table(histories)), q, N_ITEM, sampled=[('uniform', 7)])
    assert (one.ranks == other.ranks).all() and (one.ids == other.ids).all()
    assert (one.sampled['uniform-7'] == other.sampled['uniform-7']).all()


def test_blocks_of_any_size_give_the_same(monkeypatch):
    q, sampled, counts = asked(), [('uniform', 7), ('popularity', 7)], np.arange(1, N_ITEM + 1)
    whole = rank_queries(rated(levels=4), q, N_ITEM, sampled=sampled, counts=counts)
    monkeypatch.setattr(metrics, '_block', 3 * N_ITEM)
    parts = rank_queries(rated(levels=4), q, N_ITEM, sampled=sampled, counts=counts)
    assert (whole.ranks == parts.ranks).all() and (whole.ids == parts.ids).all()
    assert all((whole.sampled[s] == parts.sampled[s]).all() for s in whole.sampled)


def test_a_block_is_never_users_times_items(monkeypatch):
    sizes = []
    monkeypatch.setattr(metrics, '_block', 10 * N_ITEM)
    def score(histories):
        sizes.append(len(histories))
        return torch.zeros(len(histories), N_ITEM)
    rank_queries(score, asked(), N_ITEM)
    assert max(sizes) == 10 and sum(sizes) == 60


# Ties and lists

def test_one_score_for_all_is_the_middle_and_no_hit():
    ranked = rank_queries(lambda h: torch.zeros(len(h), N_ITEM), asked(), N_ITEM)
    assert set(ranked.ranks[:, 0]) == {1 + (N_ITEM - 6) / 2} and ranked.each('hr', 10).sum() == 0


def test_a_target_that_is_no_candidate_is_a_miss():
    q = asked()
    others = [np.setdiff1d(np.arange(N_ITEM), t) for t in q.targets]
    ranked = rank_queries(rated(), q, N_ITEM, candidates=others)
    assert np.isinf(ranked.ranks).all() and ranked.each('ndcg', 10).sum() == 0


@pytest.mark.parametrize('levels', [1, 2, 6, None])
@pytest.mark.parametrize('k', [1, 7, N_ITEM, N_ITEM + 5])
def test_lists_are_the_best_and_equals_stand_in_one_order(levels, k):
    S = torch.from_numpy(rated(levels=levels).table.astype(np.float32))
    S[:, ::5] = -torch.inf
    ids, scores = top_k(S, k)
    hashed = metrics._hashed(N_ITEM).numpy()
    for row, got, s in zip(S.numpy(), ids, scores):
        want = sorted((i for i in range(N_ITEM) if row[i] > -np.inf), key=lambda i: (-row[i], -hashed[i]))[:k]
        assert got.tolist() == want + [-1] * (k - len(want))
        assert s[:len(want)].tolist() == row[want].tolist() and np.isinf(s[len(want):]).all()


def test_three_allowed_items_make_a_list_of_three_that_metrics_understand():
    q = asked(3)
    ranked = rank_queries(rated(), q, N_ITEM, candidates=[30, 31, 32], filter_seen=False)
    assert ((ranked.ids >= 0).sum(1) == 3).all() and coverage(ranked.ids, N_ITEM) == 3 / N_ITEM
    assert novelty(ranked.ids, np.ones(N_ITEM)) == pytest.approx(np.log2(N_ITEM))


def test_the_history_is_left_out_and_a_repeated_target_is_not():
    q = Queries(np.arange(1), [np.array([4, 5])], [np.array([5])], None)
    ranked = rank_queries(lambda h: torch.arange(float(N_ITEM))[None], q, N_ITEM, k=N_ITEM)
    assert 4 not in ranked.ids and 5 in ranked.ids and ranked.ranks[0, 0] == N_ITEM - 5
    again = rank_queries(lambda h: torch.arange(float(N_ITEM))[None], q, N_ITEM, k=N_ITEM, filter_seen=False)
    assert 4 in again.ids


@pytest.mark.parametrize('queries, options, words', [
    (asked(), dict(candidates=np.arange(N_ITEM) > 3), r'np.flatnonzero\(mask\)'),
    (asked(), dict(candidates=[-1]), r'candidates=\[-1\]: must hold whole numbers from 0 to 39'),
    (asked(), dict(candidates=[1.9]), r'candidates=\[1.9\]'), (asked(), dict(candidates=['1']), 'candidates='),
    (asked(), dict(candidates=[[1]] * 3), '3 lists of candidates for 60 histories'),
    (asked().keep([]), {}, 'queries: there are none'),
    (Queries(np.arange(1), [[]], [np.array([-1])], None), {}, r'targets=\[-1\]: must hold whole numbers'),
    (Queries(np.arange(1), [[-1]], [np.array([1])], None), {}, r'history=\[-1\]: must hold whole numbers'),
    (Queries(np.arange(1), [[]], [np.array([1, 1])], None), {}, r'targets=\[1, 1\]: must be given once each')])
def test_what_is_no_item_is_refused(queries, options, words):
    with pytest.raises(ValueError, match=words): rank_queries(rated(n=len(queries)), queries, N_ITEM, **options)


def test_whole_numbers_may_be_written_as_floats():
    lists = [rank_queries(rated(), asked(), N_ITEM, candidates=c).ids for c in ([3., 7.], (3, 7), np.uint8([3, 7]))]
    assert (lists[0] == lists[1]).all() and (lists[1] == lists[2]).all()


# Sampled beside full

def test_sampled_ranks_stand_beside_full_ones_and_flatter():
    ranked = rank_queries(rated(), asked(), N_ITEM, sampled=[('uniform', 10)])
    assert (ranked.sampled['uniform-10'] <= ranked.ranks).all() and ranked.sampled['uniform-10'].max() <= 11
    assert ranked.each('hr', 5, 'uniform-10').mean() > ranked.each('hr', 5).mean()
    every = rank_queries(rated(), asked(), N_ITEM, sampled=[('uniform', N_ITEM)])
    assert (every.sampled[f'uniform-{N_ITEM}'] == every.ranks).all()


def test_popular_items_are_drawn_by_popularity():
    counts = np.where(np.arange(N_ITEM) < 4, 1000, 1)
    score = lambda h: torch.from_numpy(np.tile((np.arange(N_ITEM) < 4).astype(np.float32), (len(h), 1)))
    q = Queries(np.arange(200), [np.array([39])] * 200, [np.array([20])] * 200, None)
    told = rank_queries(score, q, N_ITEM, sampled=[('uniform', 4), ('popularity', 4)], counts=counts).sampled
    assert told['popularity-4'].mean() > 4 > told['uniform-4'].mean()


@pytest.mark.parametrize('options, words', [
    (dict(sampled=[('best', 3)]), "sampled='best', 3"),
    (dict(sampled=[('popularity', 3)]), 'needs the training counts'),
    (dict(k=0), 'k=0: must be at least 1'), (dict(candidates=[[1]] * 3), '3 lists of candidates for 60')])
def test_what_cannot_be_ranked_is_named(options, words):
    with pytest.raises(ValueError, match=words): rank_queries(rated(), asked(), N_ITEM, **options)


@pytest.mark.parametrize('targets, n', [([3, 4], 2), ([], 0)])
def test_sampled_ranks_are_of_one_target_each(targets, n):
    q = Queries(np.arange(2), [np.array([0]), np.array([1])], [np.array([2]), np.array(targets, int)], None)
    with pytest.raises(ValueError, match=f'{n} targets in a query'):
        rank_queries(rated(n=2), q, N_ITEM, sampled=[('uniform', 3)])


def test_a_model_of_nan_and_a_wrong_shape_are_named():
    with pytest.raises(ValueError, match='a score is not a number'):
        rank_queries(lambda h: torch.full((len(h), N_ITEM), torch.nan), asked(), N_ITEM)
    with pytest.raises(ValueError, match=r'scores of shape \(60, 3\)'):
        rank_queries(lambda h: torch.zeros(len(h), 3), asked(), N_ITEM)
    with pytest.raises(ValueError, match="metric='auc': must be one of"): of_ranks(np.ones((2, 1)), 'auc', 5)


# Intervals and what else a list does

def test_an_effect_is_the_paired_difference_over_users():
    q = asked()
    a, b = rank_queries(rated(1), q, N_ITEM), rank_queries(rated(2), q, N_ITEM)
    e = a.effect('ndcg', 10, b, ('a', 'b'))
    assert e.test == 'bootstrap over units' and e.n == 60 and list(e.values) == ['a', 'b']
    assert e.mean == pytest.approx(a.each('ndcg', 10).mean() - b.each('ndcg', 10).mean())
    assert e.ci95[0] < e.mean < e.ci95[1]


def test_gini_is_0_for_all_alike_and_near_1_for_one_item():
    assert gini(np.arange(N_ITEM).reshape(4, -1), N_ITEM) == 0
    assert gini(np.full((50, 1), 3), N_ITEM) == pytest.approx(1 - 1 / N_ITEM)
    x = np.bincount([0, 0, 0, 1, 2], minlength=5)
    slow_gini = np.abs(x[:, None] - x).sum() / (2 * 5 * x.sum())
    assert gini(np.array([[0], [0], [0], [1], [2]]), 5) == pytest.approx(slow_gini)


def test_lift_and_novelty_by_hand():
    ids, counts = np.array([[0, 1], [0, -1]]), np.array([8, 4, 2, 0])
    assert popularity_lift(ids, [np.array([1, 2]), np.array([2])], counts) == pytest.approx((6 + 8) / (3 + 2))
    bits = [math.log2(14 / n) for n in (8, 4)]
    assert novelty(ids, counts).tolist() == pytest.approx([sum(bits) / 2, bits[0]])
    assert novelty(np.array([[3]]), counts).tolist() == pytest.approx([math.log2(14)])      # unseen counts as once
    with pytest.raises(ValueError, match='a list is empty'): novelty(np.array([[-1, -1]]), counts)


def test_diversity_and_label_coverage_by_hand():
    labels = csr_matrix(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]]))
    ids = np.array([[0, 1, 2], [0, 3, -1], [1, 2, -1]])
    told = diversity(ids, labels)
    assert told[[0, 2]].tolist() == pytest.approx([1 - (.5 + 0 + 0) / 3, 1.]) and told[1] == 1.
    assert np.isnan(diversity(np.array([[3, 3]]), labels)).all()
    had = [np.array([0, 2]), np.array([1]), np.array([3])]
    assert label_coverage(np.array([[1, -1], [2, 0], [0, 1]]), had, labels)[:2].tolist() == pytest.approx([1 / 3, 1.])
    assert np.isnan(label_coverage(np.array([[1]]), [np.array([3])], labels)[0])


def test_mean_ranks_of_a_target_that_is_not_admissible():
    S = torch.tensor([[1., -torch.inf, 2.]])
    assert mean_ranks(S, torch.tensor([1])).tolist() == [math.inf]


@pytest.mark.parametrize('kind', [np.float32, np.float64, torch.float32])
def test_a_scorers_own_table_is_left_as_it_was(kind):
    q, table = asked(4), np.random.default_rng(0).normal(size=(4, N_ITEM))
    table = torch.tensor(table, dtype=kind) if isinstance(kind, torch.dtype) else table.astype(kind)
    before = table.clone() if isinstance(table, torch.Tensor) else table.copy()
    first, again = (rank_queries(lambda h: table, q, N_ITEM).ranks for _ in range(2))
    assert (table == before).all() and (first == again).all()
