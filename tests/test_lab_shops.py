"Shops with titles: what cannot be read is left out, users and new items are held out, the choice of users only grows."
import pytest

from papers_lib.lab.shops import asked_users, open_shop, readable, title_key
from papers_lib.rec.interactions import interactions


@pytest.fixture(scope='module')
def shop():
    return open_shop('made')


def test_titles_that_cannot_be_read_and_repeats_are_left_out():
    titles = ['One', 'one!', '', '!!!', 'Two', 'M', '七']
    data = interactions([1] * 7 + [2], [*range(7), 4], ties='file')
    kept = readable(data, titles)
    assert [[titles[kept.items[i]] for i in h] for h in kept.histories()] == [['One', 'Two', 'M', '七'], ['Two']]
    with pytest.raises(ValueError, match='no item has a title with a word'): readable(data, [''] * 7)
    with pytest.raises(ValueError, match=r'titles\[1\]=None: must be a text'): readable(data, ['One', None] * 4)
    with pytest.raises(ValueError, match='1 titles for 7 items'): readable(data, ['One'])


def test_held_out_users_and_new_items_are_in_no_training(shop):
    train, tests = {*shop.train.user.tolist()}, [*shop.split.valid.user, *shop.split.test.user]
    assert not train & {*map(int, tests)}
    new = ~shop.seen
    assert new.any() and not new[shop.train.item].any()
    asked, is_new = asked_users(shop, 9, 4)
    assert is_new.sum() <= 4 and all(new[t[0]] == n for t, n in zip(asked.targets, is_new))
    again, _ = asked_users(shop, 12, 4)
    assert {*asked.user[~is_new]} <= {*again.user}                     # more users are the same ones and others
    for h in shop.data.histories(): assert len({title_key(shop.titles[i]) for i in h}) == len(h)


def test_titles_and_labels_follow_the_items_that_are_kept(shop):
    few = open_shop('made', 40)
    assert len(few.titles) == few.labels.shape[0] == few.data.n_item <= 40 < shop.data.n_item
    whole = dict(zip(shop.titles, shop.labels.toarray().tolist()))
    assert {t: whole[t] for t in few.titles} == dict(zip(few.titles, few.labels.toarray().tolist()))
    assert min(map(len, few.data.histories())) > 1


@pytest.mark.parametrize('wrong', [dict(n_item=-1), dict(cold=1.), dict(cold=-.1), dict(valid=0.), dict(test=1.)])
def test_shares_that_are_none_are_named(wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f'{name}={value}'): open_shop('made', **wrong)


def test_titles_are_named_by_their_words():
    assert title_key('...') == '' and title_key('A  b!') == title_key('a B') != title_key('ab')
