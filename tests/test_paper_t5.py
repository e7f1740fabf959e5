"T5: the mistakes of its implementers, and that both versions are the public model."
import json, os
from dataclasses import replace
from pathlib import Path

import pytest, torch
from hypothesis import given, settings, strategies as st

from papers_lib.engine.checkpoint import load_model, save_model
from papers_lib.engine.generate import Trie, beam_search, generate
from papers_lib.engine.parity import hf_beams, random_model
from papers_lib.engine.train import IGNORE, TrainConfig
from papers_lib.engine.translation import target_loss
from papers_lib.nn.attention import SelfAttention
from papers_lib.nn.positions import t5_bucket
from papers_lib.nn.seq2seq import CrossAttention
from papers_lib.t5 import T5, SharedT5, T5Config, claims, denoise, paper, pretrained, runs, sizes, t5_names
from papers_lib.text.pairs import pair_batch, sources
from papers_lib.text.spans import SentinelPieces
from papers_lib.text.tokenizers import UnigramPieces
from shrunken import rows_of_a_small_run

cfg = T5Config(n_vocab=60, ctx_len=40, d_model=32, n_layer=2, n_head=3, d_head=8, d_ff=48)
v11 = replace(cfg, act='geglu_tanh', tied=False, scaled=False)
close = torch.testing.assert_close


def drawn(n=4, seed=0, longest=10):
    "Random pairs of unequal lengths."
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randint(3, 60, (int(torch.randint(1, longest, (), generator=g)),), generator=g).tolist()
    return [(draw(), draw()) for _ in range(n)]


batch = pair_batch(drawn(), cfg.eot, cfg.start)
model = random_model(T5, cfg)


def logits_of(hf, b=batch):
    with torch.no_grad():
        return hf(input_ids=b['src'], attention_mask=b['src_mask'].long(), decoder_input_ids=b['tgt']).logits


def gap(ours, theirs):
    with torch.no_grad(): a = ours(batch['src'], batch['tgt'], src_mask=batch['src_mask'])
    b = logits_of(theirs)
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


shapes = [cfg, v11, replace(cfg, tied=False), replace(v11, tied=True), replace(cfg, act='geglu_tanh'),
          replace(cfg, n_dec_layer=3, d_head=16, n_bucket=8, max_distance=20), replace(v11, n_head=5, n_layer=1)]


@pytest.mark.parametrize('size', shapes)
def test_logits_are_those_of_transformers_both_ways(size):
    ours = random_model(T5, size, seed=size.n_head)
    theirs = ours.to_hf()
    back = T5.from_hf(theirs)
    assert gap(ours, theirs) <= 1e-5 and gap(back, theirs) <= 1e-5
    assert back.cfg == size
    assert {k: v.shape for k, v in back.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}


@pytest.mark.parametrize('size', [cfg, v11])
def test_files_of_transformers_keep_both_matrices(size, tmp_path):
    from transformers import T5ForConditionalGeneration
    ours = random_model(T5, size, seed=5)
    ours.to_hf().save_pretrained(tmp_path)
    told = json.loads((tmp_path / 'config.json').read_text())
    assert (told['tie_word_embeddings'], told['scale_decoder_outputs']) == (size.scaled, size.scaled)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert gap(ours, again) <= 1e-5
    again.save_pretrained(tmp_path / 'again')
    back = T5.from_hf(tmp_path / 'again')
    assert back.cfg == size and all(back.state_dict()[k].equal(v) for k, v in ours.state_dict().items())


@pytest.mark.parametrize('told, scaled', [
    (dict(tie_word_embeddings=True), True), (dict(tie_word_embeddings=False), False), ({}, True),
    (dict(tie_word_embeddings=True, scale_decoder_outputs=False), False),
    (dict(tie_word_embeddings=False, scale_decoder_outputs=True), True)])
@pytest.mark.parametrize('act', ['relu', 'geglu_tanh'])
def test_the_new_field_decides_then_the_old_and_never_the_gate(told, scaled, act, tmp_path):
    ours = random_model(T5, replace(cfg, act=act))
    ours.to_hf().save_pretrained(tmp_path)
    path = tmp_path / 'config.json'
    config = json.loads(path.read_text())
    for key in ('tie_word_embeddings', 'scale_decoder_outputs'): config.pop(key)
    path.write_text(json.dumps(config | told))
    assert T5.from_hf(tmp_path).cfg == replace(ours.cfg, scaled=scaled)


def test_every_weight_of_theirs_comes_from_one_of_ours():
    for size in (cfg, v11):
        theirs = [n for name in random_model(T5, size).state_dict() for n in t5_names(name, size.act)]
        public = {n for n in random_model(T5, size).to_hf().state_dict() if not n.endswith('embed_tokens.weight')}
        assert len(theirs) == len(set(theirs)) and {*theirs} == public - ({'lm_head.weight'} if size.tied else set())


def test_old_files_a_public_configuration_and_wrong_ones(tmp_path):
    model.to_hf().save_pretrained(tmp_path)
    path = tmp_path / 'config.json'
    config = json.loads(path.read_text())
    new = ('scale_decoder_outputs', 'num_decoder_layers', 'is_gated_act', 'dense_act_fn', 'feed_forward_proj')
    old = {k: v for k, v in config.items() if k not in new} | dict(   # as the first public files
        n_positions=40, output_past=True, initializer_factor=1.0, decoder_start_token_id=0,
        task_specific_params={'summarization': {'num_beams': 4}}, architectures=['T5WithLMHeadModel'])
    path.write_text(json.dumps(old))
    from safetensors.torch import load_file, save_file
    tensors = load_file(tmp_path / 'model.safetensors')
    unread = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
    save_file(tensors | {unread: torch.randn(32, 3)}, tmp_path / 'model.safetensors')
    assert T5.from_hf(tmp_path).cfg == cfg
    for key, value, said in [('feed_forward_proj', 'gated-silu', "'gated-silu': this model computes 'relu' or"),
                             ('decoder_start_token_id', 2, 'decoder_start_token_id=2'),
                             ('d_kv', None, 'd_kv is missing'), ('router_bias', 3, 'not understood')]:
        path.write_text(json.dumps(old | {key: value}))
        with pytest.raises(ValueError, match=said): T5.from_hf(tmp_path)
    path.write_text(json.dumps(old))
    save_file({k: v for k, v in tensors.items() if 'block.1.layer.0' not in k}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='do not fit T5.*missing encoder.1.attn.qkv.weight'): T5.from_hf(tmp_path)


def test_what_is_not_t5_is_neither_read_nor_written():
    class Mine(T5): pass
    with pytest.raises(ValueError, match='Mine is not T5'): Mine(cfg).to_hf()
    with pytest.raises(ValueError, match='Mine is not T5'): Mine.from_hf(model.to_hf())
    odd = T5(cfg)
    odd.decoder[0].cross.scale = 8 ** -.5
    with pytest.raises(ValueError, match='decoder.0.cross.scale'): odd.to_hf()


@pytest.mark.parametrize('size', [cfg, v11])
@pytest.mark.parametrize('alpha', [0., 0.6, 2.])
def test_beams_are_those_of_transformers(size, alpha):
    net = random_model(T5, size, seed=3, scale=0.1)
    with torch.no_grad(): net.head_weight[size.eot] *= 1.5
    inputs = sources([x for x, _ in drawn(5)], size.eot)
    ours = beam_search(net, inputs, 4, 4, 10, length_penalty=alpha, eot=size.eot)
    assert [[t for t, _ in row] for row in ours] == hf_beams(net.to_hf(), inputs, 4, 4, 10, length_penalty=alpha)


@pytest.mark.parametrize('size', [cfg, v11])
def test_greedy_is_that_of_transformers(size):
    inputs, net = sources([x for x, _ in drawn(5)], size.eot), random_model(T5, size, seed=5, scale=0.2)
    theirs = net.to_hf().generate(input_ids=inputs['src'], attention_mask=inputs['src_mask'].long(), num_beams=1,
                                  max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert generate(net, inputs, 12) == theirs[:, 1:].tolist()


# The traps of the card, by its numbers

def test_1_scores_are_not_divided_and_queries_begin_small():
    attention = [m for m in model.modules() if isinstance(m, SelfAttention | CrossAttention)]
    assert len(attention) == 6 and all(m.scale == 1 for m in attention)
    torch.manual_seed(0)
    net = T5(T5Config(n_vocab=9, d_model=256, n_layer=1, n_head=4, d_head=64, d_ff=64))
    x = torch.randn(3000, 1, 256)
    q, k, _ = net.encoder[0].attn.heads(net.encoder[0].norm1(x))
    assert (q * k.roll(1, 0)).sum(-1).var().item() == pytest.approx(1, rel=0.1)
    std = lambda p: p.std().item()
    assert std(net.decoder[0].cross.q.weight) == pytest.approx((256 * 64) ** -.5, rel=0.05)
    assert std(net.decoder[0].cross.kv.weight) == pytest.approx(256 ** -.5, rel=0.05)
    assert std(net.decoder[0].mlp.proj.weight) == pytest.approx(64 ** -.5, rel=0.05)
    assert std(net.tok_emb.weight) == pytest.approx(1, rel=0.05)


def test_2_one_table_a_stack_reaches_every_layer(monkeypatch):
    seen = []
    forward = SelfAttention.forward
    def spy(self, *args, **kw):
        seen.append(kw.get('bias', args[5] if len(args) > 5 else None))
        return forward(self, *args, **kw)
    monkeypatch.setattr(SelfAttention, 'forward', spy)
    net = T5(cfg).train()
    loss = target_loss(net, batch)
    assert len(seen) == 4 and seen[0] is seen[1] and seen[2] is seen[3]
    loss.backward()
    assert net.positions_enc.weight.grad.abs().sum() > 0 and net.positions_dec.weight.grad.abs().sum() > 0
    assert sum('positions' in n for n, _ in net.named_parameters()) == 2


def test_3_keys_ahead_are_in_the_upper_half():
    both = lambda d: int(t5_bucket(torch.tensor(d), both_ways=True))
    assert [both(d) for d in (0, -1, -7, -8, -16, -128, 1, 128)] == [0, 1, 7, 8, 10, 15, 17, 31]
    assert t5_bucket(torch.tensor([0, -1, -15, -16, -128, 5])).tolist() == [0, 1, 15, 16, 31, 0]
    bias = model.src_bias(5, 'cpu')
    close(bias[0, :, 1, 3], model.positions_enc.weight[18])                       # the key is two ahead
    close(bias[0, :, 3, 1], model.positions_enc.weight[2])
    assert model.tgt_bias(0, 4, 'cpu')[0, :, 1, 2].eq(-torch.inf).all()


def test_4_norms_take_out_no_mean():
    h = torch.randn(4, 32)
    for norm in (model.norm_enc, model.norm_dec, model.encoder[0].norm1):
        assert norm.eps == 1e-6 and [*norm.state_dict()] == ['weight']
        close(norm(9 * h), norm(h), atol=1e-5, rtol=1e-4)
        close(norm(h), h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight)
    assert not [n for n in model.state_dict() if n.endswith('bias')]


def test_5_and_12_the_factor_stands_before_the_output_of_1_0_only():
    h, net = torch.randn(3, 32), random_model(T5, v11)
    close(model.head(h), h @ model.tok_emb.weight.T * 32 ** -.5)
    close(net.head(h), h @ net.out.weight.T)
    close(model.embed(batch['src']), model.tok_emb(batch['src']))              # and none at the input


def test_6_and_8_targets_begin_with_padding_and_sources_and_targets_end():
    made = pair_batch([([5, 6], [7, 8, 9]), ([5], [9])], cfg.eot, cfg.start)
    assert made['tgt'].tolist() == [[0, 7, 8, 9], [0, 9, 0, 0]]
    assert made['targets'].tolist() == [[7, 8, 9, 1], [9, 1, IGNORE, IGNORE]]
    assert made['src'][0].tolist() == [5, 6, 1] and made['src_mask'].tolist() == [[True] * 3, [True, True, False]]


def test_9_half_precision_is_bfloat16():
    with pytest.raises(ValueError, match='dtype'): TrainConfig(n_step=1, batch_size=1, lr=1., dtype='float16')
    with torch.autocast('cpu', torch.bfloat16): assert target_loss(model, batch).isfinite()


@settings(max_examples=15)
@given(st.integers(0, 999), st.integers(1, 5))
def test_10_the_cache_is_exact_in_pieces_of_any_length(seed, size):
    net = random_model(T5, replace(cfg, n_bucket=8, max_distance=6), seed=seed).double()
    src, tgt, mask = batch['src'], torch.cat([batch['tgt'], batch['tgt']], 1), batch['src_mask']
    with torch.no_grad():
        whole = net(src, tgt, src_mask=mask)
        last, cache = net.prefill(src, src_mask=mask)
        close(last, whole[:, 0], atol=1e-10, rtol=0)
        at = 1
        while at < tgt.shape[1]:
            last, cache = net.step(tgt[:, at:at + size], cache)
            at = cache.length
            close(last, whole[:, at - 1], atol=1e-10, rtol=0)


def test_11_attention_to_the_source_has_no_bias():
    net = random_model(T5, replace(cfg, n_layer=1)).double()
    def read(ids):                                     # states of the decoder for a memory in another order
        cache = net.read(torch.tensor([ids]))
        return net.hidden(torch.tensor([[0, 4, 5]]), cache, keep=False)
    with torch.no_grad():
        net.positions_enc.weight.zero_()               # then the encoder is blind to order
        close(read([7, 8, 9, 10]), read([10, 7, 9, 8]), atol=1e-12, rtol=0)


def test_13_a_one_token_target_has_a_loss_and_its_first_token_a_gradient():
    one = pair_batch([([5, 6], [7])], cfg.eot, cfg.start)
    net = random_model(T5, v11)
    z = net(one['src'], one['tgt'])
    z.retain_grad()
    torch.nn.functional.cross_entropy(z[0], one['targets'][0], reduction='sum').backward()
    assert z.grad[0, 0, 7] < 0 and z.grad[0, 1, 1] < 0
    assert target_loss(net, one).item() > 0 and one['tgt'].tolist() == [[0, 7]]


def test_14_padding_of_targets_changes_no_loss():
    pair = ([5, 6], [7, 8])
    short = pair_batch([pair], cfg.eot, cfg.start)
    padded = {k: v[:1] for k, v in pair_batch([pair, ([5], [9] * 7)], cfg.eot, cfg.start).items()}
    assert padded['tgt'].shape[1] == short['tgt'].shape[1] + 5
    with torch.no_grad(): assert abs(target_loss(model, padded) - target_loss(model, short)) < 1e-4
    eos_inside = dict(padded, tgt=padded['tgt'].clone())
    eos_inside['tgt'][0, 3:] = cfg.eot                 # what others leave there
    with torch.no_grad(): assert abs(target_loss(model, eos_inside) - target_loss(model, short)) < 1e-4


def test_dropout_acts_where_the_paper_says():
    net = T5(replace(cfg, dropout=0.5)).train()
    x = torch.ones(400, 1, 32)
    share = lambda y: (y == 0).float().mean().item()
    assert abs(share(net.embed(torch.full((50, 30), 5))) - 0.5) < 0.05
    assert abs(share(net.encoder[0].mlp(x)) - 0.5) < 0.05
    for m in (net.encoder[0].attn, net.decoder[0].attn, net.decoder[0].cross):
        assert (m.dropout, m.drop_weights) == (0.5, 0.5)
    assert (net.encoder[0].mlp.drop_inner, net.decoder[0].mlp.drop_inner) == (0.5, 0.5)
    ended = net.encode(torch.full((50, 30), 5))
    assert abs(share(ended) - 0.5) < 0.05              # and once more after the last norm


def test_published_sizes():
    counts = {}
    for name, size in sizes.items():
        with torch.device('meta'): counts[name] = sum(p.numel() for p in T5(size).parameters())
    assert counts == {
        'small': 60_506_624, 'base': 222_903_552, 'large': 737_668_096, '3B': 2_851_598_336, '11B': 11_307_321_344,
        'v1.1-small': 76_961_152, 'v1.1-base': 247_577_856, 'v1.1-large': 783_150_080, 'v1.1-xl': 2_849_757_184,
        'v1.1-xxl': 11_135_332_352}


def test_sizes_that_cannot_be_are_named():
    for name, value in dict(n_vocab=2, d_model=0, n_head=0, d_head=0, n_layer=0, n_dec_layer=0, act='gelu', dropout=1.,
                            eps=0., n_bucket=6, max_distance=16).items():
        with pytest.raises(ValueError, match=f'T5Config.{name}'): replace(cfg, **{name: value})
    with pytest.raises(ValueError, match='target of 41 tokens: the model reads at most ctx_len=40'):
        model(batch['src'], torch.zeros(4, 41).long())
    with pytest.raises(ValueError, match='source of 41 tokens'): model(torch.zeros(4, 41).long(), batch['tgt'])


def test_it_is_saved_and_read_back(tmp_path):
    net = random_model(T5, v11)
    save_model(tmp_path / 'm', net)
    back = load_model(tmp_path / 'm', T5, T5Config)
    assert back(batch['src'], batch['tgt']).equal(net(batch['src'], batch['tgt']))


def test_arms_of_one_seed_share_what_they_have_in_common():
    torch.manual_seed(4); one = T5(cfg)
    torch.manual_seed(4); other = T5(v11)
    mine, theirs = one.state_dict(), other.state_dict()
    shared = [k for k in mine if k in theirs and mine[k].shape == theirs[k].shape]
    assert len(shared) > 20 and all(mine[k].equal(theirs[k]) for k in shared)


def test_a_shared_stack_is_the_same_function_and_is_saved_once(tmp_path):
    one, half = SharedT5(cfg), T5(replace(cfg, n_layer=1))
    assert [n for n in one.state_dict() if n.startswith('decoder')] == [
        f'decoder.{i}.{part}.weight' for i in (0, 1) for part in ('norm2', 'cross.q', 'cross.kv', 'cross.out')]
    twin = T5(cfg)                                        # the same numbers written out twice
    state = {k: v for k, v in one.state_dict().items()}
    for i in (0, 1):
        for ours, theirs in dict(norm1='norm1', attn='attn', norm3='norm2', mlp='mlp').items():
            state |= {k.replace(f'encoder.{i}.{theirs}', f'decoder.{i}.{ours}'): v for k, v in one.state_dict().items()
                      if k.startswith(f'encoder.{i}.{theirs}.')}
    twin.load_state_dict(state)
    call = lambda net: net.eval()(batch['src'], batch['tgt'], src_mask=batch['src_mask'])
    close(call(one), call(twin))
    save_model(tmp_path / 'm', one)
    assert call(load_model(tmp_path / 'm', SharedT5, T5Config)).equal(call(one))
    count = lambda net: sum(p.numel() for p in net.parameters())
    assert count(half) < count(one) < count(twin)
    with pytest.raises(ValueError, match='n_dec_layer=1: stacks that share'): SharedT5(replace(cfg, n_dec_layer=1))
    with pytest.raises(ValueError, match='SharedT5 is not T5'): one.to_hf()


def test_a_backbone_is_trained_once_and_says_the_same_again(monkeypatch, tmp_path):
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    spec = runs['tiny']
    small = replace(spec, model=replace(spec.model, d_model=16, d_ff=16, ctx_len=32), train=replace(
        spec.train, n_step=2, n_warmup=1))
    monkeypatch.setitem(runs, 'tiny', small)
    folder = pretrained('tiny', 3)
    assert pretrained('tiny', 3) == folder and pretrained('tiny', 4) != folder
    net, tok = load_model(folder, T5, T5Config), SentinelPieces.load(folder)
    assert net.cfg == small.model and tok.n_vocab == net.cfg.n_vocab
    said = generate(net, sources([tok.encode('It is a <extra_id_0> acknowledged')], net.cfg.eot), 5)
    assert len(said[0]) == 5


def test_it_learns_blanks_by_heart():
    tokens = torch.arange(3, 40).repeat(8).numpy()
    corpus = type('Corpus', (), dict(train=tokens, tokenizer=type('Tok', (), dict(sentinels=[*range(59, 40, -1)]))))
    net = T5(replace(cfg, ctx_len=24, d_model=48, n_head=4, d_head=12, d_ff=96, dropout=0.))
    train = TrainConfig(n_step=250, batch_size=8, lr=5e-3, n_warmup=20, weight_decay=0.)
    result = denoise(net, corpus, train, seed=0, device='cpu')
    assert result.losses[-1][1] < 0.3 < result.losses[0][1]                # what is hidden follows from what is not
    said = generate(net, sources([[59, *range(6, 20)]], net.cfg.eot), 8, stop=net.cfg.eot)[0]
    assert said[0] == 59 and not net.training


def test_items_are_found_in_the_order_of_transformers():
    net = random_model(T5, cfg, seed=2, scale=0.1)
    items = [[5, 6], [5, 7, 8], [9], [10, 11, 12], [10, 11], [20, 21]]
    inputs = sources([[4, 5, 6], [7, 8]], cfg.eot)
    trie = Trie(items)
    ours = beam_search(net, inputs, 6, 6, 4, length_penalty=0., eot=cfg.eot, allowed=trie)
    out = net.to_hf().generate(
        input_ids=inputs['src'], attention_mask=inputs['src_mask'].long(), num_beams=6, num_return_sequences=6,
        max_new_tokens=4, length_penalty=0., do_sample=False,
        prefix_allowed_tokens_fn=lambda row, ids: trie.next([i for i in ids[1:].tolist() if i not in (0, 1)], cfg.eot))
    theirs = [[t for t in row[1:] if t > 1] for row in out.tolist()]
    assert [t for row in ours for t, _ in row] == theirs
    assert all(sorted(t for t, _ in row) == sorted(items) for row in ours)
    with pytest.raises(ValueError, match='is there twice'): Trie([*items, [9]])
    with pytest.raises(ValueError, match='a sequence is empty'): Trie([*items, []])


def test_presets_are_planned_and_the_paper_preset_is_the_papers():
    spec = runs['paper']
    assert spec.model == sizes['base'] and spec.train.n_step == 524_288 and spec.train.batch_size == 128
    for spec in runs.values(): assert spec.model.n_vocab == spec.data.n_vocab
    assert list(paper.claims) == [f'C{i}' for i in range(1, 10)]
    assert claims['C9'].power > 0.5


def test_the_released_pieces_are_read():
    root = os.environ.get('PAPERS_MIRROR')
    if not root: pytest.skip('needs PAPERS_MIRROR')
    tok = SentinelPieces(UnigramPieces(Path(root) / 'tokenizers/t5-spiece.model'))
    assert tok.encode('translate English to German: That is good.') == [13959, 1566, 12, 2968, 10, 466, 19, 207, 5]
    assert (tok.n_vocab, tok.sentinels[0], tok.sentinels[99], tok.eot) == (32100, 32099, 32000, 1)


@pytest.mark.slow
def test_every_cell_of_the_claims_runs(tmp_path):
    rows = rows_of_a_small_run('t5', tmp_path, {
        'model.d_model': 16, 'model.d_ff': 16, 'model.d_head': 4, 'train.n_step': 3, 'train.n_warmup': 1,
        'claims.n_step': 5, 'claims.task_steps': 3, 'claims.topic_steps': 5, 'claims.tune_steps': 3,
        'claims.order_steps': 3})
    assert all(rows[f'C{i}']['ours'] is not None and rows[f'C{i}']['controls'] for i in range(1, 10))
    assert {'C2.prefix', 'C2.work.causal', 'C3.target.single', 'C4.loss-unseen.repeated', 'C7.none',
            'C8.wide'} <= {*rows}
    assert rows['C9']['ours'] is not None and [c['name'] for c in rows['C9']['controls']] == [
        'one stack for both, other seeds', 'two whole stacks']
    assert {'T1', 'T1.exchanged', 'C9.one', 'C9.half', 'C9.whole', 'P.to_hf.1.0', 'P.to_hf.1.1'} <= {*rows}
