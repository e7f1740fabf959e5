"Sequence models: what they may see, losses by hand, training that is a function of its seed."
import math, warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from papers_lib.engine.train import IGNORE
from papers_lib.rec.baselines import load_recommender, tune
from papers_lib.rec.interactions import interactions, leave_one_out
from papers_lib.rec.sequential import (
    GRUCE, GRUConfig, GRUNet, NextItem, SASRec, SASRecConfig, SASRecNet, SequenceBatches, gbce_beta)

N_ITEM = 30
SMALL = dict(ctx_len=6, d_model=8, n_layer=1, n_epoch=2, batch_size=16, device='cpu')


@pytest.fixture(scope='module')
def split():
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(N_ITEM)[:9] for _ in range(40)])
    data = interactions(np.repeat(np.arange(40), 9), items, np.arange(360))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return leave_one_out(data)


def nets():
    torch.manual_seed(0)
    return [SASRecNet(SASRecConfig(N_ITEM, ctx_len=8, d_model=16, n_head=2)).eval(),
            GRUNet(GRUConfig(N_ITEM, ctx_len=8, d_model=16)).eval()]


@pytest.mark.parametrize('net', nets(), ids=lambda n: type(n).__name__)
def test_no_state_sees_a_later_item_or_padding(net):
    ids = torch.tensor([[3, 9, 4, 7, 1]])
    later = ids.clone()
    later[0, -1] = 20
    torch.testing.assert_close(net(ids)[:, :-1], net(later)[:, :-1])
    torch.testing.assert_close(net(ids), net(F.pad(ids, (3, 0)))[:, 3:], atol=1e-5, rtol=1e-5)
    alone = torch.cat([F.pad(ids, (2, 0)), torch.randint(1, N_ITEM, (1, 7))])
    torch.testing.assert_close(net(ids), net(alone)[:1, 2:], atol=1e-5, rtol=1e-5)
    assert net(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()          # an empty history


def test_padding_brings_no_gradient_that_is_not_a_number():
    net = nets()[0].train()
    loss = NextItem('ce', 0, .75, torch.zeros(1, dtype=torch.long))
    ids = torch.tensor([[0, 0, 3, 4]])
    loss(net, dict(ids=ids, targets=torch.tensor([[IGNORE, IGNORE, 3, 9]]), user=torch.tensor([0]))).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters()) and net.item_emb.weight.grad[0].abs().max() == 0


def test_parameters_are_counted():
    d, n = 16, N_ITEM
    net = nets()[0]
    block = 5 * (d * d + d) + 4 * d
    assert sum(p.numel() for p in net.parameters()) == (n + 1) * d + 8 * d + 2 * block + 2 * d


class Fixed(torch.nn.Module):
    "A network whose states and items are given."
    def __init__(self, H, E):
        super().__init__()
        self.H, self.items = H, E

    def forward(self, ids): return self.H


def batch_of(H, E, targets): return dict(ids=torch.ones(targets.shape, dtype=torch.long), targets=targets,
                                         user=torch.zeros(len(targets), dtype=torch.long))


@pytest.mark.parametrize('loss, n_neg', [('ce', 0), ('bce', 3), ('gbce', 3), ('sampled-ce', 3)])
def test_every_loss_by_hand(loss, n_neg, monkeypatch):
    torch.manual_seed(0)
    H, E = torch.randn(2, 3, 4), torch.randn(7, 4)
    targets = torch.tensor([[IGNORE, 2, 5], [0, IGNORE, 6]])
    drawn = torch.tensor([[1, 2, 3], [4, 5, 5], [0, 1, 6], [3, 6, 2]])
    shared = torch.tensor([[1, 3, 4], [2, 3, 5]])                       # of the two sequences
    monkeypatch.setattr(torch, 'randint', lambda *a, **k: shared if loss == 'sampled-ce' else drawn)
    met = torch.tensor([-1])
    got = NextItem(loss, n_neg, .5, met)(Fixed(H, E), batch_of(H, E, targets)).item()
    want, sigma = 0., lambda x: 1 / (1 + math.exp(-x))
    for place, (row, col) in enumerate([(0, 1), (0, 2), (1, 0), (1, 2)]):
        h, y = H[row, col], int(targets[row, col])
        s = (E @ h).tolist()
        others = (shared[row] if loss == 'sampled-ce' else drawn[place]).tolist()
        if loss != 'bce': others = [j for j in others if j != y]
        if loss == 'ce': want -= s[y] - math.log(sum(map(math.exp, s)))
        elif loss == 'sampled-ce': want -= s[y] - math.log(math.exp(s[y]) + sum(math.exp(s[j]) for j in others))
        else:
            beta = gbce_beta(3, 7, .5) if loss == 'gbce' else 1.
            each = -beta * math.log(sigma(s[y])) - sum(math.log(1 - sigma(s[j])) for j in others)
            want += each / 4 if loss == 'gbce' else each
    assert got == pytest.approx(want, rel=1e-5)


def test_negatives_of_bce_are_what_the_user_did_not_meet():
    E = torch.eye(6)
    met = torch.tensor([0, 1, 2, 4])                                   # user 0 met all but 3 and 5
    loss = NextItem('bce', 50, .75, met)
    H = torch.zeros(1, 1, 6)
    H[0, 0, [0, 1, 2, 4]] = 1000.                                      # a met item would cost a thousand
    assert loss(Fixed(H, E), batch_of(H, E, torch.tensor([[0]]))) < 51 * math.log(2) + 1


def test_a_pass_asks_every_user_once_and_goes_on_where_it_stopped(split):
    b = SequenceBatches(split.train, 6, 16, seed=0)
    first = [next(b) for _ in range(b.n_batch)]
    users = torch.cat([x['user'] for x in first]).tolist()
    assert sorted(users) == list(range(40)) and b.epoch == 1
    for x in first:
        for u, ids, targets in zip(x['user'], x['ids'], x['targets']):
            h = split.train.item[split.train.user == int(u)][-7:]
            assert ids.tolist() == (h[:-1] + 1).tolist() and targets.tolist() == h[1:].tolist()
    state, want = b.state(), next(b)
    again = SequenceBatches(split.train, 6, 16, seed=0)
    again.load_state(state)
    assert torch.equal(next(again)['ids'], want['ids'])


def test_batches_are_named_by_their_data(split):
    make = lambda data: SequenceBatches(data, 5, 16, seed=0)
    item = split.train.item.copy(); item[:2] = item[:2][::-1]
    other = interactions(split.train.users[split.train.user], split.train.items[item], np.arange(len(item)))
    assert make(split.train).hash == make(split.train).hash != make(other).hash


def test_short_histories_are_padded_on_the_left():
    data = interactions([0, 0, 0, 1], [4, 2, 3, 1], ties='file')
    b = next(SequenceBatches(data, 5, 4, seed=0))
    assert b['ids'].tolist() == [[0, 0, 0, 4, 2]] and b['targets'].tolist() == [[IGNORE] * 3 + [1, 2]]
    with pytest.raises(ValueError, match='no user has two interactions'):
        SequenceBatches(data.keep(data.user == 1), 5, 4, 0)


MODELS = [SASRec(**SMALL), *(SASRec(loss, k, **SMALL) for loss, k in (('ce', 0), ('gbce', 4), ('sampled-ce', 4))),
          GRUCE(**SMALL)]


@pytest.mark.parametrize('model', MODELS, ids=lambda m: type(m).__name__ + m.loss)
def test_training_is_a_function_of_its_seed_and_is_kept(model, split, tmp_path):
    from dataclasses import replace
    histories = [[1, 2, 3], [], list(range(10))]
    S = model.fit(split.train).scores(histories)
    assert S.shape == (3, N_ITEM) and torch.equal(replace(model).fit(split.train).scores(histories), S)
    assert not torch.equal(replace(model, seed=1).fit(split.train).scores(histories), S)
    assert torch.equal(load_recommender(model.save(tmp_path / 'm')).scores(histories), S)
    assert torch.allclose(S[2], model.scores([list(range(4, 10))])[0], atol=1e-5)      # the last six are read
    assert torch.equal(model.scores([np.arange(3)[::-1]]), model.scores([[2, 1, 0]]))
    assert model.scores([]).shape == (0, N_ITEM)


@pytest.mark.parametrize('make, words', [
    (lambda: SASRec('ce', 3), "n_neg=3: loss 'ce' looks at all items"), (lambda: SASRec('bce', 0), 'n_neg=0'),
    (lambda: SASRec(n_neg=-1), 'SASRec.n_neg=-1'),
    (lambda: SASRec('bpr'), "loss='bpr': must be one of"), (lambda: SASRec(t=2.), r't=2.0: must lie in \[0, 1\]'),
    (lambda: SASRec(n_head=3), 'n_head=3: must divide d_model=64'), (lambda: SASRec(dropout=1.), 'dropout'),
    (lambda: GRUCE(lr=0), 'GRUCE.lr=0: must be above 0'),
    (lambda: SASRecNet(SASRecConfig(9, ctx_len=3))(torch.ones(1, 4, dtype=torch.long)), 'sequence of 4 items')])
def test_settings_that_cannot_be_are_named(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_passes_are_tuned_and_counted(split):
    found = tune(SASRec('ce', 0, **SMALL), dict(n_epoch=[1, 3], lr=[1e-3, 1e-2]), 3, split)
    assert found.n == 3 and found.model.rank(split.test).ranks.shape == (40, 1)


def test_losses_go_down():
    rng = np.random.default_rng(0)
    walks = (rng.integers(0, N_ITEM, (60, 1)) + np.arange(9)) % N_ITEM
    data = interactions(np.repeat(np.arange(60), 9), walks.ravel(), np.tile(np.arange(9), 60))
    model = SASRec('ce', 0, **SMALL | dict(n_epoch=60, lr=.01, dropout=0.)).fit(data)
    first, last = model.result.losses[0][1], model.result.losses[-1][1]
    assert abs(first - math.log(N_ITEM)) < .3 and last < .5


@pytest.mark.parametrize('field, value', [('dropout', 1.5), ('n_layer', 0)])
def test_a_recurrent_network_that_cannot_be_is_refused_when_it_is_named(field, value):
    with pytest.raises(ValueError, match=f'GRUConfig.{field}={value}: must'): GRUCE(**{field: value})
