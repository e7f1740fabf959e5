"GPT-2: what a cell cannot say. Properties, parity with transformers, faults."
import gzip, json, math, os, shutil, time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from papers_lib import gpt2
from papers_lib.engine.stats import Row
from papers_lib.gpt2 import (ESCAPE, GPT2, GPT2Config, capacity_run, clean_passages, count_bytes, demo_run, depth_run, detok_gain, detokenizers,
                             generalisation, held_out, parity, plan, race, rank_skill, residual_variance, runs, scrambled, shown, sizes, token_run, trends)
from papers_lib.lab import data as lab_data
from papers_lib.lab.results import published

cfg = GPT2Config(n_vocab=97, ctx_len=32, d_model=48, n_layer=3, n_head=4)
ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
mirror = os.environ.get('PAPERS_MIRROR')


def test_parity_both_ways_every_parameter_random():
    ours = scrambled(cfg)
    assert parity(ours, ours.to_hf(), ids) <= 1e-5
    assert parity(GPT2.from_hf(ours.to_hf()), ours.to_hf(), ids) <= 1e-5


def test_parity_would_see_a_missing_transpose():
    ours = scrambled(cfg); hf = ours.to_hf()
    with torch.no_grad(): hf.transformer.h[1].attn.c_proj.weight.copy_(hf.transformer.h[1].attn.c_proj.weight.T.clone())
    assert parity(ours, hf, ids) > 1e-3


def test_exact_gelu_would_be_seen(monkeypatch):
    ours = scrambled(cfg); hf = ours.to_hf()
    for block in ours.blocks: block.mlp.act = lambda x: F.gelu(x)
    assert parity(ours, hf, ids) > 1e-5


@pytest.mark.parametrize('prefix', ['', 'transformer.'])
def test_from_folder_with_and_without_prefix(tmp_path, prefix):
    from safetensors.torch import save_file
    ours = scrambled(cfg); hf = ours.to_hf()
    tensors = {prefix + k.removeprefix('transformer.'): v.contiguous().clone() for k, v in hf.state_dict().items() if k.startswith('transformer.')}
    save_file(tensors | {f'{prefix}h.0.attn.bias': torch.ones(1, 1, 32, 32)}, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(hf.config.to_dict()))
    assert parity(GPT2.from_hf(tmp_path), hf, ids) <= 1e-5


def test_another_activation_is_refused():
    hf = scrambled(cfg).to_hf(); hf.config.activation_function = 'gelu'
    with pytest.raises(ValueError, match='activation_function'): GPT2.from_hf(hf)


def test_every_wrong_key_is_named_at_once():
    hf = scrambled(cfg).to_hf(); state = dict(hf.state_dict())
    del state['transformer.h.0.ln_1.weight']
    state['transformer.h.2.mlp.c_fc.bias'] = torch.zeros(3)
    state['transformer.h.7.new'] = torch.zeros(1)
    hf.state_dict = lambda: state
    with pytest.raises(ValueError) as e: GPT2.from_hf(hf)
    for name in ('h.7.new', 'norm1.weight', 'fc.bias'): assert name in str(e.value)


def test_head_is_tied_not_copied():
    model = GPT2(cfg)
    model(ids).sum().backward()
    names = [n for n, _ in model.named_parameters()]
    assert not any('head' in n for n in names)
    before = model(ids)[0, 0, 5].item()
    with torch.no_grad(): model.tok_emb.weight[5] += 1.
    assert model(ids)[0, 0, 5].item() != before


def test_residual_scaling_uses_two_layers_a_block():
    torch.manual_seed(0); scaled = GPT2(replace(cfg, d_model=192, n_layer=8))
    torch.manual_seed(0); plain = GPT2(replace(cfg, d_model=192, n_layer=8, residual_init='plain'))
    for a, b in zip(scaled.blocks, plain.blocks):
        assert torch.allclose(a.attn.out.weight * math.sqrt(16), b.attn.out.weight, atol=1e-6)
        assert torch.allclose(a.mlp.proj.weight * math.sqrt(16), b.mlp.proj.weight, atol=1e-6)
        assert torch.equal(a.mlp.fc.weight, b.mlp.fc.weight)


def test_scaling_holds_the_residual_variance_down():
    torch.manual_seed(0); scaled = residual_variance(GPT2(replace(cfg, n_layer=16)), ids)
    torch.manual_seed(0); plain = residual_variance(GPT2(replace(cfg, n_layer=16, residual_init='plain')), ids)
    assert plain[-1] / plain[0] > 4 * scaled[-1] / scaled[0]


def test_overfits_one_batch():
    torch.manual_seed(0); model = GPT2(cfg); opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward(); opt.step(); opt.zero_grad()
    assert loss.item() < 0.1


@settings(max_examples=20, deadline=None)
@given(at=st.integers(0, 19), token=st.integers(0, 96))
def test_no_logit_depends_on_a_later_token(at, token):
    model = scrambled(cfg); changed = ids.clone(); changed[:, at] = token
    with torch.inference_mode(): assert torch.equal(model(ids)[:, :at], model(changed)[:, :at])


def test_chunked_prefill_and_left_padding_equal_the_whole():
    model = scrambled(cfg)
    with torch.inference_mode():
        whole = model(ids)
        _, cache = model.prefill(ids[:, :7]); chunk = model(ids[:, 7:13], cache=cache)
        assert torch.allclose(chunk, whole[:, 7:13], atol=1e-5)
        padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], 1); keep = torch.arange(24) >= 4
        logits, cache = model.prefill(padded, pad=keep.expand(2, 24))
        assert torch.allclose(logits, whole[:, -1], atol=1e-5)


def test_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match='33.*32'): GPT2(cfg)(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize('field, value', [('d_model', 50), ('n_layer', 0), ('dropout', 1.), ('placement', 'both'), ('residual_init', 'x')])
def test_config_names_what_is_wrong(field, value):
    with pytest.raises(ValueError, match='n_head' if field == 'd_model' else field): replace(cfg, **{field: value})


def test_published_sizes_on_the_meta_device():
    counts = {'124M': 124_439_808, '355M': 354_823_168, '774M': 774_030_080, '1558M': 1_557_611_200}
    for name, c in sizes.items():
        with torch.device('meta'): assert sum(p.numel() for p in GPT2(c).parameters()) == counts[name]


@pytest.mark.parametrize('name', ['wikitext2', 'ptb'])
@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.sampled_from(["the", "city", "'s", ",", ".", "@-@", "@,@", "@.@", '"', "(", ")", "$", "12", "n't", "U.S.", "St.", "<unk>", "-", "'", "a-b", "1,5", "..."]), max_size=12))
def test_detokenizers_invert_any_line(name, words):
    d = detokenizers[name]
    for line in (' ' + ' '.join(words) + ' ', ' '.join(words), ''):
        assert d.retokenize(d.detokenize(line)) == line


@pytest.mark.skipif(not mirror, reason='PAPERS_MIRROR is not set')
@pytest.mark.parametrize('name, file', [('wikitext2', 'test.txt.gz'), ('ptb', 'ptb.valid.txt.gz')])
def test_detokenizers_invert_the_real_sets(name, file):
    d, lines = detokenizers[name], gzip.open(Path(mirror) / name / file, 'rt', encoding='utf-8').read().split('\n')
    out = [d.detokenize(line) for line in lines]
    assert [d.retokenize(line) for line in out] == lines
    assert sum(line.count(ESCAPE) for line in out) < 0.01 * sum(len(line.split()) for line in lines)


@pytest.mark.parametrize('fn, more, key', [
    (capacity_run, dict(n_word=100, n_passage=5), 'bpb_clean'), (capacity_run, dict(n_word=100, n_passage=5), 'loss_met'), (depth_run, {}, 'loss'),
    (token_run, dict(n_vocab=257, flops=1e9), 'bpb'), (demo_run, dict(share=0.5, n_context=1), 'choice')])
def test_every_variant_of_the_claims_runs_and_answers_in_json(fn, more, key):
    spec = runs['tiny']
    out = fn(seed=0, model=asdict(replace(spec.model, n_layer=1)), data=asdict(spec.data), train=asdict(replace(spec.train, n_step=2, n_warmup=0)), **more)
    assert math.isfinite(out[key]) and json.loads(json.dumps(out)) == out


def test_an_untied_head_is_refused(tmp_path):
    from safetensors.torch import save_file
    ours = scrambled(cfg); hf = ours.to_hf(); tensors = {k: v.contiguous().clone() for k, v in hf.state_dict().items()}
    (tmp_path / 'config.json').write_text(json.dumps(hf.config.to_dict()))
    save_file(tensors, tmp_path / 'model.safetensors')                       # present and equal: it loads
    assert parity(GPT2.from_hf(tmp_path), hf, ids) <= 1e-5
    for head in (tensors['lm_head.weight'] * 1.001, tensors['lm_head.weight'][:-1].clone()):
        save_file(tensors | {'lm_head.weight': head}, tmp_path / 'model.safetensors')
        with pytest.raises(ValueError, match='lm_head.weight is not wte.weight'): GPT2.from_hf(tmp_path)


def test_detokenisation_gain_of_a_uniform_model_is_counting_only():
    uniform = lambda n_tokens: dict(nats=n_tokens * math.log(50), ppl=50 ** (n_tokens / 10), n_words=10, n_tokens=n_tokens)
    g = detok_gain(uniform(40), uniform(30), 50)
    assert g['ln'] == pytest.approx(math.log(50)) and g['beyond'] == pytest.approx(0, abs=1e-9) and g['points'] > 1e6
    worse = uniform(30) | dict(nats=30 * math.log(50) + 5)                   # fewer tokens, each dearer: no gain beyond counting
    assert detok_gain(uniform(40), worse, 50)['beyond'] == pytest.approx(-0.5)


def test_trends_see_slope_monotony_and_curvature():
    x = np.log([1e5, 3e5, 9e5])
    t = trends(x, np.array([[3., 3.], [2., 2.], [1., 2.5]]))
    assert t['slope'][0] == pytest.approx(1 / math.log(3)) and t['curve'][0] == pytest.approx(0, abs=1e-9) and t['step'][0] == pytest.approx(1)
    assert t['step'][1] == pytest.approx(-0.5) and t['curve'][1] > 0.1       # falls, then rises
    assert trends(x[:2], np.zeros((2, 3)))['curve'] is None


@pytest.mark.parametrize('correct', [[1] * 10, [0] * 10])
def test_an_undefined_rank_correlation_is_none_not_zero(correct):
    assert rank_skill(correct, -np.arange(10.))['rho'] is None


def test_rank_skill_orders_by_confidence():
    correct, sure = np.arange(20) < 10, -np.arange(20.)
    best, worst = rank_skill(correct, sure), rank_skill(correct, -sure)
    assert best['rho'] > 0.8 and worst['rho'] == pytest.approx(-best['rho'])
    assert (best['top'], worst['top']) == (0.5, -0.5) and best['fifths'] == worst['fifths'][::-1] == [1, 1, 0.5, 0, 0]


def test_held_out_passages_do_overlap_with_the_training_text():
    passages, seen = clean_passages('books', n=10**6)
    assert len(passages) == len(seen) > 1000 and 20 <= seen.sum() < len(seen) / 2


def test_bits_a_byte_are_of_the_scored_part():
    corpus = lab_data.lm_corpus('books', n_vocab=1024); model = GPT2(replace(cfg, n_vocab=1024)); torch.nn.init.zeros_(model.tok_emb.weight)
    part = corpus.tokenizer.decode(corpus.valid[:500].tolist())
    assert held_out(model, corpus, 500)['bpb'] == pytest.approx(500 * 10 / len(part.encode()), rel=1e-4)
    assert len(part.encode()) != round(500 * corpus.valid.bytes_per_token)   # the split's average would have been another number
    assert count_bytes(corpus.tokenizer, [corpus.tokenizer.eot]) == 0


def test_the_gap_is_between_windows_read_and_windows_held_out(monkeypatch):
    corpus, calls = lab_data.lm_corpus('books', n_vocab=1024), []
    monkeypatch.setattr(gpt2, 'window_loss', lambda model, tokens, starts: calls.append((tokens, list(starts))) or float(len(calls)))
    out = generalisation(GPT2(replace(cfg, n_vocab=1024)), corpus, seed=3, n_trained=40, n=10)
    read = gpt2.TokenBatches(corpus.train, cfg.ctx_len, 1, seed=3)
    assert out == dict(loss_met=1., loss_new=2.) and calls[0][0] is corpus.train and calls[1][0] is corpus.valid
    assert set(calls[0][1]) <= {int(i) * cfg.ctx_len for i in read.order(0)[:40]} and len(calls[0][1]) == len(calls[1][1]) == 10


def test_shown_prefers_this_run_and_falls_back_to_a_published_one():
    row = Row('gpt2', 'claim', 'C1', ours=1., ci95=[0., 2.])
    assert shown([row], 'C1') == ([row], '')
    old, where = shown([], 'C1')
    assert where in ('cpu', 'gpu', 'paper') and old[0].ours in [r.ours for r in published('gpt2').rows if r.id == 'C1']
    assert shown([], 'no such row') == ([], '')
    sized = [Row('gpt2', 'table', f'C3{x}', ours=1., ci95=[1., 1.]) for x in ('', '.0.05', '.0.001')]
    assert [r.id for r in shown(sized, r'C3(\.0\.\d+)?')[0]] == ['C3.0.001', 'C3.0.05', 'C3']


def test_race_keeps_the_peers_seconds():
    row = race('S.x', 'less is faster', {'peer': lambda: time.sleep(0.02), 'ours': lambda: time.sleep(0.005)}, bound=1., n=5)
    assert row.baseline_name == 'peer, seconds' and 0.015 < row.baseline_value < 0.2 and row.ours > 1


@pytest.mark.parametrize('compiler, ids', [('/usr/bin/g++', ['S.train.memory', 'S.train.memory.compiled']), (None, ['S.train.memory'])])
def test_compiled_memory_is_measured_where_there_is_a_compiler(monkeypatch, compiler, ids):
    asked = []
    def fake(command, **kw):
        asked.append(command[-1]); peak = 2 if 'papers_lib\'' in command[-1] else 4
        return type('Done', (), dict(stdout=f'{peak * 2**20}.0\n'))
    monkeypatch.setattr(shutil, 'which', lambda name: compiler); monkeypatch.setattr(gpt2.subprocess, 'run', fake)
    rows = list(gpt2.bench_memory(n=3))
    assert [r.id for r in rows] == ids and all(r.ours == 0.5 and r.baseline_value == 4 and len(r.values) == 3 for r in rows)
    assert sum('compiled=True' in a for a in asked) == (8 if compiler else 0)    # three rounds and one before, both arms


def test_a_preset_whose_text_cannot_be_fetched_says_so():
    assert 'not in the registry' in plan('paper')['data'] and '8,013,769 documents' in plan('paper')['data']
    assert all(plan(p)['data'] == runs[p].data.name for p in ('tiny', 'cpu', 'gpu'))


@pytest.mark.parametrize('preset', ['tiny', 'cpu', 'gpu'])
def test_presets_draw_a_curve_and_rank_at_a_measured_share(preset):
    spec = runs[preset]
    assert 0 < spec.train.eval_every < spec.train.n_step
    assert not spec.claims.shares or 0 < spec.claims.share_rank < spec.claims.shares[-1] and spec.claims.share_rank in spec.claims.shares
