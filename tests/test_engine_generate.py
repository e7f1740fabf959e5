"Decoding: equal to transformers, independent of the batch, and sampling from the right distribution."
import pytest
import torch
from scipy.stats import chisquare
from torch._dynamo.utils import counters

from decoders import as_transformers, tiny
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.nn.linear import _packs, cpp_compiler, linear_impls, packed
from papers_lib.engine.generate import beam_search, draw, generate, next_probs, stream

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5, 8]]


@pytest.fixture(scope='module')
def model(): return tiny()


@pytest.fixture(scope='module')
def theirs(model): return as_transformers(model)


def reference(theirs, prompt, n, **kw):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0, **kw)
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


@pytest.mark.parametrize('alpha', [0., 1., 2.])
def test_beam_search_is_that_of_transformers(model, theirs, alpha):
    ours = [ids for ids, _ in beam_search(model, [3, 1, 4], n_beam=5, n_return=5, max_tokens=8, length_penalty=alpha)]
    assert ours == reference(theirs, [3, 1, 4], 8, num_beams=5, num_return_sequences=5, length_penalty=alpha)


def test_beam_of_one_is_greedy_and_stops_at_eot(model):
    greedy = generate(model, [[3, 1, 4]], 20)[0]
    eot = greedy[6]
    assert beam_search(model, [3, 1, 4], 1, 1, 20, eot=eot)[0][0] == generate(model, [[3, 1, 4]], 20, stop=eot)[0]


def test_beam_log_probability_is_that_of_the_text(model):
    for ids, logp in beam_search(model, [3, 1, 4], 4, 4, 6):
        with torch.no_grad(): full = model(torch.tensor([[3, 1, 4, *ids]])).log_softmax(-1)[0, 2:-1]
        assert logp == pytest.approx(full.gather(-1, torch.tensor(ids)[:, None]).sum().item(), abs=1e-5)


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
    p = next_probs(torch.tensor([[.14, .5, .06, .3]], dtype=torch.float64).log(), top_p=top_p - (1e-6 if top_p in (.5, .8) else 0))
    assert (p > 0).nonzero()[:, 1].tolist() == kept and p.sum() == pytest.approx(1)


def test_top_k_then_top_p():
    logits = torch.tensor([[.4, .3, .2, .1]]).log()
    torch.testing.assert_close(next_probs(logits, top_k=2, top_p=.5), torch.tensor([[1., 0, 0, 0]]))        # 4/7 alone reaches 0.5
    torch.testing.assert_close(next_probs(logits, top_k=99), next_probs(logits))


def test_stop_tokens_end_rows_one_by_one(model):
    full = generate(model, PROMPTS, 30)
    stop = [full[0][4], full[1][9]]
    cut = generate(model, PROMPTS, 30, stop=stop)
    for f, c in zip(full, cut):
        assert c == f[:len(c)] and not set(c) & set(stop) and (len(c) == 30 or f[len(c)] in stop)


def test_stream_is_generate_and_lazy(model):
    assert list(stream(model, [3, 1], 12, temperature=1., seed=4)) == generate(model, [[3, 1]], 12, temperature=1., seed=4)[0]
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
    (lambda m: beam_search(m, [1], 2, 3), 'n_return=3'),
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
    assert generate(model, [[3, 1, 4]], 200, compiled=True)[0][:8] == first[0]       # a prompt's cache has room for some 64 more
    assert counters['stats']['unique_graphs'] == before
