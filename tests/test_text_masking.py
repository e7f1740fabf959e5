"Pairs and masks: the traps of BERT's data, as public bug reports tell them."
import warnings

import numpy as np, pytest

from papers_lib.text.masking import (
    ExampleBatches, Recipe, create_examples, document_pairs, labelled_examples, mask_pieces, sentences)
from papers_lib.text.wordpiece import SPECIALS, FastWordPiece

TOK = FastWordPiece([*SPECIALS, *'abcdefghijklmnopqrstuvwxyz', *(f'##{i}' for i in range(69))])      # 100 pieces
rng = lambda seed=0: np.random.default_rng(seed)


def corpus(n_doc=5, n_sentence=6, length=5):
    "Every piece says which document and which sentence it is of."
    return [[[100 * d + s] * length for s in range(n_sentence)] for d in range(n_doc)]


def test_polarity_and_that_a_random_part_is_never_the_true_one():
    docs = corpus()
    for seed in range(300):
        for a, b, label in document_pairs(docs, 2, 30, rng(seed)):
            same = b[0] // 100 == 2
            assert label == (0 if same else 1)
            if same: assert b[0] - a[-1] in (0, 1)


def test_what_a_random_part_replaced_is_read_again():
    docs = corpus(n_doc=2, n_sentence=40, length=3)
    for seed in range(20):
        pairs = [p for budget in (1000, 20) for p in document_pairs(docs, 0, budget, rng(seed), short=0.)]
        seen = {t for a, b, label in pairs for t in (*a, *(b if label == 0 else ()))}
        assert seen == set(range(40))


def test_a_single_sentence_is_always_a_negative():
    docs = corpus(n_doc=3, n_sentence=1)
    assert {label for seed in range(50) for *_, label in document_pairs(docs, 0, 30, rng(seed))} == {1}
    with pytest.warns(UserWarning, match='100% of the pairs are random'):
        create_examples([[[5 + i] * 4] for i in range(50)], TOK, 20, dupe=1)


def test_one_document_is_refused_and_empty_ones_are_none():
    doc = [[5, 6], [7, 8], [9]]
    for docs in ([doc], [doc, []], [doc, [[]], []]):
        with pytest.raises(ValueError, match='comes? from another|taken from another'): create_examples(docs, TOK, 16)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        made = create_examples([doc, [], [[]], doc, []], TOK, 16, dupe=200)
    assert (made.segments.sum(1) >= 2).all() and ((made.segments == 0) & made.pad).sum(1).min() >= 3     # no empty part


def test_masks_are_counted_over_all_places_and_spare_the_special_ones():
    for n in (3, 7, 10, 40, 128):
        ids = np.array([TOK.cls, *rng(n).integers(5, 100, n - 3), TOK.sep, 7, TOK.sep][:n + 1])
        seen, targets = mask_pieces(ids, TOK, rng(), most=20)
        chosen = targets != -100
        assert chosen.sum() == min(20, (~np.isin(ids, [TOK.cls, TOK.sep])).sum(), max(1, round(0.15 * len(ids))))
        assert not np.isin(ids[chosen], [TOK.cls, TOK.sep]).any() and (targets[chosen] == ids[chosen]).all()
        assert (seen[~chosen] == ids[~chosen]).all()


def test_eight_in_ten_one_in_ten_one_in_ten():
    ids = np.full(5002, 50)
    ids[0], ids[-1] = TOK.cls, TOK.sep
    seen, targets = mask_pieces(ids, TOK, rng(), Recipe(share=0.9), most=10_000)
    chosen = targets != -100
    masked, kept = (seen[chosen] == TOK.mask).mean(), (seen[chosen] == 50).mean()
    assert abs(masked - 0.8) < 0.03 and abs(kept - 0.1) < 0.03
    anything = seen[chosen & (seen != TOK.mask) & (seen != 50)]
    assert (anything < 5).any() and len({*anything.tolist()}) > 80                      # special pieces included
    with pytest.raises(ValueError, match='at most 1'): Recipe(mask=0.8, random=0.3)


def test_rows_fit_and_short_ones_occur():
    made = create_examples(corpus(20, 30, 4), FastWordPiece([*SPECIALS, *map(str, range(3000))]), 64, dupe=2)
    n = made.pad.sum(1)
    assert n.max() == 64 and (n < 40).mean() > 0.05 and 0.4 < made.labels.mean() < 0.75
    assert (made.ids[~made.pad] == 0).all() and (made.targets[~made.pad] == -100).all()


def test_masks_are_drawn_once_and_differ_between_the_readings():
    made = create_examples(corpus(4, 8, 5), FastWordPiece([*SPECIALS, *map(str, range(400))]), 32, dupe=5)
    first, again = (next(ExampleBatches(made, 8, seed=3)) for _ in range(2))
    assert (first['ids'] == again['ids']).all() and len({r.tobytes() for r in made.targets}) > len(made) / 2


def test_sentences_end_where_a_reader_would_say_so():
    text = 'Mr. Bennet came. "Why?" said she!\n\nThen.'
    assert sentences(text) == ['Mr. Bennet came.', '"Why?"', 'said she!', 'Then.']
    assert sentences('') == [] and sentences(' \n ') == []


def test_a_pair_that_does_not_fit_loses_the_end_of_its_longer_text_and_says_so():
    with pytest.warns(UserWarning, match='1 of 2 texts or pairs do not fit in 9 pieces'):
        made = labelled_examples([('a b c d e f g', 'h i'), ('a', 'b')], [0, 1], 2, TOK, 9)
    said = [TOK.tokens[i] for i in made.ids[0]]
    assert said == ['[CLS]', 'a', 'b', 'c', 'd', '[SEP]', 'h', 'i', '[SEP]']
    assert made.segments[0].tolist() == [0] * 6 + [1] * 3 and made.labels.tolist() == [0, 1]
    assert made.targets[:, 0].tolist() == [0, 1] and (made.targets[:, 1:] == -100).all()


@pytest.mark.parametrize('texts, label, ctx_len, words', [
    (('a',), 2, 9, 'example 0: label 2 is none of 0 to 1'), (('a',), -1, 9, 'label -1'),
    (('a', ''), 0, 9, 'has no piece'),
    (('a', 'b'), 0, 4, r'ctx_len=4: 2 text\(s\) do not fit')])
def test_labelled_texts_that_cannot_be_are_refused(texts, label, ctx_len, words):
    with pytest.raises(ValueError, match=words): labelled_examples([texts], [label], 2, TOK, ctx_len)


def test_a_batch_is_as_long_as_its_longest_row():
    made = labelled_examples([('a b c',), ('a',), ('b',)], [0, 1, 0], 2, TOK, 20)
    assert {next(b)['ids'].shape[1] for b in [ExampleBatches(made, 1)] for _ in range(3)} == {5, 3}
