"Recurrent models: equation by equation, the state at the edges of padding, and the contract of decoding."
from dataclasses import replace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from decoders import moved_rows_say_what_they_say_alone
from papers_lib.engine.checkpoint import load_model, save_model
from papers_lib.engine.evaluate import held_out
from papers_lib.engine.generate import beam_search, generate
from papers_lib.engine.train import TrainConfig, fit
from papers_lib.nn.recurrent import LSTMDecoder, LSTMSeq2Seq, RecurrentPair, RecurrentSizes, StateCache
from papers_lib.text.corpora import TokenBatches
from papers_lib.text.pairs import PairBatches, sources

close = torch.testing.assert_close
sizes = RecurrentSizes(n_vocab=30, ctx_len=20, d_model=12, n_layer=2, d_hidden=16)
pair = RecurrentPair(n_vocab=30, ctx_len=20, d_model=12, n_layer=2, d_hidden=16)


def drawn(kind, cfg, seed=0):
    torch.manual_seed(seed)
    return kind(cfg).eval()


@pytest.fixture(scope='module')
def decoder(): return drawn(LSTMDecoder, sizes)


@pytest.fixture(scope='module')
def translator(): return drawn(LSTMSeq2Seq, pair)


torch.manual_seed(1)
ids = torch.randint(28, (3, 9))
src, tgt = torch.randint(28, (3, 6)), torch.randint(28, (3, 8))
tgt[:, 0] = pair.start
real = torch.arange(6) < torch.tensor([[6], [2], [4]])


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_a_prompt_padded_on_the_left_is_the_prompt_alone(lengths, seed):
    model, rng = drawn(LSTMDecoder, sizes), np.random.default_rng(seed)
    rows = [rng.integers(30, size=n).tolist() for n in lengths]
    width = max(lengths)
    padded = torch.tensor([[7] * (width - len(r)) + r for r in rows])
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    logits, cache = model.prefill(padded, mask)
    for row, said, i in zip(rows, logits, range(len(rows))):
        alone, single = model.prefill(torch.tensor([row]))
        close(said, alone[0], atol=1e-5, rtol=0)
        for a, b in zip(cache.state, single.state): close(a[:, i], b[:, 0], atol=1e-5, rtol=0)


def test_a_later_token_moves_no_earlier_logit_and_an_early_one_moves_all_later(decoder):
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 1) % 28
    a, b = decoder(ids), decoder(other)
    assert a[:, :4].equal(b[:, :4]) and ((a - b)[:, 4:].abs().amax(-1) > 1e-5).all()


def test_pieces_through_the_cache_are_the_whole(decoder):
    whole, cache = decoder(ids), StateCache()
    said = torch.cat([decoder(part, cache=cache) for part in ids.split([1, 5, 3], 1)], 1)
    close(said, whole, atol=1e-5, rtol=0)
    assert cache.length == 9


@pytest.mark.parametrize('tied', [True, False])
def test_it_is_trained_scored_and_decoded_like_any_decoder(tied):
    model, text = drawn(LSTMDecoder, replace(sizes, tied=tied)), np.arange(4000) % 7
    corpus = type('Corpus', (), dict(tokenizer=type('Tok', (), dict(eot=6, decode=lambda self, x: 'a' * len(x)))(),
                                     valid=text[:700]))
    before = held_out(model, corpus)['loss']
    fit(model, TokenBatches(text, 20, 8, seed=0), TrainConfig(n_step=250, batch_size=8, lr=2e-2), device='cpu')
    assert before > 2 and held_out(model.eval(), corpus)['loss'] < 0.1
    assert generate(model, [[0, 1], [3, 4, 5, 6]], 5) == [[2, 3, 4, 5, 6], [0, 1, 2, 3, 4]]
    best, score = beam_search(model, [[0, 1]], 3, 1, 4, eot=None)[0][0]
    assert best == [2, 3, 4, 5] and -1 < score < 0


def test_weights_follow_from_seed_and_name_and_the_forget_gate_starts_open(decoder, translator):
    torch.manual_seed(0)
    torch.rand(1)
    twin, deeper = LSTMDecoder(sizes), drawn(LSTMDecoder, replace(sizes, n_layer=3))
    assert not twin.tok_emb.weight.equal(decoder.tok_emb.weight)
    assert deeper.lstm.weight_hh_l0.equal(decoder.lstm.weight_hh_l0)
    for model in (decoder, translator):
        for name, p in model.named_parameters():
            if '.bias_ih' in name: assert p.view(4, -1).sum(1).tolist() == [0, len(p) // 4, 0, 0], name
            elif '.bias_hh' in name: assert not p.any(), name
            elif p.ndim == 2: assert p.std().item() * p.shape[1] ** .5 == pytest.approx(1, abs=0.25), name


@settings(max_examples=40)
@given(st.data())
def test_any_sequence_of_moves_gives_what_copies_of_the_source_give(data):
    moved_rows_say_what_they_say_alone(data, drawn(LSTMSeq2Seq, pair), src, real, pair.start, atol=1e-5)


@pytest.mark.parametrize('n_layer', [1, 2, 3])
def test_padding_changes_nothing_and_every_parameter_is_trained(n_layer):
    model = drawn(LSTMSeq2Seq, replace(pair, n_layer=n_layer))
    whole = model(src, tgt, src_mask=real)
    close(model(torch.where(real, src, 7), tgt, src_mask=real), whole, atol=1e-6, rtol=0)
    for i, n in enumerate((6, 2, 4)): close(model(src[i:i + 1, :n], tgt[i:i + 1])[0], whole[i], atol=1e-5, rtol=0)
    whole.logsumexp(-1).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_encoder_reads_both_ways_and_the_decoder_asks_it(translator):
    late = src.clone()
    late[:, -1] = (late[:, -1] + 1) % 28
    first = lambda x: translator.read(x).read[0][0][:, 0, 0]
    assert (first(late) - first(src)).abs().max() > 1e-5
    cache = translator.read(src)
    held = cache.read[0][0]
    other = type(cache)([(held.flip(-1),) * 2], None, StateCache(cache.past.state))            # the same states
    assert (translator.hidden(tgt, other) - translator.hidden(tgt, cache)).abs().max() > 1e-3


def test_attention_is_its_equation(translator):
    cache = translator.read(src, real)
    memory, h = cache.read[0][0][:, 0], torch.randn(3, 4, 16)
    a = (h @ translator.ask.weight.T @ memory.mT).masked_fill(~real[:, None], -torch.inf).softmax(-1)
    close(translator.look(h, cache), a @ memory, atol=1e-5, rtol=0)


def test_beams_of_a_batch_are_those_of_each_source_alone(translator):
    rows = [[1, 2, 3, 4], [5], [6, 7, 8]]
    together = beam_search(translator, sources(rows, pair.eot), 3, 3, 6, eot=pair.eot)
    for row, found in zip(rows, together):
        alone = beam_search(translator, sources([row], pair.eot), 3, 3, 6, eot=pair.eot)[0]
        assert [t for t, _ in found] == [t for t, _ in alone]
        np.testing.assert_allclose([lp for _, lp in found], [lp for _, lp in alone], atol=1e-4)


def test_it_learns_a_few_pairs_by_heart():
    from papers_lib.engine.translation import pair_losses, target_loss
    rng, model = np.random.default_rng(0), drawn(LSTMSeq2Seq, replace(pair, d_hidden=48, d_model=48, dropout=0.))
    pairs = [(rng.integers(28, size=5).tolist(), rng.integers(28, size=4).tolist()) for _ in range(8)]
    fit(model, PairBatches(pairs, 8, eot=pair.eot, start=pair.start), TrainConfig(n_step=150, batch_size=8, lr=1e-2),
        loss_fn=target_loss, device='cpu')
    assert pair_losses(model.eval(), pairs, 'valid')['exact'] == 1
    said = beam_search(model, sources([x for x, _ in pairs], pair.eot), 4, 1, 8, eot=pair.eot)
    assert [row[0][0] for row in said] == [y for _, y in pairs]


@pytest.mark.parametrize('kind, cfg', [(LSTMDecoder, sizes), (LSTMSeq2Seq, pair)])
def test_it_is_saved_and_read_back(kind, cfg, tmp_path):
    model = drawn(kind, cfg)
    save_model(tmp_path / 'm', model)
    back = load_model(tmp_path / 'm', kind, type(cfg))
    for a, b in zip(model.parameters(), back.parameters()): assert a.equal(b)


@pytest.mark.parametrize('kind, cfg, inputs', [(LSTMDecoder, sizes, (ids,)), (LSTMSeq2Seq, pair, (src, tgt))])
def test_under_autocast_the_recurrence_stays_in_float32(kind, cfg, inputs):
    model, seen = drawn(kind, cfg), []
    for m in model.modules():
        if isinstance(m, torch.nn.LSTM): m.register_forward_hook(lambda m, args, out: seen.append(out[0].dtype))
    with torch.autocast('cpu', torch.bfloat16): model(*inputs)
    assert {*seen} == {torch.float32}


def test_bad_input_is_named(decoder, translator):
    for name, value in dict(n_vocab=0, ctx_len=0, d_model=0, n_layer=0, d_hidden=0, dropout=1.).items():
        with pytest.raises(ValueError, match=f'RecurrentSizes.{name}={value}'): replace(sizes, **{name: value})
    with pytest.raises(ValueError, match='d_hidden=15: must be even'): replace(pair, d_hidden=15)
    with pytest.raises(ValueError, match='padding on the left'): decoder.prefill(ids[:, :6], real)
    with pytest.raises(ValueError, match='real tokens first'): translator(src, tgt, src_mask=real.flip(1))
    with pytest.raises(ValueError, match='real token'): translator.prefill(src, torch.zeros_like(real))
    with pytest.raises(ValueError, match='bool tensor'): translator(src, tgt, src_mask=real.float())
    with pytest.raises(ValueError, match='target of 21 tokens'): translator(src, torch.zeros(3, 21).long())
