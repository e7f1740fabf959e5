"Small random decoders, and the same weights as `transformers` models."
import torch
from hypothesis import strategies as st

from papers_lib.gpt2 import GPT2, GPT2Config


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
