"Properties of positions: what a notebook cell is too small to say."
import itertools
import math
import pytest
import torch
from hypothesis import given, strategies as st
from papers_lib.nn.attention import SelfAttention, attend, attention_weights
from papers_lib.nn.masks import causal
from papers_lib.nn.positions import (ALiBiPositions, LearnedPositions, PairTerms, ShawPositions, SinusoidalPositions,
                                     SpanPositions, T5Positions, XLPositions, alibi_slopes, convert_rope,
                                     position_kinds, rope, rotate, sinusoidal, t5_bucket)

close = torch.testing.assert_close


def test_rotations_are_orthogonal_relative_and_float32_inside():
    x, turns = torch.randn(2, 3, 9, 16), rope(torch.arange(9), 16)
    for layout in ('pairs', 'halves'):
        y = rotate(x, turns, layout)
        close(y.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=1e-5)
        q, k = torch.randn(2, 1, 1, 1, 16)
        turned = lambda x, place: rotate(x, rope(torch.tensor([place]), 16), layout)
        score = lambda m, n: (turned(q, m) * turned(k, n)).sum()
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


@pytest.mark.parametrize('n', [40, 41, 300])
def test_a_learned_table_that_is_too_short_says_so_for_places_of_any_shape(n):
    table = LearnedPositions(40, 8)
    for places in (torch.tensor([n]), torch.arange(n + 1), torch.tensor([[0, n], [n, 1]])):
        with pytest.raises(ValueError, match=f'position {n} .*ctx_len=40'): table.embed(places)
    close(table.embed(torch.zeros(1, 100).long()), table.weight[:1].expand(1, 100, 8))     # many tokens at few places


def test_a_learned_table_is_read_and_learned_at_its_places_only():
    table = LearnedPositions(10, 4)
    table.embed(torch.tensor([[1, 9], [3, 3]])).sum().backward()
    assert table.weight.grad.sum(1).nonzero().flatten().tolist() == [1, 3, 9]


@given(st.integers(0, 100_000), st.integers(1, 500))
def test_sinusoids_of_two_places_depend_on_their_distance_only(place, away):
    at = lambda p: SinusoidalPositions(16).embed(torch.tensor([p]))[0].double()
    close(at(place) @ at(place + away), at(0) @ at(away), atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', list(position_kinds))
def test_each_kind_answers_each_hook_with_its_shape_or_nothing(name):
    kind, here = position_kinds[name](20, 16, 4, 10000., 2), torch.arange(6).expand(3, 6)
    answers = kind.embed(here), kind.turn(here), kind.bias(here, here)
    shapes = (3, 6, 16), (3, 6, 2, 2), (3, 4, 6, 6)
    for answer, shape in zip(answers, shapes):
        assert answer is None or torch.broadcast_shapes(answer.shape, shape) == shape
    pairs = kind.pairs(here, here)
    assert pairs is None or isinstance(pairs, PairTerms)
    assert sum(a is not None for a in (*answers, pairs)) == (name != 'none')
    if pairs:
        q, W = torch.randn(3, 4, 6, 4), torch.rand(3, 4, 6, 6)
        assert pairs.scores(q, q, 1).shape == (3, 4, 6, 6)
        assert pairs.values is None or pairs.values(W, 1).shape == (3, 4, 6, 4)


def test_a_shift_turns_each_pair_of_a_sinusoid_by_one_angle():
    places, shift = torch.arange(0, 5000, 37), 29
    angle = shift * 10000. ** (-torch.arange(0, 24, 2, dtype=torch.float64) / 24)
    s, c = sinusoidal(places, 24).double().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([s * angle.cos() + c * angle.sin(), c * angle.cos() - s * angle.sin()], -1).flatten(-2)
    close(turned, sinusoidal(places + shift, 24).double(), atol=1e-6, rtol=0)            # to float32's rounding


# ---- ALiBi

def published_slopes(n):
    "As in the authors' code."
    def powers(n):
        start = 2 ** (-2 ** -(math.log2(n) - 3))
        return [start * start ** i for i in range(n)]
    if math.log2(n).is_integer(): return powers(n)
    near = 2 ** math.floor(math.log2(n))
    return powers(near) + published_slopes(2 * near)[0::2][:n - near]


@pytest.mark.parametrize('n', [*range(1, 35), 96])
def test_alibi_slopes_are_the_published_ones_for_any_number_of_heads(n):
    close(alibi_slopes(n), torch.tensor(published_slopes(n)), atol=1e-7, rtol=1e-6)


def test_alibi_is_the_distance_of_absolute_places_both_ways():
    bias = ALiBiPositions(6).bias(torch.arange(30), torch.arange(30))
    for h, m in enumerate(alibi_slopes(6).tolist()):
        for i, j in itertools.product(range(30), repeat=2): assert bias[h, i, j] == -torch.tensor(m) * abs(i - j)
    assert ALiBiPositions(6).bias(torch.tensor([29]), torch.arange(30)).equal(bias[:, 29:])


# ---- T5

@pytest.mark.parametrize('both_ways', [True, False])
@pytest.mark.parametrize('n_bucket,max_distance', [(32, 128), (16, 40), (64, 256), (8, 20)])
def test_buckets_are_those_of_transformers(both_ways, n_bucket, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention
    away = torch.arange(-600, 601)
    theirs = T5Attention._relative_position_bucket(away, both_ways, n_bucket, max_distance)
    assert t5_bucket(away, n_bucket, max_distance, both_ways).equal(theirs)


@pytest.mark.parametrize('both_ways', [True, False])
def test_buckets_by_the_cards_values(both_ways):
    card = ({0: 0, -1: 1, -7: 7, -8: 8, -16: 10, -128: 15, 1: 17, 128: 31} if both_ways else
            {0: 0, -1: 1, -15: 15, -16: 16, -128: 31, 5: 0})
    for away, bucket in card.items(): assert t5_bucket(torch.tensor([away]), both_ways=both_ways).item() == bucket


def test_a_learned_bias_learns_the_same_by_the_fused_kernel():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    grads = []
    for impl in ('plain', 'sdpa'):
        kind = T5Positions(4)
        with torch.no_grad(): kind.weight.copy_(torch.arange(128).view(32, 4) / 100)
        (attend(q, k, v, causal(), kind.bias(torch.arange(9), torch.arange(9)), impl=impl) ** 2).sum().backward()
        grads.append(kind.weight.grad)
    close(*grads, atol=1e-5, rtol=1e-4)
    assert grads[0][:9].abs().min() > 0 and grads[0][9:].abs().max() == 0


# ---- terms of pairs, against the papers' formulas pair by pair

def by_hand(kind, x, attn, places, layer, heads=4, groups=2):
    "Shaw's (3), (4) or Transformer-XL's A_ij, for one row of tokens that stand at `places`."
    t, width = len(x), x.shape[-1] // heads
    q, k, v = attn.qkv(x).unflatten(-1, (heads + 2 * groups, width)).split((heads, groups, groups), 1)    # (t, h, k)
    out = x.new_zeros(t, heads, width)
    for h, i in itertools.product(range(heads), range(t)):
        keys, values = k[:i + 1, h // 2], v[:i + 1, h // 2]
        if isinstance(kind, ShawPositions):
            w = [max(-kind.reach, min(kind.reach, int(places[j] - places[i]))) + kind.reach for j in range(i + 1)]
            scores = torch.stack([q[i, h] @ (keys[j] + kind.keys[layer, w[j]]) for j in range(i + 1)])
            values = values + kind.values[layer, w]
        else:
            W_R = kind.weight[layer].unflatten(0, (heads, width))[h]
            r = [W_R @ sinusoidal(places[i] - places[j], x.shape[-1]).double() for j in range(i + 1)]
            scores = torch.stack([q[i, h] @ keys[j] + q[i, h] @ r[j] + kind.u[h] @ keys[j] + kind.v[h] @ r[j]
                                  for j in range(i + 1)])
        out[i, h] = (scores / width ** .5).softmax(-1) @ values
    return attn.out(out.flatten(1))


@pytest.mark.parametrize('make', [lambda: ShawPositions(6, 2, reach=3), lambda: XLPositions(24, 4, 2)])
def test_terms_of_pairs_are_the_papers_formulas_with_shared_key_heads_and_a_place_for_each_row(make):
    torch.manual_seed(0)
    kind, attn = make().double(), SelfAttention(24, 4, n_kv_head=2).double()
    for p in kind.parameters(): torch.nn.init.normal_(p, std=.7)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 2, 5, 5, 30, 31, 6]])
    y = attn(x, causal(), layer=1, pairs=kind.pairs(places, places))
    for row in (0, 1): close(y[row], by_hand(kind, x[row], attn, places[row], 1), atol=1e-12, rtol=1e-10)
    assert not y.allclose(attn(x, causal(), layer=0, pairs=kind.pairs(places, places)), atol=1e-3)       # a layer's own
    one = attn(x[:, 6:], causal(), layer=1, pairs=kind.pairs(places[:1, 6:], places[:1, 6:]))
    assert one.isfinite().all()                                       # one row of places for two of tokens


@pytest.mark.parametrize('make', [lambda: ShawPositions(6, 2), lambda: XLPositions(24, 4, 2)])
def test_terms_of_pairs_and_a_bias_add_up_and_dropout_takes_whole_weights(make):
    torch.manual_seed(0)
    kind, attn, x, here = make(), SelfAttention(24, 4), torch.randn(2, 7, 24), torch.arange(7)
    bias, pairs = ALiBiPositions(4).bias(here, here), kind.pairs(here, here)
    q, k, v = attn.heads(x)
    W = attention_weights(q, k, causal(), bias + pairs.scores(q, k, 1))
    y = W @ v + (pairs.values(W, 1) if pairs.values else 0.)
    close(attn(x, causal(), layer=1, bias=bias, pairs=pairs), attn.out(y.transpose(1, 2).flatten(2)))
    attn.dropout = .5
    assert not attn(x, causal(), pairs=pairs).equal(attn(x, causal(), pairs=pairs))


def test_far_distances_share_shaws_last_vectors():
    torch.manual_seed(0)
    kind, q = ShawPositions(8, 1, reach=2), torch.randn(1, 1, 1, 8)
    scores = kind.pairs(torch.tensor([10]), torch.arange(21)).scores(q, q, 0)[0, 0, 0]
    assert (scores[:9] == scores[0]).all() and (scores[12:] == scores[20]).all() and scores[8:13].unique().numel() == 5


@pytest.mark.parametrize('make,says', [
    (lambda: ShawPositions(8, 1, reach=0), 'reach=0'), (lambda: XLPositions(7, 1, 1), 'd_model=7'),
    (lambda: T5Positions(4, n_bucket=2), 'n_bucket=2'), (lambda: T5Positions(4, max_distance=16), 'max_distance=16')])
def test_positions_refuse_sizes_that_they_cannot_use(make, says):
    with pytest.raises(ValueError, match=says): make()


def test_two_places_a_token_are_looked_up_for_each_row_and_learned_there_only():
    both, places = SpanPositions(6, 4), torch.tensor([[[0, 3, 3], [0, 1, 2]], [[6, 0, 2], [6, 0, 5]]])
    got = both.embed(places)
    close(got, both.place.weight[places[:, 0]] + both.inside.weight[places[:, 1]])
    got.sum().backward()
    assert both.place.weight.grad[:, 0].tolist() == [2, 0, 1, 2, 0, 0, 1]
    assert both.inside.weight.grad[:, 0].tolist() == [2, 1, 1, 0, 0, 1, 1]
    for bad in (places[0, 0], places[:, :1]):
        with pytest.raises(ValueError, match='two places a token'): both.embed(bad)
    with pytest.raises(ValueError, match='position 7'): both.embed(places + 1)
