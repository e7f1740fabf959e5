"A decoder from named parts: the papers' classes are some of its cases, and arms share their random numbers."
import dataclasses
import itertools
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.gpt3 import GPT3, GPT3Config
from papers_lib.llama import LLaMA, LLaMAConfig
from papers_lib.nn.activations import activations, gates
from papers_lib.nn.blocks import deepnorm, placements
from papers_lib.nn.norms import norms
from papers_lib.nn.positions import position_kinds
from papers_lib.nn.stack import Parts, Sizes, Stack, widened

close = torch.testing.assert_close
SIZES = Sizes(n_vocab=50, ctx_len=24, d_model=32, n_layer=3, n_head=4, d_ff=48)
LLAMA = Parts(norm='rms', act='swiglu', positions='rope', bias=False, tied=False)


@pytest.fixture
def ids(): return torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))


def model(parts=Parts(), sizes=SIZES, seed=0):
    torch.manual_seed(seed)
    return Stack(sizes, parts).eval()


def lively(model):
    "Random gains and biases, weights ten times as large: nothing may hide behind a 0 or a 1."
    gen = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            drawn = torch.randn(p.shape, generator=gen)
            p.copy_(drawn * .2 if p.ndim > 1 else p + drawn * .3)
    return model


# ---- the papers' classes

def test_gpt2s_parts_give_gpt2s_logits(ids):
    paper = lively(GPT2(GPT2Config(n_vocab=50, ctx_len=24, d_model=32, n_layer=3, n_head=4)).eval())
    ours = model(Parts(), dataclasses.replace(SIZES, d_ff=None))
    ours.load_state_dict(paper.state_dict())
    close(ours(ids), paper(ids), atol=1e-5, rtol=1e-5)
    assert paper(ids).std() > .5


@pytest.mark.parametrize('tied,n_kv_head', [(False, None), (True, 2)])
def test_llamas_parts_give_llamas_logits(ids, tied, n_kv_head):
    cfg = LLaMAConfig(n_vocab=50, ctx_len=24, d_model=32, n_layer=3, n_head=4, n_kv_head=n_kv_head, d_ff=48, tied=tied,
                      rope_base=500.)
    paper = lively(LLaMA(cfg).eval())
    parts = dataclasses.replace(LLAMA, tied=tied, rope_base=500.)
    ours = model(parts, dataclasses.replace(SIZES, n_kv_head=n_kv_head, eps=cfg.eps))
    ours.load_state_dict(paper.state_dict())
    close(ours(ids), paper(ids), atol=1e-5, rtol=1e-5)
    assert paper(ids).std() > .5


def test_a_pattern_of_windows_gives_gpt3s_logits(ids):
    paper = lively(GPT3(GPT3Config(n_vocab=50, ctx_len=24, d_model=32, n_layer=3, n_head=4, window=5)).eval())
    sizes = dataclasses.replace(SIZES, d_ff=None)
    ours = model(Parts(windows=(None, 5)), sizes)
    ours.load_state_dict(paper.state_dict())
    assert ours.windows == paper.windows == (None, 5, None)
    close(ours(ids), paper(ids), atol=1e-5, rtol=1e-5)
    dense = model(Parts(), sizes)
    dense.load_state_dict(ours.state_dict())
    assert not dense(ids).allclose(ours(ids), atol=1e-3)


def test_the_default_inner_width_is_that_of_the_activation():
    sizes = dataclasses.replace(SIZES, d_ff=None, d_model=96)
    assert model(Parts(), sizes).blocks[0].mlp.proj.in_features == 384
    assert model(LLAMA, sizes).blocks[0].mlp.proj.in_features == 256


# ---- every combination is a decoder

every = st.builds(Parts, norm=st.sampled_from(list(norms)), act=st.sampled_from([*activations, *gates]),
                  positions=st.sampled_from(list(position_kinds)),
                  placement=st.sampled_from(['pre', 'post', 'sandwich']),
                  bias=st.booleans(), tied=st.booleans(), residual_init=st.sampled_from(['scaled', 'plain']),
                  windows=st.sampled_from([None, (4,), (None, 3)]))
DEEP = dict(placement='deepnorm', residual_init='deepnorm')
every = every | every.map(lambda parts: dataclasses.replace(parts, **DEEP))

@settings(max_examples=40)
@given(every, st.integers(0, 19), st.integers(1, 19))
def test_any_parts_are_causal_and_read_through_the_cache_what_they_read_at_once(parts, at, cut):
    stack = lively(model(parts))
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    whole = stack(ids)
    other = ids.clone()
    other[:, at] = (other[:, at] + 1) % 50
    moved = stack(other)
    close(moved[:, :at], whole[:, :at])
    assert not moved[:, at].allclose(whole[:, at], atol=1e-4)
    _, cache = stack.prefill(ids[:, :cut])
    close(stack.step(ids[:, cut:], cache)[0], whole[:, -1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('name', list(position_kinds))
def test_every_kind_but_none_tells_places_apart(name, ids):
    stack = lively(model(Parts(positions=name)))
    swapped = ids.clone()
    swapped[:, [3, 4]] = ids[:, [4, 3]]
    last = lambda x: stack(x, mask=torch.ones(20, 20).bool())[:, -1]
    same = last(ids).allclose(last(swapped), atol=1e-4)
    assert same == (name == 'none')


def test_each_kind_has_the_parameters_of_its_paper_and_no_more():
    count = lambda name: sum(p.numel() for p in model(Parts(positions=name)).positions.parameters())
    d, layers, heads, k = 32, 3, 4, 8
    assert {name: count(name) for name in position_kinds} == {
        'learned': 24 * d, 'sinusoidal': 0, 'rope': 0, 'alibi': 0, 'none': 0,
        'xl': layers * d * d + 2 * heads * k,           # W_R of each layer; u and v, shared
        'shaw': layers * 2 * 33 * k,                    # of each layer, shared by its heads
        't5': 32 * heads}                               # shared by all layers


def test_a_sequence_longer_than_the_context_is_refused_for_every_kind():
    for name in position_kinds:
        with pytest.raises(ValueError, match='25 tokens.*ctx_len=24'):
            model(Parts(positions=name))(torch.zeros(1, 25, dtype=torch.long))


@pytest.mark.parametrize('field,value', [
    *itertools.product(['n_vocab', 'ctx_len', 'd_model', 'n_layer', 'n_head', 'n_kv_head', 'd_ff'],
                       [0, -1, 2.5, '4', True]),
    ('n_vocab', None), ('n_head', 5), ('n_kv_head', 3), ('dropout', 1.), ('dropout', -.1), ('eps', 0.)])
def test_bad_sizes_are_named_with_their_value_and_rule(field, value):
    with pytest.raises(ValueError) as e: dataclasses.replace(SIZES, **{field: value})
    assert str(e.value).startswith(f'Sizes.{field}={value!r}: must ')


@pytest.mark.parametrize('field,value', [
    ('norm', 'batch'), ('act', 'swish'), ('positions', 'rotary'), ('placement', 'both'), ('residual_init', 'zero'),
    ('bias', 'no'), ('tied', None), ('rope_base', 0.), ('norm', ['rms']), ('act', None)])
def test_bad_parts_are_named_with_their_value_and_rule(field, value):
    with pytest.raises(ValueError) as e: Parts(**{field: value})
    assert str(e.value).startswith(f'Parts.{field}={value!r}: must ')


@pytest.mark.parametrize('windows', [(), (0,), (3, 2.5), ('x',)])
def test_bad_windows_are_refused(windows):
    with pytest.raises(ValueError, match='^Parts.windows='): Parts(windows=windows)


def test_widths_that_positions_cannot_use_are_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="Sizes.n_head=4: must divide d_model=20 into even widths"):
        model(Parts(positions='rope'), dataclasses.replace(SIZES, d_model=20))
    for name in ('sinusoidal', 'xl'):
        with pytest.raises(ValueError, match=f"Sizes.d_model=15: must be even for Parts.positions='{name}'"):
            model(Parts(positions=name), dataclasses.replace(SIZES, d_model=15, n_head=3))


@pytest.mark.parametrize('half', [dict(placement='deepnorm'), dict(residual_init='deepnorm'),
                                  dict(placement='post', residual_init='deepnorm')])
def test_half_of_deepnorm_is_refused(half):
    with pytest.raises(ValueError, match='^Parts.residual_init=.*always there'): Parts(**half)


# ---- placements

@pytest.mark.parametrize('placement', placements)
def test_a_norm_stands_last_where_the_stream_has_none(placement, ids):
    stack = model(Parts(**DEEP) if placement == 'deepnorm' else Parts(placement=placement))
    assert isinstance(stack.norm_f, nn.Identity) == (placement in ('post', 'deepnorm'))
    close(stack.hidden(ids).var(-1, correction=0), torch.ones(2, 20), atol=.05, rtol=0)     # short by eps


def test_a_stack_with_deepnorm_has_a_decoders_alpha_and_beta():
    stack, post = model(Parts(**DEEP)), model(Parts(placement='post', residual_init='plain'))
    alpha, beta = deepnorm('decoder', 3)
    assert all(block.alpha == alpha for block in stack.blocks) and all(block.alpha == 1. for block in post.blocks)
    ours, theirs = stack.blocks[1], post.blocks[1]
    close(ours.mlp.fc.weight, theirs.mlp.fc.weight / .02 * beta * (2 / 80) ** .5)               # common numbers
    close(ours.attn.qkv.weight[:64], theirs.attn.qkv.weight[:64] / .02 * (2 / 64) ** .5)
    close(ours.attn.qkv.weight[64:], theirs.attn.qkv.weight[64:] / .02 * (2 / 64) ** .5 * beta)
    assert stack.tok_emb.weight.equal(post.tok_emb.weight)


def test_a_stack_of_post_and_one_of_deepnorm_with_alpha_one_are_one_function(ids):
    stack, post = lively(model(Parts(**DEEP))).double(), model(Parts(placement='post')).double()
    post.load_state_dict(stack.state_dict())
    assert not stack(ids).allclose(post(ids), atol=1e-3)
    for block in stack.blocks: block.alpha = 1.
    assert stack(ids).equal(post(ids))


# ---- weights

changes = [dict(norm='rms'), dict(act='swiglu'), dict(act='relu'), dict(positions='rope'), dict(positions='none'),
           dict(placement='post'), dict(placement='sandwich'), dict(bias=False), dict(tied=False),
           dict(windows=(None, 3)), *(dict(positions=name) for name in ('xl', 'shaw', 't5', 'alibi'))]

@pytest.mark.parametrize('change', changes, ids=str)
def test_stacks_that_differ_in_one_part_share_every_other_parameter(change):
    ours = dict(model().named_parameters())
    theirs = dict(model(Parts(**change)).named_parameters())
    common = [k for k in ours if k in theirs and ours[k].shape == theirs[k].shape]
    assert len(common) >= len(ours) - 19                        # nearly all: 18 biases of products are the most that go
    for k in common: assert ours[k].equal(theirs[k]), k


def test_plain_and_scaled_starts_differ_by_a_factor_in_what_writes_to_the_stream():
    scaled, plain = (dict(model(Parts(residual_init=how)).named_parameters()) for how in ('scaled', 'plain'))
    for k, p in scaled.items():
        factor = 6 ** -.5 if k.endswith(('attn.out.weight', 'mlp.proj.weight')) else 1.
        close(p, plain[k] * factor)
    assert abs(plain['blocks.1.mlp.proj.weight'].std() / .02 - 1) < .1
    assert abs(scaled['tok_emb.weight'].std() / .02 - 1) < .1 and abs(scaled['positions.weight'].std() / .01 - 1) < .1


def test_a_deeper_stack_begins_with_the_layers_of_a_shallow_one():
    plain = Parts(residual_init='plain')
    few, many = model(plain).state_dict(), model(plain, dataclasses.replace(SIZES, n_layer=5)).state_dict()
    assert all(many[k].equal(v) for k, v in few.items())


def papers_class(name, seed=0, **sizes):
    "GPT-2 or LLaMA, and the stack of its parts, both begun from one seed."
    sizes = dict(n_vocab=50, ctx_len=24, d_model=32, n_layer=3, n_head=4) | sizes
    torch.manual_seed(seed)
    if name == 'gpt2': return GPT2(GPT2Config(**sizes)), model(Parts(), Sizes(**sizes), seed)
    torch.manual_seed(seed)
    return LLaMA(LLaMAConfig(**sizes)), model(LLAMA, Sizes(**sizes, d_ff=LLaMAConfig(**sizes).inner), seed)


@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_a_papers_class_starts_with_the_numbers_of_the_stack_of_its_parts(name):
    paper, stack = (m.state_dict() for m in papers_class(name))
    assert paper.keys() == stack.keys() and all(paper[k].equal(stack[k]) for k in paper)
    other = papers_class(name, seed=1)[0].state_dict()
    assert not any(other[k].equal(v) for k, v in paper.items() if v.ndim > 1)


def test_papers_share_what_they_have_in_common():
    "One seed, two classes: the embedding and what writes to the stream are the same numbers, the rest is other."
    gpt2, llama = (dict(papers_class(name, n_layer=2)[0].named_parameters()) for name in ('gpt2', 'llama'))
    same = {k for k in gpt2.keys() & llama.keys() if gpt2[k].shape == llama[k].shape}
    assert {'tok_emb.weight', 'blocks.1.attn.out.weight', 'blocks.0.attn.qkv.weight'} <= same
    assert all(gpt2[k].equal(llama[k]) for k in same)
    fc = [m['blocks.0.mlp.fc.weight'] for m in (gpt2, llama)]            # 128 rows of GELU, 512 of SwiGLU
    assert len(fc[0]) < len(fc[1]) and fc[0].equal(fc[1][:len(fc[0])])


def test_no_two_parameters_or_models_share_their_numbers():
    torch.manual_seed(0)
    matrices = [p.flatten()[:100] for _ in range(2) for p in Stack(SIZES).parameters() if p.ndim > 1]
    assert all(not a.equal(b) for a, b in itertools.combinations(matrices, 2))
    assert model(seed=1).tok_emb.weight.equal(model(seed=1).tok_emb.weight)


def test_a_stack_moves_the_global_generator_alike_whatever_its_parts():
    after = []
    for parts in (Parts(), LLAMA):
        model(parts)
        after.append(torch.rand(3))
    assert after[0].equal(after[1])


def test_on_the_meta_device_nothing_is_allocated():
    with torch.device('meta'): stack = Stack(Sizes(50257, 2048, 12288, 96, 96))
    assert all(p.is_meta for p in stack.parameters())
    assert sum(p.numel() for p in stack.parameters()) > 170e9


def test_a_saved_list_of_windows_is_the_same_parts():
    assert Parts(windows=[None, 3]) == Parts(windows=(None, 3)) and hash(Parts(windows=[None, 3]))


@settings(max_examples=20)
@given(every, st.integers(20_000, 60_000))
def test_widened_comes_nearest(parts, n):
    count = lambda sizes: sum(p.numel() for p in Stack(sizes, parts).parameters())
    state = torch.get_rng_state()
    twin = widened(SIZES, parts, n)
    assert torch.get_rng_state().equal(state) and dataclasses.replace(twin, d_ff=48) == SIZES
    off = lambda sizes: abs(count(sizes) - n)
    near = [dataclasses.replace(twin, d_ff=twin.d_ff + i) for i in (-1, 1) if twin.d_ff + i > 0]
    assert all(off(twin) <= off(other) for other in near)


def test_widened_says_when_there_are_too_few():
    with pytest.raises(ValueError, match='n_params=10: must be at least'): widened(SIZES, Parts(), 10)
