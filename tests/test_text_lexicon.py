"Words as a vocabulary, and vector files as they are found."
import warnings

import numpy as np
import pytest

from papers_lib.text.lexicon import Lexicon, SameTag, characters, cutters, read_vectors, skip_gram, varied
from papers_lib.text.tokenizers import BadVocabulary


def test_unknown_words_and_padding_have_numbers_of_their_own():
    lex = Lexicon.of(['a b a', 'b a c'], 4)
    assert lex.words == ['a', 'b'] and lex.encode('c a') == [1, 2] and lex.n_vocab == 4
    assert lex.missed(['a c', 'c c']) == .75 and lex.missed([]) == 0


@pytest.mark.parametrize('how, text, told', [('words', "Don't!", ['don', 't']), ('characters', '花 呗', ['花', '呗']),
                                             ('bigrams', '花呗 吗', ['花呗', '呗吗']), ('bigrams', '花', ['花'])])
def test_cutters(how, text, told): assert cutters[how](text) == told


def test_jieba_words_join_to_the_text():
    pytest.importorskip('jieba')
    text = '蚂蚁花呗说我违约一次'
    cut = cutters['jieba'](text)
    assert ''.join(cut) == text and len(cut) < len(characters(text))


@pytest.mark.parametrize('content', ['{', '[]', '{"words": "a", "cut": "words"}', '{"words": ["a"], "cut": "x"}',
                                     '{"words": ["a", "a"], "cut": "words"}'])
def test_a_file_that_is_no_lexicon_is_named(tmp_path, content):
    (tmp_path / 'words.json').write_text(content)
    with pytest.raises(BadVocabulary): Lexicon.load(tmp_path)


def written(tmp_path, raw):
    (tmp_path / 'v.txt').write_bytes(raw)
    return tmp_path / 'v.txt'


def test_a_file_with_every_accident(tmp_path):
    raw = ('6 3\r\nplain 1 2 3\r\ntwo words 4 5 6\r\nideo\u3000space 7 8 9\r\ntoo short 1 2\r\nplain 0 0 0\r\n'.encode()
           + b'bad\xff 1 2 3\r\nnan nan 1 2\r\nlast 1 1 1\r\n')
    with pytest.warns(UserWarning, match='4 of 8 lines'): got = read_vectors(written(tmp_path, raw))
    assert got.words == ['plain', 'two words', 'ideo\u3000space', 'last'] and got.n_bad == 4
    assert got.table[0].tolist() == [1, 2, 3]


def test_no_first_line_of_counts_is_needed(tmp_path):
    got = read_vectors(written(tmp_path, b'a 1 2\nb 3 4\n'))
    assert got.words == ['a', 'b'] and got.table.shape == (2, 2) and got.n_bad == 0


@pytest.mark.parametrize('raw', [b'', b'\n\n', 'é 1 2\nè 3 4\n'.encode('latin-1'), 'word 1 2'.encode('utf-16')])
def test_what_cannot_be_read_is_refused_by_name(tmp_path, raw):
    with pytest.raises(ValueError, match='v.txt'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        read_vectors(written(tmp_path, raw))


def test_a_list_that_a_file_mostly_misses_warns_with_the_share(tmp_path):
    got = read_vectors(written(tmp_path, b'a 1 2\nb 3 4\n'))
    with pytest.warns(UserWarning, match='75% of the 4 words'):
        table, share = got.for_words(Lexicon(['a', 'x', 'y', 'z']))
    assert share == .75 and table[2].tolist() == [1, 2] and not table[0].any() and table[3:].any(1).all()


def test_skip_gram_is_repeatable_and_leaves_unknown_rows_empty():
    pytest.importorskip('gensim')
    texts = ['red dress blue dress', 'cat dog cat dog'] * 30
    lex = Lexicon(['red', 'dress', 'cat', 'unmet'])
    a, b = (skip_gram(texts, lex, 8, seed=1) for _ in range(2))
    assert np.array_equal(a, b) and not a[[0, 1, 5]].any() and a[2:5].any(1).all()


TAGGED = 'the a dog cat cat sees Sees'.split(), ['DET', 'DET', 'NOUN', 'NOUN', 'NOUN', 'VERB', 'NOUN']


def test_a_word_gives_way_to_another_of_its_part_of_speech_as_often_as_that_is_met():
    alike, rng = SameTag(*TAGGED), np.random.default_rng(0)
    drawn = [alike('Dog', rng) for _ in range(800)]
    assert {*drawn} == {'dog', 'cat', 'sees'} and .42 < drawn.count('cat') / 800 < .58
    assert alike('unmet', rng) == 'unmet' and {alike('the', rng) for _ in range(30)} == {'the', 'a'}
    with pytest.raises(ValueError, match='1 words and 2 tags'): SameTag(['a'], ['X', 'Y'])
    with pytest.raises(ValueError, match='0 words'): SameTag([], [])


def test_spoilt_texts_are_as_often_masked_replaced_and_cut_as_asked():
    rng, text = np.random.default_rng(0), ['w'] * 20
    swap = lambda w, rng: 'x'
    whole = [w for _ in range(300) for w in varied(text, rng, alike=swap, p_run=0)]
    assert abs(whole.count(None) / 6000 - .1) < .02 and abs(whole.count('x') / 6000 - .1) < .02
    sizes = [len(varied(text, rng, p_mask=0, p_run=1)) for _ in range(200)]
    assert {*sizes} == {1, 2, 3, 4, 5}
    order = [str(i) for i in range(9)]
    for _ in range(20): assert ''.join(varied(order, rng, p_mask=0, p_run=1)) in ''.join(order)
    assert varied([], rng) == [] and varied(order, rng, p_mask=0, p_run=0) == order


@pytest.mark.parametrize('wrong', [dict(p_mask=-.1), dict(p_run=1.5), dict(p_mask=.6, p_alike=.6)])
def test_chances_that_are_none_are_named(wrong):
    with pytest.raises(ValueError, match='must lie in'): varied(['a'], np.random.default_rng(0), **wrong)
