"BM25 is its formula in plain Python; nothing retrieved, equals, exclusions and texts without a word have one answer."
import math, re, sys, time, unicodedata
from collections import Counter

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from papers_lib.text.search import BM25, items_of_queries, merge_by_beam, merge_by_score, quotas, words


def plain(docs, query, k1=1.5, b=.75):
    "Formula (1), a document at a time."
    docs = [Counter(words(d)) for d in docs]
    mean = sum(d.total() for d in docs) / len(docs)
    n = Counter(t for d in docs for t in d)
    idf = {t: math.log(1 + (len(docs) - n[t] + .5) / (n[t] + .5)) for t in n}
    return [sum(idf[t] * d[t] * (k1 + 1) / (d[t] + k1 * (1 - b + b * d.total() / mean)) for t in words(query) if d[t])
            for d in docs]


texts = st.lists(st.sampled_from(['x', 'y', 'zz', 'ß', '3', 'the', '!']), max_size=6).map(' '.join)


@settings(max_examples=150)
@given(st.lists(texts, min_size=1, max_size=9), texts, st.floats(0, 3), st.floats(0, 1), st.integers(1, 12), st.data())
def test_it_is_the_formula_in_the_order_of_its_scores(docs, query, k1, b, k, data):
    index, want = BM25(docs, k1=k1, b=b), np.array(plain(docs, query, k1, b))
    np.testing.assert_allclose(index.score(query, range(len(docs))), want, rtol=2e-6, atol=1e-7)
    out = data.draw(st.lists(st.integers(0, len(docs) - 1), max_size=4))
    (ids,), (scores,) = index.search([query], k, exclude=[out])
    n = min(k, sum(s > 0 and i not in out for i, s in enumerate(want)))
    assert (ids[:n] >= 0).all() and (ids[n:] == -1).all() and (scores[n:] == 0).all() and len(ids) == k
    assert len({*ids[:n].tolist()} - {*out}) == n
    best = np.sort(np.delete(want, np.unique(out).astype(int)))[::-1][:n]
    np.testing.assert_allclose(scores[:n], best, rtol=2e-6)
    np.testing.assert_array_equal(scores[:n], index.score(query, ids[:n]))


def test_a_word_that_stands_twice_counts_twice():
    docs = ['x', 'x y', 'z']
    index = BM25(docs)
    ids, scores = index.search(['x x', 'x'], 3)
    assert ids.tolist() == [[0, 1, -1]] * 2 and ids.dtype == np.int64 and scores.dtype == np.float32
    np.testing.assert_allclose(scores[0], 2 * scores[1])
    np.testing.assert_allclose(scores[0], [*plain(docs, 'x x')[:2], 0], rtol=1e-6)


def test_the_factor_k1_plus_1_and_lucenes_weight_are_in_it():
    import bm25s
    docs = [['a', 'b'], ['a', 'c', 'c'], ['d']]
    lucene = bm25s.BM25()                                     # without (k1 + 1)
    lucene.index(docs, show_progress=False)
    theirs = lucene.get_scores(['a', 'c', 'd'])
    np.testing.assert_allclose(BM25([' '.join(d) for d in docs]).score('a c d', range(3)), 2.5 * theirs, rtol=1e-6)


def test_other_constants_over_the_same_documents_are_a_new_index():
    docs = ['red silk', 'red red dress', '', 'silk']
    one, two = BM25(docs).tuned(.4, .1), BM25(docs, k1=.4, b=.1)
    np.testing.assert_array_equal(one.score('red silk red', range(4)), two.score('red silk red', range(4)))
    assert (one.k1, one.b, one.empty_share) == (.4, .1, .25)


@pytest.mark.parametrize('docs', [[], [''], ['!!', '...', ' ']])
def test_a_corpus_without_a_word_finds_nothing(docs):
    index = BM25(docs)
    ids, scores = index.search(['x', '', '!!'], 2)
    assert (ids == -1).all() and (scores == 0).all() and ids.shape == (3, 2)
    assert index.empty_share == (1. if docs else 0.)
    assert index.search([], 2)[0].shape == (0, 2)


def test_texts_of_stop_words_alone_when_a_tokenizer_drops_them():
    stop = {'the', 'and', 'a'}
    index = BM25(['The A', 'and the cat', 'dog'], tokens=lambda t: [w for w in words(t) if w not in stop])
    assert index.empty_share == 1 / 3
    assert index.search(['the', 'a cat'], 3)[0].tolist() == [[-1] * 3, [1, -1, -1]]


def test_titles_of_one_letter_and_of_other_scripts_are_found():
    docs = ['M', 'If....', 'C++', 'Ame\u0301lie', '七人の侍', 'Жить', 'ｆｕｌｌ ｗｉｄｔｈ']
    index = BM25(docs)
    found = index.search(['m', 'IF', 'c', 'AMÉLIE', '七人の侍', 'жить', 'Full width'], 1)[0][:, 0]
    assert found.tolist() == [*range(7)] and index.empty_share == 0


def test_equals_stand_in_the_order_of_a_hash_of_their_numbers():
    import hashlib
    n = 40
    order = sorted(range(n), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    index = BM25(['one title'] * n + ['other'])
    keep = [i for i in order]
    assert index.search(['title'], n)[0][0].tolist() == keep
    for k in (1, 3, 17): assert index.search(['title'], k)[0][0].tolist() == keep[:k]
    assert index.search(['title'], 5, exclude=[keep[:4]])[0][0].tolist() == keep[4:9]
    assert keep != sorted(keep)


@pytest.mark.parametrize('call, said', [
    (lambda: BM25(['x'], k1=-1), 'k1=-1'), (lambda: BM25(['x'], b=1.5), 'b=1.5'), (lambda: BM25('x'), 'one text'),
    (lambda: BM25(['x'], k1=float('nan')), 'k1=nan'), (lambda: BM25(['x']).search(['x'], 0), 'k=0'),
    (lambda: BM25(['x']).search('x', 1), 'one text'), (lambda: BM25(['x']).score('x', [-1]), 'from 0 to 0'),
    (lambda: BM25(['x']).search(['x'], 1, exclude=[[-1]]), 'from 0 to 0'),
    (lambda: BM25(['x']).search(['x'], 1, exclude=[[True]]), r'exclude=\[True\]: must hold numbers, not a mask'),
    (lambda: BM25(['x', None]), r'docs\[1\]=None: must be a text'),
    (lambda: BM25(['x']).search(['x', math.nan], 1), r'queries\[1\]=nan: must be a text'),
    (lambda: items_of_queries(BM25(['x']), ['x', 'y'], 1, [[], []]), r'queries\[0\] is one text'),
    (lambda: items_of_queries(BM25(['x']), 'xy', 1, [[], []]), 'queries is one text'),
    (lambda: items_of_queries(BM25(['x']), [['x'], []], 1, [[]]), '1 lists of seen items for 2 users'),
    (lambda: BM25(['x']).search(['x'], 1, exclude=[]), '0 lists to exclude for 1 queries')])
def test_what_cannot_be_searched_is_named(call, said):
    with pytest.raises(ValueError, match=said): call()


def test_without_the_library_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'bm25s', None)
    with pytest.raises(ImportError, match=r"bm25s, of the extra `rec`: pip install '.\[rec\]'"): BM25(['x'])


def test_many_queries_are_quick():
    rng = np.random.default_rng(0)
    made = lambda n: [' '.join(f'w{t}' for t in rng.zipf(1.2, 8) % 20_000) for _ in range(n)]
    index, queries = BM25(made(12_000)), made(2_000)
    start = time.process_time()
    index.search(queries, 40)
    assert time.process_time() - start < 3                   # 20,000 in 10 seconds would be 1


def taken(hits, k):
    "The K/m rule, place by place: who has places left takes his next new item."
    left, out = [[i for i in row if i >= 0] for row in hits], []
    while len(out) < k and any(left):
        live = [row for row in left if row]
        for row, quota in zip(live, quotas(k - len(out), len(live))):
            got = 0
            while row and got < quota:
                if (i := row.pop(0)) not in out: out.append(i); got += 1
    return out


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 12), max_size=6, unique=True), max_size=5), st.integers(1, 14))
def test_the_k_over_m_rule_gives_new_items_in_the_order_of_the_queries(rows, k):
    hits = np.array([row + [-1] * (6 - len(row)) for row in rows], np.int64).reshape(-1, 6)
    found, all_ = merge_by_beam(hits, k), {i for row in rows for i in row}
    assert found == taken(rows, k)
    assert len(found) == len({*found}) == min(k, len(all_)) and {*found} <= all_
    if rows and len(rows[0]) >= (n := quotas(k, len(rows))[0]) and all(rows): assert found[:n] == rows[0][:n]


@given(st.integers(0, 50), st.integers(1, 20))
def test_places_are_shared_out_whole(k, m):
    shares = quotas(k, m)
    assert sum(shares) == k and max(shares) - min(shares) <= 1 and shares == sorted(shares, reverse=True)


@settings(max_examples=100)
@given(st.lists(st.lists(st.tuples(st.integers(-1, 9), st.floats(.1, 9)), min_size=4, max_size=4), min_size=1,
                max_size=5), st.integers(1, 12))
def test_by_score_an_item_counts_by_its_best(rows, k):
    hits, scores = (np.array([[x[j] for x in row] for row in rows]) for j in (0, 1))
    best = {}
    for i, s in zip(hits.ravel().tolist(), scores.ravel().tolist()):
        if i >= 0: best[i] = max(s, best.get(i, 0))
    found = merge_by_score(hits, scores, k)
    assert len(found) == len({*found}) == min(k, len(best))
    assert [best[i] for i in found] == sorted(best.values(), reverse=True)[:k]


def test_what_was_seen_goes_before_places_are_counted_and_strings_that_find_nothing_leave_room():
    index = BM25(['red hat', 'red scarf', 'blue hat', 'blue scarf'])
    queries = [['red', 'nothing of this', 'blue']]
    for merge in ('beam', 'score'):
        (all_,), (scores,) = items_of_queries(index, queries, 4, [[]], merge=merge)
        best = [max(index.score(q, [i])[0] for q in queries[0]) for i in all_]
        assert scores.tolist() == best and scores.dtype == np.float32
        assert {*all_.tolist()} == {0, 1, 2, 3}
        some = items_of_queries(index, queries, 2, [[all_[0]]], merge=merge)[0][0]
        assert all_[0] not in some and (some >= 0).all()
    none, scores = items_of_queries(index, [[], ['x']], 2, [[], []])
    assert none.tolist() == [[-1, -1]] * 2 and (scores == -np.inf).all()
    with pytest.raises(ValueError, match="merge='sum'"): items_of_queries(index, queries, 2, [[]], merge='sum')


# Words

@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=0x36f, exclude_characters='\u0130\u0307')))
def test_words_of_latin_greek_and_ascii_texts_are_runs_of_letters_and_digits(text):
    assert words(text) == re.findall(r'\w+', unicodedata.normalize('NFKC', text).casefold())


def test_marks_belong_to_their_word_and_both_ways_to_write_istanbul_are_one():
    assert words('İSTANBUL haritası') == words('i\u0307stanbul haritası') == ['istanbul', 'haritası']
    for word in ('हिन्दी', 'שָׁלוֹם', 'كِتَاب', 'தமிழ்'):
        assert words(f'a {word} b') == ['a', unicodedata.normalize('NFKC', word), 'b']
    assert BM25(['दान', 'कल']).search(['दिन'], 1)[0].tolist() == [[-1]]      # not one letter in common is a word


def test_texts_of_pandas_go_by_place():
    pd = pytest.importorskip('pandas')
    assert BM25(pd.Series(['a', 'b', 'c'])[1:]).search(pd.Series(['c'], index=[5]), 1)[0].tolist() == [[1]]
