"Tokenizers and corpora: any string, any file, any size."
import multiprocessing, os, random, subprocess, sys, tracemalloc
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from papers_lib.gpt2 import random_strings
from papers_lib.lab import data
from papers_lib.text.corpora import (BloomFilter, CorruptFile, Shards, TokenBatches, atomic_write, clean,
                                     ngram_hashes, overlap, read_documents, seen_ngrams, write_shards)
from papers_lib.text.tokenizers import (EOT, ByteBPE, ByteTokenizer, CharTokenizer, FastBPE, FastPieces, PieceBPE,
                                        learn_merges, train_fast_bpe, train_pieces, vocabulary)


@pytest.fixture(scope='module')
def books(tmp_path_factory):
    os.environ.setdefault('PAPERS_CACHE', str(tmp_path_factory.mktemp('cache')))
    return [d for _, d in zip(range(40), data.documents('books'))]


@pytest.fixture(scope='module')
def fast(books): return train_fast_bpe(books, 600)


@pytest.fixture(scope='module')
def slow(fast): return ByteBPE(fast.vocab, fast.merges)


def test_written_out_equals_fast_on_thousands_of_strings(slow, fast):
    strings = list(random_strings(3000, seed=1))
    wrong = [s for s in strings if slow.encode(s) != fast.encode(s) or fast.decode(fast.encode(s)) != s or slow.decode(slow.encode(s)) != s]
    assert not wrong, wrong[:3]


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from("'sStTrRe  \n\t\r\x00\x850_é日👍\u0301\u200d"), st.characters(exclude_categories=['Cs'])), max_size=40))
def test_white_space_contractions_and_joiners(slow, fast, s):
    assert slow.encode(s) == fast.encode(s) and fast.decode(fast.encode(s)) == s


def test_real_text_and_real_vocabulary(books, slow, fast):
    text = '\n'.join(books[:5])
    assert slow.encode(text) == fast.encode(text) and len(fast.encode(text)) < len(text.encode()) / 2
    if data.available('tokenizers'):
        root = data.get('tokenizers').root
        paths = root / 'gpt2-vocab.json', root / 'gpt2-merges.txt'
        big, by_hand = FastBPE.from_files(*paths), ByteBPE.from_files(*paths)
        assert big.n_vocab == 50257 and big.eot == 50256 and big.encode('Hello world') == [15496, 995]
        for s in random_strings(500, seed=2): assert big.encode(s) == by_hand.encode(s)


def test_both_learn_a_vocabulary_that_covers_everything(books):
    learnt = ByteBPE.train(books[:3], 400)
    assert learnt.n_vocab == 400 and learnt.decode(learnt.encode('naïve 日本 👍')) == 'naïve 日本 👍'


def test_end_of_text_typed_is_ordinary_text(slow, fast):
    for tok in (slow, fast):
        ids = tok.encode(f'a{EOT}b')
        assert tok.eot not in ids and tok.decode(ids) == f'a{EOT}b'


def test_tokenizers_are_saved_whole(fast, tmp_path):
    fast.save(tmp_path)
    again = FastBPE.load(tmp_path)
    assert again.hash == fast.hash and again.encode('in the beginning') == fast.encode('in the beginning')
    (tmp_path / 'merges.txt').write_text('#version: 0.2\na b\nbroken\n')
    with pytest.raises(ValueError, match='merges.txt: merge 2 is not two tokens'): FastBPE.load(tmp_path)


def test_bytes_and_characters():
    assert ByteTokenizer().decode(ByteTokenizer().encode('é👍')) == 'é👍'
    tok = CharTokenizer('ab')
    assert tok.encode('abc') == [0, 1, tok.unk] and tok.decode([0, tok.unk]) == 'a\ufffd'


@pytest.mark.parametrize('raw, words', [
    (b'', 'empty'), (b'abc\0def', 'byte 3 is zero: a binary file'), (b'caf\xe9 au lait', 'byte 3 is not UTF-8'),
    (b'a' * 300_000 + b'\xff', 'byte 300000 is not UTF-8'), (b'a' * 262_143 + 'é'.encode()[:1], 'is not UTF-8')])
def test_what_is_not_text_is_refused_by_name_and_place(tmp_path, raw, words):
    path = tmp_path / 'input.txt'; path.write_bytes(raw)
    with pytest.raises(ValueError, match=f'input.txt: .*{words}'): list(read_documents(path))


def test_characters_across_blocks(tmp_path):
    text = 'a' * (2**18 - 1) + 'é👍' * 10
    (tmp_path / 'x').write_text(text, encoding='utf-8')
    assert ''.join(read_documents(tmp_path / 'x')) == text


def test_documents_are_those_that_were_written(tmp_path):
    (tmp_path / 'x').write_bytes(b'one\r\nline\n\f\n  two \n\f\n\n\f\nthree')
    assert list(read_documents(tmp_path / 'x')) == ['one\nline', 'two', 'three']
    assert clean('\ufeffa\u00a0b  \r\n\r\n\r\n\r\nc') == 'a b\n\nc'


def test_one_gigantic_line_needs_little_memory(tmp_path):
    path = tmp_path / 'line.txt'
    with open(path, 'wb') as f:
        for _ in range(64): f.write(b'word ' * 200_000)        # 64 MB, no line end; the last space is stripped
    tracemalloc.start()
    total = sum(len(d) for d in read_documents(path))
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert total == 63_999_999 and peak < 16e6


RESIDENT = '''
import sys
import numpy as np
from papers_lib.text.corpora import TokenBatches, read_documents, write_shards
from papers_lib.text.tokenizers import ByteTokenizer, FastBPE
path, tokenizer, reader = sys.argv[1:]
class Bytes(ByteTokenizer):                                    # without Python integers, so that 64 MB take seconds
    hash = 'bytes'
    def encode_batches(self, texts): return (np.frombuffer(t.encode(), np.uint8) for t in texts)
read = lambda name: int(open('/proc/self/status').read().split(name + ':')[1].split()[0])      # not getrusage: a child's begins at its parent's size
docs = read_documents(path)
shards = write_shards(list(docs) if reader == 'list' else docs, Bytes() if tokenizer == 'bytes' else FastBPE.load(tokenizer), path + '.shards', shard_tokens=2**18)
peak, before, batches = read('VmHWM'), read('RssAnon'), TokenBatches(shards, 256, 16)
for _ in range(200): next(batches)
print(peak, read('RssAnon') - before)
'''


def resident(path, raw, tokenizer='bytes', reader='stream'):
    "Peak of a fresh process that makes shards, and what drawing batches from them added (pages of mapped files aside: they are the system's to drop); MiB."
    path.write_bytes(raw)
    told = subprocess.run([sys.executable, '-c', RESIDENT, str(path), str(tokenizer), reader], capture_output=True, text=True, check=True).stdout
    return [int(x) / 1024 for x in told.split()]


@pytest.fixture(scope='module')
def four_megabytes(books):                                     # which sets the cache
    return ('\n\f\n'.join(data.documents('books')).encode()[:4 * 2**20]).rsplit(b'\n', 1)[0] + b'\n\f\n'


needs_proc = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc/self/status')
GROWTH = 24                                                    # MiB that 60 MB more text may add: noise; a corpus that is held adds 60


@needs_proc
def test_resident_memory_does_not_grow_with_the_corpus(tmp_path, four_megabytes):
    once, often = (resident(tmp_path / str(n), four_megabytes * n) for n in (1, 16))
    assert often[0] - once[0] < GROWTH and often[1] < GROWTH, (once, often)
    held = resident(tmp_path / 'held', four_megabytes * 16, reader='list')
    assert held[0] - once[0] > 2 * GROWTH, (once, held)        # so the measurement sees a corpus in memory


@needs_proc
def test_long_documents_are_tokenised_a_few_at_a_time(tmp_path, fast, four_megabytes):
    "The library takes 300 bytes a token: pieces of a megabyte, 256 at a time, would fill any memory. 64 MB of text take it 25 s and more, so 2 and 8 MB are compared."
    fast.save(tmp_path / 'tokenizer')
    line = four_megabytes.replace(b'\n', b' ').replace(b'\f', b' ')[:2**20]
    few, many = (resident(tmp_path / str(n), line * n, tmp_path / 'tokenizer')[0] for n in (2, 8))
    assert many - few < 64, (few, many)                        # all at once: 240


def shards(folder, fast, books, **kw): return write_shards(iter(books[:6]), fast, folder, **kw)


def test_shards_hold_every_token_and_an_end_after_each_document(tmp_path, fast, books):
    got = shards(tmp_path / 's', fast, books, shard_tokens=1000)
    want = np.concatenate([[*fast.encode(d), fast.eot] for d in books[:6]])
    assert len(got.parts) > 3 and got.parts[0].dtype == np.uint16 and np.array_equal(got[:], want) and np.array_equal(got[990:2010], want[990:2010])
    assert got.manifest['documents'] == 6 and got.bytes_per_token == sum(len(d.encode()) for d in books[:6]) / len(want)


@pytest.mark.parametrize('harm', ['truncated', 'altered', 'missing', 'manifest'])
def test_a_harmed_shard_is_named(tmp_path, fast, books, harm):
    shards(tmp_path / 's', fast, books)
    path = tmp_path / 's/00000.bin'; raw = path.read_bytes()
    if harm == 'truncated': path.write_bytes(raw[:-2])
    if harm == 'altered': path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    if harm == 'missing': path.unlink()
    if harm == 'manifest': path = tmp_path / 's/manifest.json'; path.write_text('{')
    with pytest.raises(CorruptFile, match=path.name): Shards.open(tmp_path / 's', verify=True)
    if harm == 'altered': Shards.open(tmp_path / 's')          # sizes alone do not show it


def test_interrupted_writing_leaves_nothing(tmp_path, fast):
    def docs():
        yield 'one'
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_shards(docs(), fast, tmp_path / 's')
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match='no document'): write_shards([], fast, tmp_path / 's')
    assert list(tmp_path.iterdir()) == []


LIMITED = '''
import resource, signal, sys
from papers_lib.text.corpora import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
atomic_write(sys.argv[1], b'x' * 5000)
'''


def test_a_write_past_the_disk_keeps_the_old_file(tmp_path):
    atomic_write(tmp_path / 'f', 'old')
    child = subprocess.run([sys.executable, '-c', LIMITED, str(tmp_path / 'f')], capture_output=True, text=True)
    assert child.returncode == 1 and 'WriteFailed' in child.stderr and 'could not be written' in child.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['f'] and (tmp_path / 'f').read_text() == 'old'


def _write(path, letter):
    for _ in range(50): atomic_write(path, letter * 100_000)


def test_two_writers_never_mix(tmp_path):
    context = multiprocessing.get_context('spawn')
    jobs = [context.Process(target=_write, args=(tmp_path / 'f', x)) for x in 'ab']
    for j in jobs: j.start()
    seen = set()
    while any(j.is_alive() for j in jobs):
        if (tmp_path / 'f').exists(): seen.add((tmp_path / 'f').read_text())
    assert all(j.exitcode == 0 for j in jobs) and seen <= {'a' * 100_000, 'b' * 100_000} and seen


def test_batches_are_shifted_by_one_cover_an_epoch_and_resume_exactly():
    tokens = np.arange(1001)
    batches = TokenBatches(tokens, 10, 7, seed=5)
    seen = [next(batches) for _ in range(20)]
    assert all((b['targets'] == b['ids'] + 1).all() for b in seen)
    assert sorted(int(r[0]) for b in seen[:14] for r in b['ids'])[:98] != list(range(0, 980, 10))      # shuffled
    assert {int(r[0]) for b in seen[:15] for r in b['ids']} == set(range(0, 1000, 10))                 # 100 windows in 105 rows
    other = TokenBatches(tokens, 10, 7, seed=5)
    for _ in range(9): next(other)
    resumed = TokenBatches(tokens, 10, 7, seed=5); resumed.load_state(other.state())
    for b in seen[9:]: assert (next(resumed)['ids'] == b['ids']).all()
    with pytest.raises(ValueError, match='other data'): TokenBatches(tokens[:500], 10, 7, seed=5).load_state(other.state())
    with pytest.raises(ValueError, match='ctx_len=10'): TokenBatches(tokens[:10], 10, 7)


def test_bloom_filter_forgets_nothing_and_rarely_lies():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 2**64, (2, 20_000), dtype=np.uint64)
    exact, loose = BloomFilter(20_000), BloomFilter(20_000, fp_rate=0.05)
    for b in (exact, loose): b.add(inside); assert b.seen(inside).all()
    assert exact.seen(outside).sum() == 0 and 0.03 < loose.seen(outside).mean() < 0.07


def test_overlap_against_a_plain_set(books):
    def grams(t, n=8):
        import regex
        w = regex.findall(r'[\p{L}\p{N}]+', t.lower()); return [tuple(w[i:i + n]) for i in range(len(w) - n + 1)]
    train, test = books[:10], books[10:14]
    known = {g for d in train for g in grams(d)}
    want = [np.mean([g in known for g in grams(t)]) for t in test]
    assert seen_ngrams(train, test) == pytest.approx(want)
    assert overlap(train, train[:2]) == 1. and len(ngram_hashes('too short')) == 0


# ---- SentencePiece BPE

@pytest.fixture(scope='module', params=[True, False], ids=['bytes', 'unknown'])
def pieces(request):
    "A small vocabulary, with byte fallback and without: the teaching tokenizer and the library."
    lines = [f'It is a truth universally acknowledged in {n}, that {n * 7} single men want  wives.' for n in range(200)]
    fast = train_pieces(lines, 330 if request.param else 60, byte_fallback=request.param)
    return PieceBPE(fast.model), fast


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from('aeinst 12,▁<>0x/'), st.characters(exclude_categories=['Cs'])), max_size=40))
def test_piece_bpe_equals_sentencepiece(pieces, text):
    slow, fast = pieces
    assert slow.encode(text) == fast.encode(text)
    assert slow.decode(slow.encode(text)) == fast.decode(fast.encode(text))
    if slow.bytes and '▁' not in text: assert slow.decode(slow.encode(text)) == text and slow.unk not in slow.encode(text)


def test_piece_bpe_equals_sentencepiece_on_a_public_vocabulary():
    root = os.environ.get('PAPERS_MIRROR')
    if not root: pytest.skip('needs PAPERS_MIRROR')
    path = Path(root) / 'tokenizers/mistral-tokenizer.model.v1'
    slow, fast, rng = PieceBPE(path), FastPieces(path), random.Random(0)
    assert slow.n_vocab == 32000 and (slow.unk, slow.bos, slow.eot) == (0, 1, 2)
    marks = [*'abcdefghij ABC  0123456789.,\n\t<>é🙂中_', 'the ', 'ing', 'tion', '<s>', '</s>', '<0x41>', '\x00']
    for _ in range(3000):
        text = ''.join(rng.choice(marks) for _ in range(rng.randrange(30)))
        assert slow.encode(text) == fast.encode(text)
        assert slow.decode(slow.encode(text)) == text
    assert [slow.pieces[i] for i in slow.encode('in 1984')] == ['▁in', '▁', '1', '9', '8', '4']


def test_digits_are_split_at_learning_and_stay_split(pieces):
    slow, _ = pieces
    assert not [p for p in slow.text if sum(c.isdigit() for c in p) > 1]


def test_piece_files_are_saved_named_and_refused(pieces, tmp_path):
    from sentencepiece import sentencepiece_model_pb2 as pb
    _, fast = pieces
    fast.save(tmp_path); back = FastPieces.load(tmp_path)
    assert back.hash == fast.hash and back.encode('single men') == fast.encode('single men') == list(back.encode_batches(['single men']))[0]
    path = tmp_path / 'cut.model'; path.write_bytes(fast.model[:len(fast.model) // 2])
    with pytest.raises(ValueError, match='cut.model: no SentencePiece model, or a truncated one'): PieceBPE(path)
    proto = pb.ModelProto.FromString(fast.model); proto.trainer_spec.model_type = pb.TrainerSpec.UNIGRAM
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match='cut.model: a UNIGRAM model'): FastPieces(path)
    proto.trainer_spec.model_type = pb.TrainerSpec.BPE; proto.normalizer_spec.remove_extra_whitespaces = True
    with pytest.raises(ValueError, match='rewrites its text'): PieceBPE(proto.SerializeToString())
    with pytest.raises(ValueError, match='id 500000'): PieceBPE(fast.model).decode([500_000])


# ---- digits and special tokens

@settings(max_examples=200, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from('ab 12Ⅷ²<|end|>'), st.characters(exclude_categories=['Cs'])), max_size=40), special=st.booleans())
def test_digits_and_special_tokens_are_the_same_in_both(text, special):
    merges = learn_merges('the cat 1984 and the 1984 dog <|end|> <|end|>', 30)
    vocab = vocabulary(merges); named = {'<|end|>': len(vocab), '<|end|>|': len(vocab) + 1}
    slow, fast = (cls(vocab | named, merges, digits=True, special=named) for cls in (ByteBPE, FastBPE))
    assert slow.encode(text, special) == fast.encode(text, special)
    assert not set(slow.encode(text)) & set(named.values())
    assert slow.decode(slow.encode(text)) == fast.decode(fast.encode(text)) == text
    digits = [slow.tokens[i] for i in slow.encode(text) if any(c in '12' for c in slow.tokens[i])]
    assert all(d in '12' for d in digits)


def test_options_are_saved_and_change_the_hash(tmp_path):
    merges = learn_merges('low lower lowest', 5); vocab = vocabulary(merges)
    plain, talk = FastBPE(vocab, merges), FastBPE(vocab | {'<|u|>': len(vocab)}, merges, digits=True, special={'<|u|>': len(vocab)})
    for tok in (plain, talk):
        tok.save(tmp_path / tok.hash[:8]); back = FastBPE.load(tmp_path / tok.hash[:8])
        assert back.hash == tok.hash and back.encode('<|u|>low 12', True) == tok.encode('<|u|>low 12', True)
    assert plain.hash != FastBPE(vocab, merges, digits=True).hash
