"A small random decoder made of the shared parts, and the same weights as a `transformers` model."
from dataclasses import dataclass

import torch
from torch import nn

from papers_lib.nn.blocks import Block, Decoder
from papers_lib.nn.norms import LayerNorm
from papers_lib.nn.positions import LearnedPositions


@dataclass(frozen=True)
class Config:
    n_vocab:int = 61
    ctx_len:int = 48
    d_model:int = 32
    n_head:int = 2
    n_layer:int = 2


class Tiny(Decoder):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.tok_emb, self.pos_emb = nn.Embedding(cfg.n_vocab, cfg.d_model), LearnedPositions(cfg.ctx_len, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg.d_model, cfg.n_head, 4 * cfg.d_model, dropout=.1) for _ in range(cfg.n_layer))
        self.norm_f = LayerNorm(cfg.d_model)

    @property
    def head_weight(self): return self.tok_emb.weight

    def embed(self, ids, positions): return self.tok_emb(ids) + self.pos_emb(positions)


def tiny(seed=0, **fields):
    torch.manual_seed(seed)
    model = Tiny(Config(**fields)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn_like(p) * .2 if p.ndim > 1 else p + torch.randn_like(p) * .1)
    return model


def as_transformers(model):
    "Copy the weights into GPT2LMHeadModel, whose Conv1D holds them transposed."
    from transformers import GPT2Config, GPT2LMHeadModel
    c = model.cfg
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=c.n_vocab, n_positions=c.ctx_len, n_embd=c.d_model, n_layer=c.n_layer, n_head=c.n_head,
                                        bos_token_id=None, eos_token_id=None, pad_token_id=0)).eval()
    names = {'blocks': 'h', 'norm1': 'ln_1', 'norm2': 'ln_2', 'norm_f': 'ln_f', 'qkv': 'c_attn', 'out': 'c_proj', 'fc': 'c_fc', 'proj': 'c_proj', 'tok_emb': 'wte'}
    theirs_by_name = dict(theirs.transformer.named_parameters())
    with torch.no_grad():
        theirs.transformer.wpe.weight.copy_(model.pos_emb.weight)
        for name, p in model.named_parameters():
            if name.startswith('pos_emb'): continue
            key = '.'.join(names.get(part, part) for part in name.split('.'))
            theirs_by_name[key].copy_(p.t() if p.ndim == 2 and key.startswith('h.') else p)
    return theirs
