"Blanks: lengths, places, the two positions, whose end is asked for, batches of unequal rows, and what is refused."
from collections import Counter

import numpy as np, pytest
from hypothesis import given, strategies as st

from papers_lib.engine.train import IGNORE
from papers_lib.text.blanks import (
    BlankBatches, BlankMixture, BlankTokens, LaidBatches, answered, blank_batch, blank_lengths, blank_out,
    blank_prompts,
    blank_samples, draw_blanks, length_probabilities, mixtures, place_blanks, sentence_blanks, stretch)

MARKS = BlankTokens(cls=0, pad=1, mask=2, sop=3, eop=4, gmask=5, smask=6)
KINDS = ('tokens', 'sentences', 'document')
rng = lambda seed=0: np.random.default_rng(seed)


def text(n): return [*range(10, 10 + n)]


def read_back(row):
    "The text that both parts hold together."
    spans = {}
    for place, t in zip(row.positions[0][row.n_context:], row.targets[row.n_context:]):
        if t != MARKS.eop: spans.setdefault(int(place), []).append(int(t))
    inside = [spans.pop(i) if i in spans else [int(t)] for i, t in enumerate(row.ids[:row.n_context])]
    assert not spans                                                       # no span without its [MASK]
    return [t for part in inside[1:] for t in part]


def test_the_worked_example_of_the_paper():
    row = blank_out([11, 12, 13, 14, 15, 16], [(4, 6), (2, 3)], MARKS)
    assert row.ids.tolist() == [0, 11, 12, 2, 14, 2] + [3, 15, 16, 3, 13]
    assert row.positions.tolist() == [[0, 1, 2, 3, 4, 5] + [5, 5, 5, 3, 3], [0] * 6 + [1, 2, 3, 1, 2]]
    assert row.targets.tolist() == [IGNORE] * 6 + [15, 16, 4, 13, 4]
    assert row.parts.tolist() == [0] * 6 + [1, 1, 1, 2, 2] and row.n_context == 6


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_blanks_lie_within_the_text_apart_and_in_order(n, seed):
    r = rng(seed)
    lengths = r.integers(1, 6, r.integers(1, 6)).tolist()
    if sum(lengths) + len(lengths) - 1 > n:
        with pytest.raises(ValueError, match=f'do not fit into a text of {n} tokens'): place_blanks(n, lengths, r)
        return
    spans = place_blanks(n, lengths, r)
    assert [e - s for s, e in spans] == lengths and spans[0][0] >= 0 and spans[-1][1] <= n
    assert all(b[0] > a[1] for a, b in zip(spans, spans[1:]))


def test_every_arrangement_is_as_likely():
    r = rng()
    seen = Counter(tuple(place_blanks(7, [2, 1], r)) for _ in range(10_000))
    assert len(seen) == 10 and max(seen.values()) < 1.15 * min(seen.values())


def test_lengths_are_poisson_without_a_zero_and_meet_the_budget():
    p = length_probabilities()
    assert len(p) == 39 and p.sum() == pytest.approx(1) and p[1] / p[0] == pytest.approx(3 / 2)
    r, drawn = rng(), []
    for n in (7, 30, 512):
        for _ in range(200):
            got = blank_lengths(n, r)
            assert sum(got) >= int(0.15 * n) > sum(got[:-1]) and min(got) >= 1
            drawn += got
    assert np.bincount(drawn)[1] / len(drawn) == pytest.approx(p[0], abs=0.03)


def test_sentences_are_whole_and_hold_the_share():
    lengths, r = [4, 6, 3, 7], rng()
    edges = {(0, 4), (4, 10), (10, 13), (13, 20)}
    for share in (0.1, 0.5, 0.9):
        spans = sentence_blanks(lengths, r, share)
        assert {*spans} <= edges and len({*spans}) == len(spans)
        sizes = [e - s for s, e in spans]
        assert sum(sizes) >= int(share * 21) and sum(sizes[:-1]) < int(share * 21)
    assert len({tuple(sentence_blanks(lengths, r, 0.9)) for _ in range(40)}) > 4          # shuffled


def test_a_stretch_is_at_least_half():
    got = [stretch(11, rng(i)) for i in range(300)]
    assert min(got) == 6 and max(got) == 11 and stretch(1, rng()) == 1


@given(st.sampled_from(KINDS), st.booleans(), st.integers(0, 2**32 - 1))
def test_both_parts_together_are_the_text(kind, shuffle, seed):
    sample = [text(40)[:13], text(40)[13:20], text(40)[20:]]
    row = draw_blanks(sample, kind, MARKS, BlankMixture(shuffle=shuffle), rng(seed))
    assert read_back(row) == text(40)
    mask = dict(tokens=MARKS.mask, sentences=MARKS.smask, document=MARKS.gmask)[kind]
    a, b = row.ids[:row.n_context], row.ids[row.n_context:]
    assert {*a.tolist()} & {2, 5, 6} == {mask} and MARKS.eop not in row.ids               # the end is never read
    assert (row.targets[:row.n_context] == IGNORE).all() and (row.targets[row.n_context:] != IGNORE).all()
    first, second = row.positions[:, row.n_context:]
    starts = b == MARKS.sop
    assert (second[starts] == 1).all() and (np.diff(second)[~starts[1:]] == 1).all()
    assert (a[first] == mask).all() and (row.positions[1, :row.n_context] == 0).all()
    places = first[starts].tolist()
    if not shuffle: assert places == sorted(places)


def test_spans_are_written_in_random_order():
    orders = Counter(tuple(np.argsort(row.positions[0][row.ids == MARKS.sop]))
                     for i in range(400) if (row := draw_blanks([text(40)], 'tokens', MARKS, BlankMixture(share=.3),
                                                                rng(i))) and (row.ids == MARKS.sop).sum() == 3)
    assert len(orders) == 6


def test_the_end_of_a_suffix_is_not_asked_for_and_that_of_an_infill_is():
    for suffix, ended in ((1., False), (0., True)):
        rows = [draw_blanks([text(20)], 'document', MARKS, BlankMixture(suffix=suffix), rng(i)) for i in range(50)]
        assert all((row.targets[-1] == MARKS.eop) == ended for row in rows)
        assert all((row.ids[row.n_context - 1] == MARKS.gmask) for row in rows) == (not ended)


def test_short_texts_never_fail():
    for n in range(1, 12):
        for i in range(300):
            for kind in KINDS: assert read_back(draw_blanks([text(n)], kind, MARKS, BlankMixture(), rng(i))) == text(n)


@pytest.mark.parametrize('spans, words', [
    ([], 'without blanks'), ([(0, 3), (2, 4)], 'begin no earlier than 3'), ([(2, 2)], 'must hold a token'),
    ([(4, 9)], 'within the text of 6')])
def test_bad_spans_are_named(spans, words):
    with pytest.raises(ValueError, match=words): blank_out(text(6), spans, MARKS)


@pytest.mark.parametrize('answers, most, words', [
    ([[]], None, 'answer 0 has no token'), ([[7], [8] * 5], 4, 'answer 1 has 5 tokens: at most 4')])
def test_bad_answers_are_named(answers, most, words):
    with pytest.raises(ValueError, match=words): answered([0, 10, 2], answers, MARKS, most=most)
    with pytest.raises(ValueError, match='without blanks'): answered([0, 10], [[7]], MARKS)


def test_bad_mixtures_and_tokens_are_named():
    for over in (dict(tokens=-1.), dict(tokens=0.), dict(share=0.), dict(share=1.), dict(least=0.), dict(suffix=2.)):
        with pytest.raises(ValueError, match=next(iter(over))): BlankMixture(**over)
    with pytest.raises(ValueError, match='seven different ids'): BlankTokens(0, 1, 2, 3, 4, 5, 5)


def test_padding_stands_behind_and_rows_keep_their_own():
    rows = [blank_out(text(9), [(2, 6)], MARKS), blank_out(text(3), [(0, 1)], MARKS)]
    batch = blank_batch(rows, MARKS.pad)
    for i, row in enumerate(rows):
        n = len(row)
        assert batch['ids'][i, :n].tolist() == row.ids.tolist() and (batch['ids'][i, n:] == MARKS.pad).all()
        assert batch['positions'][i, :, :n].tolist() == row.positions.tolist()
        assert (batch['targets'][i, n:] == IGNORE).all() and batch['n_context'][i] == row.n_context


def test_samples_hold_what_the_documents_hold():
    docs = [[[*range(20)], [*range(20, 23)], [*range(23, 60)]], [[*range(60, 75)]], []]
    samples = blank_samples(docs, 16, least=1)
    assert [t for s in samples for part in s for t in part] == [*range(75)]
    assert all(0 < sum(map(len, s)) <= 16 for s in samples)
    assert all(sum(map(len, s)) >= 8 for s in blank_samples(docs, 16))


def test_batches_go_on_where_they_were_and_mix_kinds():
    samples = [[text(20)[:8], text(20)[8:]]] * 12
    make = lambda seed=3, **kw: BlankBatches(samples, MARKS, 4, mixtures['GLM-10B'], seed, **kw)
    whole = make()
    next(whole)
    state, rest = whole.state(), [next(whole) for _ in range(60)]
    again = make()
    again.load_state(state)
    assert all(a[k].equal(b[k]) for a, b in zip(rest, again) for k in a)
    kinds = [{*b['ids'].flatten().tolist()} & {2, 5, 6} for b in rest]
    assert all(len(k) == 1 for k in kinds)                                               # one a batch
    n = Counter(next(iter(k)) for k in kinds)
    assert n[2] > n[6] > 0 and n[5] > 0
    with pytest.raises(ValueError, match='other samples'): make(4).load_state(state)
    with pytest.raises(ValueError, match='batch_size=13'): BlankBatches(samples, MARKS, 13)


def test_prompts_ask_for_the_next_blank_at_its_place():
    asked = blank_prompts([[0, 10, 2, 12, 2], [0, 5]], MARKS, [[[20, 21]], []])
    assert asked['ids'].tolist() == [[0, 10, 2, 12, 2, 3, 20, 21, 3], [1] * 6 + [0, 5, 3]]
    assert asked['positions'].tolist() == [[[0, 1, 2, 3, 4, 2, 2, 2, 4], [0] * 5 + [1, 2, 3, 1]],
                                           [[0] * 6 + [0, 1, 1], [0] * 8 + [1]]]
    assert asked['n_context'].tolist() == [5, 8] and asked['pad'].sum(1).tolist() == [9, 3]
    for contexts, written in (([[0, 10]], None), ([[0, 2]], [[[20]]])):
        with pytest.raises(ValueError, match='there is none to fill'): blank_prompts(contexts, MARKS, written)


def test_examples_are_laid_out_once_an_epoch_and_go_on_where_they_were():
    make = lambda seed=0, examples=range(7): LaidBatches([*examples], tuple, 3, seed)
    whole = make()
    drawn = [next(whole) for _ in range(7)]
    flat = [x for part in drawn for x in part]
    assert [sorted(flat[i:i + 7]) for i in (0, 7, 14)] == [[*range(7)]] * 3 and flat[:7] != flat[7:14]
    again = make()
    again.load_state(dict(make().state(), given=9))
    assert [next(again) for _ in range(4)] == drawn[3:]
    for other in (make(1), make(0, range(8))):
        with pytest.raises(ValueError, match='of other examples'): other.load_state(whole.state())
    with pytest.raises(ValueError, match='0 examples'): make(0, [])
