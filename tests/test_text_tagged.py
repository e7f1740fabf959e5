"Tagged text: the treebank's counts, and what a broken line says."
import os

import pytest

from papers_lib.text.tagged import Tagged, read_conllu, tagged_examples, word_starts
from papers_lib.text.wordpiece import SPECIALS, WordPiece

ROW = '1\tGo\t_\tVERB\t_\t_\t_\t_\t_\t_'


@pytest.mark.parametrize('text, words', [
    (ROW + '\nGo VERB', 'line 2: not ten'), (ROW.replace('1\t', 'one\t', 1), 'line 1: not ten'),
    (ROW.replace('VERB', 'VB'), "'VB' is no universal"), (ROW + '\t_', 'line 1: not ten')])
def test_a_broken_line_is_named(text, words):
    with pytest.raises(ValueError, match=words): [*read_conllu(text, 'file')]


def test_parts_of_contracted_words_count_once():
    text = ROW.replace('1\t', '1-2\t', 1).replace('VERB', '_') + '\n' + ROW + '\n' + ROW.replace('1\t', '1.1\t', 1)
    assert [s.words for s in read_conllu(text)] == [['Go']]


@pytest.mark.skipif(not os.environ.get('PAPERS_MIRROR'), reason='needs PAPERS_MIRROR')
@pytest.mark.parametrize('split, n_sentence, n_word', [('dev', 2001, 25147), ('test', 2077, 25094)])
def test_the_treebank_has_the_known_numbers_of_sentences_and_words(split, n_sentence, n_word):
    from papers_lib.lab.data import get
    found = [*read_conllu(get('ud_ewt').path(f'{split}.conllu').read_text(encoding='utf-8'))]
    assert [len(found), sum(len(s.words) for s in found)] == [n_sentence, n_word]


TOK = WordPiece([*SPECIALS, 'a', '##a', 'b'])


def test_a_tag_stands_at_the_first_piece_of_its_word():
    assert word_starts(['aaa', 'b', 'z'], TOK) == ([2, 5, 6, 6, 7, 1, 3], [1, 4, 5])
    made = tagged_examples([Tagged('d', ['aa', 'b'], ['X', 'NOUN'])], TOK, 6, ('NOUN', 'X'))
    assert made.targets.tolist() == [[-100, 1, -100, 0, -100, -100]] and made.pad.sum() == 5


@pytest.mark.parametrize('sentence, words', [
    (Tagged('d', ['aaa', 'b'], ['X', 'X']), 'sentence 0 of 6 pieces: a row holds ctx_len=5'),
    (Tagged('d', ['a'], ['VB']), "tag 'VB' is none of ADJ")])
def test_sentences_that_cannot_be_tagged_are_refused(sentence, words):
    with pytest.raises(ValueError, match=words): tagged_examples([sentence], TOK, 5)
