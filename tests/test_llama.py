"LLaMA: checkpoints that fit and checkpoints that do not, and the model behind the protocol."
import json
from dataclasses import replace

import gguf, numpy as np, pytest, torch
from safetensors.torch import save_file

from papers_lib.engine.llm import LLM, NotSupported, Recorded
from papers_lib.gpt2 import parity
from papers_lib.lab.data import NotFound
from papers_lib.llama import LLaMA, LLaMAConfig, LocalLLM, assemble, config_from_hf, dissemble, gguf_tokenizer, render, scrambled, sizes, twin, twins
from papers_lib.text.corpora import CorruptFile
from papers_lib.text.tokenizers import FastBPE, byte_alphabet, train_fast_bpe, vocabulary

CFG = LLaMAConfig(n_vocab=300, ctx_len=64, d_model=64, n_layer=2, n_head=4, n_kv_head=2, d_ff=96)


@pytest.mark.parametrize('n_kv_head, tied, base', [(1, False, 1e4), (2, True, 1e5), (4, False, 5e5), (None, True, 1e4)])
def test_logits_equal_transformers_both_ways(n_kv_head, tied, base):
    model = scrambled(replace(CFG, n_kv_head=n_kv_head, tied=tied, rope_base=base)); ids = torch.randint(300, (2, 40))
    hf = model.to_hf()
    assert parity(model, hf, ids) <= 1e-5 and parity(LLaMA.from_hf(hf), hf, ids) <= 1e-5


@pytest.mark.parametrize('layout', ['meta', 'hf', 'gguf'])
def test_every_wrong_key_is_named_at_once(layout):
    tensors = dissemble(scrambled(CFG), layout)
    gone, bent = list(tensors)[1], list(tensors)[4]
    del tensors[gone]; tensors[bent] = torch.zeros(3, 7); tensors['spare.weight'] = torch.zeros(1)
    with pytest.raises(ValueError) as e: assemble(CFG, tensors, layout)
    for words in ('3 key(s)', f'missing {gone}', f'{bent} has shape (3, 7)', 'extra spare.weight', 'nothing was loaded'): assert words in str(e.value)


def test_a_checkpoint_of_another_architecture_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel
    with pytest.raises(ValueError, match='not a LLaMA'): LLaMA.from_hf(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50)))
    public = scrambled(CFG).to_hf().config.to_dict()
    for over, words in ((dict(head_dim=20), 'contradicts'), (dict(hidden_act='gelu'), 'hidden_act'), (dict(mlp_bias=True), 'mlp_bias'),
                        (dict(num_key_value_heads=3), 'n_kv_head=3'), (dict(rope_scaling=dict(rope_type='yarn')), 'yarn')):
        with pytest.raises(ValueError, match=words): config_from_hf(public | over)


def test_twins_have_equal_parameters_and_only_their_change():
    base = twin('gpt2', CFG)
    for arm, change in twins.items():
        assert {k: getattr(twin(arm, CFG), k) for k in change} == change
        others = {k for k in ('norm', 'act', 'positions', 'bias', 'placement', 'tied') if k not in change}
        assert all(getattr(twin(arm, CFG), k) == getattr(base, k) for k in others)


def test_contradicting_numbers_are_refused():
    for over, words in ((dict(n_head=5), 'n_head=5'), (dict(n_kv_head=3), 'n_kv_head=3'), (dict(d_model=62), 'd_model=62'), (dict(positions='alibi'), 'alibi'), (dict(n_layer=0), 'n_layer=0')):
        with pytest.raises(ValueError, match=words): replace(CFG, **over)


def test_a_prompt_over_the_context_is_refused():
    with pytest.raises(ValueError, match='65 tokens.*ctx_len=64'): scrambled(CFG)(torch.zeros(1, 65, dtype=torch.long))


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    "A small LLaMA with a tokenizer and a chat format, as a GGUF file; and the model."
    tok = train_fast_bpe(['low lower lowest 1984 new newer newest'] * 9, 280)
    names = {'<|s|>': 280, '<|e|>': 281}
    tokens = sorted(vocabulary(tok.merges), key=vocabulary(tok.merges).get) + list(names)
    tokens += [f'unused{i}' for i in range(300 - len(tokens))]
    model, path = scrambled(replace(CFG, tied=True)), tmp_path_factory.mktemp('gguf') / 'small.gguf'
    w, c = gguf.GGUFWriter(path, 'llama'), model.cfg
    w.add_context_length(c.ctx_len); w.add_embedding_length(c.d_model); w.add_block_count(c.n_layer); w.add_feed_forward_length(c.inner)
    w.add_head_count(c.n_head); w.add_head_count_kv(c.kv_heads); w.add_layer_norm_rms_eps(c.eps); w.add_rope_freq_base(c.rope_base); w.add_vocab_size(c.n_vocab)
    w.add_tokenizer_model('gpt2'); w.add_tokenizer_pre('smollm'); w.add_token_list(tokens); w.add_token_types([3 if t in names else 1 for t in tokens])
    w.add_token_merges([' '.join(m) for m in tok.merges])
    w.add_chat_template("{% for m in messages %}<|s|>{{ m['role'] }}\n{{ m['content'] }}<|e|>{% endfor %}{% if add_generation_prompt %}<|s|>{% endif %}")
    for name, p in dissemble(model, 'gguf').items(): w.add_tensor(name, p.numpy())
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return path, model


def test_gguf_brings_weights_tokenizer_and_chat_format(file):
    path, model = file
    llm, ids = LocalLLM.from_gguf(path), torch.randint(280, (1, 30))
    assert llm.model(ids).equal(model(ids)) and llm.model.cfg == model.cfg
    assert llm.tokenizer.encode('12 low') == [llm.tokenizer.vocab[t] for t in ('1', '2')] + llm.tokenizer.encode(' low')
    assert render(llm.template, [dict(role='user', content='low')]) == '<|s|>user\nlow<|e|><|s|>'
    assert isinstance(llm.chat('low', max_tokens=4), str)
    with pytest.raises(ValueError, match=r"'<\|e\|>'.*only the chat format"): llm.chat('low<|e|>')
    with pytest.raises(NotSupported): LocalLLM(model, llm.tokenizer).chat('low')


def test_a_file_cut_anywhere_is_refused_and_named(file, tmp_path):
    whole = file[0].read_bytes(); path = tmp_path / 'cut.gguf'
    for n in (0, 3, 40, 500, 3000, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(CorruptFile, match='cut.gguf'): LLaMA.from_gguf(path)
    path.write_bytes(b'not a model' * 100)
    with pytest.raises(CorruptFile, match='cut.gguf'): LLaMA.from_gguf(path)
    with pytest.raises(NotFound, match='no such file'): LLaMA.from_gguf(tmp_path / 'none.gguf')


def test_another_kind_of_tokenizer_is_refused():
    meta = {'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.tokens': [], 'tokenizer.ggml.token_type': [], 'tokenizer.ggml.merges': []}
    with pytest.raises(ValueError, match="model='llama'"): gguf_tokenizer(meta)
    vocab = vocabulary([])
    with pytest.raises(ValueError, match='do not belong together'): LocalLLM(scrambled(replace(CFG, n_vocab=100)), FastBPE(vocab, []))
    assert len(vocab) == len(byte_alphabet()) + 1


def test_local_llm_answers_the_protocol(file, tmp_path):
    llm = LocalLLM.from_gguf(file[0]); tape = Recorded(tmp_path / 'tape', llm)
    assert isinstance(llm, LLM) and llm.hash == LocalLLM.from_gguf(file[0]).hash != LocalLLM(file[1], llm.tokenizer).hash
    one, two = llm.complete(['low', 'lowest new'], max_tokens=8, temperature=1., seed=3)
    assert [two, one] == llm.complete(['lowest new', 'low'], max_tokens=8, temperature=1., seed=3) == tape.complete(['lowest new', 'low'], max_tokens=8, temperature=1., seed=3)
    greedy, = llm.complete(['low'], max_tokens=12)
    if len(greedy) > 2: assert llm.complete(['low'], max_tokens=12, stop=[greedy[1:3]]) == [greedy[:greedy.find(greedy[1:3])]]
    prompt, choices = 'low lower', [' lowest', ' new', ' newest 12']
    for choice, logp in zip(choices, llm.loglik(prompt, choices)):
        a, b = llm.tokenizer.encode(prompt), llm.tokenizer.encode(prompt + choice)
        assert b[:len(a)] == a and len(logp) == len(b) - len(a)
        full = llm.model(torch.tensor([b])).log_softmax(-1)[0, len(a) - 1:-1].gather(-1, torch.tensor(b[len(a):])[:, None])[:, 0]
        assert np.allclose(full.detach(), logp, atol=1e-4)


def test_metas_files_are_joined(tmp_path):
    model = scrambled(replace(CFG, d_ff=256)); tensors = dissemble(model, 'meta')
    columns = ('wo.weight', 'w2.weight', 'tok_embeddings.weight')
    for i in range(4):
        part = {k: v if v.ndim == 1 else v.chunk(4, 1 if k.endswith(columns) else 0)[i].contiguous() for k, v in tensors.items()}
        save_file(part, tmp_path / f'consolidated.{i:02}.safetensors')
    (tmp_path / 'params.json').write_text(json.dumps(dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, norm_eps=1e-6, vocab_size=300)))
    ids = torch.randint(300, (1, 20))
    assert torch.allclose(LLaMA.from_meta(tmp_path, ctx_len=64)(ids), model(ids), atol=1e-6)
    (tmp_path / 'params.json').write_text(json.dumps(dict(dim=64, n_layers=3, n_heads=4, n_kv_heads=2, vocab_size=300)))
    with pytest.raises(ValueError, match='missing layers.2.attention.wq.weight'): LLaMA.from_meta(tmp_path)
    for f in tmp_path.glob('*.safetensors'): f.unlink()
    (tmp_path / 'consolidated.00.pth').write_bytes(b'pickle')
    with pytest.raises(NotFound, match='pickle'): LLaMA.from_meta(tmp_path)


def test_paper_sizes_build_on_the_meta_device():
    for name in ('7B', '2-70B'):
        with torch.device('meta'): model = LLaMA(sizes[name])
        assert model.blocks[0].attn.qkv.weight.shape[0] == sizes[name].d_head * (sizes[name].n_head + 2 * sizes[name].kv_heads)
