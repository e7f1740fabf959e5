"The shared cache of an encoder-decoder, and its attention."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from decoders import moved_rows_say_what_they_say_alone
from papers_lib.nn.attention import KVCache, SelfAttention
from papers_lib.nn.positions import SinusoidalPositions
from papers_lib.nn.seq2seq import CrossAttention, CrossCache, DecoderBlock, EncoderDecoder, encoder_block

close = torch.testing.assert_close


class Toy(EncoderDecoder):
    "Two blocks of each kind."
    def __init__(self, placement='post', norm='layer', bias=True):
        super().__init__()
        self.cfg = type('Cfg', (), dict(ctx_len=20, start=0))
        self.tok_emb, self.positions = nn.Embedding(30, 16), SinusoidalPositions(16)
        made = dict(placement=placement, norm=norm, bias=bias)
        self.encoder = nn.ModuleList(encoder_block(16, 2, 32, **made) for _ in range(2))
        self.decoder = nn.ModuleList(DecoderBlock(16, 2, 32, **made) for _ in range(2))
        self.norm_enc = self.norm_dec = nn.Identity()
        self.draw_weights(lambda name: 0.3)

    @property
    def head_weight(self): return self.tok_emb.weight


torch.manual_seed(0)
src, tgt = torch.randint(30, (3, 6)), torch.randint(30, (3, 8))
real = torch.arange(6) < torch.tensor([[6], [2], [4]])


@settings(max_examples=40)
@given(st.data())
def test_any_sequence_of_moves_gives_what_copies_of_the_source_give(data):
    moved_rows_say_what_they_say_alone(data, Toy().eval(), src, real, 0, atol=1e-4)


def test_beams_within_their_source_copy_nothing():
    model = Toy().eval()
    _, cache = model.prefill(src, real)
    held = cache.read[0][0]
    cache.reorder(torch.tensor([0, 0, 1, 1, 2, 2]))
    cache.reorder(torch.tensor([1, 1, 2, 3, 5, 4]))
    assert cache.read[0][0] is held and cache.each == 2
    cache.reorder(torch.tensor([2, 3, 0, 1, 4, 5]))    # sources in another order, two rows each
    assert cache.read[0][0].equal(held[[1, 0, 2]]) and cache.each == 2
    cache.reorder(torch.tensor([3, 2, 5, 4]))                    # a source that nobody reads any more is dropped
    assert cache.read[0][0].equal(held[[0, 2]]) and cache.each == 2
    cache.reorder(torch.tensor([0, 1, 2]))                       # not as many rows of each: one copy a row
    assert cache.read[0][0].equal(held[[0, 0, 2]]) and cache.each == 1


def test_an_expanded_cache_leaves_the_first_alone():
    model = Toy().eval()
    _, cache = model.prefill(src, real)
    wide = cache.expand(2)
    model.step(torch.ones(6, 1).long(), wide)
    assert (cache.length, wide.length) == (1, 2)
    assert isinstance(wide, CrossCache) and isinstance(wide.past, KVCache)
    close(model.step(tgt[:, 1:2], cache)[0], model(src, torch.cat([torch.zeros(3, 1).long(), tgt[:, 1:2]], 1),
                                                  src_mask=real)[:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize('placement', ['post', 'pre'])
@pytest.mark.parametrize('norm, bias', [('layer', True), ('rms', False)])
def test_both_placements_train_every_parameter_and_mask_the_source(placement, norm, bias):
    model = Toy(placement, norm, bias)
    model(src, tgt, src_mask=real).logsumexp(-1).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    other = torch.where(real, src, 7)
    model.eval()
    close(model(other, tgt, src_mask=real), model(src, tgt, src_mask=real), atol=1e-5, rtol=0)


def test_the_encoder_sees_both_ways_and_the_decoder_back_only():
    model = Toy().eval()
    late = src.clone()
    late[:, -1] = (late[:, -1] + 1) % 30
    assert (model.encode(late)[:, 0] - model.encode(src)[:, 0]).abs().max() > 1e-4
    later = tgt.clone()
    later[:, 5:] = 1
    assert model(src, later)[:, :5].equal(model(src, tgt)[:, :5])


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match='n_head=3'): CrossAttention(16, 3)
    with pytest.raises(ValueError, match='placement'): DecoderBlock(16, 2, 32, placement='both')
    with pytest.raises(ValueError, match='norm='): DecoderBlock(16, 2, 32, norm='batch')
    with pytest.raises(ValueError, match='target of 21'): Toy()(src, torch.zeros(3, 21).long())


def test_heads_may_have_a_width_and_a_scale_of_their_own():
    torch.manual_seed(0)
    attn, cross = SelfAttention(16, 3, d_head=5, scale=1.), CrossAttention(16, 3, d_head=5, scale=1.)
    assert (attn.qkv.out_features, attn.out.in_features, cross.kv.out_features) == (45, 15, 30)
    x, memory = torch.randn(2, 4, 16), torch.randn(2, 6, 16)
    q, k, v = (z.unflatten(-1, (3, 5)).transpose(1, 2) for z in attn.qkv(x).chunk(3, -1))
    close(attn(x), attn.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)))
    k, v = (z.unflatten(-1, (3, 5)).transpose(1, 2) for z in cross.kv(memory).chunk(2, -1))
    q = cross.q(x).unflatten(-1, (3, 5)).transpose(1, 2)
    close(cross(x, cross.read(memory)), cross.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)))
    block = DecoderBlock(16, 3, 32, d_head=5, scale=1., drop_inner=0.5)
    assert (block.attn.scale, block.cross.scale, block.mlp.drop_inner) == (1., 1., 0.5)
    with pytest.raises(ValueError, match='n_head=3'): SelfAttention(16, 3)


class Biased(Toy):
    "A Toy with a number added to each score."
    def src_bias(self, s, device): return (torch.arange(s) - torch.arange(s)[:, None]).float()[None, None] * 0.3
    def tgt_bias(self, past, t, device):
        q, k = torch.arange(past, past + t)[:, None], torch.arange(past + t)
        return ((k - q) * 0.2).masked_fill(k > q, -torch.inf)[None, None]


def test_biases_reach_every_layer_hide_the_future_and_go_with_padding_and_cache():
    torch.manual_seed(0); plain = Toy().eval()
    torch.manual_seed(0); model = Biased().eval()
    whole = model(src, tgt, src_mask=real)
    assert (whole - plain(src, tgt, src_mask=real)).abs().max() > 0.01
    close(model(torch.where(real, src, 7), tgt, src_mask=real), whole, atol=1e-5, rtol=0)
    later = tgt.clone()
    later[:, 5:] = 1
    close(model(src, later, src_mask=real)[:, :5], whole[:, :5], atol=1e-6, rtol=0)
    _, cache = model.prefill(src, real)
    first = model(src, torch.cat([torch.zeros(3, 1).long(), tgt[:, 1:]], 1), src_mask=real)
    for t in range(1, 8): close(model.step(tgt[:, t:t + 1], cache)[0], first[:, t], atol=1e-5, rtol=0)
