"Properties of positions: what a notebook cell is too small to say."
import pytest
import torch
from hypothesis import given, strategies as st
from papers_lib.nn.positions import LearnedPositions, SinusoidalPositions, convert_rope, position_kinds, rope, rotate

close = torch.testing.assert_close


def test_rotations_are_orthogonal_relative_and_float32_inside():
    x, turns = torch.randn(2, 3, 9, 16), rope(torch.arange(9), 16)
    for layout in ('pairs', 'halves'):
        y = rotate(x, turns, layout)
        close(y.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=1e-5)
        q, k = torch.randn(2, 1, 1, 1, 16)
        turned = lambda x, place: rotate(x, rope(torch.tensor([place]), 16), layout)
        score = lambda m, n: (turned(q, m) * turned(k, n)).sum()
        close(score(40, 33), score(7, 0), atol=1e-4, rtol=1e-4)
    far = rope(torch.tensor([4000, 4001]), 16)
    low = rotate(torch.ones(1, 1, 2, 16).bfloat16(), far)
    assert low.dtype is torch.bfloat16 and not low[0, 0, 0].equal(low[0, 0, 1])


def test_compiled_rotation_takes_the_real_form_and_agrees(monkeypatch):
    x, turns = torch.randn(1, 2, 5, 8), rope(torch.arange(5), 8)
    eager = rotate(x, turns)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    close(rotate(x, turns), eager, atol=1e-6, rtol=1e-6)


@given(h=st.sampled_from([1, 2, 4]), k=st.sampled_from([2, 4, 8]))
def test_rope_conversion_is_its_own_undoing_and_matches_the_published_permutation(h, k):
    w = torch.randn(h * k, 3)
    halves = convert_rope(w, h, 'halves')
    assert halves.equal(w.view(h, k // 2, 2, 3).transpose(1, 2).reshape(h * k, 3))
    assert convert_rope(halves, h, 'pairs').equal(w)


@pytest.mark.parametrize('n', [40, 41, 300])
def test_a_learned_table_that_is_too_short_says_so_for_places_of_any_shape(n):
    table = LearnedPositions(40, 8)
    for places in (torch.tensor([n]), torch.arange(n + 1), torch.tensor([[0, n], [n, 1]])):
        with pytest.raises(ValueError, match=f'position {n} .*ctx_len=40'): table.embed(places)
    close(table.embed(torch.zeros(1, 100).long()), table.weight[:1].expand(1, 100, 8))     # many tokens at few places


def test_a_learned_table_is_read_and_learned_at_its_places_only():
    table = LearnedPositions(10, 4)
    table.embed(torch.tensor([[1, 9], [3, 3]])).sum().backward()
    assert table.weight.grad.sum(1).nonzero().flatten().tolist() == [1, 3, 9]


@given(st.integers(0, 100_000), st.integers(1, 500))
def test_sinusoids_of_two_places_depend_on_their_distance_only(place, away):
    at = lambda p: SinusoidalPositions(16).embed(torch.tensor([p]))[0].double()
    close(at(place) @ at(place + away), at(0) @ at(away), atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', list(position_kinds))
def test_each_kind_answers_each_hook_with_its_shape_or_nothing(name):
    kind, here = position_kinds[name](20, 16, 4, 10000.), torch.arange(6).expand(3, 6)
    answers = kind.embed(here), kind.turn(here), kind.bias(here, here)
    shapes = (3, 6, 16), (3, 6, 2, 2), (3, 4, 6, 6)
    assert all(a is None or a.shape == shape for a, shape in zip(answers, shapes))
    assert sum(a is not None for a in answers) == (name != 'none')
