"Checkpoints: what was written comes back, what was not is refused by name, and other people's files are read strictly."
import json, random, shutil

import pytest, torch
from safetensors.torch import save_file

from papers_lib.engine.checkpoint import (
    average_weights, checkpoints, hf_ignored, latest, load_model, load_state, load_strict, public_checkpoint,
    read_config, read_json, save_model, save_state, untie)
from papers_lib.nn.stack import Parts, Sizes, Stack
from papers_lib.store.fetch import NotFound
from papers_lib.store.files import CorruptFile, seal

SIZES = Sizes(n_vocab=31, ctx_len=8, d_model=16, n_layer=2, n_head=2)


def same(a, b):
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


# models

@pytest.mark.parametrize('parts', [
    Parts(), Parts(norm='rms', act='swiglu', positions='rope', bias=False, windows=(4, None))])
def test_a_stack_comes_back_with_its_parts(tmp_path, parts):
    model, ids = Stack(SIZES, parts).eval(), torch.arange(8)[None]
    save_model(tmp_path / 'm', model)
    again = load_model(tmp_path / 'm', Stack, Sizes, Parts)
    assert again.parts == parts and same(model, again) and torch.equal(model(ids), again(ids))
    with pytest.raises(ValueError, match='both, or none'): load_model(tmp_path / 'm', Stack, Sizes)


def test_an_altered_model_or_one_of_another_class_is_refused(tmp_path):
    folder = save_model(tmp_path / 'm', Stack(SIZES))
    with pytest.raises(ValueError, match='holds a Stack, not a Linear'): load_model(folder, torch.nn.Linear, Sizes)
    with pytest.raises(ValueError, match='config.json is not a Parts'): load_model(folder, Stack, Parts, Parts)
    path = folder / 'model.safetensors'
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CorruptFile, match='model.safetensors.*altered'): load_model(folder, Stack, Sizes, Parts)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_manifest_must_list_what_is_read(tmp_path, name):
    folder = save_model(tmp_path / 'm', Stack(SIZES))
    manifest = json.loads((folder / 'manifest.json').read_text(encoding='utf-8'))
    del manifest['files'][name]
    (folder / 'manifest.json').write_text(json.dumps(manifest), encoding='utf-8')
    with pytest.raises(CorruptFile, match=name): load_model(folder, Stack, Sizes, Parts)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_no_numbers_are_neither_written_nor_loaded(tmp_path, value):
    model = Stack(SIZES)
    good = {k: v.clone() for k, v in model.state_dict().items()}
    bad = good | {'norm_f.bias': torch.full((16,), value)}
    with pytest.raises(ValueError, match=r'1 tensor\(s\).*not finite: norm_f.bias'): load_strict(model, bad)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in good.items())                  # nothing was loaded
    model.load_state_dict(bad)
    with pytest.raises(ValueError, match='not finite: norm_f.bias'): save_model(tmp_path / 'm', model)
    assert not (tmp_path / 'm').exists()


def test_integers_are_no_weights():
    model = Stack(SIZES)
    quantised = model.state_dict() | {'tok_emb.weight': torch.ones(31, 16, dtype=torch.int8)}
    with pytest.raises(ValueError, match='tok_emb.weight is torch.int8'): load_strict(model, quantised)


# the state of a run

def state(folder, *steps, keep=2):
    "Write checkpoints of a small model; the model and its optimizer."
    net = torch.nn.Linear(2, 3)
    opt = torch.optim.AdamW(net.parameters())
    for step in steps:
        net(torch.ones(1, 2)).sum().backward()
        opt.step()
        save_state(folder, step, net, opt, dict(cursor=step), keep=keep)
    return net, opt


def test_checkpoints_are_sorted_by_number(tmp_path):
    state(tmp_path, 9, 10, 999_999, 1_000_000, 1_000_001, keep=2)
    assert [p.name for p in checkpoints(tmp_path)] == ['step-1000000', 'step-1000001']
    assert latest(tmp_path).name == 'step-1000001'
    (tmp_path / 'step-notes').mkdir()
    assert latest(tmp_path).name == 'step-1000001'


MANIFESTS = {
    'empty': '', 'a list': '[]', 'no files': '{}', 'files are a list': '{"files": []}', 'null': '{"files": null}',
    'a file is null': '{"files": {"model.safetensors": null}}',
    'sizes only': '{"files": {"model.safetensors": {"bytes": 3}}}',
    'nothing sealed': '{"files": {}}', 'deep': '[' * 100_000, 'not text': b'\xff\xfe{', 'a number': '1e999',
    'a path out of the folder': '{"files": {"../../x": {"bytes": 1, "sha256": "0"}}}',
}


@pytest.mark.parametrize('name', MANIFESTS)
def test_a_bad_manifest_is_passed_over_and_the_one_before_is_used(tmp_path, name):
    state(tmp_path, 1, 2)
    raw = MANIFESTS[name]
    (tmp_path / 'step-000002/manifest.json').write_bytes(raw if isinstance(raw, bytes) else raw.encode('utf-8'))
    with pytest.warns(UserWarning, match='step-000002'): assert latest(tmp_path).name == 'step-000001'


@pytest.mark.parametrize('file', ['model.safetensors', 'train_state.safetensors', 'train_state.json'])
def test_a_checkpoint_must_seal_every_file_that_it_needs(tmp_path, file):
    state(tmp_path, 1, 2)
    path = tmp_path / 'step-000002'
    (path / file).unlink()
    (path / 'manifest.json').unlink()
    seal(path)                                                   # a whole folder, and not a whole checkpoint
    with pytest.warns(UserWarning, match=file): assert latest(tmp_path).name == 'step-000001'


@pytest.mark.parametrize('file', ['model.safetensors', 'train_state.safetensors', 'train_state.json', 'manifest.json'])
def test_load_state_alone_notices_damage_and_loads_nothing(tmp_path, file):
    state(tmp_path, 1)
    path = tmp_path / 'step-000001' / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    other = torch.nn.Linear(2, 3)
    before = other.weight.clone()
    opt = torch.optim.AdamW(other.parameters())
    with pytest.raises(CorruptFile, match='step-000001'): load_state(path.parent, other, opt)
    assert torch.equal(other.weight, before)


def test_a_checkpoint_under_another_number_is_refused(tmp_path):
    net, opt = state(tmp_path, 1)
    shutil.copytree(tmp_path / 'step-000001', tmp_path / 'step-000007')
    with pytest.raises(CorruptFile, match='says step 1'): load_state(tmp_path / 'step-000007', net, opt)


def test_the_generator_of_this_process_s_gpu_comes_back(monkeypatch):
    from papers_lib.engine import checkpoint
    given = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state', lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.cuda, 'set_rng_state', lambda s: given.append(s.item()))
    checkpoint.set_rng_state(*checkpoint.rng_state())
    assert given == [7]


# public configurations

FIELDS = dict(n_vocab=('vocab_size', int), n_layer=('num_hidden_layers', int), eps=('rms_norm_eps', 1e-6),
              n_kv_head=('num_key_value_heads', None), tied=('tie_word_embeddings', False),
              rope_base=(('rope_parameters.rope_theta', 'rope_theta'), 10000.))
FIXED = {'model_type': 'llama', 'hidden_act': 'silu', 'rope_parameters.rope_type': 'default',
         'rope_scaling.rope_type': 'default'}
CONFIG = dict(model_type='llama', vocab_size=31, num_hidden_layers=2)


def test_a_key_left_out_is_its_published_default():
    said = dict(rms_norm_eps=1e-6, num_key_value_heads=None, rope_theta=10000., hidden_act='silu')
    assert read_config(CONFIG, FIELDS, FIXED) == read_config(CONFIG | said, FIELDS, FIXED)


SCALED = [
    dict(rope_scaling=dict(type='linear', factor=4)), dict(rope_scaling=dict(rope_type='dynamic', factor=4.)),
    dict(rope_scaling=dict(rope_type='default', factor=4.)), dict(rope_parameters=dict(rope_type='yarn', factor=2.)),
    dict(rope_parameters=dict(partial_rotary_factor=0.5)), dict(use_scaled_rope=True), dict(sliding_window=4096),
    dict(logit_scale=0.5), dict(final_logit_softcapping=30.), dict(attention_bias=True), dict(embedding_multiplier=12),
    dict(quantization_config=dict(bits=4)), dict(is_decoder=True)]


@pytest.mark.parametrize('change', SCALED, ids=str)
def test_what_moves_numbers_and_is_not_understood_is_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))): read_config(CONFIG | change, FIELDS, FIXED)


@pytest.mark.parametrize('change', [
    dict(rope_scaling=None), dict(quantization_config=None), dict(attention_bias=False, rope_scaling={}, layers=[]),
    dict(rope_scaling=dict(rope_type='default')), dict(use_cache=True, attention_dropout=0.1, id2label={0: 'a'}),
    dict(eos_token_id=[1, 2], architectures=['LlamaForCausalLM'])], ids=str)
def test_what_says_nothing_is_passed_over(change):
    assert read_config(CONFIG | change, FIELDS, FIXED) == read_config(CONFIG, FIELDS, FIXED)


@pytest.mark.parametrize('key', [
    'vocab_size', 'num_hidden_layers', 'rms_norm_eps', 'tie_word_embeddings', 'rope_theta', 'num_key_value_heads'])
@pytest.mark.parametrize('value', ['7', [7], {'a': 7}, float('nan'), float('inf'), 2**40, True, 1.5], ids=str)
def test_a_value_of_another_kind_is_refused_by_name(key, value):
    fits = dict(rms_norm_eps=(1.5, 2**40), rope_theta=(1.5, 2**40), tie_word_embeddings=(True,)).get(key, ())
    if any(value is v or value == v and not isinstance(value, bool) for v in fits): return
    with pytest.raises(ValueError, match=key): read_config(CONFIG | {key: value}, FIELDS, FIXED)


def test_one_number_under_two_names_must_be_one_number():
    both = dict(rope_theta=5e5, rope_parameters=dict(rope_theta=5e5))
    assert read_config(CONFIG | both, FIELDS, FIXED)['rope_base'] == 5e5
    with pytest.raises(ValueError, match='contradicts itself'):
        read_config(CONFIG | both | dict(rope_theta=1e4), FIELDS, FIXED)


def test_every_key_of_the_public_library_is_understood_or_refused():
    from transformers import LlamaConfig
    config = LlamaConfig(vocab_size=31, num_hidden_layers=2).to_dict()
    more = {'hidden_size', 'intermediate_size', 'num_attention_heads', 'max_position_embeddings', 'head_dim'}
    rest = {k: v for k, v in config.items() if k not in more}
    assert read_config(rest, FIELDS, FIXED)['n_layer'] == 2
    with pytest.raises(ValueError, match='hidden_size'): read_config(config, FIELDS, FIXED)
    assert not {'sliding_window', 'rope_scaling', 'is_decoder', 'tie_word_embeddings'} & {*hf_ignored}


# public folders

def folder_of(path, config=CONFIG, index=None, **files):
    "Write tensors and a configuration as a public folder."
    path.mkdir(parents=True)
    (path / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    for name, tensors in files.items(): save_file(tensors, path / f'{name}.safetensors')
    if index: (path / 'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=index)), encoding='utf-8')
    return path


A, B = dict(a=torch.ones(2, 3), b=torch.zeros(4)), dict(c=torch.arange(5.))


def test_a_stale_second_file_changes_nothing(tmp_path):
    stale = dict(a=torch.full((2, 3), 9.))
    one = public_checkpoint(folder_of(tmp_path / 'one', model=A, old=stale, adapter_model=B))[1]
    index = dict(a='x.safetensors', b='x.safetensors', c='y.safetensors')
    two = public_checkpoint(folder_of(tmp_path / 'two', index=index, x=A, y=B, old=stale))[1]
    assert {*one} == {'a', 'b'} and {*two} == {'a', 'b', 'c'}
    assert torch.equal(one['a'], A['a']) and torch.equal(two['a'], A['a'])


@pytest.mark.parametrize('files, index, why', [
    (dict(x=A, y=B), None, 'no model.safetensors.index.json says which'),
    (dict(model=A, x=B), dict(c='x.safetensors'), 'remove the one not meant'),
    (dict(x=A), dict(a='x.safetensors', b='x.safetensors', c='y.safetensors'), 'y.safetensors.*not there'),
    (dict(x=A), dict(a='x.safetensors'), r"x.safetensors: 1 tensor.*\['b'\]"),
    (dict(x=A), dict(a='x.safetensors', d='x.safetensors'), r"\['b', 'd'\]"),
    (dict(x=A), dict(a='../x.safetensors'), 'index.json.*not the name of a safetensors'),
    (dict(x=A), dict(a='x.bin'), 'x.bin'), (dict(x=A), dict(a=7), '7 is not'),
    (dict(x=A | dict(b=torch.tensor([float('nan')]))), None, 'not finite: b')])
def test_an_index_is_followed_to_the_letter(tmp_path, files, index, why):
    folder = folder_of(tmp_path / 'm', index=index, **files)
    with pytest.raises((ValueError, CorruptFile), match=why): public_checkpoint(folder)


def test_a_pickle_is_not_opened(tmp_path):
    (folder_of(tmp_path / 'm') / 'pytorch_model.bin').write_bytes(b'pickle')
    with pytest.raises(NotFound, match='pickles'): public_checkpoint(tmp_path / 'm')
    (tmp_path / 'm/config.json').unlink()
    with pytest.raises(NotFound, match='config.json'): public_checkpoint(tmp_path / 'm')


@pytest.mark.parametrize('raw, why', [
    (b'{"a": 1, "a": 2}', "'a' is there twice"), (b'[1]', 'a list, not an object'), (b'{"a": NaN}', 'NaN is not a'),
    (b'\xff', 'utf-8'), (b'', 'Expecting'), (b'{"a":' * 5000 + b'1' + b'}' * 5000, 'recursion'),
    (b'{"a": "' + b'x' * 2**22 + b'"}', 'at most'), (b'{"a": ' + b'9' * 10_000 + b'}', 'digits')])
def test_json_is_read_within_bounds(tmp_path, raw, why):
    path = tmp_path / 'config.json'
    path.write_bytes(raw)
    with pytest.raises(CorruptFile, match=f'config.json.*(?i:{why})'): read_json(path)


def test_nested_configurations_are_bounded():
    deep = {}
    for _ in range(50): deep = dict(a=deep or 1)
    with pytest.raises(ValueError, match='nested too deep'): read_config(CONFIG | deep, FIELDS, FIXED)


def test_an_output_matrix_is_compared_before_it_is_left_out():
    emb = torch.randn(5, 3)
    assert {*untie(dict(emb=emb, head=emb.clone()), 'head', 'emb')} == {*untie(dict(emb=emb), 'head', 'emb')} == {'emb'}
    for other in (emb + 1e-6, emb[:4], emb.T):
        with pytest.raises(ValueError, match='head is not emb'): untie(dict(emb=emb, head=other), 'head', 'emb')


def mutations(raw, n, seed):
    "Damage bytes in every way that a disk, a download or an editor does."
    rng = random.Random(seed)
    for _ in range(n):
        out, at = bytearray(raw), rng.randrange(len(raw))
        how = rng.randrange(6)
        if how == 0: out = out[:at]
        elif how == 1: out[at] ^= 1 << rng.randrange(8)
        elif how == 2: out[at:at + 8] = rng.randbytes(8)
        elif how == 3: del out[at:at + rng.randrange(1, 64)]
        elif how == 4: out[at:at] = out[max(0, at - 32):at] or b'x'
        else: out[at:at + rng.randrange(1, 200)] = bytes(rng.randrange(1, 200))
        yield bytes(out)


@pytest.mark.parametrize('file', ['config.json', 'model.safetensors', 'model.safetensors.index.json', 'x.safetensors'])
def test_every_damage_is_one_error_that_names_its_file(tmp_path, file):
    if file.startswith('model.safetensors') and not file.endswith('json'): folder = folder_of(tmp_path / 'm', model=A)
    else: folder = folder_of(tmp_path / 'm', index={k: 'x.safetensors' for k in A}, x=A)
    raw, refused = (folder / file).read_bytes(), 0
    for i, damaged in enumerate(mutations(raw, 200, seed=7)):
        (folder / file).write_bytes(damaged)
        try: read_config(public_checkpoint(folder)[0], FIELDS, FIXED, name=str(folder / 'config.json'))
        except (CorruptFile, ValueError, NotFound) as e:
            refused += 1
            assert str(folder) in str(e) and len(str(e)) < 2000, (i, e)
    assert refused > 50


# averaging

def test_averaging_is_of_weights_and_of_one_model():
    states = [Stack(SIZES).state_dict() for _ in range(5)]
    for k, v in average_weights(states).items():
        torch.testing.assert_close(v, torch.stack([s[k] for s in states]).mean(0), atol=1e-6, rtol=1e-5)
    odd = {k: v for k, v in states[1].items() if k != 'tok_emb.weight'}
    with pytest.raises(ValueError, match='missing tok_emb.weight'): average_weights([states[0], odd])
    with pytest.raises(ValueError, match='no checkpoint'): average_weights([])
