"Decoding: equal to transformers, independent of the batch, and sampling from the right distribution."
import random

import pytest
import torch
from scipy.stats import chisquare
from torch._dynamo.utils import counters

from decoders import as_transformers, broken, tiny
from papers_lib.engine.generate import Trie, beam_search, draw, generate, next_probs, stream
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.nn.linear import _packs, cpp_compiler, linear_impls, packed

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5, 8]]


@pytest.fixture(scope='module')
def model(): return tiny()


@pytest.fixture(scope='module')
def theirs(model): return as_transformers(model)


def reference(theirs, prompt, n, **kw):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        real = torch.ones_like(ids)
        out = theirs.generate(ids, attention_mask=real, max_new_tokens=n, do_sample=False, pad_token_id=0, **kw)
    return out[:, len(prompt):].tolist()


def test_logits_are_those_of_transformers(model, theirs):
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad(): torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_greedy_is_that_of_transformers(model, theirs):
    assert generate(model, PROMPTS, 30) == [reference(theirs, p, 30)[0] for p in PROMPTS]


def test_greedy_is_the_argmax_of_full_forward_passes(model):
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        for _ in range(20): ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    assert generate(model, [PROMPTS[2]], 20)[0] == ids[0, 5:].tolist()


def beams_of_transformers(theirs, prompts, n_beam, n_return, max_tokens, eot, **options):
    "Their texts of each row, without the end token, and the ranks that they give them."
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = theirs.generate(ids, attention_mask=real, max_new_tokens=max_tokens, num_beams=n_beam,
                          num_return_sequences=n_return, do_sample=False, eos_token_id=eot,
                          pad_token_id=0 if eot is None else eot, return_dict_in_generate=True, output_scores=True,
                          **options)
    texts = [t[:t.index(eot)] if eot in t else t for t in out.sequences[:, width:].tolist()]
    found = list(zip(texts, out.sequences_scores.tolist()))
    return [found[i:i + n_return] for i in range(0, len(found), n_return)]


def likely_end(model, prompt, rank=2):
    "A token that a search will meet."
    with torch.no_grad(): return int(model(torch.tensor([prompt]))[0, -1].topk(rank + 1).indices[rank])


def same_lists(ours, theirs, alpha, max_tokens, eot):
    for row, reference in zip(ours, theirs, strict=True):
        assert [t for t, _ in row] == [t for t, _ in reference]
        for (text, total), (_, rank) in zip(row, reference):
            size = min(len(text) + (eot is not None), max_tokens)
            assert total / size**alpha == pytest.approx(rank, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize('early_stopping', [True, False, 'never'])
@pytest.mark.parametrize('alpha', [0., 1., 2.])
@pytest.mark.parametrize('seed', range(4))
def test_beam_search_is_that_of_transformers(seed, alpha, early_stopping):
    model, rng = tiny(seed), random.Random(seed)
    prompts = [[rng.randrange(61) for _ in range(n)] for n in (3, 1, 6, 4)]
    eot, options = likely_end(model, prompts[0]), dict(length_penalty=alpha, early_stopping=early_stopping)
    for n_beam, max_tokens in ((5, 9), (3, 16), (2, 8)):
        ours = beam_search(model, prompts, n_beam, n_beam, max_tokens, eot=eot, **options)
        theirs = beams_of_transformers(as_transformers(model), prompts, n_beam, n_beam, max_tokens, eot, **options)
        same_lists(ours, theirs, alpha, max_tokens, eot)


def test_the_comparison_meets_ends_of_all_kinds():
    "Else the test above would say nothing of the heap."
    sizes = set()
    for seed in range(4):
        model, prompt = tiny(seed), [3, 1, 4]
        found = beam_search(model, [prompt], 5, 5, 9, length_penalty=0., eot=likely_end(model, prompt))[0]
        sizes |= {len(t) for t, _ in found}
    assert len(sizes) >= 4 and 9 in sizes and 0 in sizes


def test_beam_search_without_an_end_is_that_of_transformers(model, theirs):
    ours = beam_search(model, PROMPTS, 5, 3, 8, eot=None)
    same_lists(ours, beams_of_transformers(theirs, PROMPTS, 5, 3, 8, None), 1., 8, None)


ITEMS = sorted({tuple(random.Random(i).randrange(1, 12) for _ in range(1 + i % 4)) for i in range(150)})


@pytest.mark.parametrize('alpha,early_stopping', [(0., False), (1., False), (1., 'never'), (2., True)])
@pytest.mark.parametrize('seed', range(3))
def test_allowed_lists_are_those_of_transformers(seed, alpha, early_stopping):
    model, trie, eot, n_beam = tiny(seed), Trie(ITEMS), 13, 20
    assert any(a != b and a == b[:len(a)] for a in ITEMS for b in ITEMS), 'one item begins another'
    width = max(map(len, PROMPTS))
    allow = lambda row, ids: trie.next(ids[width:].tolist(), eot) or [eot]  # theirs goes on behind an end
    options = dict(length_penalty=alpha, early_stopping=early_stopping)
    ours = beam_search(model, PROMPTS, n_beam, n_beam, 5, eot=eot, allowed=trie, **options)
    options['prefix_allowed_tokens_fn'] = allow
    theirs = beams_of_transformers(as_transformers(model), PROMPTS, n_beam, n_beam, 5, eot, **options)
    del options['prefix_allowed_tokens_fn']
    same_lists(ours, theirs, alpha, 5, eot)
    for row in ours:
        texts = {tuple(t) for t, _ in row}
        assert len(row) == n_beam == len(texts) and texts <= set(ITEMS)


def test_a_wide_beam_ranks_every_item_by_its_probability(model):
    def total(prompt, item):
        ids = [*prompt, *item, 13]
        with torch.no_grad(): logp = model(torch.tensor([ids])).log_softmax(-1)[0, len(prompt) - 1:-1]
        return logp.gather(-1, torch.tensor(ids[len(prompt):])[:, None]).sum().item()
    found = beam_search(model, PROMPTS, len(ITEMS), len(ITEMS), 5, length_penalty=0., eot=13, allowed=Trie(ITEMS))
    for prompt, row in zip(PROMPTS, found):
        assert [tuple(t) for t, _ in row] == sorted(ITEMS, key=lambda item: -total(prompt, item))
        assert [lp for _, lp in row] == pytest.approx([total(prompt, t) for t, _ in row], abs=1e-4)


def test_fewer_items_than_places_give_shorter_lists(model):
    for row in beam_search(model, PROMPTS, 10, 10, 4, eot=13, allowed=Trie([[1], [1, 2], [3, 1, 2]])):
        assert sorted(t for t, _ in row) == [[1], [1, 2], [3, 1, 2]]


def test_a_trie_knows_what_may_follow_each_prefix():
    trie = Trie(ITEMS)
    assert len(trie) == len(ITEMS)
    prefixes = {item[:n] for item in ITEMS for n in range(len(item) + 1)}
    for prefix in prefixes | {(1, 99), (99,)}:
        may = {item[len(prefix)] for item in ITEMS if item[:len(prefix)] == prefix and len(item) > len(prefix)}
        assert set(trie.next(prefix, 13)) == may | ({13} if prefix in ITEMS else set())


def test_beam_of_one_is_greedy_and_stops_at_eot(model):
    greedy = generate(model, [[3, 1, 4]], 20)[0]
    eot = greedy[6]
    assert beam_search(model, [[3, 1, 4]], 1, 1, 20, eot=None)[0][0][0] == greedy
    found = beam_search(model, [[3, 1, 4]], 1, 1, 20, eot=eot, early_stopping=True)[0]
    assert found[0][0] == greedy[:greedy.index(eot)]


def test_beam_rows_do_not_depend_on_the_batch(model):
    batch = beam_search(model, PROMPTS, 4, 4, 8, eot=7)
    for prompt, row in zip(PROMPTS, batch):
        alone = beam_search(model, [prompt], 4, 4, 8, eot=7)[0]
        assert [t for t, _ in row] == [t for t, _ in alone]
        assert [lp for _, lp in row] == pytest.approx([lp for _, lp in alone], abs=1e-5)


def test_finished_rows_leave_the_batch(model, monkeypatch):
    sizes, step = [], type(model).step
    def counted(self, ids, cache):
        sizes.append(len(ids))
        return step(self, ids, cache)
    monkeypatch.setattr(type(model), 'step', counted)
    greedy = generate(model, PROMPTS, 12)
    eot = greedy[2][3]                                             # one row ends here, others later or not at all
    ends = [row.index(eot) if eot in row else 12 for row in greedy]
    sizes.clear()
    found = beam_search(model, PROMPTS, 1, 1, 12, eot=eot, early_stopping=True)
    assert [row[0][0] for row in found] == [row[:end] for row, end in zip(greedy, ends)] and len(set(ends)) > 1
    assert sizes == [n for i in range(11) if (n := sum(end > i for end in ends))]


def test_keyword_arguments_of_prefill_serve_as_inputs(model):
    inputs = dict(ids=torch.tensor([[3, 1, 4], [1, 5, 9]]))
    assert beam_search(model, inputs, 3, 3, 6, eot=7) == beam_search(model, inputs['ids'], 3, 3, 6, eot=7)
    assert generate(model, inputs, 6) == generate(model, inputs['ids'], 6)
    assert list(stream(model, dict(ids=inputs['ids'][:1]), 6)) == generate(model, inputs['ids'][:1], 6)[0]


def test_beam_log_probability_is_that_of_the_text(model):
    for ids, logp in beam_search(model, [[3, 1, 4]], 4, 4, 6, eot=None)[0]:
        with torch.no_grad(): full = model(torch.tensor([[3, 1, 4, *ids]])).log_softmax(-1)[0, 2:-1]
        assert logp == pytest.approx(full.gather(-1, torch.tensor(ids)[:, None]).sum().item(), abs=1e-5)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('call', [
    lambda m: generate(m, PROMPTS, 5),
    lambda m: generate(m, PROMPTS, 5, temperature=1.),
    lambda m: list(stream(m, [1], 5)),
    lambda m: beam_search(m, PROMPTS, 3, 3, 5, eot=7),
    lambda m: beam_search(m, PROMPTS, 3, 3, 5, eot=13, allowed=Trie(ITEMS)),
], ids=['greedy', 'sampled', 'stream', 'beams', 'trie'])
def test_a_logit_that_is_no_number_is_an_error(call, value):
    with pytest.raises(FloatingPointError, match='row 0: after 0 new tokens .* logits are not finite'):
        call(broken(tiny(), value))


def test_the_row_that_broke_is_named():
    model = tiny()
    with torch.no_grad(): model.tok_emb.weight[60] = torch.nan         # spoils its own logit in every row ...
    head = model.head
    model.head = lambda h: head(h).nan_to_num(0.)                      # ... so that only a row that reads it shows it
    assert generate(model, PROMPTS, 3)
    model.head = lambda h: head(h)[..., :60]
    with pytest.raises(FloatingPointError, match='row 2: after 0 new tokens'):
        generate(model, [[1], [2], [60, 3], [4]], 3)
    with pytest.raises(FloatingPointError, match='row 2: after 0 new tokens'):
        beam_search(model, [[1], [2], [60, 3], [4]], 3, 3, 3, eot=7)


def test_the_row_that_broke_is_named_after_others_have_left(model, monkeypatch):
    greedy = generate(model, PROMPTS, 12)
    eot = greedy[2][3]
    ends = [row.index(eot) if eot in row else 12 for row in greedy]
    prompts = [p for _, p in sorted(zip(ends, PROMPTS))]                        # the first ends first
    step = type(model).step
    def breaks(self, ids, cache):
        logits, cache = step(self, ids, cache)
        if len(ids) < len(prompts): logits = logits.index_fill(0, torch.tensor([len(ids) - 1]), torch.nan)
        return logits, cache
    monkeypatch.setattr(type(model), 'step', breaks)
    with pytest.raises(FloatingPointError, match=f'row {len(prompts) - 1}: after'):
        beam_search(model, prompts, 1, 1, 12, eot=eot, early_stopping=True)


def test_what_a_row_has_so_far_is_not_built_anew_for_each_token():
    model, seen = tiny(), []
    generate(model, [[3, 1, 4]], 20, until=lambda new: seen.append((id(new), len(new))))
    assert [n for _, n in seen] == list(range(1, 21)) and len({i for i, _ in seen}) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_allowed_lists_on_a_gpu_are_those_of_the_cpu():
    ours = beam_search(tiny().cuda(), PROMPTS, 20, 20, 5, eot=13, allowed=Trie(ITEMS))
    reference = beam_search(tiny(), PROMPTS, 20, 20, 5, eot=13, allowed=Trie(ITEMS))
    assert [[t for t, _ in row] for row in ours] == [[t for t, _ in row] for row in reference]


def test_a_row_does_not_depend_on_the_batch(model):
    kw = dict(temperature=1.3, top_k=20, top_p=.9)
    batch = generate(model, PROMPTS, 25, seed=[11, 12, 13, 14], **kw)
    alone = [generate(model, [p], 25, seed=[s], **kw)[0] for p, s in zip(PROMPTS, (11, 12, 13, 14))]
    assert batch == alone
    assert generate(model, PROMPTS[:2], 25, seed=5, **kw) == generate(model, PROMPTS, 25, seed=5, **kw)[:2]


def test_seeds_matter_and_equal_prompts_differ(model):
    a, b = (generate(model, [[1, 2]] * 3, 12, temperature=1., seed=s) for s in (0, 1))
    assert a != b and len({tuple(r) for r in a}) == 3
    assert not {tuple(r) for r in a} & {tuple(r) for r in b}


def test_samples_follow_the_models_distribution(model):
    with torch.no_grad(): p = next_probs(model(torch.tensor([[3, 1]]))[:, -1], 1.5, top_k=12)[0].double()
    n = 4000
    rows = generate(model, [[3, 1]] * n, 1, temperature=1.5, top_k=12, seed=3)
    counts = torch.bincount(torch.tensor(rows)[:, 0], minlength=len(p))
    kept = p > 0
    assert kept.sum() == 12 and counts[~kept].sum() == 0
    expected = p[kept] / p[kept].sum() * n
    assert expected.min() > 5, 'the chi-square approximation needs 5 expected counts in each cell'
    assert chisquare(counts[kept], expected).pvalue > .001


def test_chi_square_would_notice_a_wrong_temperature(model):
    with torch.no_grad(): p = next_probs(model(torch.tensor([[3, 1]]))[:, -1], 1.5, top_k=12)[0].double()
    rows = generate(model, [[3, 1]] * 4000, 1, temperature=1., top_k=12, seed=3)
    kept, counts = p > 0, torch.bincount(torch.tensor(rows)[:, 0], minlength=len(p))
    assert chisquare(counts[kept], p[kept] / p[kept].sum() * 4000).pvalue < 1e-4


def test_draw_never_picks_an_impossible_token():
    p = torch.tensor([[0., .3, 0., .7, 0.]], dtype=torch.float64).expand(3, 5)
    assert draw(p, torch.tensor([0., .3, 1 - 2**-53], dtype=torch.float64)).tolist() == [1, 3, 3]


@pytest.mark.parametrize('top_p,kept', [(.5, [1]), (.51, [1, 3]), (.8, [1, 3]), (.81, [0, 1, 3]), (1., [0, 1, 2, 3])])
def test_nucleus(top_p, kept):
    logits = torch.tensor([[.14, .5, .06, .3]], dtype=torch.float64).log()
    p = next_probs(logits, top_p=top_p - (1e-6 if top_p in (.5, .8) else 0))
    assert (p > 0).nonzero()[:, 1].tolist() == kept and p.sum() == pytest.approx(1)


def test_top_k_then_top_p():
    logits = torch.tensor([[.4, .3, .2, .1]]).log()
    first = torch.tensor([[1., 0, 0, 0]])                                # 4/7 alone reaches 0.5
    torch.testing.assert_close(next_probs(logits, top_k=2, top_p=.5), first)
    torch.testing.assert_close(next_probs(logits, top_k=99), next_probs(logits))


def test_stop_tokens_end_rows_one_by_one(model):
    full = generate(model, PROMPTS, 30)
    stop = [full[0][4], full[1][9]]
    cut = generate(model, PROMPTS, 30, stop=stop)
    for f, c in zip(full, cut):
        assert c == f[:len(c)] and not set(c) & set(stop) and (len(c) == 30 or f[len(c)] in stop)


def test_stream_is_generate_and_lazy(model):
    how = dict(temperature=1., seed=4)
    assert list(stream(model, [3, 1], 12, **how)) == generate(model, [[3, 1]], 12, **how)[0]
    calls = []
    hook = model.norm_f.register_forward_hook(lambda *_: calls.append(1))
    next(stream(model, [3, 1], 12))
    hook.remove()
    assert len(calls) == 1


def test_long_batches_with_packed_weights_say_the_same():
    model = tiny(n_vocab=20000, ctx_len=80, d_model=32)          # the head is big enough to be packed
    rows = generate(model, [[1, 2], [3, 4], [5, 6], [7, 8]], 64)
    assert rows == [generate(model, [[2 * i + 1, 2 * i + 2]], 64)[0] for i in range(4)]
    assert not _packs
    with packed(model): assert list(_packs) == [id(model.tok_emb.weight)] or 'onednn' not in linear_impls()


def test_mode_is_restored_and_dropout_is_off(model):
    model.train()
    a, b = generate(model, PROMPTS, 10), generate(model, PROMPTS, 10)
    assert a == b and model.training
    model.eval()


@pytest.mark.parametrize('call,words', [
    (lambda m: generate(m, [[1] * 40], 9), '40 tokens and 9 new ones do not fit into a context of ctx_len=48'),
    (lambda m: generate(m, [[1], []], 3), 'a prompt is empty'),
    (lambda m: generate(m, [], 3), 'empty'),
    (lambda m: generate(m, [[1]], 0), 'max_tokens=0'),
    (lambda m: generate(m, [[1]], 3, temperature=-1.), 'temperature=-1.0'),
    (lambda m: generate(m, [[1]], 3, temperature=1., top_p=1.5), 'top_p=1.5'),
    (lambda m: generate(m, [[1]], 3, temperature=1., top_k=-2), 'top_k=-2'),
    (lambda m: next(stream(m, [1] * 48, 1)), '48 tokens and 1 new ones'),
    (lambda m: beam_search(m, [[1]], 2, 3, 5, eot=7), 'n_return=3'),
    (lambda m: beam_search(m, [[1]], 2, 2, 48, eot=7), '1 tokens and 48 new ones'),
    (lambda m: beam_search(m, [[1]], 2, 2, 5, eot=7, early_stopping='always'), "early_stopping='always'"),
    (lambda m: beam_search(m, [[1]], 2, 2, 4, eot=13, allowed=Trie(ITEMS)), 'max_tokens=4: .* at least 5'),
    (lambda m: beam_search(m, [[1]], 2, 2, 5, eot=None, allowed=Trie(ITEMS)), 'allowed needs an end token'),
    (lambda m: beam_search(m, [[1]], 2, 2, 5, eot=3, allowed=Trie(ITEMS)), 'eot=3'),
    (lambda m: beam_search(m, [[1]], 2, 2, 5, eot=13, allowed=Trie([[61]])), 'token 61, the model has 61'),
    (lambda m: beam_search(m, dict(ids=torch.ones(2, 3), pad=torch.ones(1, 3)), 2, 2, 5, eot=7), 'same number of rows'),
    (lambda m: Trie([]), 'no sequence is given'),
    (lambda m: Trie([[1], []]), 'a sequence is empty'),
    (lambda m: Trie([[1, 2], [3], [1, 2]]), r'\[1, 2\] is there twice'),
    (lambda m: Trie([[1], [2, -1]]), 'token -1'),
    (lambda m: generate(m, [[1], [2]], 3, until=[bool]), '1 `until` for 2 prompts'),
])
def test_faults_name_the_value(model, call, words):
    with pytest.raises(ValueError, match=words): call(model)


def test_generate_fills_the_context_exactly(model):
    assert len(generate(model, [[1] * 40], 8)[0]) == 8


@pytest.mark.skipif(not cpp_compiler(), reason='needs a C++ compiler')
def test_a_compiled_text_outgrows_the_first_cache_without_compiling_again():
    torch.manual_seed(0); model = GPT2(GPT2Config(n_layer=1, d_model=32, n_head=2, ctx_len=256, n_vocab=50)).eval()
    first = generate(model, [[3, 1, 4]], 8, compiled=True)
    before = counters['stats']['unique_graphs']
    assert generate(model, [[3, 1, 4]], 200, compiled=True)[0][:8] == first[0]  # a prompt's cache has room for 64 more
    assert counters['stats']['unique_graphs'] == before
