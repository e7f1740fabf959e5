"What a cell cannot say: no line is lost, of any tokens, and of the real sets."
import gzip, os
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from papers_lib.text.detokenize import ESCAPE, detokenizers

mirror = os.environ.get('PAPERS_MIRROR')

pieces = ['the', 'city', "'s", ',', '.', '@-@', '@,@', '@.@', '"', '(', ')', '$', '12', "n't", 'U.S.', 'St.', '<unk>',
          '-', "'", 'a-b', '1,5', '...']


@pytest.mark.parametrize('name', ['wikitext2', 'ptb'])
@settings(max_examples=300)
@given(words=st.lists(st.sampled_from(pieces), max_size=12))
def test_detokenizers_invert_any_line(name, words):
    d = detokenizers[name]
    for line in (' ' + ' '.join(words) + ' ', ' '.join(words), ''):
        assert d.retokenize(d.detokenize(line)) == line


@pytest.mark.skipif(not mirror, reason='PAPERS_MIRROR is not set')
@pytest.mark.parametrize('name, file', [('wikitext2', 'test.txt.gz'), ('ptb', 'ptb.valid.txt.gz')])
def test_detokenizers_invert_the_real_sets(name, file):
    lines = gzip.open(Path(mirror) / name / file, 'rt', encoding='utf-8').read().split('\n')
    out = [detokenizers[name].detokenize(line) for line in lines]
    assert [detokenizers[name].retokenize(line) for line in out] == lines
    assert sum(line.count(ESCAPE) for line in out) < 0.01 * sum(len(line.split()) for line in lines)
