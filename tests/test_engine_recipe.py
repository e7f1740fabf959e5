"Recipes: what a seed fixes, and how long a model is trained."
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pytest, torch

from papers_lib.engine.evaluate import spread_loss
from papers_lib.engine.recipe import as_tokens, learn, n_params, split_for, steps_for, train_lm
from papers_lib.engine.train import TrainConfig
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.nn.stack import Parts, Sizes, Stack
from papers_lib.text.tokenizers import ByteTokenizer, train_fast_bpe

SIZES = Sizes(n_vocab=257, ctx_len=16, d_model=16, n_layer=1, n_head=2, dropout=0.1)
TRAIN = TrainConfig(n_step=3, batch_size=4, lr=1e-3)
DOCS = ['low lower lowest ' * 30, 'new newer newest ' * 30, 'é']


def weights(seed, train=TRAIN):
    model, result = learn(lambda: Stack(SIZES), as_tokens(DOCS, ByteTokenizer()), train, seed=seed)
    assert not model.training and result.step == train.n_step
    return torch.cat([p.flatten() for p in model.parameters()])


def test_the_seed_fixes_the_run_whatever_was_drawn_before():
    one = weights(3)
    torch.manual_seed(99); np.random.seed(99)
    assert torch.equal(one, weights(3)) and not torch.equal(one, weights(4))
    assert torch.equal(one, weights(3, replace(TRAIN, seed=8)))       # one seed, given once


@pytest.mark.parametrize('tok', [ByteTokenizer(), train_fast_bpe(DOCS, 270)], ids=['one by one', 'in batches'])
def test_documents_come_back_from_their_tokens(tok):
    tokens = as_tokens(iter(DOCS), tok)
    cuts = np.flatnonzero(tokens == tok.eot)
    assert tokens.dtype == np.int64 and len(cuts) == len(DOCS) and cuts[-1] == len(tokens) - 1
    assert [tok.decode(part.tolist()) for part in np.split(tokens, cuts + 1)[:-1]] == DOCS


@pytest.mark.parametrize('ratio', [0.5, 5, 20])
def test_steps_for_reads_as_many_tokens_a_parameter(ratio):
    with torch.device('meta'): model = Stack(SIZES)
    cfg = steps_for(model, ratio, TRAIN)
    read = cfg.n_step * TRAIN.batch_size * SIZES.ctx_len
    assert abs(read - ratio * n_params(model)) <= TRAIN.batch_size * SIZES.ctx_len / 2
    assert cfg.n_warmup == cfg.n_step // 20 and replace(cfg, n_step=3, n_warmup=0) == TRAIN
    assert steps_for(model, 1e-9, TRAIN).n_step == 1 and steps_for(model, 1e-9, TRAIN, least=20).n_step == 20
    with pytest.raises(ValueError, match='ratio=0'): steps_for(model, 0, TRAIN)


def test_arms_of_one_seed_share_weights_order_and_dropout():
    "A paper's class and the stack of its parts are one run, bit for bit; a part that moves no number moves no loss."
    sizes = dict(n_vocab=257, ctx_len=16, d_model=16, n_layer=1, n_head=2, dropout=0.1)
    run = lambda make, seed=3: learn(make, as_tokens(DOCS, ByteTokenizer()), TRAIN, seed=seed)
    (paper, one), (stack, two) = run(lambda: GPT2(GPT2Config(**sizes))), run(lambda: Stack(Sizes(**sizes)))
    assert one.losses == two.losses and all(p.equal(q) for p, q in zip(paper.parameters(), stack.parameters()))
    assert run(lambda: Stack(Sizes(**sizes), Parts(windows=(16,))))[1].losses == one.losses
    assert run(lambda: Stack(Sizes(**sizes), Parts(norm='rms')))[1].losses != one.losses
    assert run(lambda: Stack(Sizes(**sizes)), seed=4)[1].losses != one.losses


def test_seeds_from_a_hundred_on_are_for_choosing():
    assert [split_for(s) for s in (0, 99, 100, 10**6)] == ['valid', 'valid', 'tune', 'tune']


def test_a_language_model_is_built_for_its_corpus_and_scored_on_held_out_text():
    tok = train_fast_bpe(DOCS, 270)
    train, valid = as_tokens(DOCS, tok), as_tokens(DOCS[:1], tok)
    corpus = SimpleNamespace(name='toy', hash='0', tokenizer=tok, train=train, valid=valid)
    make = lambda n_vocab: Stack(replace(SIZES, n_vocab=n_vocab))
    model, result = train_lm(make, corpus, TRAIN, seed=1)
    assert model.cfg.n_vocab == tok.n_vocab
    assert result.evals == [(3, dict(valid=spread_loss(model, corpus)))]
    assert train_lm(make, corpus, TRAIN, seed=1, evaluate=None)[1].evals == []
    _, same = learn(lambda: make(tok.n_vocab), corpus.train, TRAIN, seed=1)
    assert same.losses == result.losses                                # evaluation draws nothing
