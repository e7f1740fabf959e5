"Small random decoders, the same weights as `transformers` models, and as files."
import gguf
import torch
from hypothesis import strategies as st

from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.llama import layouts
from papers_lib.engine.layouts import to_layout
from papers_lib.text.tokenizers import train_fast_bpe, vocabulary


def tiny(
    seed=0,
    **fields,       # of GPT2Config
):
    "Draw a GPT-2 whose every parameter is random and whose distributions are far from uniform."
    torch.manual_seed(seed)
    sizes = dict(n_vocab=61, ctx_len=48, d_model=32, n_head=2, n_layer=2, dropout=.1)
    model = GPT2(GPT2Config(**sizes | fields)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn_like(p) * .2 if p.ndim > 1 else p + torch.randn_like(p) * .1)
    return model


def as_transformers(model):
    "Copy the weights; neither a begin nor an end token is set."
    theirs = model.to_hf()
    for name in ('bos_token_id', 'eos_token_id'): setattr(theirs.generation_config, name, None)
    return theirs


def broken(model, value=float('nan')):
    "Spoil one weight of a model; its logits are no numbers any more."
    with torch.no_grad(): model.blocks[-1].mlp.fc.weight[0, 0] = value
    return model


def moved_rows_say_what_they_say_alone(
    data,           # hypothesis's: draws the moves
    model,          # of sources and targets
    src, real,      # three sources, and what of them is no padding
    first,          # token that every text begins with
    atol,
):
    "Expand, move within and across sources, let appear and go; each row says what it says alone."
    _, cache = model.prefill(src, real)
    texts, owner = [[first] for _ in range(3)], [0, 1, 2]
    for step in range(3):
        if data.draw(st.booleans()):
            n = data.draw(st.integers(1, 3))
            cache = cache.expand(n)
            texts, owner = [t for t in texts for _ in range(n)], [o for o in owner for _ in range(n)]
        rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6))
        cache.reorder(torch.tensor(rows))
        texts, owner = [[*texts[r], 3 + step] for r in rows], [owner[r] for r in rows]
        logits, cache = model.step(torch.full((len(rows), 1), 3 + step), cache)
        for said, text, o in zip(logits, texts, owner):
            alone = model(src[o:o + 1], torch.tensor([text]), src_mask=real[o:o + 1])[0, -1]
            torch.testing.assert_close(said, alone, atol=atol, rtol=0)
    assert cache.length == 4


TEMPLATE = ("{% for m in messages %}<|s|>{{ m['role'] }}\n{{ m['content'] }}<|e|>{% endfor %}"
            "{% if add_generation_prompt %}<|s|>{% endif %}")


def write_gguf(path, model, tensors=(), keys=()):
    "Write a small LLaMA with a tokenizer and a chat format as a GGUF file."
    tok = train_fast_bpe(['low lower lowest 1984 new newer newest'] * 9, 280)
    names = {'<|s|>': 280, '<|e|>': 281}
    pieces = sorted(vocabulary(tok.merges), key=vocabulary(tok.merges).get) + list(names)
    pieces += [f'unused{i}' for i in range(300 - len(pieces))]
    w, c = gguf.GGUFWriter(path, 'llama'), model.cfg
    for add, value in ((w.add_context_length, c.ctx_len), (w.add_embedding_length, c.d_model),
                       (w.add_block_count, c.n_layer), (w.add_feed_forward_length, c.inner),
                       (w.add_head_count, c.n_head), (w.add_head_count_kv, c.kv_heads),
                       (w.add_layer_norm_rms_eps, c.eps),
                       (w.add_rope_freq_base, c.rope_base), (w.add_vocab_size, c.n_vocab),
                       (w.add_tokenizer_model, 'gpt2'), (w.add_tokenizer_pre, 'smollm'), (w.add_token_list, pieces),
                       (w.add_token_types, [3 if t in names else 1 for t in pieces]),
                       (w.add_token_merges, [' '.join(m) for m in tok.merges]), (w.add_chat_template, TEMPLATE)):
        add(value)
    kinds = {str: w.add_string, float: w.add_float32, int: w.add_uint32}
    for key, value in dict(keys).items(): kinds[type(value)](key, value)
    for name, p in (to_layout(model, layouts['gguf']) | dict(tensors)).items(): w.add_tensor(name, p.numpy())
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return path
