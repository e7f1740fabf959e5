"Properties of norms and activations that a notebook cell is too small to say."
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from papers_lib.nn.activations import gated_width
from papers_lib.nn.norms import LayerNorm, RMSNorm

close = torch.testing.assert_close


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_layernorm_is_torch_layernorm(dtype, bias):
    torch.manual_seed(0)
    ours, ref = LayerNorm(48, 1e-6, bias).to(dtype), nn.LayerNorm(48, 1e-6, bias=bias).to(dtype)
    nn.init.normal_(ours.weight)
    ref.load_state_dict(ours.state_dict())                     # the same names, strictly
    x = torch.randn(4, 5, 48, dtype=dtype)
    assert ours(x).dtype == dtype
    close(ours(x), ref(x))


def test_layernorm_of_a_constant_vector_is_its_bias():
    ln = LayerNorm(8)
    nn.init.constant_(ln.bias, 3.)
    close(ln(torch.full((2, 8), 1e4)), torch.full((2, 8), 3.))


def test_rms_norm_equals_torch_and_keeps_float32_statistics_in_bfloat16():
    x = torch.randn(5, 64, dtype=torch.float64) * 300
    ours, theirs = RMSNorm(64, eps=1e-6), torch.nn.RMSNorm(64, eps=1e-6)
    close(ours(x.float()), theirs(x.float()), atol=1e-5, rtol=1e-5)
    low = x.bfloat16()
    exact = low.double() * torch.rsqrt(low.double().square().mean(-1, keepdim=True) + 1e-6)
    assert ours.bfloat16()(low).equal(exact.bfloat16())            # one rounding, at the end


@given(d=st.integers(1, 64).map(lambda i: 64 * i), m=st.sampled_from([1, 32, 256, 4096]))
def test_gated_width_is_the_next_multiple(d, m):
    f = gated_width(d, m)
    assert f % m == 0 and 0 <= f - int(8 * d / 3) < m
