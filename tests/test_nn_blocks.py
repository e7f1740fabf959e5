"Blocks and what all decoders share: dropout, cache, padding, windows, masks."
from types import SimpleNamespace
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from papers_lib.engine.score import score
from papers_lib.nn import attention
from papers_lib.nn.activations import gates
from papers_lib.nn.attention import SelfAttention, attention_impls
from papers_lib.nn.blocks import (MLP, Block, Decoder, check_sizes, deepnorm, deepnorm_init, draw_seed, init_by_name,
                                  normal_of, placements, residual_std)
from papers_lib.nn.masks import causal, full, same_document
from papers_lib.nn.norms import LayerNorm
from papers_lib.nn.positions import Positions, position_kinds

close = torch.testing.assert_close


class Distance(Positions):
    "Positions by the third hook: scores fall with the distance, or rise, in each head at its own rate."
    rates = torch.tensor([.5, .1, 0., -.2])[:, None, None]
    def bias(self, q_positions, k_positions):
        return -self.rates * (q_positions[..., :, None] - k_positions[..., None, :]).abs()[..., None, :, :]


class Small(Decoder):
    "A decoder of 3 blocks: 50 tokens, 32 wide, at most 40 places."
    def __init__(self, placement='pre', positions='learned'):
        super().__init__()
        self.cfg = SimpleNamespace(ctx_len=40)
        self.tok_emb = nn.Embedding(50, 32)
        self.positions = Distance() if positions == 'bias' else position_kinds[positions](40, 32, 4, 10000., 3)
        alpha = 2. if placement == 'deepnorm' else None
        self.blocks = nn.ModuleList(Block(32, 4, 64, placement=placement, alpha=alpha) for _ in range(3))
        self.norm_f = LayerNorm(32) if placement in ('pre', 'sandwich') else nn.Identity()
        nn.init.normal_(self.tok_emb.weight, std=.1)
    @property
    def head_weight(self): return self.tok_emb.weight


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def ids(): return torch.randint(50, (3, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('act', list(gates))
def test_gated_mlp_is_gate_then_up(act):
    mlp, x = MLP(12, 20, act, bias=False), torch.randn(3, 4, 12)
    w1, w3 = mlp.fc.weight[:20], mlp.fc.weight[20:]
    close(mlp(x), (gates[act](x @ w1.T) * (x @ w3.T)) @ mlp.proj.weight.T, atol=1e-5, rtol=1e-5)
    swapped = (gates[act](x @ w3.T) * (x @ w1.T)) @ mlp.proj.weight.T
    assert torch.allclose(mlp(x), swapped, atol=1e-6) == (act == 'bilinear')


def test_documents_do_not_see_each_other():
    torch.manual_seed(0)
    block, x = Block(32, 4, 64), torch.randn(1, 10, 32)
    packed = block(x, causal() & same_document(torch.tensor([[0] * 4 + [1] * 6])))
    close(packed[:, :4], block(x[:, :4], causal())); close(packed[:, 4:], block(x[:, 4:], causal()))


def test_dropout_of_layers_acts_in_training_only():
    torch.manual_seed(0)
    block, x = Block(32, 4, 64, dropout=.3), torch.randn(2, 6, 32)
    assert not block(x).equal(block(x))
    block.eval()
    assert block(x).equal(block(x))


def test_layers_refuse_bad_sizes():
    with pytest.raises(ValueError, match='n_head=5.*divide d_model=32'): SelfAttention(32, 5)
    with pytest.raises(ValueError, match="act='relu6'"): MLP(8, 8, act='relu6')
    with pytest.raises(ValueError, match="placement='middle'"): Block(32, 4, 64, placement='middle')
    with pytest.raises(ValueError, match='alpha=None'): Block(32, 4, 64, placement='deepnorm')
    with pytest.raises(ValueError, match='alpha=2.0'): Block(32, 4, 64, placement='sandwich', alpha=2.)


def test_where_the_layernorm_sits():
    torch.manual_seed(0)
    x = 5 * torch.randn(2, 6, 32) + 2
    ln, pre, post = LayerNorm(32), Block(32, 4, 64, placement='pre'), Block(32, 4, 64, placement='post')
    a = x + pre.attn(ln(x), causal())
    close(pre(x, causal()), a + pre.mlp(ln(a)))
    a = ln(x + post.attn(x, causal()))
    close(post(x, causal()), ln(a + post.mlp(a)))


@pytest.mark.parametrize('norm', ['layer', 'rms'])
def test_sandwich_norms_what_a_half_writes_and_drops_after_that(norm):
    torch.manual_seed(0)
    block = Block(32, 4, 64, placement='sandwich', norm=norm, dropout=.5).double().eval()
    for p in block.parameters():
        if p.ndim == 1: nn.init.normal_(p, 1)
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    plain = Block(32, 4, 64, norm=norm).double().eval()
    lost = plain.load_state_dict(block.state_dict(), strict=False)
    assert not lost.missing_keys and {k.rsplit('.', 1)[0] for k in lost.unexpected_keys} == {'attn.out.norm',
                                                                                            'mlp.proj.norm'}
    a = x + block.attn.out.norm(plain.attn(plain.norm1(x), causal()))
    close(block(x, causal()), a + block.mlp.proj.norm(plain.mlp(plain.norm2(a))), atol=1e-12, rtol=1e-12)
    block.train()
    for added in (block.mlp(x), block.attn(x, causal())):             # zeros in what is added: no norm after dropping
        assert .3 < (added == 0).double().mean() < .7
    dropped, kept = block.mlp(x), block.eval().mlp(x)
    close(dropped[dropped != 0], 2 * kept[dropped != 0])              # and the norm saw none of them


def test_deepnorm_counts_the_stream_alpha_times():
    torch.manual_seed(0)
    ln, block, x = LayerNorm(32), Block(32, 4, 64, placement='deepnorm', alpha=2.5), torch.randn(2, 6, 32)
    a = ln(2.5 * x + block.attn(x, causal()))
    close(block(x, causal()), ln(2.5 * a + block.mlp(a)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_deepnorm_with_alpha_one_is_post_bit_by_bit(dtype):
    torch.manual_seed(0)
    post = Block(32, 4, 64, placement='post').to(dtype)
    one = Block(32, 4, 64, placement='deepnorm', alpha=1.).to(dtype)
    one.load_state_dict(post.state_dict())
    x = torch.randn(2, 6, 32, dtype=dtype)
    assert one(x, causal()).equal(post(x, causal()))
    h = post.norm1(x + post.attn(x, causal()))
    assert post(x, causal()).equal(post.norm2(h + post.mlp(h)))


@pytest.mark.parametrize('given,alpha,beta', [
    (('encoder', 18), 36 ** .25, 144 ** -.25), (('decoder', 18), 36 ** .25, 144 ** -.25),
    (('encoder', 6, 12), .81 * (6**4 * 12) ** .0625, .87 * (6**4 * 12) ** -.0625),
    (('decoder', 12, 6), 36 ** .25, 144 ** -.25), (('glm130b', 70), 140 ** .5, 140 ** -.5)])
def test_deepnorms_two_numbers(given, alpha, beta):
    close(deepnorm(*given), (alpha, beta), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize('bad', [('both', 3), ('glm130b', 3, 3)])
def test_deepnorm_knows_its_rules_only(bad):
    with pytest.raises(ValueError, match=f'half={bad[0]!r}'): deepnorm(*bad)


@pytest.mark.parametrize('act,n_kv_head', [('relu', 4), ('swiglu', 2)])
def test_deepnorms_start_spares_queries_and_keys(act, n_kv_head):
    torch.manual_seed(0)
    block = Block(128, 4, 512, act, 'deepnorm', alpha=2., n_kv_head=n_kv_head)
    init_by_name(block, 3, lambda name: 1.)
    before = {k: p.clone() for k, p in block.named_parameters()}
    deepnorm_init(block, .1)
    q, k, v = block.attn.qkv.weight.split([128, 32 * n_kv_head, 32 * n_kv_head])
    xavier = lambda p: (2 / (p.shape[0] + p.shape[1])) ** .5
    parts = block.mlp.fc.weight.split(512)
    for p, gain in ((q, 1), (k, 1), (v, .1), (block.attn.out.weight, .1), (block.mlp.proj.weight, .1),
                    *((p, .1) for p in parts)):
        assert abs(p.std() / (gain * xavier(p)) - 1) < .03
    assert len(parts) == 1 + (act == 'swiglu')
    for name, p in block.named_parameters():                          # the same numbers, in the same places
        assert (p * before[name] >= 0).all() and (p.ndim > 1 or p.equal(before[name]))


@pytest.mark.parametrize('placement', placements)
@pytest.mark.parametrize('positions', list(position_kinds))
def test_in_float64_the_cache_gives_what_reading_at_once_gives(positions, placement):
    torch.manual_seed(0)
    model, ids = Small(placement, positions).double().eval(), torch.randint(50, (3, 24))
    for p in model.positions.parameters(): nn.init.normal_(p)
    pad = torch.arange(9) >= torch.tensor([0, 4, 8])[:, None]
    logits, cache = model.prefill(ids[:, :9], pad)
    whole = [model(ids[i:i + 1, n:]) for i, n in enumerate((0, 4, 8))]
    for end in (9, 10, 15, 24):
        if end > 9: logits, cache = model.step(ids[:, cache.length:end], cache)
        close(logits, torch.cat([w[:, end - 1 - n] for w, n in zip(whole, (0, 4, 8))]), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize('placement', placements)
@pytest.mark.parametrize('positions', list(position_kinds))
def test_no_token_sees_a_later_one(positions, placement):
    torch.manual_seed(0)
    model, ids = Small(placement, positions).double().eval(), torch.randint(50, (1, 20))
    for p in model.positions.parameters(): nn.init.normal_(p)
    other = ids.clone(); other[:, 11] = (other[:, 11] + 1) % 50
    moved = (model(ids) - model(other)).abs().amax((0, 2))
    assert moved[:11].max() == 0 and moved[11:].min() > 1e-9


@pytest.mark.parametrize('placement', placements)
@pytest.mark.parametrize('positions', list(position_kinds))
def test_without_a_mask_permuted_tokens_permute_the_output_only_where_nothing_tells_places(positions, placement):
    torch.manual_seed(0)
    model, ids, shuffle = Small(placement, positions).double().eval(), torch.randint(50, (2, 12)), torch.randperm(12)
    for p in model.positions.parameters(): nn.init.normal_(p)
    off = (model(ids[:, shuffle], mask=full()) - model(ids, mask=full())[:, shuffle]).abs().max()
    assert off < 1e-12 if positions == 'none' else off > 1e-4


@settings(max_examples=40)
@given(chunks=st.lists(st.integers(1, 8), min_size=1, max_size=6), placement=st.sampled_from(placements),
       positions=st.sampled_from([*position_kinds, 'bias']), pads=st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_cached_equals_uncached_in_any_chunks_with_any_padding(chunks, placement, positions, pads):
    torch.manual_seed(0)
    model = Small(placement, positions).eval()
    n = 7 + sum(chunks)
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


@pytest.mark.skipif('flex' not in attention_impls(), reason='torch.compile needs a C++ compiler, and there is none')
def test_compiled_decoder_equals_eager_without_a_graph_break(model, ids):
    compiled = torch.compile(model, fullgraph=True)
    close(compiled(ids), model(ids), atol=1e-5, rtol=1e-4)
    compiled(ids).square().mean().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(); model(ids).square().mean().backward()
    for a, p in zip(ours, model.parameters()): close(a, p.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize('positions', [*position_kinds, 'bias'])
@pytest.mark.parametrize('width', [1, 3, 8, 50])
def test_windows_agree_between_cache_and_whole_and_with_candidates_side_by_side(width, positions):
    torch.manual_seed(0)
    model = Small(positions=positions).eval()
    model.windows = (width, None, width)
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


@pytest.mark.parametrize('impl', ['plain', 'sdpa'])
def test_the_bias_hook_reaches_the_scores_of_every_layer(model, ids, impl, monkeypatch):
    monkeypatch.setitem(attention._impls, 'auto', attention._impls[impl])
    model.positions = Distance()
    a = model(ids)
    by_hand, turns = model.tok_emb(ids), None
    bias = Distance().bias(torch.arange(30), torch.arange(30))
    for block in model.blocks: by_hand = block(by_hand, causal(), None, 0, turns, bias)
    close(a, model.head(model.norm_f(by_hand)), atol=1e-5, rtol=1e-4)
    for i in range(3):                                          # no layer does without it
        apart = model.tok_emb(ids)
        for j, block in enumerate(model.blocks): apart = block(apart, causal(), bias=None if i == j else bias)
        assert not a.allclose(model.head(model.norm_f(apart)), atol=1e-3)


# ---- weights by name

@settings(max_examples=30)
@given(st.integers(0, 2**62), st.integers(1, 9), st.integers(1, 9), st.integers(1, 40))
def test_more_rows_begin_with_the_rows_of_fewer(seed, few, more, width):
    small, large = normal_of(seed, 'a.weight', (few, width)), normal_of(seed, 'a.weight', (few + more, width))
    assert large[:few].equal(small) and not large[-few:].equal(small)


def test_numbers_are_standard_normal_and_follow_from_seed_and_name_alone():
    torch.manual_seed(0)
    x = normal_of(3, 'a.weight', (300, 300))
    torch.manual_seed(1); torch.set_default_dtype(torch.float64)
    try: assert normal_of(3, 'a.weight', (300, 300)).equal(x) and x.dtype == torch.float32
    finally: torch.set_default_dtype(torch.float32)
    n = x.numel()
    assert abs(x.mean()) < 4 / n**.5 and abs(x.var() - 1) < 4 * (2 / n)**.5
    assert abs((x**4).mean() - 3) < 4 * (96 / n)**.5 and abs((x.abs() < 1).float().mean() - .6827) < 4 * (.22 / n)**.5
    others = [normal_of(4, 'a.weight', (300, 300)), normal_of(3, 'b.weight', (300, 300)), normal_of(3, '', (300, 300))]
    for y in others: assert abs((x * y).mean()) < 4 / n**.5                 # neither shifted nor related


def test_the_same_numbers_under_another_standard_deviation():
    one, two = Block(8, 2, 16), Block(8, 2, 16, norm='rms', bias=False, act='relu')
    init_by_name(one, 7, lambda name: residual_std(name, 2, std=1.))
    init_by_name(two, 7, lambda name: 3.)
    theirs = dict(two.named_parameters())
    for name, p in one.named_parameters():
        if p.ndim == 1: assert (p == (0. if name.endswith('bias') else 1.)).all()
        else: close(theirs[name] / 3., p * (2. if name in ('attn.out.weight', 'mlp.proj.weight') else 1.))


def test_a_decoder_takes_its_seed_before_its_layers_draw_and_none_without_memory():
    def seed(placement):
        torch.manual_seed(5)
        return Small(placement, 'none' if placement == 'post' else 'learned')._seed
    assert seed('pre') == seed('post') > 0
    state = torch.get_rng_state()
    with torch.device('meta'): assert Small()._seed == draw_seed() == 0
    assert torch.get_rng_state().equal(state)
    assert draw_seed() != draw_seed()


@pytest.mark.parametrize('wrong, words', [
    (dict(n_layer=0), 'n_layer=0: must be at least 1'), (dict(n_head=3), 'n_head=3: must divide d_model=8'),
    (dict(dropout=1.), 'dropout=1.0: must lie in'), (dict(eps=0.), 'eps=0.0: must be above 0'),
    (dict(init_std=-1.), 'init_std=-1.0: must be above 0'), (dict(eps=float('nan')), 'eps=nan: must be above 0'),
])
def test_sizes_that_no_model_has_are_refused_by_name(wrong, words):
    sizes = dict(n_vocab=9, d_model=8, n_layer=1, n_head=2, dropout=0., eps=1e-5)
    check_sizes(SimpleNamespace(**sizes))
    with pytest.raises(ValueError, match=words): check_sizes(SimpleNamespace(**sizes | wrong))


def test_what_stands_inside_an_mlp_can_be_dropped_too():
    torch.manual_seed(0)
    mlp = MLP(8, 4000, act='relu', drop_inner=0.5)
    seen = []
    mlp.proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = torch.randn(3, 8)
    mlp.train()(x); mlp.eval()(x)
    kept = seen[1] > 0
    share = (seen[0][kept] == 0).float().mean().item()
    assert abs(share - 0.5) < 0.05
    torch.testing.assert_close(seen[0][kept & (seen[0] > 0)], 2 * seen[1][kept & (seen[0] > 0)])
