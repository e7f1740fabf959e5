"The Transformer of 2017: the mistakes of its implementers, and that it is the public model after a permutation."
from dataclasses import replace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from papers_lib.engine.checkpoint import load_model, save_model
from papers_lib.engine.generate import beam_search, generate
from papers_lib.engine.parity import hf_beams, random_model
from papers_lib.engine.train import IGNORE, TrainConfig, rate
from papers_lib.engine.translation import beam_translate, bleu, pair_losses, train_pairs
from papers_lib.lab.data import available
from papers_lib.nn.positions import NoPositions
from papers_lib.text.pairs import pair_batch, sources
from papers_lib.transformer import (
    PairConfig, SmoothedLoss, Transformer, TransformerConfig, marian_names, paper, paper_rate, reordered, runs, sizes)
from shrunken import rows_of_a_small_run

cfg = TransformerConfig(n_vocab=50, ctx_len=40, d_model=24, n_layer=2, n_head=3, d_ff=40, dropout=0.1)
close = torch.testing.assert_close


def drawn(n=4, seed=0, longest=10):
    "Random pairs of unequal lengths."
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(cfg.eot, size=int(rng.integers(1, longest))).tolist()
    return [(draw(), draw()) for _ in range(n)]


batch = pair_batch(drawn(), cfg.eot, cfg.start)
model = random_model(Transformer, cfg)


@pytest.mark.parametrize('d, h, n', [(24, 3, 2), (32, 4, 1), (10, 1, 3)])
def test_logits_are_those_of_marian_after_the_permutation(d, h, n):
    ours = random_model(Transformer, replace(cfg, d_model=d, n_head=h, n_layer=n), seed=d)
    theirs = ours.to_hf()
    with torch.no_grad():
        a = ours(batch['src'], batch['tgt'], src_mask=batch['src_mask'])
        b = theirs(input_ids=batch['src'], attention_mask=batch['src_mask'], decoder_input_ids=batch['tgt']).logits
    assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max())


def test_every_weight_of_marian_comes_from_one_of_ours():
    theirs = {n for name in model.state_dict() for n in marian_names(name)}
    made = ('embed_tokens.weight', 'embed_positions.weight', 'lm_head.weight', 'final_logits_bias')
    assert theirs == {n for n in model.to_hf().state_dict() if not n.endswith(made)}
    for name, x in model.state_dict().items(): assert reordered(name, reordered(name, x), back=True).equal(x)


def test_a_model_with_other_positions_is_not_exported():
    twin = Transformer(cfg)
    twin.positions = NoPositions()
    with pytest.raises(ValueError, match='positions'): twin.to_hf()


@pytest.mark.parametrize('alpha', [0., 0.6, 2.])
def test_beams_are_those_of_transformers(alpha):
    net = random_model(Transformer, cfg, seed=3, scale=0.1)
    with torch.no_grad(): net.tok_emb.weight[cfg.eot] *= 1.5
    inputs = sources([x for x, _ in drawn(5)], cfg.eot)
    ours = beam_search(net, inputs, 4, 4, 10, length_penalty=alpha, eot=cfg.eot)
    assert [[t for t, _ in row] for row in ours] == hf_beams(net.to_hf(), inputs, 4, 4, 10, length_penalty=alpha)


def test_greedy_is_that_of_transformers():
    inputs, net = sources([x for x, _ in drawn(5)], cfg.eot), random_model(Transformer, cfg, seed=5, scale=0.2)
    theirs = net.to_hf().generate(input_ids=inputs['src'], attention_mask=inputs['src_mask'].long(), num_beams=1,
                                  max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert generate(net, inputs, 8) == theirs[:, 1:].tolist()


def test_beams_of_a_batch_are_those_of_each_source_alone():
    rows = [x for x, _ in drawn(5, seed=2)]
    together = beam_search(model, sources(rows, cfg.eot), 3, 3, 8, eot=cfg.eot)
    for row, found in zip(rows, together):
        alone = beam_search(model, sources([row], cfg.eot), 3, 3, 8, eot=cfg.eot)[0]
        assert [t for t, _ in found] == [t for t, _ in alone]
        np.testing.assert_allclose([lp for _, lp in found], [lp for _, lp in alone], atol=1e-4)


def test_the_source_is_read_once_however_many_steps_and_beams(monkeypatch):
    calls = []
    cross = type(model.decoder[0].cross)
    read = cross.read
    monkeypatch.setattr(cross, 'read', lambda self, memory: calls.append(len(memory)) or read(self, memory))
    beam_search(model, sources([x for x, _ in drawn(3)], cfg.eot), 4, 1, 10, eot=cfg.eot)
    assert calls == [3, 3]


def test_neither_stack_ends_in_a_norm_and_each_ends_normalised():
    fresh = Transformer(cfg).eval()
    assert not [n for n in fresh.state_dict() if n.startswith(('norm', 'positions'))]
    h = fresh.encode(batch['src'])
    close(h.mean(-1), torch.zeros_like(h[..., 0]), atol=1e-5, rtol=0)
    close(h.var(-1, unbiased=False), torch.ones_like(h[..., 0]), atol=1e-3, rtol=0)


def test_scaling_comes_before_the_positions_and_not_at_the_output():
    x = model.embed(batch['src'])
    wrong = (model.tok_emb(batch['src']) + model.positions.embed(torch.arange(x.shape[1]))) * 24 ** 0.5
    assert (x - wrong).abs().max() > 1
    h = torch.randn(3, 24)
    close(model.head(h), h @ model.tok_emb.weight.T)
    assert sum(p.shape == (50, 24) for p in model.parameters()) == 1          # one matrix, three uses


def test_dropout_acts_on_the_sum_of_embedding_and_position():
    torch.manual_seed(0)
    net = Transformer(replace(cfg, dropout=0.5))
    share = (net.embed(torch.zeros(1, 40).long()) == 0).float().mean().item()
    assert abs(share - 0.5) < 0.06
    assert all(b.attn.drop_weights == 0 for b in [*net.encoder, *net.decoder])


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 0.9))
def test_the_smoothed_loss_is_its_formula_and_a_sum_over_pairs(seed, epsilon):
    pairs, loss = drawn(3, seed), SmoothedLoss(epsilon)
    whole = pair_batch(pairs, cfg.eot, cfg.start)
    logp = model(whole['src'], whole['tgt'], src_mask=whole['src_mask']).detach().double().log_softmax(-1)
    q = torch.full((50,), epsilon / 49).double()
    q[cfg.start] = 0
    at = (whole['targets'] != IGNORE).nonzero().tolist()
    written = -sum((1 - epsilon) * logp[i, j, whole['targets'][i, j]] + (q * logp[i, j]).sum() for i, j in at)
    assert loss(model, whole).item() == pytest.approx(written.item(), rel=1e-4)
    apart = sum(loss(model, pair_batch([p], cfg.eot, cfg.start)).item() for p in pairs)
    assert loss(model, whole).item() == pytest.approx(apart, rel=1e-4)


def test_smoothing_gives_the_start_token_no_mass():
    net = random_model(Transformer, cfg)
    weight = net.tok_emb.weight
    def slope(epsilon):
        h = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))
        z = (h @ weight.detach().T).requires_grad_()
        fake = type('Fake', (), dict(cfg=cfg, hidden=lambda s, *a, **k: h[None], read=lambda s, *a: None,
                                     head=lambda s, x: z))()
        SmoothedLoss(epsilon)(fake, dict(src=None, src_mask=None, tgt=None, targets=torch.tensor([[1]]))).backward()
        return z.grad[0], z.softmax(-1)[0]
    grad, p = slope(0.3)
    close(grad[cfg.start], p[cfg.start])                                       # p - q with q = 0
    close(grad[2], p[2] - 0.3 / 49)


@pytest.mark.parametrize('step, value', [(1, 1.746928e-7), (4000, 6.987712e-4), (16000, 3.493856e-4)])
def test_the_schedule_has_the_papers_values_and_the_loop_follows_it(step, value):
    loop = TrainConfig(n_step=20_000, batch_size=1, lr=paper_rate(4000), schedule='inverse_sqrt', n_warmup=4000)
    assert paper_rate(step) == pytest.approx(value, rel=1e-5)
    assert loop.lr * rate(loop, step - 1) == pytest.approx(value, rel=1e-5)


def test_published_sizes():
    counts = {}
    for name, size in sizes.items():
        with torch.device('meta'): counts[name] = sum(p.numel() for p in Transformer(size).parameters())
    assert counts == dict(base=63_082_496, big=214_245_376)


def test_in_float64_nothing_leaks_and_the_cache_is_exact():
    net = random_model(Transformer, cfg).double()
    src, tgt, mask = batch['src'], batch['tgt'], batch['src_mask']
    whole = net(src, tgt, src_mask=mask)
    for t in range(1, tgt.shape[1]):
        other = tgt.clone()
        other[:, t] = (other[:, t] + 1) % 48
        assert net(src, other, src_mask=mask)[:, :t].equal(whole[:, :t])
    last, cache = net.prefill(src, src_mask=mask)
    for t in range(1, tgt.shape[1]):
        close(last, whole[:, t - 1], atol=1e-10, rtol=0)
        last, cache = net.step(tgt[:, t:t + 1], cache)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match='target of 41 tokens'): model(batch['src'], torch.zeros(4, 41).long())
    with pytest.raises(ValueError, match='source of 41 tokens'): model(torch.zeros(4, 41).long(), batch['tgt'])
    with pytest.raises(ValueError, match='source is empty'): model(batch['src'][:, :0], batch['tgt'])
    with pytest.raises(ValueError, match='needs a bool tensor'):
        model(batch['src'], batch['tgt'], src_mask=batch['src_mask'].float())
    with pytest.raises(ValueError, match='every row needs a real token'):
        model.prefill(batch['src'], src_mask=torch.zeros_like(batch['src_mask']))
    for name, value in dict(d_model=25, n_head=5, dropout=1., n_layer=0, eps=0., n_vocab=2).items():
        with pytest.raises(ValueError, match=f'TransformerConfig.{name}'): replace(cfg, **{name: value})
    for name, value in dict(task='add', n_vocab=2, shortest=11, target='en').items():
        with pytest.raises(ValueError, match=f'PairConfig.{name}'): PairConfig(**{name: value})


def test_it_is_saved_and_read_back(tmp_path):
    save_model(tmp_path / 'm', model)
    back = load_model(tmp_path / 'm', Transformer, TransformerConfig)
    assert back(batch['src'], batch['tgt']).equal(model(batch['src'], batch['tgt']))


def test_it_learns_one_batch_by_heart():
    torch.manual_seed(0)
    pairs, small = drawn(8, longest=6), replace(cfg, d_model=48, n_head=4, d_ff=96, dropout=0.)
    net = Transformer(small)
    train_pairs(net, pairs, TrainConfig(n_step=150, batch_size=8, lr=3e-3, n_warmup=20, weight_decay=0.), seed=0,
                device='cpu')
    scored = pair_losses(net, pairs, 'valid')
    assert scored['loss'] < 0.1 and scored['exact'] == 1
    said = beam_search(net, sources([x for x, _ in pairs], cfg.eot), 4, 1, 8, eot=cfg.eot)
    assert [row[0][0] for row in said] == [y for _, y in pairs]


def test_translations_keep_the_order_of_the_sentences():
    class Letters:
        encode = staticmethod(lambda text: [ord(c) - 97 for c in text])
        decode = staticmethod(lambda ids: ''.join(chr(97 + i) for i in ids))
    texts = ['abc', 'zz', 'hello', 'a']
    together = beam_translate(model, Letters, texts, extra=4, batch_size=2)
    by_hand = [beam_search(model, sources([Letters.encode(t)], cfg.eot), 4, 1, 9, length_penalty=0.6, eot=cfg.eot)
               for t in texts]
    assert len(together) == 4 and together[2] == Letters.decode([t for t in by_hand[2][0][0][0] if t != cfg.start])


def test_bleu_is_that_of_sacrebleu_with_its_signature():
    score, signature = bleu(['the cat sat on the mat', 'a dog'], ['the cat sat on the mat', 'a dog'])
    assert score == pytest.approx(100) and 'case:mixed' in signature and 'version:' in signature


def test_presets_are_planned_and_the_paper_preset_is_the_papers():
    spec = runs['paper']
    assert spec.model == sizes['base'] and spec.train.beta2 == 0.98 and spec.train.eps == 1e-9
    assert spec.train.lr == pytest.approx(6.9877e-4, rel=1e-4) and spec.train.n_warmup == 4000
    for spec in runs.values(): assert spec.model.n_vocab == spec.data.n_vocab
    assert list(paper.claims) == [f'C{i}' for i in range(1, 13)]


def test_a_pair_that_does_not_fit_is_named_before_training():
    train = TrainConfig(n_step=1, batch_size=1, lr=1e-3)
    with pytest.raises(ValueError, match='pair 1: its target has 40 tokens and an end'):
        train_pairs(model, [([1], [2]), ([1], [3] * 40)], train, seed=0)
    with pytest.raises(ValueError, match='pair 0: its source has 41 tokens'):
        train_pairs(model, [([1] * 41, [2])], train, seed=0)


@pytest.fixture(scope='module')
def small_run(tmp_path_factory):
    "Every claim of the notebook at a size that teaches nothing."
    return rows_of_a_small_run('transformer', tmp_path_factory.mktemp('small'), {
        'model.d_model': 16, 'model.d_ff': 16, 'model.n_layer': 1, 'model.n_head': 2, 'train.n_step': 3,
        'train.n_warmup': 1, 'train.batch_size': 8, 'claims.steps': 2, 'claims.wide': [4, 8], 'claims.noise': [100],
        'claims.tasks': ['copy'], 'claims.spoken_width': 16, 'claims.spoken_steps': 2, 'claims.zoo_width': 16,
        'claims.zoo_steps': 6, 'claims.deep_steps': 6, 'claims.depths': [2, 4],
        'claims.parts': ['geglu', 'learned'], 'claims.pieces': 300,
        'claims.vocabularies': ['byte', 'bpe300', 'wordpiece200', 'unigram100']})


@pytest.mark.slow
@pytest.mark.skipif(not available('multi30k'), reason='Multi30k comes from a mirror only')
def test_every_claim_on_the_encoder_decoder_runs(small_run):
    measured = {id for id, r in small_run.items() if r['ours'] is not None}
    assert {f'C{i}' for i in (1, 2, 3, 4, 5, 6, 12)} <= measured
    own = {'C1.copy.LSTM', 'C1.step', 'C2.one-head', 'C3.narrow-keys', 'C4.entropy.scaled.8', 'C4.gradient.unscaled.4',
           'C6.smoothing', 'C6.right.no-dropout', 'C12.copy', 'C12.nearest', 'C12.loss.LSTM', 'C12.step'}
    assert own <= measured
    assert small_run['C12.copy']['ours'] > small_run['C12.LSTM']['ours']  # two steps teach nobody to translate


@pytest.mark.slow
@pytest.mark.skipif(not available('multi30k'), reason='Multi30k comes from a mirror only')
def test_where_the_preset_reads_captions_its_own_model_translates(tmp_path):
    rows = rows_of_a_small_run('transformer', tmp_path, {
        'model.d_model': 16, 'model.d_ff': 16, 'model.n_layer': 1, 'model.n_head': 2,
        'model.ctx_len': 160, 'train.n_step': 2, 'train.n_warmup': 1, 'train.batch_size': 8, 'data.name': 'multi30k',
        'data.n_vocab': 2000, 'data.words': 6}, claims='C12')
    assert rows['C12']['protocol'].count('2 steps of 8 pairs, captions of at most 6 words') == 1
    assert rows['C12.loss.Transformer']['ours'] > 7 and 'C1.step' not in rows       # ln 2000 = 7.6: nothing is learnt


@pytest.mark.slow
@pytest.mark.skipif(not available('multi30k'), reason='Multi30k comes from a mirror only')
def test_every_claim_on_the_zoo_runs(small_run):
    measured = {id for id, r in small_run.items() if r['ours'] is not None}
    assert {'C7', 'C8', 'C9', 'C10', 'C11'} <= measured
    own = {'C8.geglu', 'C8.learned', 'C8.x4.rope', 'C8.ms.geglu', 'C7.post.without.2', 'C7.unlearnt.pre.with.4',
           'C7.tried.post', 'C10.sandwich', 'C10.pre-other-seeds', 'C11.rise.post.4', 'C11.written.deepnorm.1',
           'C11.depth.pre', 'C9.tenth.random-cuts.10', 'C9.bits.unigram100', 'C9.back.wordpiece200'}
    assert own <= measured and 'C8.x2.learned' not in small_run
