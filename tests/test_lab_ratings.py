"What sets say of their items: two copies of one table are one, users' names are not kept, the numbers fit the events."
import json

import numpy as np, pytest

from papers_lib.lab.data import adapters, available
from papers_lib.lab.ratings import described, events, made_shop

FLAGS = {'Drama': 8, 'Animation': 3, "Children's": 4, 'unknown': 0, 'Documentary': 7}


def line(number, title, *genres):
    flags = ['1' if i in {FLAGS[g] for g in genres} else '0' for i in range(19)]
    return '|'.join((str(number), title, '01-Jan-1995', '', 'http://x', *flags))


def test_the_two_copies_of_the_table_of_films_are_one():
    theirs = [line(1, 'Toy Story (1995)', 'Animation', "Children's"), line(267, 'unknown', 'unknown'),
              line(1128, 'Heidi Fleiss: Hollywood Madam (1995) ', 'Documentary'),
              line(1412, 'Land Before Time III: The Time of the Great Giving (1995) (V)', 'Animation'),
              line(9, 'Misérables, Les (1995)', 'Drama')]
    packaged = ('item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\r\n'
                "1\tToy Story\t1995\tAnimation Children's\r\n267\tunkonwn\tunkonwn\tunknown\r\n"
                '1128\tHeidi Fleiss: Hollywood Madam\t1995\tDocumentary\r\n'
                '1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation\r\n'
                '9\tMisérables, Les\t1995\tDrama\r\n')
    ours = adapters['films-100k'](('\n'.join(theirs) + '\n').encode('latin-1'))
    assert ours == adapters['films-100k'](packaged.encode())
    assert ours.decode().splitlines()[1] == '267\tunknown\t\tunknown'


def test_of_a_table_of_numberings_the_items_alone_are_kept():
    raw = json.dumps(dict(user2id={'A1SECRET': '1'}, id2item={'10': 'B10', '2': 'B2'}, item2id={'B2': '2'}))
    assert adapters['asins'](raw.encode()) == b'2\tB2\n10\tB10\n'


def test_a_made_shop_is_the_same_twice_and_its_titles_fit():
    (data, told), (again, _) = made_shop(), made_shop()
    assert (data.item == again.item).all() and len(told.titles) == told.labels.shape[0] == data.n_item
    for h in data.histories(): assert len({told.titles[i].split(' ', 1)[1] for i in h}) == 1


@pytest.mark.parametrize('name, item, title', [('ml-100k', 1, 'Toy Story'), ('ml-1m', 1, 'Toy Story (1995)'),
                                               ('amazon_beauty', 1, None)])
def test_titles_stand_at_the_numbers_of_the_events(name, item, title):
    if not available(name): pytest.skip(f'needs {name}')
    data = events(name)
    told = described(name, data)
    assert len(told.titles) == told.labels.shape[0] == data.n_item
    if title: assert told.titles[data.codes([item])[0]] == title
    if name == 'amazon_beauty':
        everything = described(name, data, all_titles=True).titles
        assert (sum(map(bool, told.titles)), sum(map(bool, everything))) == (10326, 12094)
        assert all(a in ('', b) for a, b in zip(told.titles, everything)) and not any('&amp;' in t for t in everything)
    assert np.asarray(told.labels.sum(1)).min() >= (0 if name == 'amazon_beauty' else 1)
