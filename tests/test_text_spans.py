"Span corruption: the algorithm of the card, nothing lost, an exact cursor, and budgets that cannot be met."
import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from papers_lib.text.spans import (
    N_SENTINEL, SentinelPieces, SpanCorruption, WindowPairs, corrupt, filled, random_spans, raw_length, single_tokens)
from papers_lib.text.tokenizers import BadVocabulary, train_pieces, train_unigram

LINES = [f'It is a truth universally acknowledged in {n} that single men want wives.' for n in range(100)]


def runs(hidden):
    return int((np.diff(hidden.astype(int), prepend=0) == 1).sum())


@settings(max_examples=200)
@given(st.integers(2, 700), st.sampled_from([(0.15, 3.), (0.15, 10.), (0.5, 3.), (0.1, 1.), (0.25, 2.)]),
       st.integers(0, 2**32 - 1))
def test_counts_are_the_cards_and_the_text_comes_back(length, budget, seed):
    rate, mean = budget
    rng = np.random.default_rng(seed)
    hidden = random_spans(length, rate, mean, rng=rng)
    m = min(max(round(rate * length), 1), length - 1)
    assert (len(hidden), hidden.sum(), runs(hidden)) == (length, m, max(1, round(m / mean)))
    assert not hidden[0] and hidden[-1]
    ids, signs = rng.integers(0, 50, length), range(2000, 1000, -1)
    source, target = corrupt(ids, hidden, signs)
    assert filled(source, target, signs) == ids.tolist()
    assert [t for t in source if t > 50] == [t for t in target if t > 50] == [*signs[:runs(hidden)]]
    assert len(source) + len(target) == length + 2 * runs(hidden)


def test_all_cuts_are_equally_likely():
    rng = np.random.default_rng(0)
    found = [''.join('01'[int(h)] for h in random_spans(8, 0.5, 2., rng=rng)) for _ in range(9000)]
    counts = {k: found.count(k) for k in set(found)}
    assert len(counts) == 9                                              # 3 cuts of 4 kept times 3 cuts of 4 hidden
    assert all(abs(n - 1000) < 5 * 1000 ** 0.5 for n in counts.values())


def test_the_papers_example_and_the_closing_sentinel():
    words = 'Thank you for inviting me to your party last week'.split()
    hidden = np.isin(np.arange(10), [2, 3, 8])
    show = lambda ids: ' '.join(words[i] if i < 10 else f'<{"ZYX"[i - 97]}>' for i in ids)
    source, target = corrupt(np.arange(10), hidden, [99, 98, 97])
    assert show(source) == 'Thank you <X> me to your party <Y> week'
    assert show(target) == '<X> for inviting <Y> last <Z>'
    hidden[-1] = hidden[0] = True                                        # begins and ends hidden: nothing to close
    assert corrupt(np.arange(10), hidden, [99, 98, 97]) == (
        [99, 1, 98, 4, 5, 6, 7, 97], [99, 0, 98, 2, 3, 97, 8, 9])


def test_lengths_are_those_of_the_released_code():
    assert raw_length(512) == (568, 114)
    for n in (64, 114, 128, 512):
        raw, target = raw_length(n)
        source, said = corrupt(np.arange(raw), random_spans(raw, rng=np.random.default_rng(n)), range(-1, -101, -1))
        assert len(source) + 1 <= n and len(said) + 1 == target
    with pytest.raises(ValueError, match='n_source=2'): raw_length(2)


def test_single_tokens_are_hidden_at_the_rate_and_merge():
    hidden = single_tokens(20_000, 0.15, rng=np.random.default_rng(0))
    assert abs(hidden.mean() - 0.15) < 0.01
    assert abs(hidden.sum() / runs(hidden) - 1 / 0.85) < 0.03            # a run goes on with probability 0.15


@pytest.mark.parametrize('length, rate, mean, said', [
    (20, 1., 3., 'rate=1.0'), (20, 1.5, 3., 'rate=1.5'), (20, 0., 3., 'rate=0.0'), (1, 0.15, 3., r'a text of 1 token'),
    (0, 0.15, 3., r'a text of 0 token'), (20, 0.15, 0.5, 'mean_span=0.5'), (20, 0.9, 1., 'only 2 are left')])
def test_a_budget_that_cannot_be_met_is_named(length, rate, mean, said):
    with pytest.raises(ValueError, match=said): random_spans(length, rate, mean, rng=np.random.default_rng(0))


def test_too_few_sentinels_are_named():
    hidden = np.arange(9) % 2 == 1
    with pytest.raises(ValueError, match='4 hidden runs need 5 sentinels: there are 4'):
        corrupt(np.arange(9), hidden, [99, 98, 97, 96])
    assert len(corrupt(np.arange(9), hidden, [99, 98, 97, 96, 95])[0]) == 9


@pytest.fixture(scope='module')
def tok():
    return SentinelPieces(train_unigram(LINES, 50))


def test_sentinels_count_down_from_the_end_and_have_names(tok, tmp_path):
    assert (tok.n_vocab, tok.sentinels[0], tok.sentinels[99]) == (50 + N_SENTINEL, 149, 50)
    text = 'It is a <extra_id_0> that <extra_id_99> men'
    assert tok.decode(tok.encode(text)) == text and {149, 50} < {*tok.encode(text)}
    assert [*tok.encode_batches([text, 'men'])] == [tok.encode(text), tok.encode('men')]
    tok.save(tmp_path)
    back = SentinelPieces.load(tmp_path)
    assert (back.hash, back.encode(text), back.sentinels) == (tok.hash, tok.encode(text), tok.sentinels)
    with pytest.raises(ValueError, match='token 150'): tok.decode([150])


def test_pieces_without_an_end_are_refused():
    from sentencepiece import sentencepiece_model_pb2 as pb
    proto = pb.ModelProto.FromString(train_unigram(LINES, 50).model)
    proto.trainer_spec.eos_id, proto.pieces[1].type = -1, 1
    from papers_lib.text.tokenizers import UnigramPieces
    with pytest.raises(BadVocabulary, match='no end token|damaged'):
        SentinelPieces(UnigramPieces(proto.SerializeToString()))
    with pytest.raises(BadVocabulary, match='this reads UNIGRAM'): UnigramPieces(train_pieces(LINES, 330).model)


def test_batches_go_on_where_they_stopped_and_other_epochs_hide_other_tokens():
    text = np.random.default_rng(0).integers(3, 50, 500)
    fresh = lambda **k: WindowPairs(text, 40, 4, SpanCorruption(tuple(range(149, 49, -1)), **k), eot=1, start=0, seed=3)
    one, other = fresh(), fresh()
    whole = [next(one) for _ in range(8)]
    for _ in range(3): next(other)
    later = fresh()
    later.load_state(other.state())
    for batch in whole[3:]:
        again = next(later)
        assert all(again[k].equal(v) for k, v in batch.items())
    assert fresh().hash != fresh(mean_span=0.).hash
    sources = {tuple(row.tolist()) for batch in whole for row in batch['src']}
    assert len(sources) > 12                                             # 12 windows: the third batch begins anew
    for batch in whole:
        for row in batch['tgt']: assert row[0] == 0
        assert (batch['targets'] == 1).sum() == 4                        # one end a target, and none in the padding
