"BERT4Rec: what is hidden and what is read, each of the three things that make another model of it, training by seed."
import math, warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from papers_lib.engine.train import IGNORE
from papers_lib.rec.baselines import load_recommender, tune
from papers_lib.rec.bert4rec import BERT4Rec, BERT4RecConfig, BERT4RecNet, ClozeBatches, cut_windows, hidden_items_loss
from papers_lib.rec.interactions import interactions, leave_one_out

N_ITEM = 30
SMALL = dict(ctx_len=6, d_model=8, n_layer=1, n_epoch=2, batch_size=16, device='cpu')


@pytest.fixture(scope='module')
def split():
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(N_ITEM)[:9] for _ in range(40)])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return leave_one_out(interactions(np.repeat(np.arange(40), 9), items, np.arange(360)))


def made():
    torch.manual_seed(0)
    net = BERT4RecNet(BERT4RecConfig(N_ITEM, ctx_len=8, d_model=16)).eval()
    for p in net.parameters():
        if p.ndim > 1: p.data *= 10                                        # far from even scores
    return net


def test_padding_on_either_side_is_not_seen_and_both_sides_are():
    net = made()
    ids = torch.tensor([[3, 9, net.blank, 7, 1]])
    want = net.scores(net(ids)[:, 2])
    for pad in ((3, 0), (0, 3), (1, 2)):
        got = net.scores(net(F.pad(ids, pad))[:, pad[0] + 2])
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    for place in (0, 4):
        other = ids.clone()
        other[0, place] = 20
        assert (net.scores(net(other)[:, 2]) - want).abs().max() > 1e-3
    assert net(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()
    with pytest.raises(ValueError, match='sequence of 9 items: at most ctx_len=8'):
        net(torch.ones(1, 9, dtype=torch.long))


def test_its_parameters_are_counted():
    d, n = 16, N_ITEM
    block = 4 * (d * d + d) + 8 * d * d + 5 * d + 4 * d
    want = (n + 2) * d + 8 * d + 2 * d + 2 * block + (d * d + d) + 2 * d + n
    assert sum(p.numel() for p in made().parameters()) == want


@given(st.integers(1, 60), st.integers(2, 12), st.sampled_from([0., .1, .5, 1.]))
@settings(max_examples=60)
def test_windows_cover_the_history_and_end_at_its_last_item(n, ctx_len, back):
    h = list(range(n))
    found = cut_windows(h, ctx_len, back)
    assert found[0] == h[-ctx_len:] and all(w == h[w[0]:w[0] + len(w)] and len(w) == min(n, ctx_len) for w in found)
    if back: assert {i for w in found for i in w} == {*h} and found[-1] == h[:ctx_len]
    else: assert len(found) == 1


@pytest.mark.parametrize('share, last, most', [(.2, 0., 40), (.6, 0., 40), (.9, 0., 2), (.01, 0., 40), (.2, 1., 40)])
def test_a_share_is_hidden_at_least_one_and_never_padding(share, last, most, split):
    b = ClozeBatches(split.train, 8, 16, 0, share, last, most=most)
    for _ in range(2 * b.n_batch):
        batch = next(b)
        asked, real = batch['targets'] != IGNORE, batch['ids'] > 0
        n = real.sum(1)
        assert not (asked & ~real).any() and (batch['ids'][asked] == N_ITEM + 1).all()
        assert (batch['ids'][real & ~asked] <= N_ITEM).all()               # what is not hidden stands there
        want = torch.ones_like(n) if last else (share * n).round().clamp(1, most)
        assert asked.sum(1).tolist() == want.tolist()
        if last: assert asked[:, -1].all()
        for u, ids, targets in zip(batch['user'], batch['ids'], batch['targets']):
            filled = torch.where(targets == IGNORE, ids - 1, targets)[ids > 0].tolist()
            assert filled == split.train.item[split.train.user == int(u)][-8:].tolist()


def test_the_last_item_alone_is_asked_at_its_share(split):
    b = ClozeBatches(split.train, 8, 40, 0, share=.5, last=1 / 11)
    asked = torch.cat([next(b)['targets'] for _ in range(100)]) != IGNORE
    alone = (asked.sum(1) == 1) & asked[:, -1]
    assert abs(alone.float().mean().item() - 1 / 11) < .02
    b = ClozeBatches(split.train, 8, 40, 0, share=.5, last=0.)
    assert not any((t != IGNORE).sum(1).eq(1).any() for t in (next(b)['targets'] for _ in range(20)))


def test_a_pass_asks_every_window_once_and_goes_on_where_it_stopped(split):
    b = ClozeBatches(split.train, 4, 16, 0, back=.5)
    users = torch.cat([next(b)['user'] for _ in range(b.n_batch)]).tolist()
    assert sorted(users) == sorted(u for u in range(40) for _ in cut_windows(range(7), 4, .5)) and b.epoch == 1
    state, want = b.state(), next(b)
    again = ClozeBatches(split.train, 4, 16, 0, back=.5)
    again.load_state(state)
    got = next(again)
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_the_loss_by_hand():
    net = made()
    batch = dict(ids=torch.tensor([[0, 4, 31, 2], [31, 5, 31, 9]]),
                 targets=torch.tensor([[IGNORE, IGNORE, 6, IGNORE], [1, IGNORE, 8, IGNORE]]))
    want = 0.
    for row, col in ((0, 2), (1, 0), (1, 2)):
        s = net.scores(net(batch['ids'])[row, col]).tolist()
        want += math.log(sum(map(math.exp, s))) - s[batch['targets'][row, col]]
    assert hidden_items_loss(net, batch).item() == pytest.approx(want, rel=1e-5)


def test_training_is_a_function_of_its_seed_and_is_kept(split, tmp_path):
    from dataclasses import replace
    histories = [[1, 2, 3], [], list(range(10))]
    model = BERT4Rec(**SMALL).fit(split.train)
    S = model.scores(histories)
    assert S.shape == (3, N_ITEM) and torch.equal(replace(model).fit(split.train).scores(histories), S)
    assert not torch.equal(replace(model, seed=1).fit(split.train).scores(histories), S)
    assert torch.equal(load_recommender(model.save(tmp_path / 'm')).scores(histories), S)
    assert torch.allclose(S[2], model.scores([list(range(5, 10))])[0], atol=1e-5)      # the last five and the blank


def test_the_validation_item_is_learnt_from_only_where_asked(split):
    a, b = (BERT4Rec(**SMALL).fit(part).scores([[1, 2]]) for part in (split.train, split.until_test))
    assert not torch.equal(a, b)
    assert tune(BERT4Rec(**SMALL), dict(share=[.2, .6], lr=[1e-3, 1e-2]), 3, split).n == 3


@pytest.mark.parametrize('make, words', [
    (lambda: BERT4Rec(share=1.5), 'share=1.5: must lie in'), (lambda: BERT4Rec(last=-1.), 'last=-1.0'),
    (lambda: BERT4Rec(back=2.), 'back=2.0'), (lambda: BERT4Rec(ctx_len=1), 'an item and a blank'),
    (lambda: BERT4Rec(lr=0), 'BERT4Rec.lr=0: must be above 0'), (lambda: BERT4Rec(n_head=3), 'must divide d_model=64'),
    (lambda: BERT4RecConfig(0), 'n_item=0'), (lambda: cut_windows([1], 4, -1.), 'back=-1.0: must lie in'),
    (lambda: ClozeBatches(interactions([1, 2], [3, 4], [0, 1]), 4, 4, 0), 'nothing to hide')])
def test_settings_that_cannot_be_are_named(make, words):
    with pytest.raises(ValueError, match=words): make()
