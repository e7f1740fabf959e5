"Judged pairs, mined candidates, a stranger's rows, what an order is worth."
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from papers_lib.lab.relevance import (
    Triples, believed, candidate_pool, candidates, first_stage, judged, list_metrics, read_triples, relevance,
    relevance_sets, rerank_metrics, triples, write_triples)
from papers_lib.lab.data import available


def made(n=30):
    topics = 'red blue green black white long short tight loose soft'.split()
    rows = [(f'{a} {b}', f'a {b} thing that is {a}', 1) for a in topics for b in topics][:n]
    return judged('made', rows)


@pytest.mark.parametrize('name', [n for n in relevance_sets if n != 'clothing-reviews'])
def test_no_query_is_in_two_splits(name):
    if not available(name): pytest.skip(f'needs {name}')
    parts = [{*relevance(name, s).queries} for s in ('train', 'tune', 'test')]
    assert all(parts) and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_a_line_separator_in_a_query_ends_no_line(tmp_path, monkeypatch):
    from types import SimpleNamespace
    from papers_lib.lab import relevance as rooms
    monkeypatch.setattr(rooms, 'get', lambda name: SimpleNamespace(path=lambda file: tmp_path / file))
    rows = [dict(query=f'a\u2028{i}', title='b\x85c', label='1') for i in range(12)]
    for file in ('dev.jsonl', 'test_public.jsonl'):
        (tmp_path / file).write_text(''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows), encoding='utf-8')
    assert rooms._qbqtc('qbqtc', 'train').queries == [r['query'] for r in rows[:11]]
    assert rooms._qbqtc('qbqtc', 'test').dropped == 12
    (tmp_path / 'x.txt').write_bytes(b'one\r\n\r\ntwo')
    assert rooms._lines('qbqtc', 'x.txt') == ['one', '', 'two']


def test_candidates_hold_the_positives_and_no_document_twice():
    pairs = made()
    found = candidates(pairs, 3, 2)
    for q in range(len(pairs.queries)):
        ds = found.doc[found.query == q].tolist()
        assert len(ds) == len({*ds}) <= 6
        assert {*found.doc[(found.query == q) & (found.grade > 0)]} == {*pairs.doc[pairs.query == q]}
    again = candidates(pairs, 3, 2)
    assert np.array_equal(found.doc, again.doc)
    assert {*candidates(pairs, 1, 1, keep=[3, 5]).query} == {3, 5}


def test_hard_candidates_share_words_with_the_query():
    pairs = made()
    found = candidates(pairs, 2, 0)
    for q, d in zip(found.query[found.grade == 0], found.doc[found.grade == 0]):
        assert {*pairs.queries[q].split()} & {*pairs.docs[d].split()}


def test_rows_begin_with_a_positive():
    found = candidates(made(), 3, 3)
    rows = triples(found, 3, per_positive=2)
    good = {(q, d) for q, d, g in zip(found.query, found.doc, found.grade) if g > 0}
    assert all((q, ds[0]) in good and not any((q, d) in good for d in ds[1:]) for q, ds in zip(rows.query, rows.doc))
    assert rows.doc.shape[1] == 4 and len(triples(found, 3, most=5)) == 5


def test_rows_of_one_document_are_none():
    with pytest.raises(ValueError, match='a positive and a negative'):
        Triples(['a'], ['b'], np.array([0]), np.array([[0]]))


def test_a_strangers_file_comes_back(tmp_path):
    pytest.importorskip('pyarrow')
    rows = triples(candidates(made(), 2, 2), 2)
    write_triples(tmp_path / 'x.parquet', rows)
    back = read_triples(tmp_path / 'x.parquet')
    text = lambda r: [(r.queries[q], *(r.docs[d] for d in ds)) for q, ds in zip(r.query, r.doc)]
    assert text(back) == text(rows) and back.scores is None


@pytest.mark.parametrize('columns, told', [
    (dict(query=[], positive=[], negative=[]), 'no rows'),
    (dict(query=['a', ''], positive=['b', 'b'], negative=['c', 'c']), 'row 1: its query is empty'),
    (dict(query=['a'], positive=['b'], negative=[' ']), 'row 0: its negative is empty'),
    (dict(query=['a'], positive=[None], negative=['c']), 'row 0: its positive is empty'),
    (dict(query=['a'], positive=['b'], negative=[[]]), 'positives only'),
    (dict(query=['a'], positive=['b'], negative=['b']), 'negative of .a., and its positive in row 0'),
    (dict(query=['a', 'a'], positive=['b', 'c'], negative=[['c'], ['d']]), 'its positive in row 1'),
    (dict(query=['a', 'b'], positive=['b', 'c'], negative=[['c'], ['d', 'e']]), '1 to 2 negatives'),
    (dict(query=['a'], positive=['b'], negative=['c'], labels=[[1., 2., 3., 4.]]), '2 scores or 1 lead'),
    (dict(query=['a'], positive=['b'], negative=['c'], labels=[[1., None]]), 'not a finite number'),
    (dict(query=['a'], positive=['b'], negativ=['c']), "did you mean 'negativ'")])
def test_rows_that_cannot_be_right_are_refused(tmp_path, columns, told):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq
    pq.write_table(pa.table(columns), tmp_path / 'x.parquet')
    with pytest.raises(ValueError, match=told): read_triples(tmp_path / 'x.parquet')


def test_a_missing_file_and_no_parquet(tmp_path):
    pytest.importorskip('pyarrow')
    with pytest.raises(FileNotFoundError): read_triples(tmp_path / 'none.parquet')
    (tmp_path / 'x.parquet').write_text('query,positive')
    with pytest.raises(ValueError, match='cannot be read as Parquet'): read_triples(tmp_path / 'x.parquet')


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=9))
def test_pairwise_accuracy_counts_pairs(rows):
    good, score = (np.array(x) for x in zip(*rows))
    if good.all() or not good.any(): return
    by_hand = np.mean([(a > b) + .5 * (a == b) for a in score[good] for b in score[~good]])
    told = list_metrics(np.zeros(len(rows)), good, score)
    assert told['pairwise'][0] == pytest.approx(by_hand) and 0 < told['ndcg'][0] <= 1 and 0 < told['mrr'][0] <= 1


def test_equal_scores_are_worth_the_same_whoever_gives_them_and_nan_nothing():
    q, g = np.repeat([0, 1], 5), np.array([1, 0, 0, 0, 0, 0, 0, 1, 1, 0])
    a, b = (list_metrics(q, g, np.full(10, c)) for c in (0., 9.))
    assert all(np.array_equal(a[k], b[k]) for k in a) and (a['pairwise'] == .5).all()
    with pytest.raises(ValueError, match='not a number'): list_metrics(q, g, np.full(10, np.nan))
    with pytest.raises(ValueError, match='no query'): list_metrics([0, 0], [1, 1], [1, 2])


def test_more_is_dropped_at_a_larger_margin():
    s = np.random.default_rng(0).normal(size=(200, 4)) + [1, 0, 0, 0]
    kept = [believed(s, m).sum() for m in (None, 0., .5, 1.)]
    assert kept[0] == 200 and kept == sorted(kept, reverse=True) and kept[-1] > 0


def test_a_first_stage_finds_what_shares_words_and_grades_it():
    pairs = made()
    hits, scores = first_stage(pairs, 4)
    good = {*zip(pairs.query.tolist(), pairs.doc.tolist())}
    assert max(np.bincount(hits.query)) <= 4 and (np.diff(hits.query) >= 0).all()
    for q, d, g in zip(hits.query.tolist(), hits.doc.tolist(), hits.grade): assert (g > 0) == ((q, d) in good)
    for q in range(len(pairs.queries)): assert (np.diff(scores[hits.query == q]) <= 0).all()


def test_reranking_is_bounded_by_what_was_found():
    pairs = judged('toy', [('red', 'a red one', 1), ('red', 'crimson', 1), ('blue', 'sky', 1)], ['red red', 'a dog'])
    hits, bm25 = first_stage(pairs, 5)
    told = rerank_metrics(pairs, hits, bm25)
    assert told['recall'].tolist() == [.5, 0.] and told['ndcg'][1] == 0 and told['mrr'][1] == 0
    best, worst = rerank_metrics(pairs, hits, hits.grade), rerank_metrics(pairs, hits, -hits.grade)
    assert best['mrr'][0] == 1 and worst['mrr'][0] == .5 and best['ndcg'][0] < 1
    level = rerank_metrics(pairs, hits, np.zeros(len(bm25)))
    assert level['mrr'][0] == pytest.approx(1 / 1.5)
    with pytest.raises(ValueError, match='scores of'): rerank_metrics(pairs, hits, bm25[:-1])
    with pytest.raises(ValueError, match='not a number'): rerank_metrics(pairs, hits, np.full(len(bm25), np.nan))


def test_what_was_found_whole_is_judged_as_a_list_is():
    rng, pairs = np.random.default_rng(0), made()
    hits, _ = first_stage(pairs, 100)
    scores = rng.normal(size=len(hits.query))
    lists, stages = list_metrics(hits.query, hits.grade, scores), rerank_metrics(pairs, hits, scores)
    assert all(np.allclose(lists[k], stages[k]) for k in ('ndcg', 'mrr')) and (stages['recall'] == 1).all()


def test_a_pool_is_drawn_among_answered_queries_and_shortened():
    a, b = (candidate_pool('clothing-reviews', 'test', 15, 2, 1, 4, 6) for _ in range(2))
    assert a.queries == b.queries and np.array_equal(a.doc, b.doc) and len(a.queries) == 15
    assert max(len(t.split()) for t in a.docs) <= 6 and max(len(t.split()) for t in a.queries) <= 4
    assert {*a.grade} == {0., 1.} and all(a.grade[a.query == q].max() > 0 for q in range(15))


def test_pairs_of_qbqtc_that_share_a_query_with_another_split_are_counted():
    if not available('qbqtc'): pytest.skip('needs qbqtc')
    left_out = [relevance('qbqtc', s).dropped for s in ('train', 'tune', 'test')]
    assert left_out == [0, 200, 1519]
