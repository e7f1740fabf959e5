"Properties of norms and activations that a notebook cell is too small to say."
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from papers_lib.nn.activations import activations, gated_width, gates, gelu, gelu_sigmoid, gelu_tanh
from papers_lib.nn.blocks import MLP
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


def test_rms_norm_is_layer_norm_where_the_mean_is_zero_to_the_last_digits_of_float64():
    x = torch.randn(6, 40, dtype=torch.float64) * 30
    x = (x - x.mean(-1, keepdim=True)).requires_grad_()
    weight = torch.randn(40, dtype=torch.float64)
    ours, theirs = RMSNorm(40).double(), LayerNorm(40).double()
    for norm in (ours, theirs): norm.weight.data.copy_(weight)
    close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)
    with torch.no_grad(): close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)              # the other of two paths
    assert torch.autograd.gradcheck(ours, x)


# ---- activations

def test_the_tanh_form_is_off_by_what_the_card_says():
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    gap = (gelu_tanh(x) - gelu(x)).abs()
    assert abs(gap.max() - 4.73e-4) < 5e-7 and abs(x[gap.argmax()].abs() - 2.70) < 5e-3


def test_the_sigmoid_form_is_that_of_the_library_that_trained_with_it():
    from transformers.activations import ACT2FN
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    close(gelu_sigmoid(x), ACT2FN['quick_gelu'](x), atol=1e-12, rtol=0)
    gap = (gelu_sigmoid(x) - gelu(x)).abs()
    assert abs(gap.max() - 2.03349e-2) < 1e-7


@pytest.mark.parametrize('gate,act', [('reglu', 'relu'), ('geglu', 'gelu'), ('geglu_tanh', 'gelu_tanh'),
                                      ('swiglu', 'silu')])
def test_a_gate_on_a_branch_of_ones_is_the_plain_activation(gate, act):
    torch.manual_seed(0)
    gated, plain = MLP(12, 20, gate).double(), MLP(12, 20, act).double()
    x = torch.randn(3, 12, dtype=torch.float64)
    with torch.no_grad():
        gated.fc.weight[:20], gated.fc.bias[:20] = plain.fc.weight, plain.fc.bias
        gated.fc.weight[20:], gated.fc.bias[20:] = 0., 1.                                # V x = 1
    gated.proj.load_state_dict(plain.proj.state_dict())
    close(gated(x), plain(x), atol=1e-14, rtol=1e-14)


def test_the_first_half_is_the_gate_and_torch_gates_by_the_second():
    torch.manual_seed(0)
    mlp, x = MLP(12, 20, 'glu', bias=False).double(), torch.randn(3, 12, dtype=torch.float64)
    first, second = mlp.fc(x).chunk(2, -1)
    close(mlp(x), mlp.proj(torch.nn.functional.glu(torch.cat([second, first], -1))), atol=1e-14, rtol=1e-14)
    assert not mlp(x).allclose(mlp.proj(torch.nn.functional.glu(mlp.fc(x))), atol=1e-3)


def test_every_named_activation_has_its_gate():
    x = torch.randn(50)
    for act, f in activations.items():
        assert any(gate(x).equal(f(x)) for gate in gates.values()), act
    assert gates['glu'](x).equal(x.sigmoid()) and gates['bilinear'](x).equal(x)
