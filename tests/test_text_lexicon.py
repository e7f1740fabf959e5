"Words as a vocabulary, and vector files as they are found."
import warnings

import numpy as np
import pytest

from papers_lib.text.lexicon import Lexicon, characters, cutters, read_vectors, skip_gram
from papers_lib.text.tokenizers import BadVocabulary


def test_unknown_words_and_padding_have_numbers_of_their_own():
    lex = Lexicon.of(['a b a', 'b a c'], 4)
    assert lex.words == ['a', 'b'] and lex.encode('c a') == [1, 2] and lex.n_vocab == 4
    assert lex.missed(['a c', 'c c']) == .75 and lex.missed([]) == 0


@pytest.mark.parametrize('how, text, told', [('words', "Don't!", ['don', 't']), ('characters', '花 呗', ['花', '呗'])])
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
