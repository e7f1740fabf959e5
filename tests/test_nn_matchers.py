"Filters over tokens and small matchers: edges, padding, readings, what a copy of embeddings is."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papers_lib.nn.conv import TokenConv
from papers_lib.nn.matchers import (
    Student, StudentConfig, architectures, joined, make_student, readings, student_table)


def small(**kw): return StudentConfig(40, cls=1, sep=2, **dict(d_emb=8, d_model=8, n_map=3, n_layer=2, n_head=2) | kw)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 10**6))
def test_padding_moves_no_text(sizes, extra, seed):
    torch.manual_seed(seed)
    conv = TokenConv(5, (1, 2, 4), 3)
    with torch.no_grad(): conv.bias.normal_()
    t = max(sizes) + 1
    x, real = torch.randn(len(sizes), t + extra, 5), torch.arange(t + extra) < torch.tensor(sizes)[:, None]
    whole = conv(x, real)
    for i, n in enumerate(sizes):
        alone = conv(x[i:i + 1, :max(n, 1)], real[i:i + 1, :max(n, 1)])
        assert torch.allclose(whole[i], alone[0], atol=1e-5)
    assert (whole >= 0).all() and not whole[[i for i, n in enumerate(sizes) if n == 0]].any()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=5))
def test_pairs_are_joined_as_lists_would_be(sizes):
    rng = np.random.default_rng(0)
    qs, ds = ([rng.integers(3, 40, n[k]).tolist() for n in sizes] for k in (0, 1))
    pad = lambda rows: torch.tensor([r + [0] * (8 - len(r)) for r in rows])
    rows, kinds, real = joined(pad(qs), pad(ds), 1, 2)
    for i, (q, d) in enumerate(zip(qs, ds)):
        told = [1, *q, 2, *d, 2]
        assert rows[i, :len(told)].tolist() == told and not rows[i, len(told):].any()
        assert kinds[i].tolist() == [0] * (len(q) + 2) + [1] * (len(d) + 1) + [0] * (rows.shape[1] - len(told))
        assert real[i].sum() == len(told)


@pytest.mark.parametrize('reading', readings)
@pytest.mark.parametrize('arch', architectures)
def test_a_pair_scores_alike_alone_and_in_any_batch(arch, reading):
    torch.manual_seed(1)
    net = Student(small(arch=arch, reading=reading)).eval()
    q, d = torch.randint(3, 40, (4, 6)), torch.randint(3, 40, (4, 3, 9))
    q[0, 2:], d[0, 1, 1:], d[2, 0] = 0, 0, 0                 # short, shorter than every filter, empty
    with torch.inference_mode():
        whole = net(q, d)
        assert whole.shape == (4, 3) and whole.isfinite().all()
        assert torch.allclose(whole[0, 1], net(q[:1, :2], d[:1, 1:2, :1])[0, 0], atol=1e-5)
        assert torch.allclose(whole[:, [2, 0, 1]], net(q, d[:, [2, 0, 1]]), atol=1e-5)


def test_two_towers_may_read_documents_beforehand():
    net = Student(small()).eval()
    q, d = torch.randint(3, 40, (1, 4)), torch.randint(3, 40, (1, 5, 7))
    with torch.inference_mode():
        kept = net.read(d[0])
        assert torch.allclose(net.compare(net.read(q).expand_as(kept), kept), net(q, d)[0], atol=1e-6)


def test_shared_blocks_are_one_set_of_weights():
    count = lambda **kw: sum(p.numel() for p in Student(small(arch='transformer', **kw)).parameters())
    one, four, shared = count(n_layer=1), count(n_layer=4), count(n_layer=4, shared=True)
    assert one == shared < four
    a, b = (Student(small(arch='transformer', n_layer=n, shared=True)).eval() for n in (1, 4))
    b.load_state_dict(a.state_dict())
    q, d = torch.randint(3, 40, (1, 4)), torch.randint(3, 40, (1, 2, 4))
    assert not torch.allclose(a(q, d), b(q, d), atol=1e-4)         # the same weights, used four times


def test_arms_share_their_random_numbers_by_name():
    a, b = (make_student(small(n_map=n), seed=3) for n in (3, 3))
    c = make_student(small(n_map=3, dropout=.5), seed=3)
    assert all(torch.equal(p, q) for m in (b, c) for p, q in zip(a.parameters(), m.parameters()))


def test_embeddings_are_copied_and_brought_to_size():
    table = np.random.default_rng(0).normal(size=(40, 12)) * .03
    made = student_table(table, 8)
    net = make_student(small(), made)
    made[:] = 0
    assert np.isclose(net.tok_emb.weight[1:].square().mean().item(), 1, atol=1e-3)
    assert not net.tok_emb.weight[0].any() and not net.tok_emb.weight.requires_grad
    assert make_student(small(frozen=False), None).tok_emb.weight.requires_grad
    whole = student_table(table, 12)[1:]
    assert np.allclose(whole / whole[0, 0], table[1:] / table[1, 0], atol=1e-4)      # nothing is turned without need


@pytest.mark.parametrize('field, value, told', [
    ('arch', 'gru', 'textcnn, bilstm'), ('reading', 'one', 'two towers'), ('d_emb', 0, 'at least 1'),
    ('dropout', 1., r'\[0, 1\)'), ('n_head', 3, 'must divide')])
def test_sizes_that_no_student_has_are_named(field, value, told):
    with pytest.raises(ValueError, match=told): small(**{field: value})


def test_embeddings_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r'embeddings of \(40, 7\)'):
        make_student(small(), np.ones((40, 7), np.float32))
    with pytest.raises(ValueError, match='a width of 4'): student_table(np.ones((5, 4)), 5)


def test_a_library_that_lacks_something_itself_is_not_called_missing(tmp_path, monkeypatch):
    from papers_lib.engine import onnx_matcher
    (tmp_path / 'half_there.py').write_text('import nothing_of_this_name')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match='of the extra `onnx`'): onnx_matcher._needs('nothing_of_this_name')
    with pytest.raises(ModuleNotFoundError, match="No module named 'nothing_of_this_name'"):
        onnx_matcher._needs('half_there')
