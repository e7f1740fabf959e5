"Tokenizers: any string, any vocabulary file, written out equal to fast."

import json, os, random
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from papers_lib.lab import data
from papers_lib.text.synthetic import random_strings
from papers_lib.text.tokenizers import (
    EOT,
    BadVocabulary,
    ByteBPE,
    ByteTokenizer,
    CharTokenizer,
    FastBPE,
    FastPieces,
    PieceBPE,
    UnigramPieces,
    byte_alphabet,
    learn_merges,
    likeliest_pieces,
    read_pieces,
    train_pieces,
    train_unigram,
    vocabulary,
)

ANY = st.characters(exclude_categories=['Cs'])


@pytest.fixture(scope='module')
def slow(fast):
    return ByteBPE(fast.vocab, fast.merges)


# ---- byte-level BPE


def test_written_out_equals_fast_on_thousands_of_strings(slow, fast):
    def right(s):
        return slow.encode(s) == fast.encode(s) and s == fast.decode(fast.encode(s)) == slow.decode(slow.encode(s))

    wrong = [s for s in random_strings(3000, seed=1) if not right(s)]
    assert not wrong, wrong[:3]


@settings(max_examples=150)
@given(s=st.text(st.one_of(st.sampled_from("'sStTrRe  \n\t\r\x00\x850_é日👍\u0301\u200d"), ANY), max_size=40))
def test_white_space_contractions_and_joiners(slow, fast, s):
    assert slow.encode(s) == fast.encode(s) and fast.decode(fast.encode(s)) == s


def test_real_text_and_real_vocabulary(books, slow, fast):
    text = '\n'.join(books[:5])
    assert slow.encode(text) == fast.encode(text) and len(fast.encode(text)) < len(text.encode()) / 2
    if not data.available('tokenizers'):
        pytest.skip('the rest needs the public vocabulary')
    root = data.get('tokenizers').root
    paths = root / 'gpt2-vocab.json', root / 'gpt2-merges.txt'
    big, by_hand = FastBPE.from_files(*paths), ByteBPE.from_files(*paths)
    assert big.n_vocab == 50257 and big.eot == 50256 and big.encode('Hello world') == [15496, 995]
    for s in random_strings(500, seed=2):
        assert big.encode(s) == by_hand.encode(s)


def test_learning_covers_everything(books):
    learnt = ByteBPE.train(books[:3], 400)
    assert learnt.n_vocab == 400 and learnt.decode(learnt.encode('naïve 日本 👍')) == 'naïve 日本 👍'


@settings(max_examples=100)
@given(
    text=st.text(st.one_of(st.sampled_from('low er\x04\x06é🙂'), ANY), max_size=20),
    lost=st.sets(st.sampled_from(b'l\x04e\xc3\xf0'), max_size=4),
)
def test_a_vocabulary_that_lacks_bytes_is_read_the_same_by_both(text, lost):
    show = byte_alphabet()
    gone = {show[b] for b in lost}
    merges = [m for m in learn_merges('low lower lowest', 5) if not gone & set(''.join(m))]
    tokens = [t for t in vocabulary(merges) if t not in gone]
    slow, fast = (cls({t: i for i, t in enumerate(tokens)}, merges) for cls in (ByteBPE, FastBPE))
    assert slow.encode(text) == fast.encode(text) and slow.decode(slow.encode(text)) == fast.decode(fast.encode(text))


# ---- digits and special tokens


@settings(max_examples=200)
@given(text=st.text(st.one_of(st.sampled_from('ab 12Ⅷ²<|end|>'), ANY), max_size=40), special=st.booleans())
def test_digits_and_special_tokens_are_the_same_in_both(text, special):
    merges = learn_merges('the cat 1984 and the 1984 dog <|end|> <|end|>', 30)
    vocab = vocabulary(merges)
    named = {'<|end|>': len(vocab), '<|end|>|': len(vocab) + 1}
    slow, fast = (cls(vocab | named, merges, digits=True, special=named) for cls in (ByteBPE, FastBPE))
    assert slow.encode(text, special) == fast.encode(text, special)
    assert not set(slow.encode(text)) & set(named.values())
    assert slow.decode(slow.encode(text)) == fast.decode(fast.encode(text)) == text
    digits = [slow.tokens[i] for i in slow.encode(text) if any(c in '12' for c in slow.tokens[i])]
    assert all(d in '12' for d in digits)


def test_what_is_saved_comes_back_and_every_option_changes_the_hash(tmp_path):
    merges = learn_merges('low lower lowest', 5)
    vocab = vocabulary(merges)
    named = {'<|u|>': len(vocab)}
    toks = [FastBPE(vocab, merges), FastBPE(vocab, merges, digits=True), FastBPE(vocab | named, merges, True, named)]
    for tok in toks:
        tok.save(tmp_path / tok.hash[:8])
        back = FastBPE.load(tmp_path / tok.hash[:8])
        assert back.hash == tok.hash and back.encode('<|u|>low 12', True) == tok.encode('<|u|>low 12', True)
    assert len({tok.hash for tok in toks}) == 3


# ---- SentencePiece BPE

LINES = [f'It is a truth universally acknowledged in {n}, that {n * 7} single men want  wives.' for n in range(200)]


@pytest.fixture(scope='module', params=[True, False], ids=['bytes', 'unknown'])
def pieces(request):
    "A small vocabulary, with byte fallback and without: the teaching tokenizer and the library."
    fast = train_pieces(LINES, 330 if request.param else 60, byte_fallback=request.param)
    return PieceBPE(fast.model), fast


@settings(max_examples=300)
@given(text=st.text(st.one_of(st.sampled_from('aeinst 12,▁<>0x/'), ANY), max_size=40))
def test_piece_bpe_equals_sentencepiece(pieces, text):
    slow, fast = pieces
    assert slow.encode(text) == fast.encode(text)
    assert slow.decode(slow.encode(text)) == fast.decode(fast.encode(text))
    if slow.bytes and '▁' not in text:
        assert slow.decode(slow.encode(text)) == text and slow.unk not in slow.encode(text)


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, 59), max_size=12))
def test_any_ids_are_decoded_the_same_by_both(pieces, ids):
    slow, fast = pieces
    assert slow.decode(ids) == fast.decode(ids)


def test_piece_bpe_equals_sentencepiece_on_a_public_vocabulary():
    root = os.environ.get('PAPERS_MIRROR')
    if not root:
        pytest.skip('needs PAPERS_MIRROR')
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


def test_piece_models_are_saved_and_other_kinds_refused(pieces, tmp_path):
    from sentencepiece import sentencepiece_model_pb2 as pb

    _, fast = pieces
    fast.save(tmp_path)
    back = FastPieces.load(tmp_path)
    assert back.hash == fast.hash and back.encode('single men') == list(back.encode_batches(['single men']))[
        0
    ] == fast.encode('single men')
    path, proto = tmp_path / 'other.model', pb.ModelProto.FromString(fast.model)

    def refused(words):
        path.write_bytes(proto.SerializeToString())
        for cls in (PieceBPE, FastPieces):
            with pytest.raises(BadVocabulary, match=f'other.model: .*{words}'):
                cls(path)

    proto.trainer_spec.model_type = pb.TrainerSpec.UNIGRAM
    refused('a UNIGRAM model')
    proto.trainer_spec.model_type = pb.TrainerSpec.BPE
    proto.normalizer_spec.remove_extra_whitespaces = True
    refused('rewrites its text')
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.pieces[40].score = float('nan')
    refused('a score')
    proto.pieces[40].score = 0.0
    proto.trainer_spec.eos_id = 7
    refused('id 7 is not')


# ---- prompt + continuation = text


def tokenizers(pieces, fast, slow):
    merges = learn_merges('low lower lowest', 5)
    vocab = vocabulary(merges)
    return [
        *pieces,
        fast,
        slow,
        ByteTokenizer(),
        CharTokenizer('aeinst 12,é日'),
        FastBPE(vocab | {'<|u|>': len(vocab)}, merges, special={'<|u|>': len(vocab)}),
    ]


TEXT = st.text(st.one_of(st.sampled_from('aeinst  12,é日👍\ufffd'), ANY), max_size=15)


@settings(max_examples=150)
@given(text=TEXT, at=st.integers(0, 40))
def test_a_prompt_and_its_continuation_are_the_whole_text(pieces, fast, slow, text, at):
    "Wherever the ids are cut where text can be cut, in every tokenizer."
    for tok in tokenizers(pieces, fast, slow):
        ids = tok.encode(text)
        prompt, rest = ids[:at], ids[at:]
        before, whole = tok.decode(prompt), tok.decode(ids)
        if whole.startswith(before):
            assert before + tok.decode(rest, after=prompt) == whole  # else a character was cut
        assert tok.decode(ids, after=[]) == whole and tok.decode([], after=ids) == ''


@settings(max_examples=150)
@given(prompt=TEXT, more=st.lists(st.integers(0, 59), max_size=6))
def test_a_text_keeps_its_end_whatever_is_written_after_it(pieces, fast, slow, prompt, more):
    for tok in tokenizers(pieces, fast, slow):
        ids = tok.encode(prompt)
        shown = tok.decode(ids)
        more = [i % tok.n_vocab for i in more]
        assert shown + tok.decode(more, after=ids) == tok.decode([*ids, *more])
        assert tok.decode(np.array(more, dtype=np.int64), after=np.array(ids, dtype=np.int64)) == tok.decode(
            more, after=ids
        )


def test_ids_that_no_token_has_are_refused_by_all(pieces, fast, slow):
    for tok in tokenizers(pieces, fast, slow):
        for i in (-1, tok.n_vocab, 2**40):
            with pytest.raises(ValueError, match=f'id {i}: the vocabulary has {tok.n_vocab} tokens'):
                tok.decode([i])
        assert isinstance(tok.decode([tok.n_vocab - 1]), str)


# ---- files: damage is one named error, or it does no harm


def damage(raw: bytes, rng) -> bytes:
    "Cut, flip, take out, repeat, put in, exchange."
    a, b = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    c = min(len(raw), a + rng.randrange(1, 30))
    return rng.choice(
        [
            lambda: raw[:a],
            lambda: raw[a:],
            lambda: raw[:a] + raw[b:],
            lambda: raw[:c] + raw[a:],
            lambda: raw[:a] + bytes(x ^ 1 << rng.randrange(8) for x in raw[a : a + 1]) + raw[a + 1 :],
            lambda: raw[:a] + rng.randbytes(rng.randrange(1, 9)) + raw[a:],
            lambda: raw[:a] + raw[a:c][::-1] + raw[c:],
            lambda: raw[:a] + b'[' * 20_000 + raw[a:],
            lambda: raw[:a] + rng.choice(b'0123456789"-{}[],: \n').to_bytes(1, 'big') + raw[a + 1 :],
        ]
    )()


STRINGS = ['single men 1984 <|u|>', 'naïve 🙂\n\x00', ' low', '']


def works(*toks):
    "A tokenizer that was made encodes and decodes; two of the same file agree."
    for s in STRINGS:
        ids = [tok.encode(s) for tok in toks]
        assert all(i == ids[0] for i in ids) and all(isinstance(tok.decode(ids[0]), str) for tok in toks)


@pytest.mark.parametrize('file', ['vocab.json', 'merges.txt', 'options.json'])
def test_damage_to_a_bpe_file_is_named_or_harmless(tmp_path, file):
    merges = learn_merges('low lower lowest 1984 single men', 12)
    vocab = vocabulary(merges)
    tok = FastBPE(vocab | {'<|u|>': len(vocab)}, merges, digits=True, special={'<|u|>': len(vocab)})
    tok.save(tmp_path)
    path, rng, named = tmp_path / file, random.Random(file), 0
    raw = path.read_bytes()
    for _ in range(600):
        path.write_bytes(damage(raw, rng))
        try:
            back = FastBPE.load(tmp_path)
        except BadVocabulary as e:
            named += 1
            assert str(tmp_path) in str(e) and len(str(e)) < 600
            continue
        works(back, ByteBPE(back.vocab, back.merges, back.digits, back.special))
    assert named > 300


def test_wrong_structures_of_a_vocabulary_are_named(tmp_path):
    merges = learn_merges('low lower', 3)
    vocab = vocabulary(merges)
    tok = FastBPE(vocab, merges)
    tok.save(tmp_path)

    def refused(text, words):
        (tmp_path / 'vocab.json').write_text(text, encoding='utf-8')
        with pytest.raises(BadVocabulary, match=f'vocab.json: .*{words}'):
            FastBPE.load(tmp_path)

    for other in ([], 'x', 5, None, True):
        refused(json.dumps(other), 'not a table')
    for i in (None, 1.5, '1', [], {}, True):
        refused(json.dumps(vocab | {'l': i}), 'not a number')
    for i in (-1, 5, 10**9):
        refused(json.dumps(vocab | {'l': i}), 'ids are not')
    refused('{}', 'not a table')
    refused('[' * 100_000, 'not JSON')
    refused('{"a": ' + '9' * 5000 + '}', 'not JSON')
    refused(json.dumps(vocab)[:-1] + ', "l": 3}', 'twice')
    refused(json.dumps({t.replace('l', '語'): i for t, i in vocab.items()}), 'byte alphabet')
    (tmp_path / 'vocab.json').write_text(json.dumps(vocab), encoding='utf-8')
    for line, words in (
        ('l ow x', 'merge 2 is not two'),
        ('lo', 'merge 2 is not two'),
        ('z z', "needs the token 'zz'"),
        ('l o', 'merge 2 is there twice'),
    ):
        (tmp_path / 'merges.txt').write_text(f'#version: 0.2\nl o\n{line}\n', encoding='utf-8')
        with pytest.raises(BadVocabulary, match=f'merges.txt: .*{words}'):
            FastBPE.load(tmp_path)


def test_damage_to_a_piece_model_is_named_or_harmless(pieces, tmp_path):
    _, fast = pieces
    path, rng, named = tmp_path / 'tokenizer.model', random.Random(0), 0
    for _ in range(1500):
        path.write_bytes(damage(fast.model, rng))
        try:
            toks = PieceBPE(path), FastPieces(path)
        except BadVocabulary as e:
            named += 1
            assert str(path) in str(e) and len(str(e)) < 400
            continue
        works(*toks)
    assert named > 300


def test_a_model_is_not_printed_into_its_error(pieces):
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto.FromString(pieces[1].model)
    proto.pieces[-1].type = 4
    assert read_pieces(proto.SerializeToString())
    with pytest.raises(BadVocabulary, match='^the model: it has user-defined'):
        PieceBPE(proto.SerializeToString())


def test_files_are_utf8_whatever_the_locale(tmp_path):
    "The names of a vocabulary hold characters that Latin-1 would read as others."
    import subprocess, sys

    merges = learn_merges('naïve naïve', 4)
    tok = FastBPE(vocabulary(merges), merges)
    tok.save(tmp_path)
    child = (
        f'from papers_lib.text.tokenizers import FastBPE; t = FastBPE.load({str(tmp_path)!r}); '
        f't.save({str(tmp_path / "b")!r}); print(t.hash)'
    )
    env = os.environ | dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    told = subprocess.run([sys.executable, '-c', child], capture_output=True, text=True, env=env, check=True).stdout
    assert told.strip() == tok.hash == FastBPE.load(tmp_path / 'b').hash and EOT in tok.vocab


@pytest.fixture(scope='module')
def unigram():
    return train_unigram(LINES, 60)


@settings(max_examples=60)
@given(st.text('abcdefinort  shey.1', max_size=40))
def test_the_likeliest_cut_is_sentencepieces(unigram, text):
    scores = {p.piece: p.score for p in read_pieces(unigram.model, 'UNIGRAM').pieces if p.type == 1}
    plain = unigram._inner.normalize(text)
    cut = likeliest_pieces(plain if plain.startswith('▁') or not plain else '▁' + plain, scores)
    nats = lambda pieces: sum(scores.get(p, min(scores.values()) - 10) for p in pieces)
    theirs = unigram._inner.encode(text, out_type=str)
    assert ''.join(cut) == ''.join(theirs)
    if unigram.unk not in unigram.encode(text): assert nats(cut) == pytest.approx(nats(theirs), abs=1e-3)


def test_unigram_pieces_are_numbered_as_t5s_and_saved(unigram, tmp_path):
    unigram.save(tmp_path)
    back = UnigramPieces.load(tmp_path)
    assert (back.hash, back.eot, back.unk, back.bos) == (unigram.hash, 1, 2, -1)
    assert back.decode(back.encode(LINES[0])) == ' '.join(LINES[0].split())
    with pytest.raises(BadVocabulary, match='a UNIGRAM model, this reads BPE'): FastPieces(unigram.model)
    with pytest.raises(ValueError, match='n_vocab=9999'): train_unigram(LINES, 9999)
