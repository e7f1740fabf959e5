"The algebra of masks."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from papers_lib.nn.masks import banded, causal, full, padding, prefix, same_document

close = torch.testing.assert_close

B, T = 2, 9


@st.composite
def masks(draw, depth=3):
    "Any expression of the algebra over batches of B rows of T places."
    bits = lambda: torch.tensor(draw(st.lists(st.integers(0, 2), min_size=B * T, max_size=B * T))).view(B, T)
    kind = draw(st.sampled_from(['leaf'] if depth == 0 else ['leaf', 'and', 'or', 'not']))
    if kind == 'not': return ~draw(masks(depth=depth - 1))
    if kind == 'and': return draw(masks(depth=depth - 1)) & draw(masks(depth=depth - 1))
    if kind == 'or': return draw(masks(depth=depth - 1)) | draw(masks(depth=depth - 1))
    leaf = draw(st.sampled_from(['full', 'causal', 'banded', 'prefix', 'prefixes', 'padding', 'documents']))
    if leaf == 'banded': return banded(draw(st.integers(1, T)))
    if leaf == 'prefix': return prefix(draw(st.integers(0, T)))
    if leaf == 'prefixes': return prefix(torch.tensor(draw(st.lists(st.integers(0, T), min_size=B, max_size=B))))
    if leaf == 'padding': return padding(bits() > 0)
    return same_document(bits()) if leaf == 'documents' else dict(full=full, causal=causal)[leaf]()


def matrix(mask, t=T): return mask.dense(t, T, T - t).expand(B, t, T)


@settings(max_examples=60)
@given(masks(), masks(), masks())
def test_masks_form_a_boolean_algebra(x, y, z):
    assert matrix(~(x & y)).equal(matrix(~x | ~y)) and matrix(~(x | y)).equal(matrix(~x & ~y))   # De Morgan
    assert matrix(x & (y | z)).equal(matrix((x & y) | (x & z)))
    assert matrix(x | (y & z)).equal(matrix((x | y) & (x | z)))
    assert matrix(x & y).equal(matrix(x) & matrix(y)) and matrix(x | y).equal(matrix(x) | matrix(y))
    assert matrix(~x).equal(~matrix(x)) and not matrix(x & ~x).any() and matrix(x | ~x).all()


@settings(max_examples=40)
@given(masks(), st.integers(1, T))
def test_flex_and_dense_agree(mask, t):
    mod, m = mask.flex(T - t), matrix(mask, t)
    zero = torch.tensor(0)
    entry = lambda b, q, k: bool(mod(torch.tensor(b), zero, torch.tensor(q), torch.tensor(k)))
    ours = [[[entry(b, q, k) for k in range(T)] for q in range(t)] for b in range(B)]
    assert ours == m.tolist()


@settings(max_examples=40)
@given(masks(), st.integers(1, T))
def test_the_last_queries_of_a_mask_are_its_last_rows(mask, t):
    assert matrix(mask, t).equal(matrix(mask)[:, T - t:])


def test_mask_rules_against_loops():
    ids, keep = torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[False, True, True, False, True]])
    rules = {causal(): lambda q, k: k <= q, full(): lambda q, k: True, banded(2): lambda q, k: abs(q - k) < 2,
             prefix(3): lambda q, k: k < 3, same_document(ids): lambda q, k: bool(ids[0, q] == ids[0, k]),
             padding(keep): lambda q, k: bool(keep[0, k])}
    for mask, rule in rules.items():
        assert mask.dense(5).expand(1, 5, 5)[0].tolist() == [[rule(q, k) for k in range(5)] for q in range(5)], mask


def test_masks_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match='width=0'): banded(0)
    with pytest.raises(ValueError, match='bool'): padding(torch.ones(2, 3))
    two, three = padding(torch.ones(2, 4).bool()), prefix(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match='2 rows.*3'): two & three
    with pytest.raises(TypeError): causal() & torch.ones(3, 3).bool()


def test_mask_names_and_picture():
    import matplotlib
    matplotlib.use('Agg')
    mask = causal() & same_document(torch.tensor([[0, 0, 1]]))
    assert repr(~mask) == '~(causal() & same_document(ids))'
    drawn = mask.show(3).images[0].get_array()
    assert drawn.astype(bool).tolist() == mask.dense(3)[0].tolist()


def test_only_the_causal_mask_itself_takes_the_causal_path():
    assert causal().local == (True, None) and (causal() & banded(3)).local == (True, 3)
    others = ~causal(), causal() | prefix(2), full(), ~banded(3), causal() & padding(torch.ones(1, 4).bool())
    for mask in others: assert mask.local is None
