"Properties of the nn room: what a notebook cell is too small to say."
import math
from types import SimpleNamespace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from papers_lib.engine.score import score
from papers_lib.nn.activations import gated_width, gates, gelu, gelu_tanh
from papers_lib.nn.attention import KVCache, SelfAttention, attend, attention_weights, available
from papers_lib.nn.blocks import MLP, Block, Decoder
from papers_lib.nn.linear import Linear
from papers_lib.nn.masks import banded, causal, documents, full, padding, prefix
from papers_lib.nn.norms import LayerNorm, RMSNorm
from papers_lib.nn.positions import LearnedPositions, convert_rope, rope, rotate, sinusoidal

close = torch.testing.assert_close


class Small(Decoder):
    "A decoder of 3 blocks: 50 tokens, 32 wide, at most 40 places."
    def __init__(self, placement='pre'):
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(50, 32), LearnedPositions(40, 32)
        self.blocks = nn.ModuleList(Block(32, 4, 64, placement=placement) for _ in range(3))
        self.norm_f = LayerNorm(32) if placement == 'pre' else nn.Identity()
        nn.init.normal_(self.tok_emb.weight, std=.1)
    def embed(self, ids, positions): return self.tok_emb(ids) + self.pos_emb(positions)
    @property
    def head_weight(self): return self.tok_emb.weight


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def ids(): return torch.randint(50, (3, 30), generator=torch.Generator().manual_seed(1))


# ---- norms and activations

@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_layernorm_is_torch_layernorm(dtype, bias):
    torch.manual_seed(0)
    ours, ref = LayerNorm(48, 1e-6, bias).to(dtype), nn.LayerNorm(48, 1e-6, bias=bias).to(dtype)
    nn.init.normal_(ours.weight)
    ref.load_state_dict(ours.state_dict())                     # the same names, strictly
    x = torch.randn(4, 5, 48, dtype=dtype)
    assert ours(x).dtype == dtype
    close(ours(x), ref(x))


def test_layernorm_written_out_and_gradient():
    torch.manual_seed(0)
    ln, x = LayerNorm(7).double(), torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    mu, var = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    close(ln(x), (x - mu) / (var + 1e-5).sqrt())
    assert torch.autograd.gradcheck(ln, x)


def test_layernorm_of_a_constant_vector_is_its_bias():
    ln = LayerNorm(8)
    nn.init.constant_(ln.bias, 3.)
    close(ln(torch.full((2, 8), 1e4)), torch.full((2, 8), 3.))


def test_gelu_is_the_mean_of_a_bernoulli_gate():
    generator, n = torch.Generator().manual_seed(0), 400_000
    x = torch.tensor([-2., -.5, .3, 1., 2.5], dtype=torch.float64)
    p = torch.distributions.Normal(0., 1.).cdf(x)
    mean = (x * torch.bernoulli(p.expand(n, -1), generator=generator)).mean(0)
    error = x.abs() * (p * (1 - p) / n).sqrt()
    assert ((mean - gelu(x)).abs() < 5 * error).all()
    assert ((mean - F.silu(x)).abs() > 5 * error).any()        # the test can tell another gate apart


def test_gelu_forms_match_their_formulas_and_differ():
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    close(gelu(x), x / 2 * (1 + torch.erf(x / math.sqrt(2))))
    close(gelu_tanh(x), x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    assert 1e-4 < (gelu(x) - gelu_tanh(x)).abs().max() < 1e-3


# ---- positions

def test_learned_positions_name_both_numbers_when_too_long():
    with pytest.raises(ValueError, match='41 tokens.*ctx_len=40'): LearnedPositions(40, 8)(torch.arange(41))


def test_learned_positions_gather_rows_of_any_shape():
    pos, at = LearnedPositions(10, 4), torch.tensor([[0, 1, 9], [3, 3, 2]])
    close(pos(at), pos.weight[at])


def test_sinusoidal_dot_product_depends_on_distance_only():
    P = sinusoidal(50, 16).double()
    G = P @ P.T
    for gap in range(50): close(G.diagonal(gap), G[0, gap].expand(50 - gap), atol=1e-5, rtol=0)
    close(G.diagonal(), torch.full((50,), 8., dtype=torch.float64))
    with pytest.raises(ValueError, match='d=7'): sinusoidal(4, 7)


# ---- masks

B, T = 2, 9

@st.composite
def masks(draw, depth=3):
    "Any expression of the algebra over batches of B rows of T places."
    bits = lambda: torch.tensor(draw(st.lists(st.integers(0, 2), min_size=B * T, max_size=B * T))).view(B, T)
    kind = draw(st.sampled_from(['leaf'] if depth == 0 else ['leaf', 'and', 'or', 'not']))
    if kind == 'not': return ~draw(masks(depth=depth - 1))
    if kind == 'and': return draw(masks(depth=depth - 1)) & draw(masks(depth=depth - 1))
    if kind == 'or': return draw(masks(depth=depth - 1)) | draw(masks(depth=depth - 1))
    leaf = draw(st.sampled_from(['full', 'causal', 'banded', 'prefix', 'prefixes', 'padding', 'documents']))
    if leaf == 'banded': return banded(draw(st.integers(1, T)))
    if leaf == 'prefix': return prefix(draw(st.integers(0, T)))
    if leaf == 'prefixes': return prefix(torch.tensor(draw(st.lists(st.integers(0, T), min_size=B, max_size=B))))
    if leaf == 'padding': return padding(bits() > 0)
    return documents(bits()) if leaf == 'documents' else dict(full=full, causal=causal)[leaf]()

def matrix(mask, t=T): return mask.dense(t, T, T - t).expand(B, t, T)

@settings(max_examples=60, deadline=None)
@given(masks(), masks(), masks())
def test_masks_form_a_boolean_algebra(x, y, z):
    assert matrix(~(x & y)).equal(matrix(~x | ~y)) and matrix(~(x | y)).equal(matrix(~x & ~y))   # De Morgan
    assert matrix(x & (y | z)).equal(matrix((x & y) | (x & z)))
    assert matrix(x | (y & z)).equal(matrix((x | y) & (x | z)))
    assert matrix(x & y).equal(matrix(x) & matrix(y)) and matrix(x | y).equal(matrix(x) | matrix(y))
    assert matrix(~x).equal(~matrix(x)) and not matrix(x & ~x).any() and matrix(x | ~x).all()

@settings(max_examples=40, deadline=None)
@given(masks(), st.integers(1, T))
def test_flex_and_dense_agree(mask, t):
    mod, m = mask.flex(T - t), matrix(mask, t)
    zero = torch.tensor(0)
    ours = [[[bool(mod(torch.tensor(b), zero, torch.tensor(q), torch.tensor(k))) for k in range(T)] for q in range(t)] for b in range(B)]
    assert ours == m.tolist()

@settings(max_examples=40, deadline=None)
@given(masks(), st.integers(1, T))
def test_the_last_queries_of_a_mask_are_its_last_rows(mask, t):
    assert matrix(mask, t).equal(matrix(mask)[:, T - t:])

def test_mask_rules_against_loops():
    ids, keep = torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[False, True, True, False, True]])
    rules = {causal(): lambda q, k: k <= q, full(): lambda q, k: True, banded(2): lambda q, k: abs(q - k) < 2,
             prefix(3): lambda q, k: k < 3, documents(ids): lambda q, k: bool(ids[0, q] == ids[0, k]),
             padding(keep): lambda q, k: bool(keep[0, k])}
    for mask, rule in rules.items():
        assert mask.dense(5).expand(1, 5, 5)[0].tolist() == [[rule(q, k) for k in range(5)] for q in range(5)], mask

def test_masks_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match='width=0'): banded(0)
    with pytest.raises(ValueError, match='bool'): padding(torch.ones(2, 3))
    with pytest.raises(ValueError, match='2 rows.*3'): padding(torch.ones(2, 4).bool()) & prefix(torch.tensor([1, 2, 3]))
    with pytest.raises(TypeError): causal() & torch.ones(3, 3).bool()

def test_mask_names_and_picture():
    import matplotlib
    matplotlib.use('Agg')
    mask = causal() & documents(torch.tensor([[0, 0, 1]]))
    assert repr(~mask) == '~(causal() & documents(ids))'
    drawn = mask.show(3).images[0].get_array()
    assert drawn.astype(bool).tolist() == mask.dense(3)[0].tolist()

def test_only_the_causal_mask_itself_takes_the_causal_path():
    assert causal().local == (True, None) and (causal() & banded(3)).local == (True, 3)
    for mask in (~causal(), causal() | prefix(2), full(), ~banded(3), causal() & padding(torch.ones(1, 4).bool())): assert mask.local is None


# ---- attention

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

@pytest.mark.skipif('flex' not in available(), reason='torch.compile needs a C++ compiler, and there is none')
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

@pytest.mark.parametrize('dtype,tol', [(torch.float64, 1e-12), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])   # half types: about two ulps at 1
def test_attention_keeps_the_dtype(dtype, tol):
    exact = attend(*[x.to(dtype).double() for x in qkv()], causal(), impl='plain')
    for impl in ('plain', 'sdpa'):
        y = attend(*qkv(dtype=torch.float64) if dtype == torch.float64 else [x.to(dtype) for x in qkv()], causal(), impl=impl)
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
    monkeypatch.setattr(F, 'scaled_dot_product_attention', lambda q, k, v, m=None, p=0., c=False, **kw: (seen.append((m is None, c)), original(q, k, v, m, p, c, **kw))[1])
    for t, s in ((9, 9), (1, 9), (4, 9), (1, 1)): attend(*qkv(t, s), causal())
    assert seen == [(True, True), (True, False), (False, False), (True, False)]

def test_dropout_drops_weights_and_keeps_the_mean():
    q, k, v = qkv()
    for impl in ('plain', 'sdpa'):
        torch.manual_seed(0)
        mean = torch.stack([attend(q, k, v, dropout=.5, impl=impl) for _ in range(3000)]).mean(0)
        close(mean, attend(q, k, v), atol=.12, rtol=0)          # 3,000 draws: standard error about 0.02, largest of 320
        assert not attend(q, k, v, dropout=.5, impl=impl).allclose(attend(q, k, v))


# ---- self-attention, blocks

def test_self_attention_is_causal_and_equivariant():
    torch.manual_seed(0)
    attn, x = SelfAttention(32, 4), torch.randn(2, 12, 32)
    for at in range(12):
        other = x.clone(); other[:, at] += 1
        close(attn(other, causal())[:, :at], attn(x, causal())[:, :at])
        assert not attn(other, causal())[:, at].allclose(attn(x, causal())[:, at])
    shuffle = torch.randperm(12)
    close(attn(x[:, shuffle]), attn(x)[:, shuffle])

def test_documents_do_not_see_each_other():
    torch.manual_seed(0)
    block, x = Block(32, 4, 64), torch.randn(1, 10, 32)
    packed = block(x, causal() & documents(torch.tensor([[0] * 4 + [1] * 6])))
    close(packed[:, :4], block(x[:, :4], causal())); close(packed[:, 4:], block(x[:, 4:], causal()))

def test_fused_projection_is_thirds_then_heads():
    torch.manual_seed(0)
    attn, x = SelfAttention(12, 3), torch.randn(2, 4, 12)
    for third, got in zip(attn.qkv(x).split(12, -1), attn.heads(x)):
        for h in range(3): close(got[:, h], third[..., 4 * h:4 * h + 4])

def test_dropout_of_layers_acts_in_training_only():
    torch.manual_seed(0)
    block, x = Block(32, 4, 64, dropout=.3), torch.randn(2, 6, 32)
    assert not block(x).equal(block(x))
    block.eval()
    assert block(x).equal(block(x))

def test_layers_refuse_bad_sizes():
    with pytest.raises(ValueError, match='n_head=5.*divide d_model=32'): SelfAttention(32, 5)
    with pytest.raises(ValueError, match="act='relu6'"): MLP(8, 8, act='relu6')
    with pytest.raises(ValueError, match="placement='sandwich'"): Block(32, 4, 64, placement='sandwich')

def test_where_the_layernorm_sits():
    torch.manual_seed(0)
    x = 5 * torch.randn(2, 6, 32) + 2
    for placement in ('pre', 'post'):
        block = Block(32, 4, 64, placement=placement)
        for linear in (block.attn.out, block.mlp.proj): nn.init.zeros_(linear.weight); nn.init.zeros_(linear.bias)
        close(block(x, causal()), x if placement == 'pre' else LayerNorm(32)(x), atol=1e-4, rtol=1e-4)
    ln, pre, post = LayerNorm(32), Block(32, 4, 64, placement='pre'), Block(32, 4, 64, placement='post')
    a = x + pre.attn(ln(x), causal())
    close(pre(x, causal()), a + pre.mlp(ln(a)))
    a = ln(x + post.attn(x, causal()))
    close(post(x, causal()), ln(a + post.mlp(a)))


# ---- cache, decoder

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
    cache, new = KVCache(2, pad), torch.arange(2.)[:, None, None, None].expand(2, 1, 2, 3)
    for layer in range(2): cache.update(layer, new, new)
    cache.advance(2)
    wide = cache.expand(3)
    assert wide.update(0, new[:1, :, :0].expand(6, 1, 0, 3), new[:1, :, :0].expand(6, 1, 0, 3))[0][:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert wide.pad[:, 0].tolist() == [True] * 3 + [False] * 3 and wide.length == 2
    cache.reorder(torch.tensor([1, 1, 0]))
    assert cache.v[1][:, 0, 1, 2].tolist() == [1, 1, 0] and cache.pad[:, 0].tolist() == [False, False, True]

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6), st.sampled_from(['pre', 'post']), st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_cached_equals_uncached_in_any_chunks_with_any_padding(chunks, placement, pads):
    torch.manual_seed(0)
    model, n = Small(placement).eval(), 7 + sum(chunks)
    ids = torch.randint(50, (3, 60))[:, :min(n, 40)]
    pad = torch.arange(7) >= torch.tensor(pads)[:, None]        # 7 prompt places, the first few of a row padding
    logits, cache = model.prefill(ids[:, :7], pad)
    end = 7
    for t in chunks:
        if end + t > 40: break
        logits, cache = model.step(ids[:, end:end + t], cache); end += t
        assert cache.length == end
    with torch.no_grad(): alone = torch.cat([model(ids[i:i + 1, pads[i]:end])[:, -1] for i in range(3)])
    close(logits, alone, atol=1e-4, rtol=1e-4)

def test_padding_has_no_influence(model, ids):
    pad = torch.ones(3, 30).bool(); pad[0, :11] = False
    other = ids.clone(); other[0, :11] = 7
    close(model.prefill(ids, pad)[0], model.prefill(other, pad)[0])

def test_beams_continue_from_reordered_and_expanded_caches(model, ids):
    _, cache = model.prefill(ids[:, :10])
    logits, _ = model.step(ids[:, 10:11].repeat_interleave(2, 0), cache.expand(2))
    close(logits, model.prefill(ids[:, :11])[0].repeat_interleave(2, 0), atol=1e-5, rtol=1e-4)
    rows = torch.tensor([2, 0, 0])
    cache.reorder(rows)
    close(model.step(ids[rows, 10:11], cache)[0], model.prefill(ids[rows, :11])[0], atol=1e-5, rtol=1e-4)

def test_decoder_is_causal(model, ids):
    other = ids.clone(); other[:, 17] = (other[:, 17] + 1) % 50
    a, b = model(ids), model(other)
    close(a[:, :17], b[:, :17]); assert (a[:, 17:] - b[:, 17:]).abs().amax((0, 2)).min() > 1e-6

def test_decoder_takes_masks_of_every_kind(model, ids):
    dense = causal().dense(30)
    for mask in (causal(), causal() & full(), dense, dense.expand(3, 30, 30)): close(model(ids, mask=mask), model(ids))
    assert not model(ids, mask=full()).allclose(model(ids))
    assert not model(ids, positions=torch.arange(29, -1, -1)).allclose(model(ids))

def test_decoder_refuses_what_it_cannot_read(model, ids):
    with pytest.raises(ValueError, match='41 tokens.*ctx_len=40'): model(torch.zeros(1, 41, dtype=torch.long))
    _, cache = model.prefill(ids)
    with pytest.raises(ValueError, match='41 tokens.*ctx_len=40'): model.step(ids[:, :11], cache)
    right = torch.arange(30) < torch.tensor([30, 20, 30])[:, None]
    with pytest.raises(ValueError, match='padding on the left'): model.prefill(ids, right)
    with pytest.raises(ValueError, match='real token'): model.prefill(ids, torch.zeros(3, 30).bool())

def test_decoder_in_bfloat16_autocast_stays_near_float32(model, ids):
    with torch.autocast('cpu', torch.bfloat16): y = model(ids)
    close(y.float(), model(ids), atol=3e-2, rtol=3e-2)          # bfloat16 has 8 bits: 0.4 % a rounding, three blocks

@pytest.mark.skipif('flex' not in available(), reason='torch.compile needs a C++ compiler, and there is none')
def test_compiled_decoder_equals_eager_without_a_graph_break(model, ids):
    compiled = torch.compile(model, fullgraph=True)
    close(compiled(ids), model(ids), atol=1e-5, rtol=1e-4)
    compiled(ids).square().mean().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(); model(ids).square().mean().backward()
    for a, p in zip(ours, model.parameters()): close(a, p.grad, atol=1e-5, rtol=1e-3)


def test_a_compiled_linear_leaves_the_kernel_to_the_compiler():
    seen = []
    def backend(graph, inputs): seen.append(graph.code); return graph
    layer, x = Linear(1024, 512), torch.randn(64, 1024)
    y = torch.compile(layer, backend=backend, fullgraph=True)(x)
    assert len(seen) == 1 and 'linear' in seen[0] and 'mkldnn' not in seen[0] and '_Product' not in seen[0] and 'autograd_function' not in seen[0]
    assert torch.allclose(y, layer(x), atol=1e-4)


# --- norms, gates, rotations: what LLaMA changed

def test_rms_norm_equals_torch_and_keeps_float32_statistics_in_bfloat16():
    x = torch.randn(5, 64, dtype=torch.float64) * 300
    ours, theirs = RMSNorm(64, eps=1e-6), torch.nn.RMSNorm(64, eps=1e-6)
    close(ours(x.float()), theirs(x.float()), atol=1e-5, rtol=1e-5)
    low = x.bfloat16()
    exact = low.double() * torch.rsqrt(low.double().square().mean(-1, keepdim=True) + 1e-6)
    assert ours.bfloat16()(low).equal(exact.bfloat16())            # one rounding, at the end

@pytest.mark.parametrize('act', list(gates))
def test_gated_mlp_is_gate_then_up(act):
    mlp, x = MLP(12, 20, act, bias=False), torch.randn(3, 4, 12)
    w1, w3 = mlp.fc.weight[:20], mlp.fc.weight[20:]
    close(mlp(x), (gates[act](x @ w1.T) * (x @ w3.T)) @ mlp.proj.weight.T, atol=1e-5, rtol=1e-5)
    swapped = (gates[act](x @ w3.T) * (x @ w1.T)) @ mlp.proj.weight.T
    assert torch.allclose(mlp(x), swapped, atol=1e-6) == (act == 'bilinear')

@given(d=st.integers(1, 64).map(lambda i: 64 * i), m=st.sampled_from([1, 32, 256, 4096]))
def test_gated_width_is_the_next_multiple(d, m):
    f = gated_width(d, m)
    assert f % m == 0 and 0 <= f - int(8 * d / 3) < m

def test_rotations_are_orthogonal_relative_and_float32_inside():
    x, turns = torch.randn(2, 3, 9, 16), rope(torch.arange(9), 16)
    for layout in ('pairs', 'halves'):
        y = rotate(x, turns, layout)
        close(y.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=1e-5)
        q, k = torch.randn(2, 1, 1, 1, 16)
        score = lambda m, n: (rotate(q, rope(torch.tensor([m]), 16), layout) * rotate(k, rope(torch.tensor([n]), 16), layout)).sum()
        close(score(40, 33), score(7, 0), atol=1e-4, rtol=1e-4)
    far = rope(torch.tensor([4000, 4001]), 16)
    low = rotate(torch.ones(1, 1, 2, 16).bfloat16(), far)
    assert low.dtype is torch.bfloat16 and not low[0, 0, 0].equal(low[0, 0, 1])

def test_compiled_rotation_takes_the_real_form_and_agrees(monkeypatch):
    x, turns = torch.randn(1, 2, 5, 8), rope(torch.arange(5), 8)
    eager = rotate(x, turns)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    close(rotate(x, turns), eager, atol=1e-6, rtol=1e-6)

@given(h=st.sampled_from([1, 2, 4]), k=st.sampled_from([2, 4, 8]))
def test_rope_conversion_is_its_own_undoing_and_matches_the_published_permutation(h, k):
    w = torch.randn(h * k, 3)
    halves = convert_rope(w, h, 'halves')
    assert halves.equal(w.view(h, k // 2, 2, 3).transpose(1, 2).reshape(h * k, 3))
    assert convert_rope(halves, h, 'pairs').equal(w)

@pytest.mark.parametrize('width', [1, 3, 8, 50])
def test_windows_agree_between_cache_and_whole_and_with_candidates_side_by_side(width):
    torch.manual_seed(0)
    model = Small().eval(); model.windows, model.cfg = (width, None, width), SimpleNamespace(ctx_len=40)
    ids = torch.randint(50, (1, 20))
    whole = model(ids)
    logits, cache = model.prefill(ids[:, :9])
    close(logits, whole[:, 8], atol=1e-4, rtol=1e-4)
    close(model.step(ids[:, 9:10], cache)[0], whole[:, 9], atol=1e-4, rtol=1e-4)
    close(model.step(ids[:, 10:], cache)[0], whole[:, 19], atol=1e-4, rtol=1e-4)
    prompt, candidates = ids[0, :9].tolist(), [[1, 2, 3, 4], [1, 2, 9], [7], [5, 6, 7, 8, 9]]
    for ours, c in zip(score(model, prompt, candidates), candidates):
        logp = model(torch.tensor([prompt + c[:-1]])).log_softmax(-1)[0, len(prompt) - 1:]
        close(torch.tensor(ours), logp.gather(-1, torch.tensor(c)[:, None])[:, 0], atol=1e-4, rtol=1e-4)
