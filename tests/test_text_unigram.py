"Unigram vocabularies: expectation, likelihood, what is taken away."
import math
from itertools import combinations

import pytest
from papers_lib.text.tokenizers import likeliest_pieces
from papers_lib.text.unigram import expected_pieces, learn_unigram, losses, marked_words, reestimate, seed_pieces

TEXTS = ['the thin thing thinks', 'then the other thing', 'another thinker thinks then'] * 3


def by_listing(word, p):
    "Expected pieces and probability of a word, by all its cuts one after the other."
    total, found = 0., {}
    for k in range(len(word)):
        for cuts in combinations(range(1, len(word)), k):
            parts = [word[i:j] for i, j in zip((0, *cuts), (*cuts, len(word)))]
            q = math.prod(p.get(x, 0.) for x in parts)
            total += q
            for x in parts: found[x] = found.get(x, 0.) + q
    return {x: q / total for x, q in found.items() if q}, total


@pytest.mark.parametrize('word', ['a', 'abab', 'babba'])
def test_expected_pieces_are_those_of_all_cuts(word):
    p = dict(a=.3, b=.2, ab=.25, ba=.1, bab=.1, abba=.05)
    found, logp = expected_pieces(word, p, 4)
    want, total = by_listing(word, p)
    assert logp == pytest.approx(math.log(total)) and {k: v for k, v in found.items() if v} == pytest.approx(want)


def plainly(word, p, longest):
    "The same by plain products, which words of ordinary length allow."
    n = len(word)
    spans = [(i, j, p[word[i:j]]) for i in range(n) for j in range(i + 1, min(n, i + longest) + 1) if word[i:j] in p]
    before, after, found = [1.] + [0.] * n, [0.] * n + [1.], {}
    for i, j, q in spans: before[j] += before[i] * q
    for i, j, q in sorted(spans, key=lambda s: -s[1]): after[i] += q * after[j]
    for i, j, q in spans: found[word[i:j]] = found.get(word[i:j], 0) + before[i] * q * after[j] / before[n]
    return found, math.log(before[n])


def test_ordinary_words_have_the_sums_of_plain_products_to_the_last_bit():
    words = marked_words([*TEXTS, 'thethingthen' * 10])
    p = {k: math.exp(s) for k, s in seed_pieces(words).items()}
    for word in words: assert expected_pieces(word, p, 8) == plainly(word, p, 8)


def test_a_text_without_spaces_may_be_long():
    han = ''.join(chr(0x4e00 + i) for i in range(150))
    found, logp = expected_pieces(han, {c: 1e-4 for c in han}, 1)
    assert logp == pytest.approx(150 * math.log(1e-4), rel=1e-12) and [*found.values()] == pytest.approx([1.] * 150)
    p = dict(a=1e-3, b=2e-3, ab=1e-5)
    found, logp = expected_pieces('ab' * 200, p, 2)
    pair = p['a'] * p['b'] + p['ab']
    assert logp == pytest.approx(200 * math.log(pair), rel=1e-12) and found['ab'] == pytest.approx(200 * 1e-5 / pair)
    assert found['a'] == found['b'] == pytest.approx(200 * 2e-6 / pair)
    found, logp = expected_pieces('xa' * 400, dict(xa=1e-5, a=.5), 2)           # places that no cut reaches
    assert logp == pytest.approx(400 * math.log(1e-5), rel=1e-12) and found['xa'] == pytest.approx(400)
    mixed = expected_pieces('a' * 300 + 'b' * 300, dict(a=1e-9, b=.5, bb=.1), 2)
    assert mixed[1] == pytest.approx(300 * math.log(1e-9) + expected_pieces('b' * 300, dict(b=.5, bb=.1), 2)[1])
    assert han in next(iter(marked_words([han]))) and learn_unigram([han, han], 200)


def test_the_corpus_gets_likelier_with_every_estimate():
    words = marked_words(TEXTS)
    scores, fits = seed_pieces(words), []
    for _ in range(6):
        scores, fit = reestimate(words, scores, least=0.)
        fits.append(fit)
    assert all(b >= a - 1e-9 for a, b in zip(fits, fits[1:])) and fits[-1] > fits[0] + 1
    assert sum(map(math.exp, scores.values())) == pytest.approx(1., abs=1e-3)


def test_a_piece_that_no_cut_uses_costs_nothing_and_one_that_words_need_costs_much():
    words = marked_words(['thing'] * 50)
    scores = {c: math.log(.05) for c in '▁things'} | {'thing': math.log(.5), 'gs': math.log(.1)}
    lost = losses(words, scores)
    assert lost['gs'] == 0. and lost['thing'] == pytest.approx(50 * (math.log(.5) - 5 * math.log(.05)))


@pytest.mark.parametrize('n', [12, 20, 35])
def test_a_vocabulary_has_the_size_that_was_asked_for_at_most_and_every_character(n):
    learnt = learn_unigram(TEXTS, n)
    assert {*'▁theinkgsroa'} <= {*learnt} and len(learnt) <= n
    assert ''.join(likeliest_pieces('▁northering', learnt)) == '▁northering'


def test_frequent_words_stay_whole_longer_than_rare_ones():
    learnt = learn_unigram(['often'] * 200 + ['seldom', 'rarely'], 16)
    assert '▁often' in learnt and len(likeliest_pieces('▁seldom', learnt)) > 2


@pytest.mark.parametrize('call, words', [
    (lambda: learn_unigram(['abc'], 3), 'n_vocab=3: the corpus has 4 characters'),
    (lambda: learn_unigram(['abc'], 9, share=1.), 'share=1.0: must lie in'),
    (lambda: expected_pieces('axb', dict(a=.5, b=.5), 1), "word 'axb': no cut"),
])
def test_what_cannot_be_learnt_is_refused(call, words):
    with pytest.raises(ValueError, match=words.replace('(', r'\(')): call()
