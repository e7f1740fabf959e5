"Made texts: what their names promise, from every seed."

import re

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from papers_lib.text.synthetic import random_strings, repeats, spoil, sums

SEED = st.integers(0, 2**31)


@settings(max_examples=20)
@given(seed=SEED)
def test_random_strings_are_writable_of_bounded_length_and_of_every_plane(seed):
    strings = list(random_strings(400, seed))
    assert all(len(s.encode('utf-8').decode('utf-8')) <= 20 for s in strings) and strings == list(
        random_strings(400, seed)
    )
    assert (
        len({ord(c) >> 16 for c in ''.join(strings)}) > 12 and any(c < ' ' for c in ''.join(strings)) and '' in strings
    )


@settings(max_examples=60)
@given(t=st.integers(4, 90), n_vocab=st.integers(2, 1000), seed=SEED)
def test_repeats_have_a_period_between_a_quarter_and_a_half(t, n_vocab, seed):
    x = repeats(20, t, n_vocab, np.random.default_rng(seed))
    assert x.shape == (20, t) and x.min() >= 0 and x.max() < n_vocab
    for row in x:
        assert any((row[p:] == row[:-p]).all() for p in range(t // 4, t // 2 + 1))
    with pytest.raises(ValueError, match='t=3'):
        repeats(1, 3, 5, np.random.default_rng(0))


@settings(max_examples=30)
@given(n=st.integers(0, 300), seed=SEED, low=st.integers(2, 3), more=st.integers(0, 2))
def test_sums_are_right_different_and_none_that_is_skipped(n, seed, low, more):
    digits = low, low + more
    held = sums(100, seed + 1, digits)
    made = sums(n, seed, digits, skip=held)
    pairs = {tuple(map(int, re.findall(r'\d+', s))) for s in made}
    assert len(pairs) == n == len(made) and all(
        a + b == c and len(str(a)) == len(str(b)) and low <= len(str(a)) <= low + more for a, b, c in pairs
    )
    assert not {frozenset(s.split(' = ')[0].split(' + ')) for s in held} & {
        frozenset(s.split(' = ')[0].split(' + ')) for s in made
    }


@pytest.mark.parametrize(
    'kw',
    [
        dict(n=41, digits=(1, 1)),
        dict(n=10, digits=(0, 2)),
        dict(n=10, digits=(3, 2)),
        dict(n=20, digits=(1, 1), skip=[f'{a} + 1 = {a + 1}' for a in range(1, 40)]),
    ],
)
def test_sums_that_are_not_there_are_refused_and_do_not_hang(kw):
    with pytest.raises(ValueError, match='digits'):
        sums(**kw, seed=0)


@settings(max_examples=60)
@given(text=st.text(max_size=200), seed=SEED)
def test_spoilt_pages_are_text_from_their_seed(text, seed):
    page = spoil(text, np.random.default_rng(seed))
    assert isinstance(page, str) and page == spoil(text, np.random.default_rng(seed))
