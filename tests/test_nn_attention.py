"Attention: every implementation alike, and the cache."
import pytest
import torch
from torch.nn import functional as F
from papers_lib.nn.attention import KVCache, SelfAttention, attend, attention_weights, attention_impls
from papers_lib.nn.masks import causal, full, padding, prefix

close = torch.testing.assert_close


def qkv(t=5, s=9, h=4, g=2, dtype=torch.float32, grad=False):
    torch.manual_seed(0)
    return [torch.randn(2, n, m, 8, dtype=dtype, requires_grad=grad) for n, m in ((h, t), (g, s), (g, s))]


def every_mask(t, s, h):
    rows = torch.rand(2, t, s, generator=torch.Generator().manual_seed(3)) > .4
    rows[1, 0] = False                                         # a query with nothing to attend to
    heads = torch.rand(2, h, t, s, generator=torch.Generator().manual_seed(4)) > .4
    return [None, full(), causal(), causal() | prefix(3), causal() & padding(rows[:, -1]), rows, rows[0], heads]


@pytest.mark.parametrize('t,s', [(5, 5), (5, 9), (1, 9)])
@pytest.mark.parametrize('g', [1, 2, 4])
def test_sdpa_equals_plain_with_gradients(t, s, g):
    bias = torch.randn(4, t, s)
    for mask in every_mask(t, s, 4):
        for extra in (dict(), dict(scale=.3), dict(bias=bias)):
            results = []
            for impl in ('plain', 'sdpa', 'auto'):
                leaves = qkv(t, s, 4, g, grad=True)
                y = attend(*leaves, mask, impl=impl, **extra)
                y.square().sum().backward()
                results.append([y.detach()] + [x.grad for x in leaves])
            for other in results[1:]:
                for a, b in zip(results[0], other): close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif('flex' not in attention_impls(), reason='torch.compile needs a C++ compiler, and there is none')
@pytest.mark.parametrize('which', [0, 2, 3, 5])
@pytest.mark.parametrize('biased', [False, True])
def test_flex_equals_plain_forward(which, biased):
    q, k, v = qkv()
    mask, bias = every_mask(5, 9, 4)[which], torch.randn(4, 5, 9) if biased else None
    close(attend(q, k, v, mask, bias, impl='flex'), attend(q, k, v, mask, bias, impl='plain'), atol=1e-5, rtol=1e-4)


def test_flex_says_what_it_cannot_do():
    with pytest.raises(ValueError, match='no backward pass on a CPU'): attend(*qkv(grad=True), impl='flex')
    with pytest.raises(ValueError, match='dropout=0.1'): attend(*qkv(), dropout=.1, impl='flex')
    with pytest.raises(ValueError, match="impl='magic'"): attend(*qkv(), impl='magic')


# half types: about two ulps at 1
@pytest.mark.parametrize('dtype,tol', [(torch.float64, 1e-12), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_attention_keeps_the_dtype(dtype, tol):
    exact = attend(*[x.to(dtype).double() for x in qkv()], causal(), impl='plain')
    for impl in ('plain', 'sdpa'):
        inputs = qkv(dtype=torch.float64) if dtype == torch.float64 else [x.to(dtype) for x in qkv()]
        y = attend(*inputs, causal(), impl=impl)
        assert y.dtype == dtype
        if dtype == torch.float64: exact = attend(*qkv(dtype=dtype), causal(), impl='plain')
        close(y.double(), exact, atol=tol, rtol=tol)


@pytest.mark.parametrize('impl', ['plain', 'sdpa'])
def test_a_row_with_nothing_to_attend_to_gives_zeros(impl):
    keep = torch.tensor([[True] * 9, [False] * 9])
    for bias in (None, torch.randn(4, 5, 9)):
        y = attend(*qkv(), padding(keep), bias, impl=impl)
        assert y[1].abs().max() == 0 and y[0].abs().min() > 0 and y.isfinite().all()


def test_weights_sum_to_one_or_to_zero():
    q, k, _ = qkv()
    mask = every_mask(5, 9, 4)[5]
    W = attention_weights(q, k, mask)
    close(W.sum(-1), mask.any(-1)[:, None].expand(2, 4, 5).float())
    assert (W.masked_select(~mask[:, None]) == 0).all()


def test_single_causal_query_and_square_causal_make_no_dense_mask(monkeypatch):
    seen = []
    original = F.scaled_dot_product_attention
    def watched(q, k, v, mask=None, dropout=0., is_causal=False, **kw):
        seen.append((mask is None, is_causal))
        return original(q, k, v, mask, dropout, is_causal, **kw)
    monkeypatch.setattr(F, 'scaled_dot_product_attention', watched)
    for t, s in ((9, 9), (1, 9), (4, 9), (1, 1)): attend(*qkv(t, s), causal())
    assert seen == [(True, True), (True, False), (False, False), (True, False)]


def test_dropout_drops_weights_and_keeps_the_mean():
    q, k, v = qkv()
    for impl in ('plain', 'sdpa'):
        torch.manual_seed(0)
        mean = torch.stack([attend(q, k, v, dropout=.5, impl=impl) for _ in range(3000)]).mean(0)
        close(mean, attend(q, k, v), atol=.12, rtol=0)          # 3,000 draws: standard error about 0.02, largest of 320
        assert not attend(q, k, v, dropout=.5, impl=impl).allclose(attend(q, k, v))


def test_fused_projection_is_thirds_then_heads():
    torch.manual_seed(0)
    attn, x = SelfAttention(12, 3), torch.randn(2, 4, 12)
    for third, got in zip(attn.qkv(x).split(12, -1), attn.heads(x)):
        for h in range(3): close(got[:, h], third[..., 4 * h:4 * h + 4])


def test_cache_writes_in_place_and_grows_rarely():
    cache, seen = KVCache(1), set()
    for step in range(1000):
        new = torch.full((1, 2, 1, 4), float(step))
        k, v = cache.update(0, new, -new); cache.advance(1)
        seen.add(k.data_ptr())
    assert cache.length == 1000 and len(seen) < 10              # ten buffers, not a thousand
    assert k[0, 1, :, 3].tolist() == list(range(1000)) and v.equal(-k)


def test_cache_reorder_and_expand_move_rows_and_padding():
    pad = torch.tensor([[True, True], [False, True]])
    cache = KVCache(2, pad)
    new = torch.arange(2.)[:, None, None, None].expand(2, 1, 2, 3)
    for layer in range(2): cache.update(layer, new, new)
    cache.advance(2)
    wide = cache.expand(3)
    nothing = new[:1, :, :0].expand(6, 1, 0, 3)
    assert wide.update(0, nothing, nothing)[0][:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert wide.pad[:, 0].tolist() == [True] * 3 + [False] * 3 and wide.length == 2
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.v[1][:, 0, 1, 2].tolist() == [1, 1, 0] and cache.pad[:, 0].tolist() == [False, False, True]
