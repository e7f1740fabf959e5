"Parity: what may be exported, and what a comparison must notice."
from types import SimpleNamespace

import pytest, torch
from torch import nn

from papers_lib.engine.parity import check_exportable, pair_of, parity, random_model
from papers_lib.nn.stack import Sizes, Stack

SIZES = Sizes(n_vocab=31, ctx_len=8, d_model=16, n_layer=2, n_head=2, dropout=0.1)


class Public(Stack):
    "The same weights, answering as the public classes do."
    def forward(self, ids): return SimpleNamespace(logits=super().forward(ids))


class Ours(Stack):
    "A paper's model: one configuration, exported to `Public`."
    def __init__(self, cfg): super().__init__(cfg)

    def to_hf(self):
        check_exportable(self, Ours)
        theirs = Public(self.cfg)
        theirs.load_state_dict(self.state_dict())
        return theirs.eval()


class Banded(Ours):
    "What GPT-3 is to GPT-2: the same parameters, other logits."
    windows = (2, None)


def narrowed(model): model.windows = (2, 2)
def louder(model): model.blocks[1].norm2.eps = 0.5
def other_function(model): model.blocks[0].mlp.act = torch.tanh
def no_norm(model): model.norm_f = nn.Identity()
def wider(model): model.output = nn.Linear(16, 31, bias=False)
def bigger_table(model): model.tok_emb = nn.Embedding(40, 16)
def undropped(model): model.drop.p = 0.5


def test_what_a_class_builds_is_exported():
    for seed in (0, 1):
        ours, theirs = pair_of(Ours, SIZES, seed)
        assert not ours.training and not theirs.training
        assert parity(ours, theirs, torch.arange(8)[None]) == 0.
    trained = random_model(Ours, SIZES).train()                       # neither weights nor mode are settings
    trained.notes = dict(source='here')
    assert parity(trained, trained.to_hf(), torch.arange(8)[None]) <= 1e-6


def test_a_subclass_is_never_exported():
    with pytest.raises(ValueError, match='Banded is not Ours'): Banded(SIZES).to_hf()


@pytest.mark.parametrize('change', [narrowed, louder, other_function, no_norm, wider, bigger_table, undropped])
def test_a_model_that_was_changed_after_it_was_built_is_not_exported(change):
    model = Ours(SIZES)
    change(model)
    with pytest.raises(ValueError, match='not exported'): model.to_hf()


def test_random_models_are_random_in_every_parameter_and_by_seed_only():
    a, b, c = (random_model(Ours, SIZES, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) and not torch.equal(a[k], c[k]) and a[k].std() > 0 for k in a)


@pytest.mark.parametrize('key', [k for k, _ in Ours(SIZES).named_parameters()])
def test_every_parameter_moves_the_logits(key):
    ours = random_model(Ours, SIZES)
    theirs = ours.to_hf()
    with torch.no_grad(): dict(theirs.named_parameters())[key] *= 1.5
    moved = parity(ours, theirs, torch.arange(8)[None])
    # a softmax does not see what all keys have in common
    assert moved > (0 if key.endswith('attn.qkv.bias') else 1e-5)


def test_two_broken_models_are_not_equal():
    ours, theirs = pair_of(Ours, SIZES)
    with torch.no_grad(): ours.tok_emb.weight[0] = theirs.tok_emb.weight[0] = float('nan')
    with pytest.raises(ValueError, match='not a number'): parity(ours, theirs, torch.arange(8)[None])
