"GPT-2: what a cell cannot say. Properties, parity with transformers, faults."
import gzip, json, math, os
from dataclasses import asdict, replace
from pathlib import Path

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from papers_lib.gpt2 import (ESCAPE, GPT2, GPT2Config, capacity_run, demo_run, depth_run, detokenizers, parity, residual_variance, runs, scrambled,
                             sizes, token_run)

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
    (capacity_run, dict(n_word=100, n_passage=5), 'bpb_clean'), (depth_run, {}, 'loss'),
    (token_run, dict(n_vocab=257, flops=1e9), 'bpb'), (demo_run, dict(share=0.5, n_context=1), 'choice')])
def test_every_variant_of_the_claims_runs_and_answers_in_json(fn, more, key):
    spec = runs['tiny']
    out = fn(seed=0, model=asdict(replace(spec.model, n_layer=1)), data=asdict(spec.data), train=asdict(replace(spec.train, n_step=2, n_warmup=0)), **more)
    assert math.isfinite(out[key]) and json.loads(json.dumps(out)) == out
