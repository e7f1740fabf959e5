"Losses of distillation, scales, frozen teachers, batches with a cursor."
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers_lib.engine.distil import (
    DistilLoss, ListBatches, ListLoss, TokenDistil, agreement, as_scores, frozen, hinge, margin_mse,
    padded_table, score_kl, score_mse, score_pairs, standardised, warn_scale, warn_unknown)
from papers_lib.engine.llm import weights_hash
from papers_lib.engine.train import IGNORE, lm_loss
from papers_lib.gpt2 import GPT2, GPT2Config

numbers = st.floats(-20, 20, width=32)
pairs = st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=8)


@settings(max_examples=60)
@given(pairs)
def test_mse_is_offset_and_a_quarter_of_the_margin_error(rows):
    x = torch.tensor(rows, dtype=torch.float64)
    z, t = x[:, :2], x[:, 2:]
    offset = (z - t).mean(1)
    assert torch.allclose(score_mse(z, t), offset**2 + margin_mse(z, t) / 4, atol=1e-9)


@settings(max_examples=40)
@given(pairs, st.floats(-5, 5))
def test_what_does_not_move_margins_and_distributions(rows, by):
    x = torch.tensor(rows, dtype=torch.float64)
    z, t = x[:, :2], x[:, 2:]
    assert torch.allclose(margin_mse(z + by, t), margin_mse(z, t), atol=1e-6)
    assert torch.allclose(score_kl(z + by, t), score_kl(z, t), atol=1e-6)
    assert torch.allclose(hinge(z + by), hinge(z), atol=1e-6)
    assert (score_kl(z, t) >= -1e-9).all() and torch.allclose(score_kl(t, t), torch.zeros(len(t)).double(), atol=1e-9)


def test_the_kl_sums_over_classes_and_is_averaged_over_rows_only():
    z, t = torch.randn(16, 8), torch.randn(16, 8)
    theirs = torch.nn.functional.kl_div(z.log_softmax(1), t.softmax(1), reduction='batchmean')
    assert torch.allclose(score_kl(z, t).mean(), theirs, atol=1e-6)
    plain = torch.nn.functional.kl_div(z.log_softmax(1), t.softmax(1), reduction='mean')
    assert math.isclose((theirs / plain).item(), 8, rel_tol=1e-4)


def test_half_the_soft_and_half_the_hard():
    z, t = torch.randn(5, 4), torch.randn(5, 4)
    assert torch.allclose(DistilLoss('mse', .5)(z, t), (score_mse(z, t) + hinge(z)) / 2)
    assert torch.allclose(DistilLoss('margin', 1.)(z, t), margin_mse(z, t))
    assert torch.allclose(DistilLoss('mse', 0.)(z, None), hinge(z))
    flipped = t.flip(1)
    assert not torch.allclose(DistilLoss('mse', 1.)(z, t), DistilLoss('mse', 1.)(z, flipped))   # order matters


@pytest.mark.parametrize('field, value', [('soft', 'rank'), ('a', -.1), ('a', 1.1), ('T', 0.), ('margin', math.inf)])
def test_a_loss_that_is_none_is_named(field, value):
    with pytest.raises(ValueError, match=f'DistilLoss.{field}'): DistilLoss(**{field: value})


def test_a_squashed_teacher_warns_with_the_ratio():
    raw = np.random.default_rng(0).normal(size=(200, 2)) * 4
    with pytest.warns(UserWarning, match='a factor of .*before the sigmoid'): warn_scale(.1 / (1 + np.exp(-raw)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert warn_scale(standardised(raw)) < 3


@pytest.mark.parametrize('labels, n, told', [
    ([[1., 2., 3.]], 1, '2 scores or 1 lead'), ([[1.]], 2, '3 scores or 2 lead'), ([[1., math.nan]], 1, 'row 0'),
    ([[1., 2.], [math.inf, 0.]], 1, 'row 1')])
def test_labels_of_another_width_are_refused(labels, n, told):
    with pytest.raises(ValueError, match=told): as_scores(labels, n)


def test_leads_are_scores_with_a_positive_of_zero():
    z = torch.randn(3, 3)
    t = torch.tensor(as_scores([[1., 2.], [0., 1.], [3., 1.]], 2))
    assert torch.allclose((t[:, :1] - t[:, 1:]), torch.tensor([[1., 2.], [0., 1.], [3., 1.]]))
    assert margin_mse(z, t).shape == (3,)


def test_a_frozen_teacher_is_bit_by_bit_the_same():
    teacher = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(.5), torch.nn.Linear(3, 1)).train()
    before = weights_hash(teacher)
    with frozen(teacher):
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        x = torch.ones(1, 3)
        assert torch.equal(teacher(x), teacher(x))                    # no dropout
    assert weights_hash(teacher) == before
    with pytest.raises(RuntimeError, match='was trained'):
        with frozen(teacher): teacher[0].bias.data[0] = torch.nextafter(teacher[0].bias.data[0], torch.tensor(9.))
    with pytest.raises(RuntimeError, match='training mode'):
        with frozen(teacher): teacher.train()


def batches(**kw):
    ids = np.arange(1, 41).reshape(10, 4).astype(np.int32)
    return ListBatches(ids[:5], ids, np.arange(5), np.stack([np.arange(5), np.arange(5, 10)], 1), None, 2, **kw)


def test_batches_go_on_where_they_stopped():
    a, b = batches(seed=3), batches(seed=3)
    for _ in range(3): next(a)
    b.load_state(a.state())
    for _ in range(4):
        x, y = next(a), next(b)
        assert all(torch.equal(x[k], y[k]) for k in x)
    with pytest.raises(ValueError): batches(seed=4).load_state(dict(a.state(), hash='other'))


def test_an_epoch_gives_each_row_at_most_once():
    a = batches()
    seen = [r for _ in range(2) for r in next(a)['q'][:, 0].tolist()]
    assert len({*seen}) == 4


def test_a_list_loss_names_itself_by_its_settings():
    assert ListLoss(DistilLoss(a=.1)).__qualname__ != ListLoss(DistilLoss(a=.2)).__qualname__


def test_scores_do_not_depend_on_the_batch():
    class Sums(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.ones(()))
        def forward(self, q, d): return self.w * (q.sum(1)[:, None] + d.sum(2)).float()
    q, d = padded_table([[1], [2, 3]], 5), padded_table([[4], [5, 6, 7], []], 5)
    for size in (1, 2, 64):
        assert score_pairs(Sums(), q, d, [0, 1, 0, 1], [0, 1, 2, 0], size).tolist() == [5, 23, 1, 9]
    broken = Sums()
    broken.w.data.fill_(math.nan)
    with pytest.raises(ValueError, match='not a number'): score_pairs(broken, q, d, [0], [0])


def test_agreement_of_a_scorer_with_itself_and_its_opposite():
    s, q = np.random.default_rng(0).normal(size=30), np.repeat(np.arange(5), 6)
    assert agreement(3 * s + 1, s, q)['kendall'] == pytest.approx(1)
    assert agreement(-s, s, q)['spearman'] == pytest.approx(-1)
    with pytest.raises(ValueError, match='no query'): agreement(np.zeros(30), s, q)


def test_a_vocabulary_that_reads_little_warns():
    with pytest.warns(UserWarning, match='67% of the pieces of the queries are unknown'):
        assert warn_unknown(np.array([[1, 1, 5], [0, 0, 0]]), 1, 'queries') == pytest.approx(2 / 3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert warn_unknown(np.array([[1, 5, 6]]), 1, 'queries') < .5 and warn_unknown(np.zeros((2, 3)), 1, 'x') == 0


def decoders(n_vocab=30):
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(GPT2(GPT2Config(n_vocab=n_vocab, ctx_len=8, d_model=16, n_layer=1, n_head=2)))
    return made


def tokens():
    torch.manual_seed(2)
    batch = dict(ids=torch.randint(30, (3, 8)), targets=torch.randint(30, (3, 8)))
    batch['targets'][1, 4:] = IGNORE
    return batch


@pytest.mark.parametrize('a, T', [(0., 1.), (.3, 1.), (.5, 2.), (1., 4.)])
def test_the_token_loss_is_the_mix_at_every_target_and_nowhere_else(a, T):
    (student, teacher), batch = decoders(), tokens()
    z, t = (m(batch['ids'])[batch['targets'] != IGNORE] for m in (student, teacher))
    hard = lm_loss(student, batch)
    assert torch.allclose(TokenDistil(teacher, a, T)(student, batch), a * score_kl(z, t, T).sum() + (1 - a) * hard,
                          rtol=1e-4)


def test_a_token_teacher_gets_no_gradient_and_another_vocabulary_is_refused():
    (student, teacher), batch = decoders(), tokens()
    before = weights_hash(teacher)
    TokenDistil(teacher, .5, 2.)(student, batch).backward()
    assert weights_hash(teacher) == before and all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    with pytest.raises(ValueError, match='a teacher of 40 tokens, a student of 30'):
        TokenDistil(decoders(40)[0])(student, batch)


def test_a_token_loss_names_itself_by_its_settings_and_its_teacher():
    one, two = decoders()
    names = {TokenDistil(*how).__qualname__ for how in ((one, .5, 2.), (one, .5, 1.), (two, .5, 2.))}
    assert len(names) == 3 and TokenDistil(one, .5, 2.).__qualname__ in names
    with pytest.raises(ValueError, match='must be above 0'): TokenDistil(one, .5, 0.)
