"Training: exact resume, splits of a batch, one run and no other, and what goes wrong with files and processes."
import json, os, shutil, signal, subprocess, sys, time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np, pytest, torch

from papers_lib.engine.checkpoint import checkpoints, latest
from papers_lib.engine.train import (
    IGNORE, Diverged, TrainConfig, adafactor, fit, flops_per_token, lm_loss, param_groups, peak_flops)
from papers_lib.nn.stack import Parts, Sizes, Stack
from papers_lib.store.files import CorruptFile
from papers_lib.text.corpora import TokenBatches

cfg = Sizes(n_vocab=61, ctx_len=16, d_model=32, n_layer=2, n_head=2, dropout=0.1)
train = TrainConfig(n_step=12, batch_size=8, lr=1e-2, n_warmup=3, log_every=4, schedule='constant')
tokens = np.random.default_rng(0).integers(0, 61, 2000)


def run(folder, n_step=12, ids=tokens, parts=Parts(), ctx_len=16, shuffle=True, options={}, **change):
    "Train from the start, or go on; the model, the batches and the result."
    torch.manual_seed(1)
    model = Stack(cfg, parts)
    batches = TokenBatches(ids, ctx_len, 8, seed=3, shuffle=shuffle)
    result = fit(model, batches, replace(train, n_step=n_step, **change), folder=folder, device='cpu', **options)
    return model, batches, result


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def child(code, **more):
    "Run a piece of code that knows this file as `t`."
    start = f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_engine_train as t\n'
    return subprocess.run([sys.executable, '-c', start + code], capture_output=True, text=True, **more)


# going on

@pytest.mark.parametrize('stop', [1, 5, 11])
def test_interrupted_equals_uninterrupted(tmp_path, stop):
    whole, batches, result = run(tmp_path / 'whole', save_every=1)
    run(tmp_path / 'parts', stop, save_every=1)
    torch.manual_seed(99); np.random.seed(99)                  # another process would be somewhere else
    again, others, resumed = run(tmp_path / 'parts', save_every=1)
    assert same(whole, again) and batches.state() == others.state() and result.tokens == resumed.tokens
    if stop % 4 == 0: assert result.losses == resumed.losses


def test_resume_keeps_the_losses_of_before(tmp_path):
    _, _, result = run(tmp_path / 'whole')
    run(tmp_path / 'parts', 8)
    assert run(tmp_path / 'parts')[2].losses == result.losses


def test_a_finished_run_gives_what_it_measured_and_trains_no_more(tmp_path, monkeypatch):
    asked = []
    score = dict(evaluate=lambda m: asked.append(1) or dict(loss=float(len(asked))))
    first, _, result = run(tmp_path, options=score)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
    monkeypatch.setattr(TokenBatches, '__next__', lambda self: pytest.fail('a finished run read a batch'))
    again, _, stored = run(tmp_path, options=score)
    assert same(first, again) and stored == result and asked == [1]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()} == stamps


@dataclass(frozen=True)
class Weighted:
    "A loss with a setting."
    weight:float = 1.
    def __call__(self, model, batch): return self.weight * lm_loss(model, batch)


def scaled(model, batch, weight): return weight * lm_loss(model, batch)

@pytest.mark.parametrize('loss, other', [(Weighted(), Weighted(2.)), (lm_loss, Weighted()),
                                         (partial(scaled, weight=1.), partial(scaled, weight=2.))])
def test_a_loss_with_other_settings_is_another_run(tmp_path, loss, other):
    for n_step in (6, 9): run(tmp_path, n_step, options=dict(loss_fn=loss))          # the same goes on
    with pytest.raises(ValueError, match='made with other settings: loss'): run(tmp_path, options=dict(loss_fn=other))


class OneTarget:
    "Batches whose rows have one target each."
    batch_size = 4
    def __iter__(self): return self
    def __next__(self): return dict(ids=torch.randint(61, (4, 16)), targets=torch.randint(61, (4,)))
    def state(self): return {}
    def load_state(self, s): pass


@pytest.mark.parametrize('batches, told', [(OneTarget(), False), (TokenBatches(tokens, 16, 4, seed=0), True)])
def test_a_known_gpu_gets_a_speed_only_where_rows_have_tokens(monkeypatch, batches, told):
    from papers_lib.engine import train as module
    monkeypatch.setattr(module, '_peak_of', lambda device: 989e12)
    def last(net, batch):
        logits = net.head(net.hidden(batch['ids']))
        return torch.nn.functional.cross_entropy(logits[:, -1], batch['targets'].view(4, -1)[:, -1], reduction='sum')
    result = fit(Stack(cfg, Parts()), batches, replace(train, n_step=2, batch_size=4), loss_fn=last, device='cpu')
    assert (result.mfu is not None) == told


@pytest.mark.parametrize('name, peak', [('NVIDIA H100 80GB HBM3', 989e12), ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA L4', 121e12), ('NVIDIA L40S', 362e12), ('NVIDIA L40', None), ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA GH200 480GB', 989e12), ('NVIDIA GeForce RTX 4090', 165e12), ('NVIDIA RTX 4000 Ada', None)])
def test_a_peak_is_that_of_this_gpu_and_no_relative(name, peak): assert peak_flops(name) == peak


def test_a_finished_run_on_a_gpu_needs_no_batch_for_its_speed(tmp_path, monkeypatch):
    run(tmp_path)
    from papers_lib.engine import train as module
    real = module._accelerator

    class Shown:
        "An accelerator that says it is a GPU and is none."
        def __init__(self, inner): self.inner = inner
        def __getattr__(self, name): return getattr(self.inner, name)
        device = torch.device('cuda')

    monkeypatch.setattr(module, '_accelerator', lambda device: Shown(real(device)))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA H100 80GB HBM3')
    assert run(tmp_path)[2].step == 12


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    model = run(tmp_path)[0]
    with pytest.raises(ValueError, match=r'n_step=10, and 12 optimizer steps are done'): run(tmp_path, 10)
    assert same(model, run(tmp_path)[0])


def test_a_longer_runs_checkpoint_is_evaluated_where_it_ends(tmp_path):
    class Enough(Exception): pass

    class Few(TokenBatches):
        def __next__(self):
            if self.given == 8 * 6: raise Enough
            return super().__next__()

    torch.manual_seed(1)
    with pytest.raises(Enough):
        fit(Stack(cfg), Few(tokens, 16, 8, seed=3), replace(train, save_every=5), folder=tmp_path, device='cpu')
    evals = run(tmp_path, 5, save_every=5, options=dict(evaluate=lambda m: dict(loss=1.)))[2].evals
    assert evals == [(5, dict(loss=1.))]


OTHERS = {
    'lr': dict(lr=2e-2), 'seed': dict(seed=5), 'dtype': dict(dtype='bfloat16'), 'tokens': dict(ids=tokens[::-1].copy()),
    'one token': dict(ids=np.where(np.arange(2000) == 1999, (tokens + 1) % 61, tokens)), 'ctx_len': dict(ctx_len=15),
    'shuffle': dict(shuffle=False), 'act': dict(parts=Parts(act='relu')), 'windows': dict(parts=Parts(windows=(4,))),
    'norm': dict(parts=Parts(norm='rms')), 'loss': dict(options=dict(loss_fn=lambda m, b: lm_loss(m, b)))}


@pytest.mark.parametrize('name', OTHERS)
def test_another_run_is_refused_by_name_and_loads_nothing(tmp_path, name, monkeypatch):
    run(tmp_path, 4)
    from papers_lib.engine import train as module
    monkeypatch.setattr(module, 'load_state', lambda *a, **k: pytest.fail('loaded before it was compared'))
    with pytest.raises(ValueError, match=r'other settings: .* was .*, now '): run(tmp_path, **OTHERS[name])


def test_the_same_tokens_in_another_holder_are_the_same(tmp_path):
    run(tmp_path, 4)
    for ids in (tokens.astype(np.uint16), tokens.tolist()):
        try: run(tmp_path, 8, ids=np.asarray(ids))
        except ValueError as e: pytest.fail(str(e))


def test_only_two_checkpoints_are_kept(tmp_path):
    run(tmp_path, save_every=2)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-000010', 'step-000012']


# files and processes

KILLED = '''
import os, signal
from papers_lib.engine import checkpoint
write = checkpoint._write
def killed(tensors, path):
    write(tensors, path)
    if 'step-000008' in str(path) and 'train_state' in str(path): os.kill(os.getpid(), signal.SIGKILL)
checkpoint._write = killed
t.run({folder!r}, save_every=4)
'''


def test_killed_while_a_checkpoint_is_written(tmp_path):
    whole, _, result = run(tmp_path / 'whole', save_every=4)
    parts = tmp_path / 'parts'
    ended = child(KILLED.format(folder=str(parts)))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [p.name for p in checkpoints(parts)] == ['step-000004'] and len(list(parts.glob('.step-000008-*'))) == 1
    assert latest(parts).name == 'step-000004'
    assert not list(parts.glob('.step-*'))                     # whoever looks for the newest sweeps
    again, _, resumed = run(parts, save_every=4)
    assert same(whole, again) and result.losses == resumed.losses


@pytest.mark.parametrize('file', ['model.safetensors', 'train_state.safetensors', 'train_state.json', 'manifest.json'])
@pytest.mark.parametrize('harm', ['truncated', 'altered', 'removed'])
def test_a_harmed_checkpoint_is_named_and_the_one_before_is_used(tmp_path, file, harm):
    whole = run(tmp_path, save_every=4)[0]
    path = tmp_path / 'step-000012' / file
    raw = path.read_bytes()
    if harm == 'truncated': path.write_bytes(raw[:len(raw) // 2])
    if harm == 'removed': path.unlink()
    if harm == 'altered': path.write_bytes(raw.replace(raw[len(raw) // 2:len(raw) // 2 + 4], b'\0\0\0\1', 1))
    with pytest.warns(UserWarning, match='step-000012'): assert latest(tmp_path).name == 'step-000008'
    with pytest.warns(UserWarning): again = run(tmp_path, save_every=4)[0]
    assert same(whole, again)


def test_no_whole_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
    run(tmp_path)
    for path in checkpoints(tmp_path): (path / 'model.safetensors').write_bytes(b'')
    with pytest.warns(UserWarning), pytest.raises(CorruptFile, match='no checkpoint in .* is whole'): run(tmp_path)


LIMITED = '''
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
t.run({folder!r})
'''


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path):
    ended = child(LIMITED.format(folder=str(tmp_path)))
    assert ended.returncode == 1 and 'could not be written' in ended.stderr.splitlines()[-1], ended.stderr
    assert {p.name for p in tmp_path.iterdir()} <= {'.run.lock'}


def test_two_runs_in_one_folder(tmp_path):
    code = (f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_engine_train as t\n'
            f't.run({str(tmp_path)!r}, 100_000)')
    other = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (tmp_path / '.run.lock').exists(): break
            time.sleep(0.1)
        with pytest.raises(RuntimeError, match='another run is training in this folder'): run(tmp_path)
    finally:
        other.kill()
        other.wait()
    run(tmp_path)                                              # the lock died with its holder


SURROUNDINGS = dict(
    ACCELERATE_MIXED_PRECISION='bf16', ACCELERATE_GRADIENT_ACCUMULATION_STEPS='4', ACCELERATE_DYNAMO_BACKEND='EAGER',
    ACCELERATE_DOWNCAST_BF16='true', ACCELERATE_USE_CPU='true', ACCELERATE_GRADIENT_CLIPPING='0.01')


def test_the_environment_does_not_change_the_arithmetic():
    code = ('import json\nm, _, r = t.run(None)\n'
            'print(json.dumps([r.losses, float(m.tok_emb.weight.detach().double().sum())]))')
    other = child(code, env=dict(os.environ) | SURROUNDINGS)
    assert other.returncode == 0, other.stderr
    model, _, result = run(None)
    losses, total = json.loads(other.stdout)
    assert [l for _, l in losses] == pytest.approx([l for _, l in result.losses], rel=1e-6)     # bfloat16: 1e-3 off
    assert total == pytest.approx(float(model.tok_emb.weight.detach().double().sum()), rel=1e-5)


def test_an_engine_with_an_arithmetic_of_its_own_is_refused(monkeypatch):
    import accelerate
    from accelerate.utils import DistributedType
    for kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        monkeypatch.setattr(accelerate.Accelerator, 'distributed_type', kind)
        with pytest.raises(ValueError, match='one process, DDP or FSDP'): run(None)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_device_that_is_not_there_is_refused(monkeypatch):
    for device, why in (('cuda', 'there is no GPU'), ('tpu', "device='tpu'")):
        with pytest.raises(ValueError, match=why): fit(Stack(cfg), TokenBatches(tokens, 16, 8), train, device=device)
    monkeypatch.setenv('PAPERS_DEVICE', 'cuda')                # who is not told trains where the run is
    with pytest.raises(ValueError, match='there is no GPU'): fit(Stack(cfg), TokenBatches(tokens, 16, 8), train)
    assert run(None, 1)[2].step == 1                           # who is told does not


# steps

@pytest.mark.parametrize('micro', [1, 3, 8])
def test_loss_and_gradients_do_not_depend_on_the_split(micro):
    torch.manual_seed(0)
    model = Stack(replace(cfg, dropout=0.))
    batch = next(TokenBatches(tokens, 16, 8, seed=0))
    targets = batch['targets'].clone()
    targets[0, 3:] = targets[5] = IGNORE                       # rows of unequal weight, one of none

    class Once:
        def __next__(self): return dict(ids=batch['ids'], targets=targets)
        def state(self): return {}

    seen = {}
    for m in (None, micro):
        net = Stack(model.cfg)
        net.load_state_dict(model.state_dict())
        grads = {}
        handles = [p.register_post_accumulate_grad_hook(lambda p, n=n: grads.update({n: p.grad.clone()}))
                   for n, p in net.named_parameters()]
        once = TrainConfig(n_step=1, batch_size=8, micro_batch=m, lr=1e-9, clip=1e9)
        out = fit(net, Once(), once, device='cpu')
        for h in handles: h.remove()
        seen[m] = out.losses[0][1], grads
    assert seen[None][0] == pytest.approx(seen[micro][0], abs=1e-6)
    for name, g in seen[None][1].items(): torch.testing.assert_close(g, seen[micro][1][name], atol=1e-6, rtol=1e-4)
    direct = (lm_loss(model, dict(ids=batch['ids'], targets=targets)) / (targets != IGNORE).sum()).item()
    assert seen[micro][0] == pytest.approx(direct, abs=1e-6)


def test_a_batch_without_targets_is_named():
    class Empty(TokenBatches):
        def __next__(self): return dict(super().__next__(), targets=torch.full((8, 16), IGNORE))
    with pytest.raises(ValueError, match='optimizer step 1: the batch has no target'):
        fit(Stack(cfg), Empty(tokens, 16, 8), train)


def nan_from(step):
    "A loss that is no number from an optimizer step on."
    calls = []
    def loss(model, batch):
        calls.append(1)
        return lm_loss(model, batch) * (float('nan') if len(calls) >= step else 1.)
    return loss


def test_divergence_is_an_error_with_its_step():
    with pytest.raises(Diverged, match='optimizer step') as e: run(None, log_every=1, options=dict(loss_fn=nan_from(1)))
    assert e.value.step == 1


def test_a_diverged_run_leaves_no_checkpoint_that_is_none(tmp_path):
    with pytest.raises(Diverged, match='a weight is nan at optimizer step 6'):
        run(tmp_path, log_every=12, save_every=3, options=dict(loss_fn=nan_from(5)))
    assert [p.name for p in checkpoints(tmp_path)] == ['step-000003'] and latest(tmp_path)


@pytest.mark.parametrize('change, error', [(dict(lr=1e30, clip=1e30), Diverged), (dict(lr=float('inf')), ValueError)])
def test_a_rate_too_high_is_an_error_too(change, error):
    with pytest.raises(error): run(None, **change)


def test_no_decay_on_vectors():
    decayed, others = param_groups(Stack(cfg), 0.1)
    assert {p.dim() for p in decayed['params']} == {2} and {p.dim() for p in others['params']} == {1}
    assert (decayed['weight_decay'], others['weight_decay']) == (0.1, 0.)


def test_adafactor_steps_by_shares_of_a_matrix():
    g = torch.Generator().manual_seed(0)
    first = torch.randn(6, 8, generator=g)
    pair = torch.nn.ParameterDict({n: first * k for n, k in dict(small=0.1, large=1., tiny=1e-6, still=1.).items()})
    pair['still'].requires_grad_(False)
    opt = adafactor(pair, TrainConfig(n_step=1, batch_size=1, lr=0.01, weight_decay=0.))
    assert sum(len(group['params']) for group in opt.param_groups) == 3
    before = {n: p.detach().clone() for n, p in pair.items()}
    for scale, p in enumerate(p for p in pair.values() if p.requires_grad): p.grad = 10. ** scale * first.sin()
    opt.step()
    size = lambda x: x.square().mean().sqrt().item()
    moved = {n: size(pair[n].detach() - before[n]) for n in pair}
    assert moved['still'] == 0
    assert moved['large'] == pytest.approx(10 * moved['small'], rel=1e-4)            # whatever the gradient's size
    assert moved['large'] <= 0.01 * size(before['large']) * (1 + 1e-4)                # clipped at the rate's share
    assert moved['tiny'] == pytest.approx(1e-3 * moved['large'] / size(before['large']), rel=1e-3)   # its floor


def test_adafactor_keeps_one_number_a_row_and_one_a_column():
    p = torch.nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)))
    opt = adafactor(torch.nn.ParameterList([p]), TrainConfig(n_step=1, batch_size=1, lr=0.01, weight_decay=0.))
    p.grad, before = torch.rand(6, 1).exp() * torch.rand(1, 8).exp(), p.detach().clone()
    opt.step()                                              # squares of rank one: every entry moves by the same
    moved = (before - p.detach()).flatten()
    torch.testing.assert_close(moved, torch.full_like(moved, moved.mean().item()), rtol=1e-3, atol=0)
    assert sum(x.numel() for x in opt.state[p].values() if torch.is_tensor(x)) <= 6 + 8 + 1


def test_a_learned_position_table_costs_nothing_and_the_head_something():
    with torch.device('meta'): learned, none, untied = (Stack(cfg, Parts(positions=p, tied=t)) for p, t in
                                                        (('learned', True), ('none', True), ('none', False)))
    assert flops_per_token(learned, 16) == flops_per_token(none, 16)
    assert flops_per_token(untied, 16) - flops_per_token(none, 16) == 6 * 61 * 32
    assert flops_per_token(none, 32) - flops_per_token(none, 16) == 12 * 2 * 32 * 16


@pytest.mark.parametrize('field, value', [
    ('n_step', 0), ('batch_size', 0), ('lr', 0.), ('lr', float('nan')), ('schedule', 'cosin'), ('n_warmup', -1),
    ('eps', 0.), ('min_frac', 2.), ('beta1', 1.), ('beta2', 1.), ('weight_decay', -1.), ('clip', 0.),
    ('dtype', 'float16'), ('log_every', 0), ('eval_every', -1), ('save_every', -1), ('micro_batch', 9),
    ('micro_batch', 0)])
def test_train_config_names_what_is_wrong(field, value):
    with pytest.raises(ValueError, match=f'TrainConfig.{field}='): replace(train, **{field: value})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_bfloat16_on_the_gpu_is_near_float32():
    losses = []
    for dtype in ('float32', 'bfloat16'):
        torch.manual_seed(0)
        losses.append(fit(Stack(cfg), TokenBatches(tokens, 16, 8), replace(train, dtype=dtype)).losses[-1][1])
    assert abs(losses[0] - losses[1]) < 0.1


# several processes

MANY = '''
import json, os, sys
sys.path.insert(0, {here!r})
import test_engine_train as t
if {spread}: t.on_slices()
t.cfg = t.replace(t.cfg, dropout=0.)
whole = lambda x: x.full_tensor() if hasattr(x, 'full_tensor') else x
t.torch.set_default_dtype(t.torch.float64)
kinds = []
def score(model):
    kinds.extend(type(p).__name__ for p in model.parameters())
    batch = next(t.TokenBatches(t.tokens, 16, 8, seed=9))
    with t.torch.no_grad(): return dict(loss=t.lm_loss(model, batch).item())
model, batches, result = t.run({folder!r}, {stop}, log_every=3, save_every=2, options=dict(evaluate=score))
weights = [whole(p).detach().double().sum().item() for p in model.parameters()]
if os.environ.get('RANK', '0') == '0':
    print(json.dumps(dict(losses=result.losses, evals=result.evals, tokens=result.tokens, weights=weights,
                          world=int(os.environ.get('WORLD_SIZE', 1)), kinds=sorted({{*kinds}}))))
'''


def on_slices():
    "Let two CPUs spread a model as GPUs do: Accelerate knows FSDP2 on GPUs alone, torch on both."
    os.environ.update(ACCELERATE_USE_FSDP='true', FSDP_VERSION='2', FSDP_AUTO_WRAP_POLICY='TRANSFORMER_BASED_WRAP',
                      FSDP_TRANSFORMER_CLS_TO_WRAP='Block')
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from papers_lib.engine import train as module
    plain = module._accelerator
    def spread(device):
        found = plain(device)
        found.state.distributed_type = DistributedType.FSDP
        found.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        return found
    module._accelerator = spread


def many(tmp_path, n, spread=False, folder=None, stop=12):
    "Train in n processes; what the first one says."
    file = tmp_path / 'many.py'
    file.write_text(MANY.format(here=str(Path(__file__).parent), spread=spread, folder=folder and str(folder),
                                stop=stop))
    env = dict(os.environ) | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PAPERS_PROGRESS='off')
    how = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}'] if n > 1 else []
    p = subprocess.run([sys.executable, *how, str(file)], capture_output=True, text=True, env=env, timeout=300)
    assert p.returncode == 0, p.stderr[-2000:]
    told = json.loads(p.stdout.splitlines()[-1])
    assert told['world'] == n and ('DTensor' in told['kinds']) == spread
    return told


def agree(one, other):
    "In double precision nothing is left of the order in which processes add; losses are told in single."
    assert one['tokens'] == other['tokens'] and len(one['weights']) > 20
    assert one['weights'] == pytest.approx(other['weights'], rel=1e-9, abs=1e-9)
    losses = lambda d: [x for _, x in d['losses'][-3:]] + [d['evals'][-1][1]['loss']]
    assert losses(one) == pytest.approx(losses(other), rel=1e-6)


def without_last(folder):
    "Lose the last checkpoint, as a run does that is killed; the one before holds a loss that was not told yet."
    *_, before, last = checkpoints(folder)
    shutil.rmtree(last)
    assert json.loads((before / 'train_state.json').read_text())['since'] == 1


@pytest.fixture(scope='module')
def alone(tmp_path_factory): return many(tmp_path_factory.mktemp('alone'), 1)


def test_two_processes_train_as_one_does_and_go_on_as_it_does(tmp_path, alone):
    many(tmp_path, 2, folder=tmp_path / 'run', stop=5)
    without_last(tmp_path / 'run')
    agree(many(tmp_path, 2, folder=tmp_path / 'run'), alone)


def test_a_model_in_slices_trains_as_a_whole_one_does_and_each_goes_on_from_the_other(tmp_path, alone):
    many(tmp_path, 2, True, tmp_path / 'run', stop=5)
    without_last(tmp_path / 'run')
    many(tmp_path, 1, folder=tmp_path / 'run', stop=9)
    agree(many(tmp_path, 2, True, tmp_path / 'run'), alone)


def test_a_weight_that_is_no_number_in_one_slice_ends_all_processes(tmp_path):
    file = tmp_path / 'spoilt.py'
    file.write_text(f'''
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_engine_train as t
t.on_slices()
def spoil(model):
    weight = model.blocks[0].mlp.fc.weight.to_local()
    if os.environ['RANK'] == '1':
        with t.torch.no_grad(): weight[0] = float('nan')
    return dict(loss=0.)
try: t.run({str(tmp_path / 'run')!r}, 2, options=dict(evaluate=spoil))
except t.Diverged as e: t.Path({str(tmp_path)!r}, 'said-' + os.environ['RANK']).write_text(str(e))
''')
    env = dict(os.environ) | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PAPERS_PROGRESS='off')
    p = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(file)],
                       capture_output=True, text=True, env=env, timeout=120)
    said = sorted(x.name for x in tmp_path.glob('said-*') if 'a weight is nan' in x.read_text())   # lines would mix
    assert said == ['said-0', 'said-1'] and p.returncode == 0, p.stderr[-500:]
    assert checkpoints(tmp_path / 'run') == []


def test_processes_that_see_other_checkpoints_do_not_begin(tmp_path):
    file = tmp_path / 'apart.py'
    file.write_text(f'''
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_engine_train as t
folder = f'{tmp_path}/run' + os.environ['RANK']
for stop in (4, 8): t.run(folder, stop)
''')
    env = dict(os.environ) | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PAPERS_PROGRESS='off')
    p = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(file)],
                       capture_output=True, text=True, env=env, timeout=120)
    assert p.returncode == 1 and 'steps [4, -1] (-1 is none): it must be a folder that all of them share' in p.stderr
