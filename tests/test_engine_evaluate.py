"Held-out loss and memory: the numbers are those of the definitions, on any corpus."
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decoders import broken, tiny
from papers_lib.engine.evaluate import (clean_passages, count_bytes, document_losses, generalisation, held_out,
                                        passage_nats, split_documents, spread, spread_loss, text_ids, window_loss)
from papers_lib.engine.stats import crossed
from papers_lib.text.corpora import TokenBatches
from papers_lib.text.tokenizers import ByteTokenizer

TOK = ByteTokenizer()
DOCS = ['the naïve king of Spain ' * 6, 'a café in Rome costs 5 € ' * 9, 'all is well ' * 20]


def encoded(docs): return np.concatenate([[*TOK.encode(d), TOK.eot] for d in docs])


@pytest.fixture(scope='module')
def model(): return tiny(n_vocab=257, ctx_len=24)


@pytest.fixture(scope='module')
def corpus(): return SimpleNamespace(tokenizer=TOK, train=encoded(DOCS[:2]), valid=encoded(DOCS[1:]))


@torch.no_grad()
def nats(model, before, ids):
    logp = model(torch.tensor([[*before, *ids]])[:, :-1]).log_softmax(-1)[0, len(before) - 1:]
    return -logp.gather(-1, torch.tensor(ids)[:, None])[:, 0].double()


def test_held_out_is_the_mean_over_the_tokens_and_the_sum_over_the_bytes(model, corpus):
    r, ids = held_out(model, corpus, 20), corpus.valid[:20].tolist()
    each = nats(model, [TOK.eot], ids)
    assert r['loss'] == pytest.approx(each.mean().item(), abs=1e-5) and r['n_tokens'] == 20
    n_bytes = len(TOK.decode(ids).encode('utf-8'))
    assert r['n_bytes'] == n_bytes and r['bpb'] == pytest.approx(each.sum().item() / math.log(2) / n_bytes, abs=1e-5)


def test_without_a_limit_all_held_out_text_is_scored(model, corpus):
    assert held_out(model, corpus)['n_tokens'] == len(corpus.valid)
    assert held_out(model, corpus, 10**9) == held_out(model, corpus)


@pytest.mark.parametrize('ids', [[], [TOK.eot] * 3])
def test_a_split_without_text_is_named(model, ids):
    empty = SimpleNamespace(tokenizer=TOK, tune=np.array(ids, dtype=np.int64))
    with pytest.raises(ValueError, match="split='tune': there is no text in it"): held_out(model, empty, split='tune')


def text(*docs): return SimpleNamespace(tokenizer=TOK, valid=encoded(docs))


def test_each_document_is_scored_by_itself_and_the_sums_make_the_whole(model):
    "The definition: an end of text before a document, windows of one context, the last moved left so that it is full."
    r = held_out(model, text(*DOCS, 'x'))
    assert r['doc_bytes'] == [len(d.encode('utf-8')) for d in (*DOCS, 'x')] and r['doc_tokens'][3] == 2
    for doc, total in zip((*DOCS, 'x'), r['doc_nats']):
        ids, want = [*TOK.encode(doc), TOK.eot], 0.
        for a in range(0, len(ids), 24):
            start = max(0, min(a, len(ids) - 24))
            before = [TOK.eot, *ids][start:a + 1]
            want += nats(model, before, ids[a:a + 24]).sum().item()
        assert total == pytest.approx(want, abs=1e-3)
    assert r['loss'] == pytest.approx(sum(r['doc_nats']) / sum(r['doc_tokens']))
    assert (r['n_tokens'], r['n_bytes']) == (sum(r['doc_tokens']), sum(r['doc_bytes']))
    assert r['bpb'] == pytest.approx(sum(r['doc_nats']) / math.log(2) / r['n_bytes'])


def test_neighbours_move_no_documents_loss(model):
    one, other = held_out(model, text(*DOCS)), held_out(model, text(DOCS[2], 'x', DOCS[0], DOCS[1]))
    assert [other['doc_nats'][i] for i in (2, 3, 0)] == pytest.approx(one['doc_nats'], abs=1e-4)


def test_a_document_that_the_limit_cuts_counts_as_far_as_it_was_read():
    assert [d.tolist() for d in split_documents([5, 0, 0, 6], 0)] == [[5, 0], [0], [6]]
    assert split_documents([], 0) == [] and len(split_documents([5, 6], 0)) == 1


def test_the_split_is_said_and_one_that_is_missing_is_refused(model):
    corpus = SimpleNamespace(tokenizer=TOK, valid=encoded(DOCS[:1]), tune=encoded(DOCS[1:]))
    assert (held_out(model, corpus)['split'], held_out(model, corpus, split='tune')['split']) == ('valid', 'tune')
    assert held_out(model, corpus, split='tune')['doc_bytes'] == [len(d.encode()) for d in DOCS[1:]]
    assert spread_loss(model, corpus, split='tune') != spread_loss(model, corpus)
    corpus.tune = None
    for call in (held_out, spread_loss):
        with pytest.raises(ValueError, match="split='tune': this corpus has no"): call(model, corpus, split='tune')


def test_documents_by_seed_are_what_the_crossed_interval_takes(corpus):
    models = [tiny(n_vocab=257, ctx_len=24, seed=s) for s in range(3)]
    runs = [held_out(m, corpus) for m in models]
    losses, tokens = document_losses(runs)
    assert np.shape(losses) == (3, 2) and tokens == runs[0]['doc_tokens']
    assert [np.average(row, weights=tokens) for row in losses] == pytest.approx([r['loss'] for r in runs])
    found = crossed(losses, weights=tokens)
    assert found.mean == pytest.approx(np.mean([r['loss'] for r in runs])) and (found.n_seeds, found.n) == (3, 2)
    for other in (held_out(models[0], corpus, 50), dict(runs[0], split='tune')):
        with pytest.raises(ValueError, match='same documents'): document_losses([*runs, other])


def test_characters_of_several_bytes_count_as_bytes_and_ends_as_none():
    assert count_bytes(TOK, [TOK.eot, *TOK.encode('é€'), TOK.eot]) == 5
    assert text_ids(TOK, 'a').tolist() == [TOK.eot, *TOK.encode('a')]


def test_a_passage_is_scored_by_itself(model):
    passages = ['a king', 'the café', 'a king']
    each = [nats(model, [TOK.eot], TOK.encode(p)).sum().item() for p in passages]
    assert passage_nats(model, TOK, passages) == pytest.approx(each, abs=1e-3)


@pytest.mark.parametrize('batch_size', [1, 2, 32])
def test_windows_are_scored_with_nothing_before_them(model, corpus, batch_size):
    starts, t = [0, 24, 31], 24
    rows = [corpus.train[s:s + t + 1].tolist() for s in starts]
    each = torch.cat([nats(model, row[:1], row[1:]) for row in rows])
    assert window_loss(model, corpus.train, starts, batch_size) == pytest.approx(each.mean().item(), abs=1e-5)


def test_memory_is_measured_on_what_was_read_and_on_what_was_not(model, corpus):
    r = generalisation(model, corpus, seed=3, n_trained=5, n=4)
    met = TokenBatches(corpus.train, 24, 1, seed=3).order(0)[:5]
    assert r['loss_met'] == pytest.approx(window_loss(model, corpus.train, met[[0, 1, 2, 4]] * 24))
    new = spread((len(corpus.valid) - 1) // 24, 4)
    assert r['loss_new'] == pytest.approx(window_loss(model, corpus.valid, new * 24))


@pytest.mark.parametrize('n,k', [(10, 4), (2, 5), (0, 5), (7, 7), (100, 1)])
def test_places_are_spread_from_the_first_to_the_last(n, k):
    places = spread(n, k)
    assert len(places) == min(n, k) and (np.diff(places) > 0).all()
    if len(places) > 1: assert places[0] == 0 and places[-1] == n - 1 and np.ptp(np.diff(places)) <= 1


def test_a_passage_that_shares_a_run_of_words_is_seen():
    rng = np.random.default_rng(0)
    word = iter(f'w{i}' for i in rng.permutation(10_000))
    own = lambda n: [next(word) for _ in range(n)]
    train = own(300)
    parts = [own(20), own(6) + train[50:58] + own(6), own(6) + train[90:97] + own(7), train[100:120], own(1)]
    docs, held = [' '.join(train[:150]), ' '.join(train[150:])], [' '.join(sum(parts, []))]
    passages, seen = clean_passages(docs, held, n_word=20, n=9)
    assert [p.split() for p in passages] == parts[:4] and seen.tolist() == [False, True, False, True]
    assert len(clean_passages(docs, held, n_word=20, n=3)[0]) == 2


def test_a_model_of_nan_is_an_error(corpus):
    bad = broken(tiny(n_vocab=257, ctx_len=24))
    for call in (lambda: held_out(bad, corpus), lambda: passage_nats(bad, TOK, ['a king'])):
        with pytest.raises(FloatingPointError, match='token 0 of (the )?text'): call()


def test_no_window_is_named(model, corpus):
    with pytest.raises(ValueError, match='no window of 25 tokens'): window_loss(model, corpus.train, [])
