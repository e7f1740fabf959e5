"Kernels of one product: all alike, the fastest found by trying, and none where the compiler chooses."
import json
import math
import time
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from papers_lib.nn import linear as room
from papers_lib.nn.linear import KernelChoice, Linear, kernel_choices, linear, linear_impls, packed
from papers_lib.nn.linear import rounded, weight_formats
from papers_lib.store.cache import cache_dir

close = torch.testing.assert_close


def forget():
    room._chosen.clear()
    room._fastest.cache_clear()
    room._pick_sizes.cache_clear()


@pytest.fixture
def untried(tmp_path, monkeypatch):
    "A machine on which nothing was tried yet."
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    monkeypatch.delenv('PAPERS_LINEAR', raising=False)
    monkeypatch.setattr(room, '_quiet_after', 0.)
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def no_trial(untried, monkeypatch):
    def fail(candidates): raise AssertionError('a product was timed')
    monkeypatch.setattr(room, '_measure', fail)


def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass


# ---- all kernels alike

@settings(max_examples=40)
@given(lead=st.lists(st.integers(0, 5), min_size=1, max_size=3), n_in=st.integers(1, 40), n_out=st.integers(1, 40),
       biased=st.booleans())
def test_every_kernel_gives_the_values_and_gradients_of_torch(lead, n_in, n_out, biased):
    torch.manual_seed(0)
    leaves = [torch.randn(*lead, n_in), torch.randn(n_out, n_in), *([torch.randn(n_out)] if biased else [])]
    weigh = torch.randn(*lead, n_out)
    def values(f):
        mine = [p.clone().requires_grad_() for p in leaves]
        y = f(*mine)
        (y * weigh).sum().backward()
        return [y.detach(), *(p.grad for p in mine)]
    want = values(F.linear)
    for impl in linear_impls():
        for ours, theirs in zip(values(lambda *p: linear(*p, impl=impl)), want, strict=True):
            assert ours.shape == theirs.shape
            close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('product', list(room._kernels))
def test_every_kernel_of_each_product_agrees_at_sizes_that_are_timed(product):
    torch.manual_seed(0)
    for rows, n_in, n_out in ((3, 700, 600), (200, 96, 400), (200, 400, 96)):
        x, w, g = torch.randn(rows, n_in), torch.randn(n_out, n_in), torch.randn(rows, n_out)
        args = {'forward': (x, w), 'input grad': (g, w), 'weight grad': (g, x)}[product]
        want, *others = [f(*args) for f in room._kernels[product].values()]
        for y in others: close(y, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('mixed', [
    ('swapped', 'onednn', 'blas'), ('blas', 'blas', 'onednn swapped'), ('onednn', 'blas', 'onednn')])
def test_three_products_by_three_kernels_are_one_derivative(mixed, monkeypatch):
    if any(k not in room._kernels[p] for p, k in zip(room._kernels, mixed)): pytest.skip('this torch has no oneDNN')
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((2, 5, 24), (12, 24), (12,)))
    monkeypatch.setattr(room, '_pick', lambda *_: mixed)
    for inputs in ((x, w, b), (x, w.detach(), b), (x.detach(), w, None), (x, w, None)):
        wanted = [p for p in inputs if p is not None and p.requires_grad]
        ours = torch.autograd.grad(linear(*inputs).square().sum(), wanted)
        theirs = torch.autograd.grad(F.linear(*inputs).square().sum(), wanted)
        for a, e in zip(ours, theirs): close(a, e, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('weights', list(weight_formats))
def test_every_kernel_of_a_format_agrees_to_the_formats_rounding(weights, untried, monkeypatch):
    torch.manual_seed(0)
    layer = Linear(640, 512)
    for rows in (1, 5, 40):
        x, results = torch.randn(rows, 640), []
        names = room._raced[f'forward {weights}'](1, 1, 1)
        for name in names:
            monkeypatch.setattr(room, '_lent_kernel', lambda *_: name)
            with torch.no_grad(), packed(layer, weights): results.append(layer(x))
        scale = layer(x).norm()
        for y in results: assert (y - results[0]).norm() / scale < (1e-6 if weights == 'float32' else 6e-3)
        assert (results[0] - layer(x)).norm() / scale < 1e-2


@pytest.mark.parametrize('weights', list(weight_formats))
def test_a_processor_that_cannot_reorder_a_format_still_has_it(weights, untried, monkeypatch):
    monkeypatch.setattr(room, '_repacked', lambda w: None)
    layer, x = Linear(640, 512), torch.randn(20, 640)
    with torch.no_grad(), packed(layer, weights): y = layer(x)
    assert (y - layer(x)).norm() / y.norm() < 1e-2
    assert all(c.kernel != 'packed' and 'packed' not in c.microseconds for c in kernel_choices())


# ---- the fastest

def test_the_fastest_is_chosen_once_and_for_all_processes(untried, monkeypatch):
    calls = []
    def kernel(name, seconds): return lambda turn: (calls.append(name), burn(seconds))
    speeds = dict(blas=1.2e-4, slow=9e-4, fast=1e-4)
    monkeypatch.setitem(room._raced, 'toy', lambda *sizes: {k: kernel(k, s) for k, s in speeds.items()})
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    assert room._fastest('toy', 100, 100, 100, 1) == 'fast'
    n = len(calls)
    assert room._fastest('toy', 120, 99, 128, 1) == 'fast' and len(calls) == n      # the same class
    forget()
    assert room._fastest('toy', 100, 100, 100, 1) == 'fast' and len(calls) == n     # another process: read, not timed
    room._fastest('toy', 200, 100, 100, 1)
    assert len(calls) > n                                                           # another class
    assert calls.count('slow') < calls.count('fast')                                # what is far behind leaves early
    assert [c[:6] for c in kernel_choices()] == [('toy', 96, 96, 96, 1, 'fast'), ('toy', 192, 96, 96, 1, 'fast')]


def test_what_another_machine_chose_is_not_listed_and_not_used(untried, monkeypatch):
    monkeypatch.setitem(room._raced, 'toy', lambda *sizes: {k: lambda turn: burn(1e-4) for k in ('blas', 'other')})
    monkeypatch.setattr(room, '_measure', lambda candidates: {'blas': [2., 2.], 'other': [1., 1.]})
    assert room._fastest('toy', 100, 100, 100, 1) == 'other'
    forget()
    monkeypatch.setattr(room, '_machine', lambda: 'another processor')
    assert kernel_choices() == []
    monkeypatch.setattr(room, '_measure', lambda candidates: {'blas': [1., 1.], 'other': [2., 2.]})
    assert room._fastest('toy', 100, 100, 100, 1) == 'blas'


@pytest.mark.parametrize('harm', ['cut', 'gone', 'alien'])
def test_a_damaged_choice_is_made_again(untried, monkeypatch, harm, capfd):
    monkeypatch.setitem(room._raced, 'toy', lambda *sizes: {k: lambda turn: burn(1e-4) for k in ('blas', 'other')})
    monkeypatch.setattr(room, '_measure', lambda candidates: {'blas': [2., 2.], 'other': [1., 1.]})
    room._fastest('toy', 100, 100, 100, 1)
    file, = cache_dir().glob('kernels/*/choice.json')
    if harm == 'cut': file.write_text(file.read_text(encoding='utf-8')[:20], encoding='utf-8')
    if harm == 'gone': file.unlink()
    if harm == 'alien': monkeypatch.setitem(room._raced, 'toy', lambda *sizes: {'blas': None, 'new': None})
    if harm == 'alien': monkeypatch.setattr(room, '_measure', lambda candidates: {'blas': [2., 2.], 'new': [1., 1.]})
    forget()
    assert room._fastest('toy', 100, 100, 100, 1) == ('new' if harm == 'alien' else 'other')
    assert json.dumps(kernel_choices())


def test_without_a_cache_to_write_to_the_process_chooses_for_itself(untried, monkeypatch):
    blocked = untried / 'file'
    blocked.write_text('', encoding='utf-8')
    monkeypatch.setenv('PAPERS_CACHE', str(blocked / 'below'))
    seen = []
    monkeypatch.setattr(room, '_measure', lambda candidates: seen.append(1) or {k: [1., 1.] for k in candidates})
    for _ in range(3): linear(torch.randn(64, 256), torch.randn(256, 256))
    assert len(seen) == 1 and len(kernel_choices()) == 1


@given(slow=st.floats(1., 10.), noise=st.lists(st.floats(1., 20.), min_size=2, max_size=6))
def test_a_kernel_replaces_the_first_only_if_it_is_clearly_faster(slow, noise):
    times = {'blas': [slow, slow], 'other': [1., 1.]}
    assert room._winner(times) == ('other' if slow > 1.03 else 'blas')
    noisy = {'blas': [slow, slow * 2, slow * 3], 'other': [1., *noise]}
    assert room._winner(noisy) == ('other' if slow > 1.25 else 'blas')


def test_several_threads_that_take_longer_than_one_are_not_believed(untried, monkeypatch):
    alone, together = {'blas': [2., 2.], 'other': [1., 1.]}, {'blas': [.9, .9], 'other': [5., 5.]}
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 4)
    set_to, races = [], []
    monkeypatch.setattr(torch, 'set_num_threads', set_to.append)
    def race(candidates, clock, seconds):
        races.append(clock)
        return alone if clock is time.thread_time else together
    monkeypatch.setattr(room, '_race', race)
    assert room._measure({'blas': None, 'other': None}) == alone and set_to == [1, 4]
    assert room._measure({'blas': None, 'other': None}) == alone and len(races) == 3      # not tried again at once
    monkeypatch.setattr(room, '_quiet_after', 0.)
    together['other'] = [.6, .6]
    assert room._measure({'blas': None, 'other': None}) == together


def test_threads_and_random_numbers_are_as_before_also_when_a_kernel_fails(untried, monkeypatch):
    n, state = torch.get_num_threads(), torch.get_rng_state()
    linear(torch.ones(64, 256), torch.ones(256, 256, requires_grad=True)).sum().backward()
    assert len(kernel_choices()) == 3
    def broken(turn): raise RuntimeError('no such kernel')
    with pytest.raises(RuntimeError, match='no such kernel'): room._measure({'blas': broken})
    assert torch.get_num_threads() == n and torch.get_rng_state().equal(state)


def test_a_whole_models_choices_cost_a_fraction_of_a_second(untried, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    before = time.thread_time()
    for rows, n_in, n_out in ((2048, 384, 1152), (2048, 384, 384), (2048, 1536, 384), (2048, 384, 8192)):
        room._pick(torch.empty(rows, n_in), torch.empty(n_out, n_in), grad=True)
    assert len(kernel_choices()) == 12 and time.thread_time() - before < 1


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 10**5))
def test_what_is_timed_has_the_shape_of_its_class_and_bounded_cost(rows, n_in, n_out):
    sizes = [room._class(n) for n in (rows, n_in, n_out)]
    for n, c in zip((rows, n_in, n_out), sizes): assert 2 / 3 <= n / c <= 4 / 3
    few = room._shrunk(*sizes)
    assert math.prod(few) <= 2**25 and few[1] * few[2] <= 2**22 and all(f <= c for f, c in zip(few, sizes))
    assert max(few) / min(few) <= max(sizes) / min(sizes) * 2


# ---- never timed

def test_small_products_are_not_timed(no_trial):
    for rows, n_in, n_out in ((1, 512, 511), (64, 180, 180), (2000, 32, 32), (0, 4096, 64)):
        room._pick(torch.empty(rows, n_in), torch.empty(n_out, n_in), grad=True)
    with pytest.raises(AssertionError, match='timed'): room._pick(torch.empty(1, 1024), torch.empty(1024, 1024))


def test_other_types_modes_and_watchers_get_what_torch_does(no_trial):
    x, w = torch.randn(64, 256), torch.randn(512, 256)
    with torch.autocast('cpu', torch.bfloat16): assert linear(x, w).dtype is torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16): assert linear(x.to(dtype), w.to(dtype)).dtype is dtype
    assert linear(x.to('meta'), w.to('meta')).shape == (64, 512)
    close(torch.func.vmap(lambda row: linear(row, w))(x[:, None]), F.linear(x, w)[:, None], atol=1e-4, rtol=1e-4)
    with FlopCounterMode(display=False) as counter: linear(x, w)
    assert counter.get_total_flops() == 2 * 64 * 256 * 512


def test_compiled_code_leaves_the_kernel_to_the_compiler_and_times_nothing(no_trial):
    seen = []
    def backend(graph, inputs):
        seen.append(graph.code)
        return graph
    layer, x = Linear(1024, 512), torch.randn(64, 1024)
    y = torch.compile(layer, backend=backend, fullgraph=True)(x)
    assert len(seen) == 1 and 'linear' in seen[0]
    assert not any(word in seen[0] for word in ('mkldnn', '_Product', 'autograd_function'))
    close(y, F.linear(x, layer.weight, layer.bias), atol=1e-4, rtol=1e-4)


# ---- by hand

@pytest.mark.parametrize('name', [k for k in linear_impls() if k != 'sum'])
def test_the_environment_overrides_the_choice(no_trial, monkeypatch, name):
    used = []
    watched = lambda k, f: lambda *args: used.append(k) or f(*args)
    monkeypatch.setitem(room._kernels, 'forward', {k: watched(k, f) for k, f in room._kernels['forward'].items()})
    monkeypatch.setenv('PAPERS_LINEAR', name)
    x, w = torch.randn(64, 256), torch.randn(512, 256, requires_grad=True)
    for weight in (w, w.detach()): close(linear(x, weight), F.linear(x, weight), atol=1e-4, rtol=1e-4)
    assert used == ([] if name == 'blas' else [name] * 2)


def test_a_kernel_that_is_not_there_is_named(no_trial, monkeypatch):
    x, w = torch.ones(64, 256), torch.ones(512, 256)
    with pytest.raises(ValueError, match="impl='cuda': this torch has"): linear(x, w, impl='cuda')
    monkeypatch.setenv('PAPERS_LINEAR', 'mkl')
    with pytest.raises(ValueError, match="PAPERS_LINEAR='mkl': must be one of blas"): linear(x, w)


def test_choices_say_everything_that_a_listing_needs(untried):
    linear(torch.ones(64, 256), torch.ones(512, 256))
    choice, = kernel_choices()
    assert isinstance(choice, KernelChoice) and choice.kernel in choice.microseconds
    assert choice[:4] == ('forward', 48, 192, 384) and choice.threads == torch.get_num_threads()
    assert set(choice.microseconds) == set(room._kernels['forward']) and min(choice.microseconds.values()) > 0


def test_compiled_code_reads_the_formats_without_timing(no_trial):
    layer = Linear(640, 512)
    for weights in weight_formats:
        for rows in (1, 3, 40):
            torch._dynamo.reset()
            x = torch.randn(rows, 640)
            with torch.no_grad(), packed(layer, weights): y = torch.compile(layer, backend='eager')(x)
            assert (y - layer.weight.matmul(x.t()).t() - layer.bias).norm() / y.norm() < 1e-2


def some_layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(Linear(40, 30), torch.nn.LayerNorm(30), Linear(30, 20), torch.nn.Embedding(9, 20))


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_rounded_weights_lie_within_half_a_step_of_what_they_were(bits):
    model = some_layers()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with rounded(model, bits):
        for name, w in model.state_dict().items():
            if name not in ('0.weight', '2.weight'): assert w.equal(before[name])
            else:
                step = before[name].abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                assert ((w - before[name]).abs() <= step / 2 * 1.001).all() and not w.equal(before[name])
                assert ((w / step).round() - w / step).abs().max() < 1e-4
    assert all(w.equal(before[k]) for k, w in model.state_dict().items())


def test_rounded_weights_come_back_after_an_error_and_odd_bits_are_refused():
    model = some_layers()
    before = model[0].weight.detach().clone()
    with pytest.raises(KeyError), rounded(model, 4): raise KeyError
    assert model[0].weight.equal(before)
    for bits in (1, 9):
        with pytest.raises(ValueError, match=f'bits={bits}: must be 2 to 8'), rounded(model, bits): pass
