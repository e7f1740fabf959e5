"GGUF files: read as their own library reads them, and refused by name however they are damaged or what they ask for."
import random, struct

import gguf, numpy as np, pytest, torch
from jinja2 import Environment

from papers_lib.engine.gguf import gguf_template, gguf_tokenizer, read_gguf
from papers_lib.store.fetch import NotFound
from papers_lib.store.files import CorruptFile
from papers_lib.text.tokenizers import train_fast_bpe, vocabulary

KINDS = ('F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0')


def write(path, kinds=KINDS, rows=3):
    "Write a file with one tensor of each kind, and metadata of every kind."
    rng, w = np.random.default_rng(0), gguf.GGUFWriter(path, 'toy')
    for kind, value in dict(uint8=7, int8=-7, uint16=7, int16=-7, uint32=7, int32=-7, float32=1e-6, uint64=2**40,
                            int64=-7, float64=0.1, bool=True, string='é').items():
        getattr(w, f'add_{kind}')(f'toy.{kind}', value)
    w.add_array('toy.words', ['a', 'bc', 'é'])
    w.add_array('toy.numbers', [1, 2, 3])
    for kind in kinds:
        a, t = rng.normal(size=(rows, 64)).astype(np.float32), gguf.GGMLQuantizationType[kind]
        w.add_tensor(f'w.{kind}', a if kind == 'F32' else gguf.quantize(a, t), raw_dtype=t)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return path


def test_what_is_read_is_what_the_formats_own_library_reads(tmp_path):
    path = write(tmp_path / 'a.gguf')
    meta, tensors = read_gguf(path)
    reader = gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if key.startswith('GGUF.'): continue
        want = field.contents()
        assert meta[key] == (pytest.approx(want, rel=1e-6) if isinstance(want, float) else want), key
    assert meta['toy.float32'] == 1e-6                                     # meant in decimals
    assert [*tensors] == [t.name for t in reader.tensors] == [f'w.{k}' for k in KINDS]
    for t in reader.tensors:
        assert torch.equal(tensors[t.name], torch.from_numpy(np.array(gguf.dequantize(t.data, t.tensor_type))))
        assert tensors[t.name].dtype == torch.float32 and tensors[t.name].shape == (3, 64)


def mutations(raw, n, seed):
    "Damage bytes, most often in the header, where the lengths are."
    rng = random.Random(seed)
    for _ in range(n):
        out, at = bytearray(raw), rng.randrange(len(raw) if rng.random() < 0.3 else 700)
        how = rng.randrange(6)
        if how == 0: out = out[:at]
        elif how == 1: out[at] ^= 1 << rng.randrange(8)
        elif how == 2: out[at:at + 8] = rng.randbytes(8)
        elif how == 3: del out[at:at + rng.randrange(1, 64)]
        elif how == 4: out[at:at + 8] = struct.pack('<Q', rng.choice([0, 1, 2**31, 2**32, 2**40, 2**62, 2**64 - 1]))
        else: out[at:at] = out[max(0, at - 32):at] or b'x'
        yield bytes(out)


def test_every_damage_is_one_error_that_names_the_file(tmp_path):
    raw, refused = write(tmp_path / 'a.gguf', rows=1).read_bytes(), 0
    path = tmp_path / 'damaged.gguf'
    for i, damaged in enumerate(mutations(raw, 600, seed=3)):
        path.write_bytes(damaged)
        try: read_gguf(path)
        except (CorruptFile, ValueError) as e:
            refused += 1
            assert str(path) in str(e) and len(str(e)) < 2000, (i, e)
    assert refused > 200


def test_a_file_cut_anywhere_is_refused(tmp_path):
    raw, path = write(tmp_path / 'a.gguf', ('F32', 'Q8_0'), rows=1).read_bytes(), tmp_path / 'cut.gguf'
    for n in [*range(0, 700, 7), len(raw) - 64]:
        path.write_bytes(raw[:n])
        with pytest.raises(CorruptFile, match='cut.gguf'): read_gguf(path)
    with pytest.raises(NotFound, match='no such file'): read_gguf(tmp_path / 'none.gguf')
    with pytest.raises(NotFound, match='no such file'): read_gguf(tmp_path)


def header(*parts, n_tensor=0, n_key=1, version=3):
    return struct.pack('<4sIQQ', b'GGUF', version, n_tensor, n_key) + b''.join(parts)


def text(s): return struct.pack('<Q', len(s)) + s


def tensor(name, dims, kind, start): return text(name) + struct.pack(f'<I{len(dims)}QIQ', len(dims), *dims, kind, start)


SMALL = {
    'a list of 2^40': (header(text(b'k'), struct.pack('<IIQ', 9, 4, 2**40)), 'announced'),
    'a list of 2^40 strings': (header(text(b'k'), struct.pack('<IIQ', 9, 8, 2**40)), 'announced'),
    'a string of 2^63': (header(struct.pack('<Q', 2**63)), 'announced'),
    '2^60 keys': (header(n_key=2**60), 'announced'),
    '2^60 tensors': (header(n_key=0, n_tensor=2**60), 'announced'),
    'lists in lists': (header(text(b'k'), struct.pack('<I', 9), struct.pack('<IQ', 9, 1) * 400), 'lists 3 deep'),
    'a key twice': (header(*[text(b'k') + struct.pack('<IB', 0, 1)] * 2, n_key=2), 'there twice'),
    'a kind that is none': (header(text(b'k'), struct.pack('<I', 77)), 'kind 77'),
    'big-endian': (header(version=3 << 24), 'version 50331648'),
    'a tensor twice': (header(*[tensor(b't', [1], 0, 0)] * 2, bytes(64), n_key=0, n_tensor=2), 'listed twice'),
    'one place for two': (header(tensor(b't', [8], 0, 0), tensor(b'u', [8], 0, 0), bytes(96), n_key=0, n_tensor=2),
                          'overlaps'),
    'a huge tensor': (header(tensor(b't', [2**40, 2**20], 0, 0), n_key=0, n_tensor=1), 'overlaps another, or the end'),
    'nine dimensions': (header(tensor(b't', [1] * 9, 0, 0), n_key=0, n_tensor=1), '9 dimensions'),
    'half a block': (header(tensor(b't', [16], 8, 0), bytes(64), n_key=0, n_tensor=1), 'blocks of 32'),
    'an unknown type': (header(tensor(b't', [32], 99, 0), n_key=0, n_tensor=1), 'unknown type 99'),
    'no alignment': (header(text(b'general.alignment'), struct.pack('<II', 4, 0)), 'general.alignment=0'),
    'another file': (b'not a model' * 100, 'not GGUF'),
    'NaN': (header(tensor(b't', [1], 0, 0), bytes(7), struct.pack('<f', float('nan')), n_key=0, n_tensor=1),
            'not finite: t'),
}


@pytest.mark.parametrize('name', SMALL)
def test_what_a_small_file_may_not_ask_for(tmp_path, name):
    raw, why = SMALL[name]
    (tmp_path / 'a.gguf').write_bytes(raw)
    with pytest.raises((CorruptFile, ValueError), match=f'a.gguf.*{why}'): read_gguf(tmp_path / 'a.gguf')


@pytest.fixture(scope='module')
def meta():
    "The tokenizer's part of a file."
    tok = train_fast_bpe(['low lower lowest 1984 new newer newest'] * 9, 280)
    words = vocabulary(tok.merges)
    tokens = sorted(words, key=words.get) + ['<s>', '<e>']
    return {'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'smollm', 'tokenizer.ggml.tokens': tokens,
            'tokenizer.ggml.token_type': [3 if t in ('<s>', '<e>') else 1 for t in tokens],
            'tokenizer.ggml.merges': [' '.join(m) for m in tok.merges], 'tokenizer.ggml.bos_token_id': len(tokens) - 2,
            'tokenizer.ggml.eos_token_id': len(tokens) - 1, 'tokenizer.ggml.add_bos_token': False}


def test_the_tokenizer_writes_what_it_reads(meta):
    tok = gguf_tokenizer(meta)
    assert tok.decode(tok.encode('newest 1984 low')) == 'newest 1984 low'
    assert tok.encode('19') == [tok.vocab['1'], tok.vocab['9']]                                   # SmolLM's digits
    assert len(tok.encode('<s>')) == 3 and tok.encode('<s>', special=True) == [tok.special['<s>']]


@pytest.mark.parametrize('key, value', [
    ('model', 'llama'), ('model', None), ('pre', 'llama-bpe'), ('tokens', None), ('tokens', 'abc'), ('merges', None),
    ('add_bos_token', True), ('add_eos_token', True), ('add_space_prefix', True), ('precompiled_charsmap', [1]),
    ('a_new_trick', 1)])
def test_a_tokenizer_that_would_encode_otherwise_is_refused_by_name(meta, key, value):
    name = f'tokenizer.ggml.{key}'
    with pytest.raises(ValueError, match=name): gguf_tokenizer(meta | {name: value})


@pytest.mark.parametrize('kind', [2, 4, 6, 9])
def test_tokens_of_other_kinds_are_refused_by_name(meta, kind):
    name = 'tokenizer.ggml.token_type'
    with pytest.raises(ValueError, match="token_type: '<e>'"): gguf_tokenizer(meta | {name: meta[name][:-1] + [kind]})


def test_damaged_lists_are_refused_by_name(meta):
    key = 'tokenizer.ggml.'
    tokens, merges, types = (meta[key + k] for k in ('tokens', 'merges', 'token_type'))
    changes = [('tokens', tokens[:-1]), ('tokens', tokens[:-1] + [tokens[0]]), ('tokens', tokens[:-1] + [7]),
               ('token_type', types[1:]), ('merges', [*merges, 'l']), ('merges', [*merges, 'l o w']),
               ('merges', [*merges, 'zz q']), ('merges', [3])]
    for name, value in changes:
        with pytest.raises(ValueError, match='ggml.(tokens|merges)'): gguf_tokenizer(meta | {key + name: value})


def test_a_chat_format_knows_its_own_end_tokens(meta):
    written = '{{ bos_token }}{% for m in messages %}\n{{ m }}{{ eos_token }}{% endfor %}'
    said = meta | {'tokenizer.chat_template': written}
    page = Environment(trim_blocks=True, lstrip_blocks=True).from_string(gguf_template(said))
    assert page.render(messages=['low']) == '<s>low<e>'                      # a block eats its line end
    tok = gguf_tokenizer(said)
    assert tok.encode(page.render(messages=['low']), special=True)[0] == tok.special['<s>']
    plain = '{% for m in messages %}{{ m }}{% endfor %}'
    assert gguf_template(meta | {'tokenizer.chat_template': plain}) == plain and gguf_template(meta) is None


@pytest.mark.parametrize('i', [None, -1, 0, 10**6, 'x'])
def test_a_chat_format_that_writes_what_is_no_control_token_is_refused(meta, i):
    with pytest.raises(ValueError, match='bos_token_id'):
        gguf_template(meta | {'tokenizer.chat_template': '{{ bos_token }}', 'tokenizer.ggml.bos_token_id': i})
