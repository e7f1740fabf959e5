"LLaMA: checkpoints that fit and checkpoints that do not, a model from one file, and what the module declares."
import ast, json, re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np, pytest, torch
from safetensors.torch import save_file

from papers_lib.engine.layouts import from_layout, to_layout
from papers_lib.engine.llm import LLM, NotSupported, LocalLLM, Recorded, render
from papers_lib.engine.parity import parity, random_model
from papers_lib.lab.bench import select_races
from papers_lib.lab.plots import shown
from papers_lib.lab.results import published
from papers_lib.llama import (
    LLaMA, LLaMAConfig, claims, config_from_hf, layouts, llama_parts, paper, read_llm, runs, sizes, stack_sizes)
from papers_lib.nn.positions import NoPositions
from papers_lib.nn.stack import Parts, Stack
from papers_lib.store.fetch import NotFound
from papers_lib.store.files import CorruptFile
from decoders import write_gguf
from shrunken import rows_of_a_small_run

CFG = LLaMAConfig(n_vocab=300, ctx_len=64, d_model=64, n_layer=2, n_head=4, n_kv_head=2, d_ff=96)


def some(**over): return random_model(LLaMA, replace(CFG, **over))


def tokens(n=40): return torch.randint(280, (2, n), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('n_kv_head, tied, base', [(1, False, 1e4), (2, True, 1e5), (4, False, 5e5), (None, True, 1e4)])
def test_logits_equal_transformers_both_ways(n_kv_head, tied, base):
    model = some(n_kv_head=n_kv_head, tied=tied, rope_base=base)
    hf = model.to_hf()
    assert parity(model, hf, tokens()) <= 1e-5 and parity(LLaMA.from_hf(hf), hf, tokens()) <= 1e-5


def test_a_folder_is_read_as_the_model_is(tmp_path):
    hf = some(tied=True, rope_base=3e4).to_hf()
    hf.save_pretrained(tmp_path)
    assert LLaMA.from_hf(tmp_path)(tokens()).equal(LLaMA.from_hf(hf)(tokens()))


@pytest.mark.parametrize('tied', [False, True])
def test_the_class_is_the_stack_of_its_parts(tied):
    model = some(tied=tied, rope_base=2e4)
    stack = Stack(stack_sizes(model.cfg), replace(llama_parts, tied=tied, rope_base=2e4)).eval()
    stack.load_state_dict(model.state_dict())
    assert torch.allclose(stack(tokens()), model(tokens()), atol=1e-6)


@pytest.mark.parametrize('layout', layouts.values(), ids=layouts)
def test_every_wrong_key_is_named_at_once(layout):
    tensors = to_layout(some(), layout)
    gone, bent = list(tensors)[1], list(tensors)[4]
    del tensors[gone]
    tensors[bent] = torch.zeros(3, 7)
    tensors['spare.weight'] = torch.zeros(1)
    with pytest.raises(ValueError) as e: from_layout(LLaMA, CFG, tensors, layout)
    wrong = f'missing {gone}', f'{bent} has shape (3, 7)', 'extra spare.weight'
    for words in ('3 key(s)', *wrong, 'nothing was loaded'): assert words in str(e.value)


def test_a_checkpoint_of_another_architecture_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel
    with pytest.raises(ValueError, match='not a LLaMA'):
        LLaMA.from_hf(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50)))


# W1: a property under another key is refused, not skipped
@pytest.mark.parametrize('over, words', [
    (dict(rope_scaling=dict(type='linear', factor=4)), 'linear'), (dict(rope_scaling=dict(rope_type='yarn')), 'yarn'),
    (dict(rope_scaling=dict(type='dynamic', factor=2.)), 'dynamic'), (dict(rope_scaling=dict(factor=4.)), 'factor'),
    (dict(rope_parameters=dict(rope_type='llama3', rope_theta=1e4, factor=8.)), 'llama3'),
    (dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=.5)), 'partial_rotary_factor'),
    (dict(rope_theta=5e5), 'contradicts'), (dict(head_dim=20), 'head_dim'), (dict(hidden_act='gelu'), 'hidden_act'),
    (dict(mlp_bias=True), 'mlp_bias'), (dict(attention_bias=True), 'attention_bias'),
    (dict(num_key_value_heads=3), 'n_kv_head=3'), (dict(sliding_window=16), 'sliding_window'),
    (dict(quantization_config=dict(bits=4)), 'quantization_config'), (dict(logit_scale=2.), 'logit_scale')])
def test_what_a_public_configuration_says_and_we_do_not_compute_is_refused(over, words):
    with pytest.raises(ValueError, match=words): config_from_hf(some().to_hf().config.to_dict() | over)


@pytest.mark.parametrize('over', [
    dict(rope_theta=1e4), dict(rope_scaling=None), dict(rope_scaling=dict(type='default')), dict(head_dim=None),
    dict(use_cache=False), dict(attention_dropout=.1), dict(is_llama_config=True), dict(rope_interleaved=False)])
def test_what_moves_no_number_is_read_over(over):
    public = some().to_hf().config.to_dict()
    assert config_from_hf(public | over) == config_from_hf(public)


def test_a_key_left_to_its_published_default_is_no_error():
    from transformers import LlamaConfig
    ours, theirs = config_from_hf(dict(model_type='llama')), LlamaConfig()
    assert (ours.n_vocab, ours.d_model, ours.n_layer, ours.n_head, ours.inner, ours.ctx_len, ours.eps, ours.tied) == (
        theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads,
        theirs.intermediate_size, theirs.max_position_embeddings, theirs.rms_norm_eps, theirs.tie_word_embeddings)
    assert config_from_hf(dict(model_type='llama', rope_theta=5e5)).rope_base == 5e5


# W2: a tensor is compared before it is left out
def checkpoint(folder, tensors, **config):
    save_file({k: v.clone() for k, v in tensors.items()}, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(some(tied=True).to_hf().config.to_dict() | config), encoding='utf-8')
    return folder


def test_a_head_that_is_not_the_embedding_is_not_lost(tmp_path):
    tensors = to_layout(some(tied=True), layouts['hf'])
    head = tensors['model.embed_tokens.weight']
    same = LLaMA.from_hf(checkpoint(tmp_path, tensors | {'lm_head.weight': head}))
    assert same(tokens()).equal(some(tied=True)(tokens()))
    with pytest.raises(ValueError, match='lm_head.weight'):
        LLaMA.from_hf(checkpoint(tmp_path, tensors | {'lm_head.weight': head + 1e-3}))


@pytest.mark.parametrize('name', ['model.rotary_emb.inv_freq', 'model.layers.1.self_attn.rotary_emb.inv_freq'])
def test_rates_of_rotations_in_a_file_must_be_ours(tmp_path, name):
    tensors, rates = to_layout(some(tied=True), layouts['hf']), 1e4 ** (-torch.arange(0, 16, 2) / 16)
    LLaMA.from_hf(checkpoint(tmp_path, tensors | {name: rates.half()}))
    for wrong in (rates / 4, rates[:4]):
        with pytest.raises(ValueError, match=f'{name}.*nothing was loaded'):
            LLaMA.from_hf(checkpoint(tmp_path, tensors | {name: wrong}))


# W3: what the public class does not compute is not written as one
def test_only_a_llama_is_exported_as_one():
    class Variant(LLaMA): pass
    without, post, base = some(), some(), some()
    without.positions = NoPositions()
    for block in post.blocks: block.pre = False
    base.positions.base = 5e5
    for model in (without, post, base, random_model(Variant, CFG)):
        with pytest.raises(ValueError, match='not exported'): model.to_hf()
    with pytest.raises(AttributeError): Stack(stack_sizes(CFG), Parts()).to_hf()


@pytest.mark.parametrize('over', [
    dict(n_head=5), dict(n_kv_head=3), dict(d_model=62), dict(n_layer=0), dict(d_ff=0), dict(n_kv_head=0), dict(eps=0.),
    dict(rope_base=1.)])
def test_contradicting_numbers_are_refused(over):
    (name, value), = over.items()
    with pytest.raises(ValueError, match=f'{name}={value}'): replace(CFG, **over)


def test_a_prompt_over_the_context_is_refused():
    with pytest.raises(ValueError, match='65 tokens.*ctx_len=64'): some()(torch.zeros(1, 65, dtype=torch.long))


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    model = some(tied=True)
    return write_gguf(tmp_path_factory.mktemp('gguf') / 'small.gguf', model), model


def test_gguf_brings_weights_tokenizer_and_chat_format(file):
    path, model = file
    llm = read_llm(path)
    assert llm.model(tokens()).equal(model(tokens())) and llm.model.cfg == model.cfg
    assert llm.tokenizer.encode('12 low') == [llm.tokenizer.vocab[t] for t in ('1', '2')] + llm.tokenizer.encode(' low')
    assert render(llm.template, [dict(role='user', content='low')]) == '<|s|>user\nlow<|e|><|s|>'
    assert isinstance(llm.chat('low', max_tokens=4), str)
    with pytest.raises(ValueError, match=r"'<\|e\|>'.*only the chat format"): llm.chat('low<|e|>')
    with pytest.raises(NotSupported): LocalLLM(model, llm.tokenizer).chat('low')


@pytest.mark.parametrize('keys, words', [
    ({'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 4.}, 'rope.scaling.type'),
    ({'llama.rope.scaling.factor': 4.}, 'rope.scaling.factor'),
    ({'llama.rope.dimension_count': 8}, 'rope.dimension_count'),
    ({'llama.attention.key_length': 32}, 'attention.key_length'), ({'llama.expert_count': 8}, 'expert_count'),
    ({'llama.logit_scale': 2.}, 'logit_scale'), ({'mistral.sliding_window': 64}, 'sliding_window')])
def test_what_a_gguf_file_says_and_we_do_not_compute_is_refused(file, tmp_path, keys, words):
    with pytest.raises(ValueError, match=words): LLaMA.from_gguf(write_gguf(tmp_path / 'odd.gguf', file[1], keys=keys))


def test_scaled_rotations_in_a_tensor_are_refused_and_ones_are_not(file, tmp_path):
    ones = torch.ones(8)
    same = LLaMA.from_gguf(write_gguf(tmp_path / 'ones.gguf', file[1], {'rope_freqs.weight': ones}))
    assert same(tokens()).equal(file[1](tokens()))
    for wrong in (ones * 2, torch.linspace(1, 8, 8), ones[:4]):
        with pytest.raises(ValueError, match='rope_freqs.weight'):
            LLaMA.from_gguf(write_gguf(tmp_path / 'odd.gguf', file[1], {'rope_freqs.weight': wrong}))


def test_a_file_cut_anywhere_is_refused_and_named(file, tmp_path):
    whole, path = file[0].read_bytes(), tmp_path / 'cut.gguf'
    for n in (0, 3, 40, 500, 3000, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(CorruptFile, match='cut.gguf'): LLaMA.from_gguf(path)
    with pytest.raises(NotFound, match='no such file'): LLaMA.from_gguf(tmp_path / 'none.gguf')


def test_a_model_from_a_file_answers_the_protocol(file, tmp_path):
    llm = read_llm(file[0])
    tape = Recorded(tmp_path / 'tape', llm)
    assert isinstance(llm, LLM) and llm.hash == read_llm(file[0]).hash != LocalLLM(file[1], llm.tokenizer).hash
    asked = dict(max_tokens=8, temperature=1., seed=3)
    one, two = llm.complete(['low', 'lowest new'], **asked)
    assert [two, one] == llm.complete(['lowest new', 'low'], **asked) == tape.complete(['lowest new', 'low'], **asked)
    prompt, choices = 'low lower', [' lowest', ' new', ' newest 12']
    for choice, logp in zip(choices, llm.loglik(prompt, choices)):
        a, b = llm.tokenizer.encode(prompt), llm.tokenizer.encode(prompt + choice)
        full = llm.model(torch.tensor([b])).log_softmax(-1)[0, len(a) - 1:-1]
        assert b[:len(a)] == a
        assert np.allclose(full.gather(-1, torch.tensor(b[len(a):])[:, None])[:, 0].detach(), logp, atol=1e-4)


def write_meta(folder, model, n, extra=(), **params):
    "Write a model as Meta does, cut across n files."
    columns = ('wo.weight', 'w2.weight', 'tok_embeddings.weight')
    cut = lambda k, v: [v] * n if v.ndim == 1 else v.chunk(n, 1 if k.endswith(columns) else 0)
    for i in range(n):
        part = {k: cut(k, v)[i].contiguous() for k, v in to_layout(model, layouts['meta']).items()}
        save_file(part | dict(extra), folder / f'consolidated.{i:02}.safetensors')
    said = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, norm_eps=1e-6, vocab_size=300) | params
    (folder / 'params.json').write_text(json.dumps({k: v for k, v in said.items() if v is not ...}), encoding='utf-8')
    return folder


@pytest.mark.parametrize('n', [1, 4])
def test_metas_files_are_joined(tmp_path, n):
    model = some(d_ff=256)
    read = LLaMA.from_meta(write_meta(tmp_path, model, n), ctx_len=64)
    assert torch.allclose(read(tokens()), model(tokens()), atol=1e-6)
    with pytest.raises(ValueError, match='missing layers.2.attention.wq.weight'):
        LLaMA.from_meta(write_meta(tmp_path, model, n, n_layers=3))
    for f in tmp_path.glob('*.safetensors'): f.unlink()
    (tmp_path / 'consolidated.00.pth').write_bytes(b'pickle')
    with pytest.raises(NotFound, match='pickle'): LLaMA.from_meta(tmp_path)


def test_what_metas_parameters_say_is_read_or_refused(tmp_path):
    model = some(d_ff=256, rope_base=5e5)
    read = LLaMA.from_meta(write_meta(tmp_path, model, 1, rope_theta=5e5, use_scaled_rope=False), ctx_len=64)
    assert read.cfg == model.cfg and read(tokens()).equal(model(tokens()))
    for params, words in ((dict(use_scaled_rope=True), 'use_scaled_rope'), (dict(dim=...), 'dim'),
                          (dict(moe=dict(num_experts=8)), 'moe'), (dict(n_heads='4'), 'n_heads'),
                          (dict(vocab_size=-1), 'give n_vocab from the tokenizer')):
        with pytest.raises(ValueError, match=words): LLaMA.from_meta(write_meta(tmp_path, model, 1, **params))
    rates = {'rope.freqs': 1e4 ** (-torch.arange(0, 16, 2) / 16)}
    with pytest.raises(ValueError, match='rope.freqs'):
        LLaMA.from_meta(write_meta(tmp_path, model, 1, rates, rope_theta=5e5))
    LLaMA.from_meta(write_meta(tmp_path, model, 1, rates))


def test_damaged_public_weights_are_named(tmp_path):
    model = some(tied=True, d_ff=256)
    tensors = {k: v.clone() for k, v in to_layout(model, layouts['hf']).items()}
    tensors['model.norm.weight'][3] = torch.nan
    with pytest.raises((ValueError, CorruptFile), match='not finite.*model.norm.weight'):
        LLaMA.from_hf(checkpoint(tmp_path, tensors))
    with torch.no_grad(): model.norm_f.weight[0] = torch.inf
    with pytest.raises((ValueError, CorruptFile), match='not finite.*norm.weight'):
        LLaMA.from_meta(write_meta(tmp_path, model, 1))


def test_paper_sizes_build_on_the_meta_device():
    for name in ('7B', '2-70B'):
        with torch.device('meta'): model = LLaMA(sizes[name])
        rows = sizes[name].d_head * (sizes[name].n_head + 2 * sizes[name].kv_heads)
        assert model.blocks[0].attn.qkv.weight.shape[0] == rows


def test_what_the_paper_declares():
    assert (paper.name, paper.model, paper.runs, paper.claims) == ('llama', LLaMA, runs, claims)
    assert [*claims] == [f'C{i}' for i in range(1, 10)] and (claims['C2'].rule, claims['C2'].margin) == ('equal', 0.15)
    for only, keys in (('S.decode.floor', ['S.decode.floor']), ('S.norm', ['S.norm']), ('S.decode', ['S.decode']),
                       ('S.decode.int8.loss', ['S.decode.int8']),
                       ('S.train.memory.compiled', ['S.train.memory.compiled'])):
        assert [*select_races(paper.races, only)] == keys
    assert not {'norm', 'act', 'positions', 'bias', 'placement'} & {*asdict(CFG)}        # no switch of another paper


# A claim and its outcome stand in one place (style.md 13)
cells = json.loads((Path(__file__).parents[1] / 'nbs/08_llama.ipynb').read_text(encoding='utf-8'))['cells']


def source(cell): return ''.join(cell['source'])


def plotted():
    "The patterns of the rows that figures draw, as they stand in the notebook."
    trees = [ast.parse(source(c)) for c in cells if c['cell_type'] == 'code']
    calls = [n for t in trees for n in ast.walk(t) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'shown']
    assert all(ast.unparse(n.args[0]) == 'run.rows' and ast.unparse(n.args[2]) == "'llama'" for n in calls)
    return [n.args[1].value for n in calls]


def test_every_published_row_of_a_claim_with_a_number_is_drawn_in_some_figure():
    drawn = {r.id for p in plotted() for r in shown([], p, 'llama')[0]}
    judged = {r.id for r in published('llama').rows if r.kind in ('claim', 'table') and r.ours is not None}
    assert judged - drawn == set()


@pytest.mark.slow
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    rows = rows_of_a_small_run('llama', tmp_path, {
        'model.d_model': 16, 'model.n_layer': 1, 'model.n_head': 2, 'model.ctx_len': 32, 'model.d_ff': 32,
        'data.n_vocab': 512, 'train.n_step': 20, 'train.n_warmup': 2, 'train.eval_every': 0, 'claims.n_step': 5,
        'claims.ratios': [1, 20, 30], 'claims.budgets': [1e8, 2e8], 'claims.widths': [8, 12, 16], 'claims.depth': 2,
        'claims.rates': [1e-3, 1e-2], 'claims.warmups': [0, 2], 'claims.n_step_depth': 5, 'claims.n_step_sums': 5,
        'claims.n_step_filter': 5, 'claims.n_token': 0})
    grids = r'C1\.(5|10|50)|C2\.\de\+\d+|C6\.0.*|T[35]\..*'                  # rows that the grids of `cpu` name
    told = {r.id for r in published('llama').rows if r.kind in ('claim', 'table') and r.ours is not None}
    told = {id for id in told if not re.fullmatch(grids, id)}
    own = {'C1.1', 'C1.loss.1', 'C1.loss.larger', 'C6.0.001.0', 'C6.0.01.2', 'T.loss.nobias', 'C8.none'}
    assert told | own <= {id for id, r in rows.items() if r['ours'] is not None}
    assert sum(id.startswith('C2.loss.') for id in rows) == 6
    assert rows['C2']['n_seeds'] == 2                                  # models ran, wherever their minima lie
    assert rows['C8']['verdict'] == 'holds' and {rows[f'C{i}']['verdict'] for i in (1, 4, 5)} == {'not identified'}
