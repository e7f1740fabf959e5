"Training and checkpoints: exact resume, splits of a batch, and what goes wrong with files and processes."
import signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np, pytest, torch

from papers_lib.engine.checkpoint import checkpoints, latest, load_model, save_model
from papers_lib.engine.train import IGNORE, Diverged, TrainConfig, fit, lm_loss, param_groups
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.text.corpora import CorruptFile, TokenBatches

cfg = GPT2Config(n_vocab=61, ctx_len=16, d_model=32, n_layer=2, n_head=2, dropout=0.1)
train = TrainConfig(n_step=12, batch_size=8, lr=1e-2, n_warmup=3, log_every=4)
tokens = np.random.default_rng(0).integers(0, 61, 2000)


def run(folder, n_step=12, **change):
    "Train from the start, or go on; the model, the batches and the result."
    torch.manual_seed(1); model = GPT2(cfg)
    batches = TokenBatches(tokens, cfg.ctx_len, 8, seed=3)
    return model, batches, fit(model, batches, replace(train, n_step=n_step, **change), folder=folder, device='cpu')


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize('stop', [1, 5, 11])
def test_interrupted_equals_uninterrupted(tmp_path, monkeypatch, stop):
    whole, batches, result = run(tmp_path / 'whole', schedule='constant', save_every=1)
    run(tmp_path / 'parts', stop, schedule='constant', save_every=1)
    torch.manual_seed(99); np.random.seed(99)                  # another process would be somewhere else
    again, others, resumed = run(tmp_path / 'parts', schedule='constant', save_every=1)
    assert same(whole, again) and batches.state() == others.state() and result.tokens == resumed.tokens
    if stop % 4 == 0: assert result.losses == resumed.losses


def test_resume_keeps_the_losses_of_before(tmp_path):
    _, _, result = run(tmp_path / 'whole', schedule='constant')
    run(tmp_path / 'parts', 8, schedule='constant')
    assert run(tmp_path / 'parts', schedule='constant')[2].losses == result.losses


CHILD = '''
import sys; sys.path.insert(0, {tests!r})
import os, signal, test_engine_train as t
from papers_lib.engine import checkpoint
write = checkpoint._write
def killed(tensors, path):
    write(tensors, path)
    if 'step-000008' in str(path) and str(path).endswith('train_state.safetensors'): os.kill(os.getpid(), signal.SIGKILL)
checkpoint._write = killed
t.run({folder!r}, schedule='constant', save_every=4)
'''


def test_killed_while_a_checkpoint_is_written(tmp_path):
    whole, _, result = run(tmp_path / 'whole', schedule='constant', save_every=4)
    child = subprocess.run([sys.executable, '-c', CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path / 'parts'))], capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert [p.name for p in checkpoints(tmp_path / 'parts')] == ['step-000004'] and len(list((tmp_path / 'parts').glob('.step-000008-*'))) == 1
    assert latest(tmp_path / 'parts').name == 'step-000004' and not list((tmp_path / 'parts').glob('.step-*'))           # whoever looks for the newest sweeps
    again, _, resumed = run(tmp_path / 'parts', schedule='constant', save_every=4)
    assert same(whole, again) and result.losses == resumed.losses


@pytest.mark.parametrize('file', ['model.safetensors', 'train_state.safetensors', 'train_state.json', 'manifest.json'])
@pytest.mark.parametrize('harm', ['truncated', 'altered', 'removed'])
def test_a_harmed_checkpoint_is_named_and_the_one_before_is_used(tmp_path, file, harm):
    whole = run(tmp_path, schedule='constant', save_every=4)[0]
    path = tmp_path / 'step-000012' / file
    raw = path.read_bytes()
    if harm == 'truncated': path.write_bytes(raw[:len(raw) // 2])
    if harm == 'removed': path.unlink()
    if harm == 'altered': path.write_bytes(raw.replace(raw[len(raw) // 2:len(raw) // 2 + 4], b'\0\0\0\1', 1))
    with pytest.warns(UserWarning, match='step-000012.*' + file): assert latest(tmp_path).name == 'step-000008'
    with pytest.warns(UserWarning): again = run(tmp_path, schedule='constant', save_every=4)[0]
    assert same(whole, again)


def test_no_whole_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
    run(tmp_path)
    for path in checkpoints(tmp_path): (path / 'model.safetensors').write_bytes(b'')
    with pytest.warns(UserWarning), pytest.raises(CorruptFile, match='no checkpoint in .* is whole'): run(tmp_path)


def test_other_settings_are_refused_by_name(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r'train\.lr was 0.01, now 0.02'): run(tmp_path, lr=2e-2)


def test_only_two_checkpoints_are_kept(tmp_path):
    run(tmp_path, save_every=2)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-000010', 'step-000012']


LIMITED = '''
import sys; sys.path.insert(0, {tests!r})
import resource, signal, test_engine_train as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
t.run({folder!r})
'''


def test_a_full_disk_leaves_no_half_checkpoint(tmp_path):
    child = subprocess.run([sys.executable, '-c', LIMITED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))], capture_output=True, text=True)
    assert child.returncode == 1 and 'could not be written' in child.stderr.splitlines()[-1], child.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['.lock']


def test_two_runs_in_one_folder(tmp_path):
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_engine_train as t\nt.run({str(tmp_path)!r}, 100_000)'
    child = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if (tmp_path / '.lock').exists(): break
            time.sleep(0.1)
        with pytest.raises(RuntimeError, match='another run is training in this folder'): run(tmp_path)
    finally: child.kill(); child.wait()
    run(tmp_path)                                              # the lock died with its holder


@pytest.mark.parametrize('micro', [1, 3, 8])
def test_loss_and_gradients_do_not_depend_on_the_split(micro):
    torch.manual_seed(0); model = GPT2(replace(cfg, dropout=0.))
    batch = next(TokenBatches(tokens, 16, 8, seed=0)); targets = batch['targets'].clone()
    targets[0, 3:] = IGNORE; targets[5] = IGNORE               # rows of unequal weight, one of none

    class Once:
        def __next__(self): return dict(ids=batch['ids'], targets=targets)
        def state(self): return {}

    seen = {}
    for m in (None, micro):
        net = GPT2(model.cfg); net.load_state_dict(model.state_dict())
        grads = []
        handles = [p.register_post_accumulate_grad_hook(lambda p, n=n: grads.append((n, p.grad.clone()))) for n, p in net.named_parameters()]
        out = fit(net, Once(), TrainConfig(n_step=1, batch_size=8, micro_batch=m, lr=1e-9, clip=1e9), device='cpu')
        for h in handles: h.remove()
        seen[m] = out.losses[0][1], dict(grads)
    assert seen[None][0] == pytest.approx(seen[micro][0], abs=1e-6)
    for name, g in seen[None][1].items(): torch.testing.assert_close(g, seen[micro][1][name], atol=1e-6, rtol=1e-4)
    direct = (lm_loss(model, dict(ids=batch['ids'], targets=targets)) / (targets != IGNORE).sum()).item()
    assert seen[micro][0] == pytest.approx(direct, abs=1e-6)


def test_divergence_is_an_error_with_its_step():
    with pytest.raises(Diverged, match='optimizer step') as e:
        fit(GPT2(cfg), TokenBatches(tokens, 16, 8), replace(train, log_every=1), loss_fn=lambda m, b: lm_loss(m, b) * float('nan'), device='cpu')
    assert e.value.step == 1


def test_no_decay_on_vectors():
    decayed, others = param_groups(GPT2(cfg), 0.1)
    assert {p.dim() for p in decayed['params']} == {2} and {p.dim() for p in others['params']} == {1}
    assert (decayed['weight_decay'], others['weight_decay']) == (0.1, 0.)


def test_saved_model_comes_back_and_an_altered_one_does_not(tmp_path):
    model = GPT2(cfg); save_model(tmp_path / 'm', model)
    assert same(model, load_model(tmp_path / 'm', GPT2, GPT2Config))
    path = tmp_path / 'm/model.safetensors'; raw = bytearray(path.read_bytes()); raw[-1] ^= 1; path.write_bytes(raw)
    with pytest.raises(CorruptFile, match='model.safetensors.*altered'): load_model(tmp_path / 'm', GPT2, GPT2Config)


@pytest.mark.parametrize('field, value', [('n_step', 0), ('lr', 0.), ('schedule', 'cosin'), ('dtype', 'float16'), ('micro_batch', 9), ('min_frac', 2.)])
def test_train_config_names_what_is_wrong(field, value):
    with pytest.raises(ValueError, match=f'TrainConfig.{field}='): replace(train, **{field: value})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
def test_bfloat16_on_the_gpu_is_near_float32():
    losses = []
    for dtype in ('float32', 'bfloat16'):
        torch.manual_seed(0); losses.append(fit(GPT2(cfg), TokenBatches(tokens, 16, 8), replace(train, dtype=dtype)).losses[-1][1])
    assert abs(losses[0] - losses[1]) < 0.1
