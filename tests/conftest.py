"What several files of tests are given."
import gzip
import hashlib
import os

import pytest
from hypothesis import settings

from papers_lib.lab import data
from papers_lib.text.corpora import SEPARATOR
from papers_lib.text.tokenizers import train_fast_bpe

settings.register_profile('house', deadline=None)     # a busy machine is no counterexample
settings.load_profile('house')


@pytest.fixture(scope='session')
def books(tmp_path_factory):
    "Forty real documents."
    os.environ.setdefault('PAPERS_CACHE', str(tmp_path_factory.mktemp('cache')))
    return [d for _, d in zip(range(40), data.documents('books'))]


@pytest.fixture(scope='session')
def fast(books):
    "A vocabulary learnt from them."
    return train_fast_bpe(books, 600)


@pytest.fixture
def small(tmp_path, monkeypatch, books):
    "A text set of a few real documents, `small`, in a mirror; the real `books` cost ten seconds a vocabulary."
    monkeypatch.setenv('PAPERS_MIRROR', str(tmp_path / 'mirror'))
    (tmp_path / 'mirror/small').mkdir(parents=True)
    files = {}
    for name, docs in (('train', books[:12]), ('valid', books[12:16])):
        text = f'\n{SEPARATOR}\n'.join(docs).encode('utf-8')
        (tmp_path / f'mirror/small/{name}.txt.gz').write_bytes(gzip.compress(text))
        files[f'{name}.txt'] = data.FileSpec(hashlib.sha256(text).hexdigest(), len(docs), mirror=f'{name}.txt.gz')
    monkeypatch.setitem(data.registry, 'small', data.SetSpec('public domain', files))
    return data.registry['small']
