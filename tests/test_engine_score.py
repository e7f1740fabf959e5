"Scoring: equal to full forward passes, whatever is shared and however the work is cut."
import random

import numpy as np
import pytest
import torch

from decoders import broken, tiny
from papers_lib.engine.score import score, score_text, texts_nll, token_nll, trie, trie_mask, windows


@pytest.fixture(scope='module')
def model(): return tiny()


@torch.no_grad()
def full_text(model, prompt, candidate):
    logp = model(torch.tensor([prompt + candidate])).log_softmax(-1)[0, len(prompt)-1:-1]
    return logp.gather(-1, torch.tensor(candidate)[:, None])[:, 0].tolist()


def random_candidates(n, seed=0, vocab=6):
    rng = random.Random(seed)                            # few symbols: many shared beginnings and some duplicates
    return [[rng.randrange(vocab) for _ in range(rng.randint(1, 7))] for _ in range(n)]


@pytest.mark.parametrize('batch_tokens', [1, 7, 64, 4096])
def test_score_is_full_text_scoring(model, batch_tokens):
    prompt, candidates = [7, 8, 9, 10], random_candidates(60)
    for ours, c in zip(score(model, prompt, candidates, batch_tokens=batch_tokens), candidates, strict=True):
        np.testing.assert_allclose(ours, full_text(model, prompt, c), atol=1e-5)


def test_prompt_and_shared_beginnings_are_read_once(model):
    candidates, read = random_candidates(60), []
    hook = model.norm_f.register_forward_hook(lambda _, args, out: read.append(out.shape[:2].numel()))
    score(model, [7, 8, 9, 10], candidates)
    hook.remove()
    assert sum(read) == 4 + len({tuple(c[:j]) for c in candidates for j in range(1, len(c))})


def test_one_token_candidates_cost_nothing(model):
    calls = []
    hook = model.norm_f.register_forward_hook(lambda *_: calls.append(1))
    scores = score(model, [1, 2], [[t] for t in range(61)])
    hook.remove()
    assert len(calls) == 1 and sum(np.exp(s[0]) for s in scores) == pytest.approx(1, abs=1e-5)


def test_more_nodes_than_the_context_has_places(model):
    candidates = [[a, b, 3] for a in range(12) for b in range(12)]                      # 156 nodes, ctx_len 48
    for ours, c in zip(score(model, [1] * 45, candidates), candidates, strict=True):
        np.testing.assert_allclose(ours, full_text(model, [1] * 45, c), atol=1e-5)


def test_trie_keeps_every_node_once_and_parents_first():
    candidates = random_candidates(80, seed=1)
    tokens, parents, paths = trie(candidates)
    assert all(p < i for i, p in enumerate(parents))
    for c, path in zip(candidates, paths):
        assert path[0] == -1 and [tokens[n] for n in path[1:]] == c[:-1]
        assert all(parents[b] == a for a, b in zip(path, path[1:]))
    mask, positions = trie_mask(parents, 3)
    for c, path in zip(candidates, paths):
        if len(path) > 1:
            assert mask[path[-1], 3:].nonzero()[:, 0].tolist() == path[1:] and positions[path[-1]] == 3 + len(path) - 2
    assert mask[:, :3].all()


@pytest.mark.parametrize('prompt,candidates,words', [
    ([], [[1]], 'the prompt is empty'),
    ([1], [[1], []], 'candidate 1 is empty'),
    ([1] * 40, [[1], [1] * 10], 'candidate 1: a prompt of 40 tokens and 10 more do not fit .* ctx_len=48'),
])
def test_score_faults(model, prompt, candidates, words):
    with pytest.raises(ValueError, match=words): score(model, prompt, candidates)


def test_the_longest_candidate_that_fits(model):
    c = [1, 2, 3, 4, 5, 6, 7, 8, 9]  # its last token is predicted, not read
    ours = score(model, [1] * 40, [c])[0]
    np.testing.assert_allclose(ours[:8], full_text(model, [1] * 40, c[:8]), atol=1e-5)
    assert len(ours) == 9


def test_no_candidates(model): assert score(model, [1], []) == [] and score_text(model, Letters(), 'a', []) == []


def test_mode_is_restored(model):
    model.train()
    a, b = score(model, [1, 2], [[3, 4]]), score(model, [1, 2], [[3, 4]])
    assert a == b and model.training
    model.eval()


class Letters:
    "Letters are tokens; ` t` and `he` merge, also across the end of a prompt."
    eot = 60
    def encode(self, text):
        out = []
        while text:
            n = 2 if text[:2] in (' t', 'he') else 1
            out.append({' t': 40, 'he': 41, ' ': 42}.get(text[:n]) or ord(text[0]) - 96)
            text = text[n:]
        return out


def test_boundary_rule_scores_the_same_characters_for_all(model):
    tok = Letters()
    ours = score_text(model, tok, 'see ', ['the', 'a'])  # `see t` merges the space into the candidate
    np.testing.assert_allclose(ours[0], full_text(model, tok.encode('see'), [40, 41]), atol=1e-5)
    np.testing.assert_allclose(ours[1], full_text(model, tok.encode('see'), [42, 1]), atol=1e-5)


def test_a_beginning_shared_by_all_candidates_is_still_scored(model):
    ours = score_text(model, Letters(), 'see', [' the', ' tea'])
    assert [len(s) for s in ours] == [2, 3]
    assert len(score_text(model, Letters(), 'see', [' the'])[0]) == 2  # one candidate shares everything with itself


def test_end_token_is_counted_on_request(model):
    without, with_end = (score_text(model, Letters(), 'see', [' the', 'm'], end=e) for e in (False, True))
    for a, b in zip(without, with_end): assert len(b) == len(a) + 1 and b[:-1] == pytest.approx(a, abs=1e-6)


@pytest.mark.parametrize('prompt,candidates,words', [
    ('', ['a'], 'shares no first token'), ('h', ['e', 'a'], 'shares no first token'),
    ('see', ['a', ''], 'candidate 1 is empty'),
])
def test_text_faults(model, prompt, candidates, words):
    with pytest.raises(ValueError, match=words): score_text(model, Letters(), prompt, candidates)


@pytest.mark.parametrize('n,ctx_len,stride', [(1, 1, 1), (5, 8, 3), (8, 8, 8), (9, 8, 8), (100, 16, 4), (101, 16, 16),
                                              (77, 7, 5)])
def test_every_token_is_scored_once_with_enough_context(n, ctx_len, stride):
    cuts = windows(n, ctx_len, stride)
    assert [i for _, end, first in cuts for i in range(first, end)] == list(range(n))
    assert all(end - start == min(n, ctx_len) and start <= first < end for start, end, first in cuts)
    assert all(first - start >= ctx_len - stride for start, _, first in cuts[1:])


@pytest.mark.parametrize('stride', [3, 16])
def test_token_nll_is_the_definition(model, stride):
    text = torch.randint(0, 60, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    nll, x = token_nll(model, text, 16, stride, eot=60, batch_tokens=64), [60] + text
    assert len(nll) == 70
    for start, end, first in windows(70, 16, stride):
        for j in range(first, end):
            assert nll[j] == pytest.approx(-full_text(model, x[start:j+1], [x[j+1]])[0], abs=1e-5)


@pytest.mark.parametrize('batch_tokens', [1, 40, 4096])
def test_texts_read_together_are_scored_as_each_by_itself(model, batch_tokens):
    gen = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 60, (n,), generator=gen).tolist() for n in (70, 3, 16, 1, 33, 3)] + [[]]
    for eot in (60, None):
        together = texts_nll(model, texts, 16, 8, eot=eot, batch_tokens=batch_tokens)
        assert [len(nats) for nats in together] == [max(0, len(t) - (eot is None)) for t in texts]
        for nats, text in zip(together, texts):
            alone = token_nll(model, text, 16, 8, eot=eot)
            assert nats.dtype == np.float32 and nats == pytest.approx(alone, abs=1e-5)
    assert texts_nll(model, [], 16, 8) == []


def test_windows_of_equal_length_share_a_pass_and_only_what_is_scored_gets_logits(model, monkeypatch):
    shapes, rows, hidden, head = [], [], model.hidden, model.head
    monkeypatch.setattr(model, 'hidden', lambda ids, **kw: shapes.append(tuple(ids.shape)) or hidden(ids, **kw))
    monkeypatch.setattr(model, 'head', lambda h: rows.append(len(h)) or head(h))
    texts_nll(model, [[1] * 40, [2] * 5, [3] * 40, [4] * 5], 16, 8, eot=60)
    assert sorted(shapes) == [(2, 5), (8, 16)] and sum(rows) == 90              # not 2 x 5 + 8 x 16
    shapes.clear()
    texts_nll(model, [[1] * 40, [2] * 40], 16, 8, eot=60, batch_tokens=48)
    assert shapes == [(3, 16), (3, 16), (2, 16)]


def test_a_broken_text_is_named():
    model = tiny()
    with torch.no_grad(): model.tok_emb.weight[59] = torch.nan
    head = model.head
    model.head = lambda h: head(h).masked_fill(torch.arange(61) == 59, 0.)   # only what reads token 59 is spoilt
    with pytest.raises(FloatingPointError, match='token 0 of text 1 .* and 3 others'):
        texts_nll(model, [[1, 2, 3], [1, 59, 3, 4], [5]], 8, 8, eot=60)


def test_first_token_needs_something_before_it(model):
    assert len(token_nll(model, [5, 6, 7], 8, 8)) == 2 and len(token_nll(model, [5, 6, 7], 8, 8, eot=60)) == 3
    assert len(token_nll(model, [5], 8, 8)) == 0


@pytest.mark.parametrize('ctx_len,stride,words', [(49, 8, 'ctx_len=48'), (16, 17, 'stride=17'), (16, 0, 'stride=0')])
def test_nll_faults(model, ctx_len, stride, words):
    with pytest.raises(ValueError, match=words): token_nll(model, [1, 2, 3], ctx_len, stride)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_logit_that_is_no_number_is_an_error(value):
    bad = broken(tiny(), value)
    with pytest.raises(FloatingPointError, match='after the prompt, row 0'): score(bad, [1, 2], [[3, 4], [5]])
    with pytest.raises(FloatingPointError, match='token 0 of the text'): token_nll(bad, [1, 2, 3], 8, 8)


def test_a_candidate_that_breaks_the_model_is_an_error():
    model = tiny()
    with torch.no_grad(): model.tok_emb.weight[60] = torch.nan
    head = model.head
    model.head = lambda h: head(h).masked_fill(torch.arange(61) == 60, 0.)   # only what reads token 60 is spoilt
    assert score(model, [1, 2], [[3, 4]])
    with pytest.raises(FloatingPointError, match='reading the candidates, row 0'):
        score(model, [1, 2], [[60, 4], [3, 4]])
    with pytest.raises(FloatingPointError, match='of the text has a loss of nan'):
        token_nll(model, [1, 2, 3, 60, 4], 8, 8, eot=None)
