"GPT-2: what a cell cannot say. Properties, parity with transformers, faults."
import json, math
from dataclasses import replace

import pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from papers_lib.engine.parity import parity, random_model
from papers_lib.gpt2 import GPT2, GPT2Config, continue_text, paper, race_scoring, runs, sizes
from papers_lib.lab.presets import plan
from papers_lib.lab.results import published
from papers_lib.nn.stack import Parts, Sizes, Stack
from shrunken import rows_of_a_small_run

cfg = GPT2Config(n_vocab=97, ctx_len=32, d_model=48, n_layer=3, n_head=4)
ids = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))


def write_public(folder, hf, tensors=None, **config):
    "Write a checkpoint in the public layout, some keys of its configuration changed; None leaves a key out."
    fields = {k: v for k, v in (hf.config.to_dict() | config).items() if v is not None or k not in config}
    (folder / 'config.json').write_text(json.dumps(fields), encoding='utf-8')
    tensors = hf.state_dict() if tensors is None else tensors
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / 'model.safetensors')
    return folder


def test_parity_both_ways_every_parameter_random():
    ours = random_model(GPT2, cfg)
    assert parity(ours, ours.to_hf(), ids) <= 1e-5
    assert parity(GPT2.from_hf(ours.to_hf()), ours.to_hf(), ids) <= 1e-5


def test_parity_would_see_a_missing_transpose():
    ours = random_model(GPT2, cfg)
    hf = ours.to_hf()
    square = hf.transformer.h[1].attn.c_proj.weight
    with torch.no_grad(): square.copy_(square.T.clone())
    assert parity(ours, hf, ids) > 1e-3


def test_exact_gelu_would_be_seen():
    ours = random_model(GPT2, cfg)
    hf = ours.to_hf()
    for block in ours.blocks: block.mlp.act = lambda x: F.gelu(x)
    assert parity(ours, hf, ids) > 1e-5


@pytest.mark.parametrize('prefix', ['', 'transformer.'])
def test_from_folder_with_and_without_prefix(tmp_path, prefix):
    hf = random_model(GPT2, cfg).to_hf()
    named = hf.state_dict().items()
    body = {k.removeprefix('transformer.'): v for k, v in named if k.startswith('transformer.')}
    tensors = {prefix + k: v for k, v in body.items()}
    tensors[f'{prefix}h.0.attn.bias'] = torch.ones(1, 1, 32, 32)
    assert parity(GPT2.from_hf(write_public(tmp_path, hf, tensors)), hf, ids) <= 1e-5


@pytest.mark.parametrize('key, value', [
    ('activation_function', 'gelu'), ('scale_attn_by_inverse_layer_idx', True), ('scale_attn_weights', False),
    ('n_inner', 100), ('add_cross_attention', True), ('rope_scaling', {'type': 'linear'}), ('window', 128)])
def test_a_configuration_that_asks_for_another_model_is_refused_by_name(tmp_path, key, value):
    hf = random_model(GPT2, cfg).to_hf()
    with pytest.raises(ValueError, match=key): GPT2.from_hf(write_public(tmp_path, hf, **{key: value}))


@pytest.mark.parametrize('key', ['layer_norm_epsilon', 'activation_function', 'n_inner', 'scale_attn_weights'])
def test_a_key_left_out_has_its_published_value(tmp_path, key):
    hf = random_model(GPT2, cfg).to_hf()
    assert parity(GPT2.from_hf(write_public(tmp_path, hf, **{key: None})), hf, ids) <= 1e-5


def test_an_inner_width_that_is_spelled_out_is_the_same_model(tmp_path):
    hf = random_model(GPT2, cfg).to_hf()
    assert parity(GPT2.from_hf(write_public(tmp_path, hf, n_inner=4 * cfg.d_model)), hf, ids) <= 1e-5


def test_every_wrong_key_is_named_at_once():
    hf = random_model(GPT2, cfg).to_hf()
    state = dict(hf.state_dict())
    del state['transformer.h.0.ln_1.weight']
    state['transformer.h.2.mlp.c_fc.bias'] = torch.zeros(3)
    state['transformer.h.7.new'] = torch.zeros(1)
    hf.state_dict = lambda: state
    with pytest.raises(ValueError) as e: GPT2.from_hf(hf)
    for name in ('h.7.new', 'norm1.weight', 'fc.bias'): assert name in str(e.value)


def test_an_untied_head_is_refused(tmp_path):
    hf = random_model(GPT2, cfg).to_hf()
    tensors = hf.state_dict()                                                # present and equal: it loads
    assert parity(GPT2.from_hf(write_public(tmp_path, hf)), hf, ids) <= 1e-5
    for head in (tensors['lm_head.weight'] * 1.001, tensors['lm_head.weight'][:-1].clone()):
        folder = write_public(tmp_path, hf, tensors | {'lm_head.weight': head})
        with pytest.raises(ValueError, match='lm_head.weight is not wte.weight'): GPT2.from_hf(folder)


def test_what_the_public_class_does_not_compute_is_not_exported():
    class Other(GPT2): "GPT-2 in all but name."
    banded, exact = random_model(GPT2, cfg), random_model(GPT2, cfg)
    banded.windows = (None, 4, None)
    exact.blocks[1].norm1.eps = 1e-2
    for model, what in ((random_model(Other, cfg), 'Other is not GPT2'), (banded, 'windows'), (exact, 'norm1.eps')):
        with pytest.raises(ValueError, match=what): model.to_hf()
    with pytest.raises(ValueError, match='Other is not GPT2'): Other.from_hf(random_model(GPT2, cfg).to_hf())


def test_head_is_tied_not_copied():
    model = GPT2(cfg)
    model(ids).sum().backward()
    assert not any('head' in name or 'output' in name for name, _ in model.named_parameters())
    before = model(ids)[0, 0, 5].item()
    with torch.no_grad(): model.tok_emb.weight[5] += 1.
    assert model(ids)[0, 0, 5].item() != before


def test_weights_are_drawn_as_the_report_says():
    torch.manual_seed(0)
    model = GPT2(replace(cfg, n_vocab=2000, ctx_len=400, d_model=192, n_layer=8))
    for name, p in model.named_parameters():
        if name.endswith('bias'): assert not p.any(), name
        elif p.dim() == 1: assert (p == 1).all(), name
        else:
            std = 0.01 if name == 'positions.weight' else 0.02
            if name.endswith(('attn.out.weight', 'mlp.proj.weight')): std /= math.sqrt(16)    # two layers a block
            assert p.std().item() == pytest.approx(std, rel=0.03), name


def test_a_stack_of_gpt2s_parts_starts_with_the_same_spread():
    big = dict(n_vocab=2000, ctx_len=400, d_model=192, n_layer=8, n_head=4)
    torch.manual_seed(0)
    ours, stack = GPT2(GPT2Config(**big)).state_dict(), Stack(Sizes(**big), Parts()).state_dict()
    assert ours.keys() == stack.keys()
    for name, p in ours.items(): assert p.std().item() == pytest.approx(stack[name].std().item(), rel=0.05), name


def test_overfits_one_batch():
    torch.manual_seed(0)
    model = GPT2(cfg)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        opt.step()
        opt.zero_grad()
    assert loss.item() < 0.1


@settings(max_examples=20)
@given(at=st.integers(0, 19), token=st.integers(0, 96))
def test_no_logit_depends_on_a_later_token(at, token):
    model, changed = random_model(GPT2, cfg), ids.clone()
    changed[:, at] = token
    with torch.inference_mode(): assert torch.equal(model(ids)[:, :at], model(changed)[:, :at])


def test_chunked_prefill_and_left_padding_equal_the_whole():
    model = random_model(GPT2, cfg)
    with torch.inference_mode():
        whole = model(ids)
        _, cache = model.prefill(ids[:, :7])
        assert torch.allclose(model(ids[:, 7:13], cache=cache), whole[:, 7:13], atol=1e-5)
        padded, real = torch.cat([torch.zeros(2, 4, dtype=torch.long), ids], 1), torch.arange(24) >= 4
        logits, cache = model.prefill(padded, pad=real.expand(2, 24))
        assert torch.allclose(logits, whole[:, -1], atol=1e-5)


def test_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match='33.*32'): GPT2(cfg)(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize('field, value, named', [
    ('d_model', 50, 'n_head'), ('n_layer', 0, 'n_layer'), ('dropout', 1., 'dropout'), ('eps', 0., 'eps'),
    ('n_vocab', -1, 'n_vocab')])
def test_config_names_what_is_wrong(field, value, named):
    with pytest.raises(ValueError, match=f'GPT2Config.{named}='): replace(cfg, **{field: value})


def test_published_sizes_on_the_meta_device():
    counts = {'124M': 124_439_808, '355M': 354_823_168, '774M': 774_030_080, '1558M': 1_557_611_200}
    for name, c in sizes.items():
        with torch.device('meta'): assert sum(p.numel() for p in GPT2(c).parameters()) == counts[name]


class Letters:
    "A tokenizer of lower-case letters; 0 ends a text."
    eot = 0
    def encode(self, text): return [1 + ord(c) % 96 for c in text]
    def decode(self, tokens): return ''.join(chr(96 + t - 1) for t in tokens)


@pytest.mark.parametrize('length', [0, 5, 500])
def test_a_prompt_of_any_length_is_continued_within_the_context(length):
    written = continue_text(random_model(GPT2, cfg), Letters(), 'a' * length, max_tokens=100)
    assert len(written) <= cfg.ctx_len // 2


@pytest.mark.parametrize('every, id', [(True, 'S.score'), (False, 'S.score.lean')])
def test_scoring_race_gives_its_row(every, id):
    row, = race_scoring(0, every=every, n_title=8, n_prompt=16)
    assert (row.id, row.paper, row.n, row.bound) == (id, 'gpt2', 7, 31. if every else 18.) and row.ours > 0


def test_a_preset_whose_text_cannot_be_fetched_says_so():
    assert 'not among those of `papers data`' in plan(paper, runs['paper'])['data']
    assert all(plan(paper, runs[p])['data'] == runs[p].data.name for p in ('tiny', 'cpu', 'gpu'))


@pytest.mark.parametrize('preset', ['tiny', 'cpu', 'gpu'])
def test_presets_draw_a_curve_and_rank_at_a_measured_share(preset):
    spec = runs[preset]
    assert 0 < spec.train.eval_every < spec.train.n_step
    if spec.claims.shares:
        assert 0 < spec.claims.share_rank < spec.claims.shares[-1] and spec.claims.share_rank in spec.claims.shares


def test_a_line_separator_in_a_passage_ends_no_line(tmp_path, monkeypatch):
    from types import SimpleNamespace
    from papers_lib import gpt2
    texts = ['one\u2028two', 'a\x85b', 'three']
    lines = ''.join(json.dumps(dict(text=t), ensure_ascii=False) + '\n' for t in texts)
    (tmp_path / 'test.jsonl').write_text(lines, encoding='utf-8')
    monkeypatch.setattr(gpt2.lab_data, 'get', lambda name: SimpleNamespace(path=lambda file: tmp_path / file))
    assert gpt2.lambada_passages() == texts and gpt2.lambada_passages(2) == texts[:2]


@pytest.mark.slow
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    rows = rows_of_a_small_run('gpt2', tmp_path, {
        'model.d_model': 32, 'model.n_layer': 2, 'model.n_head': 2, 'model.ctx_len': 64, 'data.n_vocab': 1024,
        'train.n_step': 20, 'train.n_warmup': 2, 'train.eval_every': 0, 'claims.widths': [16, 32],
        'claims.depths': [1, 2], 'claims.shares': [0., 0.03], 'claims.n_step': 10, 'claims.n_step_depth': 5,
        'claims.n_step_demo': 5, 'claims.n_word': 200, 'claims.n_context': 1, 'claims.n_passage': 10})
    told = {r.id for r in published('gpt2').rows if r.kind in ('claim', 'table') and r.ours is not None}
    own_grid, needs_data = ('C3.', 'C4.plain', 'C4.post'), ('C1', 'C6', 'T')
    always = {id for id in told if not id.startswith((*own_grid, *needs_data)) and id != 'C8'}     # C8: 3 seeds or more
    assert always <= {id for id, r in rows.items() if r['ours'] is not None}
    for id in ('P.to_hf', 'P.from_hf', 'C5.roundtrip'): assert rows[id]['verdict'] == 'holds'
    assert rows['C4.variance']['ours'] > 0 and rows['C8']['why']
