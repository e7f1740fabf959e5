"Small random decoders, and the same weights as `transformers` models."
import torch

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
