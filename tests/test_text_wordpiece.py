"WordPiece: the version to be read equals the fast one; words, pieces, files and training."
import json
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import normalizers, pre_tokenizers

from papers_lib.text.tokenizers import BadVocabulary
from papers_lib.text.wordpiece import (
    LONGEST, SPECIALS, FastWordPiece, WordPiece, bert_words, learn_pieces, train_wordpiece, word_pieces)

RARE = '的人有、。かなカナ한글\u2028\u3000\u200b\ufeff\ue000'
LETTERS = [*SPECIALS, *'abcdeinvwxy', *(f'##{c}' for c in 'abceinvy'), 'na', '##ive', '的', '人', ',', '$', "'"]


def library(text, **options):
    normal = normalizers.BertNormalizer(**options).normalize_str(text)
    return [w for w, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)]


@settings(max_examples=300)
@given(st.text(st.characters(max_codepoint=0x5ff) | st.sampled_from(RARE), max_size=40), st.booleans(),
       st.sampled_from([None, True, False]), st.booleans())
def test_words_equal_the_library(text, lower, strip, cjk):
    ours = bert_words(text, lower, None if strip is None else not strip, cjk)
    assert ours == library(text, lowercase=lower, strip_accents=strip, handle_chinese_chars=cjk)


@pytest.mark.parametrize('text, words', [
    ('a\ue000b', ['ab']), ('a\u0378b', ['a\u0378b']), ('a\U0002b820b', ['a\U0002b820b']),
    ('a\U0002b920b', ['a', '\U0002b920', 'b']), ('a^b~$', ['a', '^', 'b', '~', '$']), ('ab\u00adc', ['abc'])])
def test_characters_in_which_the_official_code_and_the_fast_one_differ(text, words):
    assert bert_words(text) == words == library(text)


@pytest.mark.parametrize('lower', [True, False])
@pytest.mark.parametrize('accents', [None, True, False])
def test_accents_go_only_with_lower_case_unless_asked(lower, accents):
    slow, fast = (cls(LETTERS, lower, accents) for cls in (WordPiece, FastWordPiece))
    keep = not lower if accents is None else accents
    assert bert_words('naïve', lower, accents) == ['naïve' if keep else 'naive']
    for text in ('naïve', 'Naïve 的人有', "a,b $ 'x"): assert slow.encode(text) == fast.encode(text)


def test_a_word_with_a_rest_that_has_no_piece_is_lost_as_a_whole():
    vocab = dict.fromkeys(LETTERS)
    assert word_pieces('naive', vocab) == ['na', '##ive'] and word_pieces('naivez', vocab) == ['[UNK]']
    for n, lost in ((LONGEST, False), (LONGEST + 1, True)):
        word = 'a' + 'b' * (n - 1)
        assert (FastWordPiece(LETTERS).encode(word) == [1]) == (word_pieces(word, vocab) == ['[UNK]']) == lost


@pytest.mark.parametrize('lines, words', [
    ('[PAD]\n[UNK]\n', 'no .CLS'), ('\n'.join(LETTERS + ['a']), "'a' stands in it twice"),
    ('\n'.join(LETTERS[:7] + [''] + LETTERS[7:]), 'line 8 is empty')])
def test_a_broken_vocabulary_is_named(tmp_path, lines, words):
    (tmp_path / 'vocab.txt').write_text(lines, encoding='utf-8')
    with pytest.raises(BadVocabulary, match=words): FastWordPiece.load(tmp_path)


@pytest.mark.parametrize('options', ['[]', '3', 'null', '"x"'])
def test_options_that_are_no_object_are_named(tmp_path, options):
    (tmp_path / 'vocab.txt').write_text('\n'.join(LETTERS) + '\n', encoding='utf-8')
    (tmp_path / 'tokenizer_config.json').write_text(options, encoding='utf-8')
    with pytest.raises(BadVocabulary, match='tokenizer_config.json: a JSON object was expected'):
        FastWordPiece.load(tmp_path)


def test_files_keep_the_options_and_the_public_class_reads_them(tmp_path):
    FastWordPiece(LETTERS, lower=False).save(tmp_path)
    back = FastWordPiece.load(tmp_path)
    assert back.encode('Naive naive') == WordPiece(LETTERS, lower=False).encode('Naive naive')
    assert json.loads((tmp_path / 'tokenizer_config.json').read_text())['do_lower_case'] is False


def test_training_is_the_same_each_time_and_joins_by_the_score_that_is_asked_for():
    text = ['the cat sat on the mat, the rat ran at the bat'] * 3
    a, b = (train_wordpiece(text, 40).tokens for _ in range(2))
    assert a == b and 'the' in a
    counts = Counter({'hug': 10, 'pug': 5, 'pun': 12, 'bun': 4, 'hugs': 5})
    assert learn_pieces(counts, 17)[-1] == '##ug' and learn_pieces(counts, 17, 'likelihood')[-1] == '##gs'
    with pytest.raises(ValueError, match="score='best'"): learn_pieces(counts, 20, 'best')
