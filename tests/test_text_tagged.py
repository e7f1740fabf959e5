"Tagged text: the treebank's counts, and what a broken line says."
import os

import pytest

from papers_lib.text.tagged import read_conllu

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
