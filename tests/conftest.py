"What several files of tests are given."
import os

import pytest

from papers_lib.lab import data
from papers_lib.text.tokenizers import train_fast_bpe


@pytest.fixture(scope='session')
def books(tmp_path_factory):
    "Forty real documents."
    os.environ.setdefault('PAPERS_CACHE', str(tmp_path_factory.mktemp('cache')))
    return [d for _, d in zip(range(40), data.documents('books'))]


@pytest.fixture(scope='session')
def fast(books):
    "A vocabulary learnt from them."
    return train_fast_bpe(books, 600)
