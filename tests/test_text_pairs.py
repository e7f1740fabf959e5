"Batches of pairs: everything is there once, nothing that is padded counts, and the cursor is exact."
import numpy as np, pytest, torch
from hypothesis import given, strategies as st

from papers_lib.text.pairs import PairBatches, made_pairs, made_split, pair_batch, sources, transductions

ids = st.lists(st.integers(2, 99), max_size=9)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6))
def test_a_batch_holds_its_pairs_and_nothing_else(pairs):
    batch = pair_batch(pairs, eot=1, start=0)
    for i, (x, y) in enumerate(pairs):
        assert batch['src'][i][batch['src_mask'][i]].tolist() == [*x, 1]
        assert batch['targets'][i][batch['targets'][i] >= 0].tolist() == [*y, 1]
        assert batch['tgt'][i, :len(y) + 1].tolist() == [0, *y]
    assert batch['tgt'].shape == batch['targets'].shape and batch['src_mask'].dtype == torch.bool
    assert all(v.equal(batch[k]) for k, v in sources([x for x, _ in pairs], 1).items())


def test_resumed_batches_are_those_that_would_have_come():
    pairs = made_pairs('copy', 103, range(2, 9), (1, 9), np.random.default_rng(0))
    whole = PairBatches(pairs, 10, eot=1, start=0, seed=3, pool=3)
    seen = [next(whole)['src'].tolist() for _ in range(25)]                  # into the third epoch
    first = PairBatches(pairs, 10, eot=1, start=0, seed=3, pool=3)
    for _ in range(13): next(first)
    second = PairBatches(pairs, 10, eot=1, start=0, seed=3, pool=3)
    second.load_state(first.state())
    assert [next(second)['src'].tolist() for _ in range(12)] == seen[13:]
    assert len(np.unique(whole.order(1))) == 100 and not (whole.order(0) == whole.order(1)).all()
    for wrong in (dict(seed=4), dict(pool=5)):
        other = PairBatches(pairs, 10, eot=1, start=0, **dict(seed=3, pool=3) | wrong)
        with pytest.raises(ValueError, match='other data'): other.load_state(first.state())
    with pytest.raises(ValueError, match='given'): second.load_state(first.state() | dict(given=-1))
    with pytest.raises(ValueError, match='batch_size=104'): PairBatches(pairs, 104, eot=1, start=0)


@pytest.mark.parametrize('task', transductions)
def test_made_pairs_are_right(task):
    pairs = made_pairs(task, 50, range(5, 9), (2, 6), np.random.default_rng(1))
    assert all(y == list(transductions[task](x)) and 2 <= len(x) <= 6 and {*x} <= {5, 6, 7, 8} for x, y in pairs)
    with pytest.raises(ValueError, match='length'): made_pairs(task, 1, [1], (3, 2), np.random.default_rng(0))


def test_no_judging_string_is_trained_on():
    short = dict(task='reverse', symbols=range(4), length=(2, 4))
    held = {tuple(x) for s in ('tune', 'valid') for x, _ in made_split(split=s, **short)}
    assert held and not held & {tuple(x) for x, _ in made_split(split='train', n_train=5000, **short)}
    first, again, other = (made_split(split=s, seed=i, **short) for i, s in enumerate(('tune', 'tune', 'valid')))
    assert first == again != other
