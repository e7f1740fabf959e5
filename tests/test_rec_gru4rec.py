"GRU4Rec as published: lanes against a slow reading, each loss by hand, the optimizer by hand, training by seed."
import math, warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from papers_lib.rec.baselines import load_recommender
from papers_lib.rec.gru4rec import (
    SESSION_LOSSES, GRU4Rec, GRU4RecNet, NesterovAdagrad, SessionBatches, SessionLoss, session_loss)
from papers_lib.rec.interactions import interactions, leave_one_out
from papers_lib.rec.sequential import GRUConfig

N_ITEM = 30
SMALL = dict(d_model=8, n_epoch=2, batch_size=16, n_sample=10, device='cpu')


def made(n_user=40, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(N_ITEM)[:rng.integers(1, 9)] for _ in range(n_user)]
    users = np.repeat(np.arange(n_user), [len(r) for r in rows])
    return interactions(users, np.concatenate(rows), rng.permutation(len(users)))


@pytest.fixture(scope='module')
def split():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return leave_one_out(made())


@pytest.mark.parametrize('n_lane', [1, 3, 16, 100])
def test_every_transition_is_trained_once_a_pass_in_its_order(n_lane):
    data = made()
    b = SessionBatches(data, n_lane)
    read, done = {}, []
    for _ in range(b.n_batch):
        batch = next(b)
        lanes = batch['lane'].tolist()
        assert len(set(lanes)) == len(lanes) <= n_lane                     # one transition a lane
        for lane, i, y, first in zip(lanes, *(batch[k].tolist() for k in ('ids', 'targets', 'first'))):
            if first:
                if lane in read: done.append(read[lane])
                read[lane] = [i - 1]
            assert read[lane][-1] == i - 1                                 # a lane goes on where it was
            read[lane].append(y)
    done += read.values()
    want = [h.tolist() for h in data.histories() if len(h) > 1]
    assert sorted(done) == sorted(want)
    state, after = b.state(), next(b)
    again = SessionBatches(data, n_lane)
    again.load_state(state)
    assert torch.equal(next(again)['ids'], after['ids'])


def test_sessions_begin_in_the_order_of_their_first_events():
    data = made()
    b = SessionBatches(data, 1)
    begun = [int(x['user']) if 'user' in x else int(x['ids'][0]) - 1 for x in (next(b) for _ in range(b.n_batch))
             if x['first'][0]]
    first = {int(data.time[a]): int(data.item[a]) for a, z in zip(data.bounds, data.bounds[1:]) if z - a > 1}
    assert begun == [first[t] for t in sorted(first)]


@pytest.mark.parametrize('loss', SESSION_LOSSES)
def test_every_loss_by_hand(loss):
    torch.manual_seed(0)
    S = torch.randn(3, 5)
    sigma, want = (lambda x: 1 / (1 + math.exp(-x))), 0.
    for r, row in enumerate(S.tolist()):
        if loss == 'bpr-max': row = [x if x > 0 else math.exp(x) - 1 for x in row]
        up, others = row[r], [x for j, x in enumerate(row) if j != r]
        if loss == 'ce': want += math.log(sum(map(math.exp, row))) - up
        if loss == 'bpr': want += -np.mean([math.log(sigma(up - x)) for x in others])
        if loss == 'top1': want += np.mean([sigma(x - up) + sigma(x * x) for x in others])
        if loss == 'bpr-max':
            w = np.exp(others) / np.exp(others).sum()
            want += -math.log(sum(a * sigma(up - x) for a, x in zip(w, others))) + .3 * sum(w * np.square(others))
    assert session_loss(loss, S, .3).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('loss', SESSION_LOSSES)
def test_a_row_without_a_negative_is_no_loss_and_moves_nothing(loss):
    scores = torch.tensor([[.7]], requires_grad=True)
    value = session_loss(loss, scores)
    value.backward()
    assert value.item() == 0 and scores.grad.tolist() == [[0.]]
    assert session_loss(loss, torch.tensor([[torch.nan]])).isnan()                 # a broken net is still seen


@pytest.mark.parametrize('loss', SESSION_LOSSES)
def test_a_pass_that_ends_in_one_lane_is_trained_without_drawn_negatives(loss):
    data = interactions([1] * 6 + [2] * 3, [0, 1, 2, 3, 4, 5, 5, 4, 3], np.arange(9))
    batches = SessionBatches(data, 2)
    assert [len(next(batches)['ids']) for _ in range(batches.n_batch)] == [2, 2, 1, 1, 1]
    model = GRU4Rec(loss, **SMALL | dict(n_sample=0)).fit(data)
    assert model.scores([[0, 1], []]).isfinite().all()


def test_the_negatives_of_a_lane_are_the_targets_of_the_others():
    net, seen = GRU4RecNet(GRUConfig(N_ITEM, d_model=4)).eval(), []
    net.scores = lambda h, items: seen.append(items.tolist()) or torch.zeros(len(h), len(items))
    loss = SessionLoss('ce', 2, torch.eye(N_ITEM)[7], 1.)                  # all weight on item 7
    value = loss(net, dict(lane=torch.tensor([0, 1]), ids=torch.tensor([3, 4]), targets=torch.tensor([8, 9]),
                           first=torch.tensor([True, True])))
    assert seen == [[8, 9, 7, 7]] and value.item() == pytest.approx(2 * math.log(4))


def test_a_carried_state_is_what_the_whole_history_gives_and_is_reset():
    torch.manual_seed(0)
    net = GRU4RecNet(GRUConfig(N_ITEM, d_model=8)).eval()
    data = made()
    loss, batches, read = SessionLoss('bpr-max', 3, torch.ones(N_ITEM), 1.), SessionBatches(data, 5), {}
    for _ in range(batches.n_batch):
        b = next(batches)
        loss(net, b)
        for lane, i, first in zip(b['lane'].tolist(), b['ids'].tolist(), b['first'].tolist()):
            read[lane] = [i] if first else [*read[lane], i]
    for lane, ids in read.items():
        torch.testing.assert_close(loss.states['h'][lane], net(torch.tensor([ids]))[0].detach(), atol=1e-5, rtol=1e-5)


def test_padding_is_not_read_and_an_empty_history_has_a_state_of_zeros():
    net, ids = GRU4RecNet(GRUConfig(N_ITEM, d_model=8)).eval(), torch.tensor([[3, 9, 4]])
    torch.testing.assert_close(net(F.pad(ids, (4, 0))), net(ids))
    assert not net(torch.zeros(1, 3, dtype=torch.long)).any()


@pytest.mark.parametrize('momentum', [0., .3])
def test_adagrad_by_hand(momentum):
    p = torch.nn.Parameter(torch.tensor([1., -2., 3.]))
    opt, rng = NesterovAdagrad([p], .1, momentum), np.random.default_rng(0)
    x, A, v = np.array([1., -2., 3.]), np.zeros(3), np.zeros(3)
    for _ in range(6):
        g = rng.normal(size=3) * (rng.random(3) < .6)
        p.grad = torch.tensor(g, dtype=torch.float32)
        opt.step()
        A += g**2
        delta = .1 * g / np.sqrt(A + 1e-6)
        moved = g != 0
        v[moved] = momentum * v[moved] - delta[moved] if momentum else v[moved]
        x[moved] += momentum * v[moved] - delta[moved]
    assert np.allclose(p.detach().numpy(), x, atol=1e-5)
    if not momentum:
        q = torch.nn.Parameter(torch.tensor([1., -2., 3.]))
        a, b = torch.optim.Adagrad([q], .1, eps=0.), NesterovAdagrad([p], .1, 0., eps=0.)
        p.data.copy_(q.data)
        for _ in range(3):
            g = torch.tensor(rng.normal(size=3), dtype=torch.float32)
            p.grad, q.grad = g.clone(), g.clone()
            a.step(); b.step()
        torch.testing.assert_close(p.data, q.data)


@pytest.mark.parametrize('loss', SESSION_LOSSES)
def test_training_is_a_function_of_its_seed_and_is_kept(loss, split, tmp_path):
    from dataclasses import replace
    histories = [[1, 2, 3], [], list(range(10))]
    model = GRU4Rec(loss, **SMALL).fit(split.train)
    S = model.scores(histories)
    assert S.shape == (3, N_ITEM) and torch.equal(replace(model).fit(split.train).scores(histories), S)
    assert not torch.equal(replace(model, seed=1).fit(split.train).scores(histories), S)
    assert torch.equal(load_recommender(model.save(tmp_path / 'm')).scores(histories), S)


@pytest.mark.parametrize('make, words', [
    (lambda: GRU4Rec('bce'), "loss='bce': must be one of"), (lambda: GRU4Rec(n_sample=0, batch_size=1), 'no lane'),
    (lambda: GRU4Rec(alpha=-1.), 'alpha=-1.0: must not be below 0'), (lambda: GRU4Rec(batch_size=0), 'batch_size=0'),
    (lambda: GRU4Rec(lr=0.), 'lr=0.0: must be above'),
    (lambda: SessionBatches(interactions([1, 2], [3, 4], [0, 1]), 4), 'nothing to predict'),
    (lambda: GRU4Rec(dropout=1.5), 'GRUConfig.dropout=1.5: must lie in'),
    (lambda: GRU4Rec(momentum=1.), 'GRU4Rec.momentum=1.0: must lie in')])
def test_settings_that_cannot_be_are_named(make, words):
    with pytest.raises(ValueError, match=words): make()
