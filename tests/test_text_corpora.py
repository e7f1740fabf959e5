"Corpora: any file, any size, any block; shards, batches, overlap."

import json, subprocess, sys, tracemalloc
from pathlib import Path

import numpy as np, pytest, regex
from hypothesis import given, settings, strategies as st

from data_prep.books import split
from papers_lib.lab import data
from papers_lib.store.files import CorruptFile, seal
from papers_lib.text.corpora import (
    BloomFilter,
    Shards,
    TokenBatches,
    dealt,
    given_of,
    is_held_out,
    ngram_hashes,
    overlap,
    read_documents,
    seen_ngrams,
    write_shards,
)
from papers_lib.text.tokenizers import ByteTokenizer


# ---- reading


def whole(text, max_chars):
    "What a file's documents are, with all of it in memory."
    for doc in text.replace('\r\n', '\n').split('\n\f\n'):
        doc = doc.lstrip()
        cut = [doc[i : i + max_chars] for i in range(0, len(doc), max_chars)]
        yield from (p for p in [*cut[:-1], *(c.rstrip() for c in cut[-1:])] if p.strip())


MARKS = [
    '\r\n',
    '\r',
    '\n',
    '\f',
    '\n\f\n',
    '\r\n\f\r\n',
    ' ',
    '\t',
    'a',
    'b c',
    'é',
    '日',
    '👍',
    '\u2028',
    '\x1c',
    '\ufeff',
]
TEXT = st.lists(st.sampled_from(MARKS), min_size=1, max_size=60).map(''.join)


@settings(max_examples=500)
@given(text=TEXT, block=st.integers(1, 40), max_chars=st.integers(1, 30))
def test_documents_do_not_depend_on_where_blocks_end(tmp_path_factory, text, block, max_chars):
    path = tmp_path_factory.getbasetemp() / 'blocks.txt'
    path.write_bytes(text.encode('utf-8'))
    assert list(read_documents(path, max_chars, block)) == list(whole(text, max_chars))


@settings(max_examples=300)
@given(
    parts=st.lists(
        st.sampled_from([b'a', b'bc\n', 'é'.encode(), '👍'.encode(), b'\xc3', b'\xff', b'\0', b'\xf0\x9f', b'\r\n']),
        min_size=1,
        max_size=12,
    ),
    block=st.integers(1, 9),
)
def test_what_is_wrong_with_a_file_does_not_depend_on_where_blocks_end(tmp_path_factory, parts, block):
    path = tmp_path_factory.getbasetemp() / 'wrong.txt'
    path.write_bytes(raw := b''.join(parts))

    def told(size):
        try:
            list(read_documents(path, block_bytes=size))
        except ValueError as e:
            return str(e).split(' (')[0]

    at = min([raw.find(0)] * (0 in raw) + [_first_wrong(raw)] * (_first_wrong(raw) is not None), default=None)
    assert told(block) == told(1000) and (
        told(1000) is None if at is None else f'wrong.txt: byte {at} is' in told(1000)
    )


def _first_wrong(raw):
    try:
        raw.decode('utf-8')
    except UnicodeDecodeError as e:
        return e.start


def test_a_windows_line_end_across_the_real_block(tmp_path):
    text = 'a' * (2**18 - 2) + '\n\f\nb'  # written with \r\n, its first \r ends the block
    (tmp_path / 'x').write_bytes(text.replace('\n', '\r\n').encode())
    assert [len(d) for d in read_documents(tmp_path / 'x')] == [2**18 - 2, 1]
    (tmp_path / 'y').write_bytes(('a' * (2**18 - 1) + '\r\n\f\r\nb').encode())
    assert [len(d) for d in read_documents(tmp_path / 'y')] == [2**18 - 1, 1]


def test_one_gigantic_line_needs_little_memory(tmp_path):
    path = tmp_path / 'line.txt'
    with open(path, 'wb') as f:
        for _ in range(64):
            f.write(b'word ' * 200_000)  # 64 MB, no line end; the last space is stripped
    tracemalloc.start()
    total = sum(len(d) for d in read_documents(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 63_999_999 and peak < 16e6


RESIDENT = """
import sys
import numpy as np
from papers_lib.text.corpora import TokenBatches, read_documents, write_shards
from papers_lib.text.tokenizers import ByteTokenizer, FastBPE
path, tokenizer, reader = sys.argv[1:]
class Bytes(ByteTokenizer):                                    # without Python integers, so that 64 MB take seconds
    hash = 'bytes'
    def encode_batches(self, texts): return (np.frombuffer(t.encode(), np.uint8) for t in texts)
# not getrusage: a child's begins at its parent's size
read = lambda name: int(open('/proc/self/status').read().split(name + ':')[1].split()[0])
docs = read_documents(path)
tok = Bytes() if tokenizer == 'bytes' else FastBPE.load(tokenizer)
shards = write_shards(list(docs) if reader == 'list' else docs, tok, path + '.shards', shard_tokens=2**18)
peak, before, batches = read('VmHWM'), read('RssAnon'), TokenBatches(shards, 256, 16)
for _ in range(200): next(batches)
print(peak, read('RssAnon') - before)
"""


def resident(path, raw, tokenizer='bytes', reader='stream'):
    "Peak of a fresh process that makes shards, and what drawing batches from them added, mapped pages aside; MiB."
    path.write_bytes(raw)
    told = subprocess.run(
        [sys.executable, '-c', RESIDENT, str(path), str(tokenizer), reader], capture_output=True, text=True, check=True
    ).stdout
    return [int(x) / 1024 for x in told.split()]


@pytest.fixture(scope='module')
def four_megabytes(books):  # which sets the cache
    return ('\n\f\n'.join(data.documents('books')).encode()[: 4 * 2**20]).rsplit(b'\n', 1)[0] + b'\n\f\n'


needs_proc = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc/self/status')
GROWTH = 24  # MiB that 60 MB more text may add: noise; a corpus that is held adds 60


@needs_proc
def test_resident_memory_does_not_grow_with_the_corpus(tmp_path, four_megabytes):
    once, often = (resident(tmp_path / str(n), four_megabytes * n) for n in (1, 16))
    assert often[0] - once[0] < GROWTH and often[1] < GROWTH, (once, often)
    held = resident(tmp_path / 'held', four_megabytes * 16, reader='list')
    assert held[0] - once[0] > 2 * GROWTH, (once, held)  # so the measurement sees a corpus in memory


@needs_proc
def test_long_documents_are_tokenised_a_few_at_a_time(tmp_path, fast, four_megabytes):
    "The library takes 300 bytes a token: megabytes, 256 at a time, would fill any memory. 64 MB take 25 s: so 2 and 8."
    fast.save(tmp_path / 'tokenizer')
    line = four_megabytes.replace(b'\n', b' ').replace(b'\f', b' ')[: 2**20]
    few, many = (resident(tmp_path / str(n), line * n, tmp_path / 'tokenizer')[0] for n in (2, 8))
    assert many - few < 64, (few, many)  # all at once: 240


def shards(folder, fast, books, **kw):
    return write_shards(iter(books[:6]), fast, folder, **kw)


def test_shards_hold_every_token_and_an_end_after_each_document(tmp_path, fast, books):
    got = shards(tmp_path / 's', fast, books, shard_tokens=1000)
    want = np.concatenate([[*fast.encode(d), fast.eot] for d in books[:6]])
    assert (
        len(got.parts) > 3
        and got.parts[0].dtype == np.uint16
        and np.array_equal(got[:], want)
        and np.array_equal(got[990:2010], want[990:2010])
    )
    assert got.manifest['documents'] == 6 and got.bytes_per_token == sum(len(d.encode()) for d in books[:6]) / len(want)


@settings(max_examples=300)
@given(where=st.slices(60).filter(lambda s: s.step is None or s.step))
def test_shards_are_sliced_as_an_array_is(sliced, where):
    got, want = sliced
    assert np.array_equal(got[where], want[where]) and got[where].dtype == np.uint16


@pytest.fixture(scope='module')
def sliced(tmp_path_factory):
    docs = ['abcdefghij', 'klm', '', 'nopqrstuvwxyz' * 3]
    got = write_shards(docs, Ends(256), tmp_path_factory.mktemp('sliced') / 's', shard_tokens=7)
    want = np.concatenate([[*d.encode(), 256] for d in docs])
    for i in (0, 7, -1, -len(want)):
        assert got[i] == want[i]
    for i in (len(want), -len(want) - 1):
        with pytest.raises(IndexError):
            got[i]
    return got, want


class Ends(ByteTokenizer):
    "Bytes, with an end of text of one's choice, and an id that may be wrong."

    hash = 'ends'

    def __init__(self, eot, more=()):
        self.eot, self.more = eot, more

    def encode_batches(self, texts):
        return ([*self.encode(t), *self.more] for t in texts)


@pytest.mark.parametrize('eot, more', [(-1, []), (257, []), (65_535, []), (256, [300]), (256, [-2]), (256, [2**40])])
def test_an_id_that_would_be_written_as_another_is_refused(tmp_path, eot, more):
    with pytest.raises(ValueError, match=f'id {(more or [eot])[0]}: must be one of the 257'):
        write_shards(['a'], Ends(eot, more), tmp_path / 's')
    assert list(tmp_path.iterdir()) == []


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
    "The hundred-thousandth and the next, which as text would come before the second."
    for n, name in enumerate(('00000', '00002', '99999', '100000', '100001')):
        np.array([n], np.uint16).tofile(tmp_path / f'{name}.bin')
    seal(tmp_path, documents=1, bytes=5, tokens=5, dtype='uint16', tokenizer='x', n_vocab=9)
    assert Shards.open(tmp_path, verify=True)[:].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    'fact',
    [
        dict(dtype='object'),
        dict(dtype=None),
        dict(dtype=['u2']),
        dict(tokens=9),
        dict(tokens='2'),
        dict(tokens=None),
        dict(bytes=-1),
        dict(n_vocab=1.5),
        dict(files={}),
        dict(documents=True),
    ],
)
def test_facts_of_shards_that_cannot_be_are_refused(tmp_path, fact):
    np.array([1, 2], np.uint16).tofile(tmp_path / '00000.bin')
    seal(tmp_path, documents=1, bytes=5, tokens=2, dtype='uint16', tokenizer='x', n_vocab=9)
    assert len(Shards.open(tmp_path)) == 2
    path = tmp_path / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | fact))
    with pytest.raises(CorruptFile, match='manifest.json'):
        Shards.open(tmp_path)


@pytest.mark.parametrize('harm', ['truncated', 'altered', 'missing', 'manifest'])
def test_a_harmed_shard_is_named(tmp_path, fast, books, harm):
    shards(tmp_path / 's', fast, books)
    path = tmp_path / 's/00000.bin'
    raw = path.read_bytes()
    if harm == 'truncated':
        path.write_bytes(raw[:-2])
    if harm == 'altered':
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    if harm == 'missing':
        path.unlink()
    if harm == 'manifest':
        path = tmp_path / 's/manifest.json'
        path.write_text('{')
    with pytest.raises(CorruptFile, match=path.name):
        Shards.open(tmp_path / 's', verify=True)
    if harm == 'altered':
        Shards.open(tmp_path / 's')  # sizes alone do not show it


def test_interrupted_writing_leaves_nothing(tmp_path, fast):
    def docs():
        yield 'one'
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(docs(), fast, tmp_path / 's')
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match='no document'):
        write_shards([], fast, tmp_path / 's')
    assert list(tmp_path.iterdir()) == []


def test_batches_are_shifted_by_one_cover_an_epoch_and_resume_exactly():
    tokens = np.arange(1001)
    batches = TokenBatches(tokens, 10, 7, seed=5)
    seen = [next(batches) for _ in range(20)]
    assert all((b['targets'] == b['ids'] + 1).all() for b in seen)
    assert sorted(int(r[0]) for b in seen[:14] for r in b['ids'])[:98] != list(range(0, 980, 10))  # shuffled
    assert {int(r[0]) for b in seen[:15] for r in b['ids']} == set(range(0, 1000, 10))  # 100 windows in 105 rows
    other = TokenBatches(tokens, 10, 7, seed=5)
    for _ in range(9):
        next(other)
    resumed = TokenBatches(tokens, 10, 7, seed=5)
    resumed.load_state(other.state())
    for b in seen[9:]:
        assert (next(resumed)['ids'] == b['ids']).all()
    with pytest.raises(ValueError, match='ctx_len=10'):
        TokenBatches(tokens[:10], 10, 7)


@pytest.mark.parametrize(
    'other',
    [dict(tokens=np.arange(500)), dict(tokens=np.arange(1, 1002)), dict(seed=6), dict(shuffle=False), dict(ctx_len=11)],
)
def test_a_cursor_is_of_one_text_in_one_order(other):
    base = dict(tokens=np.arange(1001), ctx_len=10, batch_size=7, seed=5)
    state = TokenBatches(**base).state()
    TokenBatches(**base | dict(tokens=list(range(1001)))).load_state(
        json.loads(json.dumps(state))
    )  # the same, held otherwise
    with pytest.raises(ValueError, match='other data'):
        TokenBatches(**base | other).load_state(state)
    for wrong in (dict(given=-1), dict(given=None), dict(given=1.5)):
        with pytest.raises(ValueError, match='given'):
            TokenBatches(**base).load_state(state | wrong)
    for size in ('ctx_len', 'batch_size'):
        with pytest.raises(ValueError, match=f'{size}=0'):
            TokenBatches(**base | {size: 0})


def test_bloom_filter_forgets_nothing_and_rarely_lies():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 2**64, (2, 20_000), dtype=np.uint64)
    exact, loose = BloomFilter(20_000), BloomFilter(20_000, fp_rate=0.05)
    for b in (exact, loose):
        b.add(inside)
        assert b.seen(inside).all()
    assert exact.seen(outside).sum() == 0 and 0.03 < loose.seen(outside).mean() < 0.07


@settings(max_examples=30)
@given(st.lists(st.text(max_size=6), max_size=30, unique=True), st.integers(1, 7), st.randoms())
def test_dealing_takes_every_so_manieth_by_length_whatever_the_order(docs, every, random):
    picked = dealt(docs, every)
    assert sum(picked) == -(-len(docs) // every)
    again = random.sample(docs, len(docs))
    assert {d for d, p in zip(again, dealt(again, every)) if p} == {d for d, p in zip(docs, picked) if p}
    chosen = sorted(len(d) for d, p in zip(docs, picked) if p)
    assert chosen == sorted(map(len, docs))[::every]


def test_equal_documents_go_the_same_way():
    picked = dealt(['aa', 'b', 'aa', 'ccc', 'dddd', 'aa'], every=2)
    assert picked[0] == picked[2] == picked[5]


def test_the_books_are_parted_by_the_rule_of_their_pipeline(books):    # which sets the cache
    "Train holds nothing that is held out; what is held out of each novel and of the Bible is dealt, one in five."
    parts = {split: [*data.documents('books', split)] for split in ('train', 'tune', 'valid')}
    assert not any(map(is_held_out, parts['train'])) and all(map(is_held_out, parts['tune'] + parts['valid']))
    novel = lambda d: d.lower().startswith('chapter')
    starts = [i for i, d in enumerate(parts['valid']) if novel(d)]
    assert starts == [*range(5)] and not any(map(novel, parts['valid'][5:]))          # one of each of five novels
    scripture = [d for d in parts['tune'] + parts['valid'] if not novel(d)]
    assert {d for d, p in zip(scripture, dealt(scripture)) if p} == {*parts['valid'][5:]}
    assert split([scripture])['train'] == [] and split([parts['train'][:30]])['valid'] == []
    assert split([scripture])['valid'] == [d for d, p in zip(scripture, dealt(scripture)) if p]


def test_overlap_against_a_plain_set(books):
    def grams(t, n=8):
        w = regex.findall(r'[\p{L}\p{N}]+', t.lower())
        return [tuple(w[i : i + n]) for i in range(len(w) - n + 1)]

    train, test = books[:10], books[10:14]
    known = {g for d in train for g in grams(d)}
    want = [np.mean([g in known for g in grams(t)]) for t in test]
    assert seen_ngrams(train, test) == pytest.approx(want)
    assert overlap(train, train[:2]) == 1.0 and len(ngram_hashes('too short')) == 0


def test_a_document_of_just_one_piece_ends_where_its_separator_begins(tmp_path):
    path = tmp_path / 'piece.txt'
    path.write_text('a' + 4 * '\n' + '\n\f\nb', encoding='utf-8')
    assert {tuple(read_documents(path, 5, block)) for block in range(1, 12)} == {('a', 'b')}


@pytest.mark.parametrize('given', [None, -1, 1.5, True])
def test_a_position_that_is_none_is_refused(given):
    mine = dict(given=4, seed=0, hash='a')
    assert given_of(mine | dict(given=7), mine) == 7
    with pytest.raises(ValueError, match='must be a number of rows'):
        given_of(mine | dict(given=given), mine, unit='rows')
    with pytest.raises(ValueError, match="of other texts than .*: hash differ"):
        given_of(mine | dict(hash='b'), mine, 'texts')
