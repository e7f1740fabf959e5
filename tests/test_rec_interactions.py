"The table of events: what readers refuse, what decides between equal times, and what each split promises."
import json, os, warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from papers_lib.rec.interactions import (
    by_user, global_time, interactions, known_future, leave_one_out, read_amazon, read_csv, read_movielens,
    read_parquet, read_sequences)


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
    return path


def named(data):
    "Histories by ids."
    return {u: data.items[h].tolist() for u, h in zip(data.users.tolist(), data.histories())}


def quiet(split, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return split(*args, **options)


# Readers

@pytest.mark.parametrize('name, text', [
    ('u.data', '1\t20\t3\t50\n1\t3\t5\t40\n'), ('ratings.dat', '1::20::3::50\n1::3::5::40\n'),
    ('ratings.csv', 'userId,movieId,rating,timestamp\n1,20,3.0,50\n1,3,5.0,40\n')])
def test_movielens_in_its_three_forms(tmp_path, name, text):
    data = read_movielens(write(tmp_path, name, text))
    assert named(data) == {1: [3, 20]} and data.rating.tolist() == [5, 3] and data.time.tolist() == [40, 50]


@pytest.mark.parametrize('text, words', [
    ('', 'no interactions'), ('1 2 3 4\n', 'line 1: no tab'), ('1\t2\t3\n', 'line 1: 3 fields, 4 expected'),
    ('1\t2\t3\t4\n1\t2\n', 'line 2: 2 fields'), ('one\t2\t3\t4\n', "user of row 1 is 'one': must be a whole number"),
    ('1\t2.5\t3\t4\n', "item of row 1 is '2.5'"), ('1\t2\tnan\t4\n', "rating of row 1 is 'nan': must be a finite"),
    ('1\t2\tgood\t4\n', "rating of row 1 is 'good'"), ('1\t2\t9\t4\n', 'from 0.5 to 5 stars'),
    ('1\t2\t3\tnoon\n', "time of row 1 is 'noon'"), ('1\t2\t3\t4\n1\t2\t3\t5\n', 'user 1 meets item 2 twice'),
    (b'1\t2\t3\t4\xff\n', 'not UTF-8')])
def test_what_movielens_may_not_hold_is_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=words): read_movielens(write(tmp_path, 'u.data', text))


REVIEW = dict(reviewerID='A', asin='0205616461', overall=5.0, unixReviewTime=3, reviewerName='Ann')


def test_amazon_keeps_the_zero_of_an_id_and_no_name(tmp_path):
    lines = [REVIEW, REVIEW | dict(asin='0000000001', unixReviewTime=9)]
    data = read_amazon(write(tmp_path, 'r.json', '\n'.join(map(json.dumps, lines))))
    assert named(data) == {'A': ['0205616461', '0000000001']} and 'Ann' not in repr(data)


def test_a_line_separator_in_a_text_ends_no_line(tmp_path):
    texts = ['one\u2028two', 'a\u2029b', 'c\x85d', 'e\x1cf']
    lines = [REVIEW | dict(reviewerID=f'A{i}', reviewText=t) for i, t in enumerate(texts)]
    said = lambda x: json.dumps(x, ensure_ascii=False).replace('\\u001c', ' ')
    for end in ('\n', '\r\n'):
        data = read_amazon(write(tmp_path, 'r.json', ''.join(said(x) + end for x in lines)))
        assert data.users.tolist() == ['A0', 'A1', 'A2', 'A3']
    with pytest.raises(ValueError, match='line 2: not JSON'):
        read_amazon(write(tmp_path, 'r.json', said(lines[0]) + '\n\n' + said(lines[1])))
    rows = ''.join(f'{i},7,3,"{t}"\n' for i, t in enumerate(texts))
    assert read_csv(write(tmp_path, 'x.csv', 'user,item,timestamp,text\n' + rows)).users.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('read, text', [
    (read_sequences, '2 30 4\n1 4 30 5\n'), (read_csv, 'user,item,timestamp\n1,2,3\n'),
    (read_movielens, '1\t2\t3\t4\n'), (read_movielens, 'userId,movieId,rating,timestamp\n1,2,3,4\n'),
    (read_amazon, json.dumps(REVIEW))])
def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path, read, text):
    plain, marked = (read(write(tmp_path, 'x', b + text.encode())) for b in (b'', b'\xef\xbb\xbf'))
    assert named(plain) == named(marked)
    with pytest.raises(ValueError, match='byte 5 is not UTF-8'): read(write(tmp_path, 'x', b'\xef\xbb\xbf1 \xff'))


@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_a_csv_of_another_system(tmp_path, end):
    text = end.join(['user,item,timestamp', '1,2,3', '2,2,1', ''])
    assert named(read_csv(write(tmp_path, 'x.csv', text))) == {1: [2], 2: [2]}


def test_codes_of_ids_that_come_one_by_one():
    data = interactions([1, 1], ['b', 'a'], [0, 1])
    assert data.codes(x for x in 'bab').tolist() == data.codes([*'bab']).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="item 'c'"): data.codes(iter('ac'))


@pytest.mark.parametrize('text, words', [
    ('', 'no interactions'), ('{', 'line 1: not JSON'), ('[]', "line 1: no field 'reviewerID'"),
    (json.dumps({k: v for k, v in REVIEW.items() if k != 'asin'}), "line 1: no field 'asin'"),
    (json.dumps(REVIEW | dict(overall=None)), 'rating of row 1 is None'),
    (json.dumps(REVIEW | dict(asin='')), "item of row 1 is '': must be an id")])
def test_what_amazon_may_not_hold_is_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=words): read_amazon(write(tmp_path, 'r.json', text))


def test_published_sequences_have_an_order_and_no_times(tmp_path):
    data = read_sequences(write(tmp_path, 's.txt', '2 30 4\n1 4 30 5\n'))
    assert named(data) == {1: [4, 30, 5], 2: [30, 4]} and data.time is None and data.ties == 'file'


@pytest.mark.parametrize('text, words', [
    ('1\n', 'line 1: a user and at least one item'), ('\n', 'line 1'), ('1 2\n1 3\n', 'line 2: user 1 has a line')])
def test_what_sequences_may_not_hold_is_named(tmp_path, text, words):
    with pytest.raises(ValueError, match=words): read_sequences(write(tmp_path, 's.txt', text))


def test_a_strangers_csv(tmp_path):
    text = 'who;what;when;stars\nzoë;Tee;5;1\nzoë;10;4;2\nbob;9;1;3\n'
    data = read_csv(write(tmp_path, 'x.csv', text), 'who', 'what', 'when', 'stars', sep=';')
    assert named(data) == {'bob': ['9'], 'zoë': ['10', 'Tee']}


@pytest.mark.parametrize('text, options, words', [
    ('', {}, 'no interactions'), ('user,item,timestamp\n', {}, 'no interactions'),
    ('user,item\n1,2\n', {}, "no column 'timestamp'; it has 'user', 'item'"),
    ('user,item\n1,2\n', dict(time=None), "no times, so nothing says what came first"),
    ('user,item,timestamp\n1,2\n', {}, 'line 2: 2 fields, 3 expected'),
    ('user,item,timestamp\n,2,3\n', {}, "user of row 1 is .*'': must be an id"),
    ('user,item,timestamp\n1,2,3\n1,2,4\n', {}, 'meets item 2 twice'),
    ('user,item,timestamp\n1,2,3\n', dict(ties='random'), "ties='random': must be one of hash, item, file"),
    ('user,item,timestamp\n1,2,3\n', dict(repeats='drop'), "repeats='drop': must be one of")])
def test_what_a_csv_may_not_hold_is_named(tmp_path, text, options, words):
    with pytest.raises(ValueError, match=words): read_csv(write(tmp_path, 'x.csv', text), **options)


def test_parquet_gives_what_csv_gives(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq
    table = dict(user=[3, 3, 1], item=['b', 'ä', 'b'], timestamp=[2, 1, 0])
    pq.write_table(pa.table(table), tmp_path / 'x.parquet')
    text = 'user,item,timestamp\n3,b,2\n3,ä,1\n1,b,0\n'
    assert named(read_parquet(tmp_path / 'x.parquet')) == named(read_csv(write(tmp_path, 'x.csv', text)))
    with pytest.raises(ValueError, match="no column 'when'; it has"): read_parquet(tmp_path / 'x.parquet', time='when')
    with pytest.raises(ValueError, match='no Parquet file'): read_parquet(write(tmp_path, 'y.parquet', 'no'))


def test_a_missing_number_in_parquet_is_named(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq
    pq.write_table(pa.table(dict(user=[3, 3], item=[1, 2], timestamp=[2, None])), tmp_path / 'x.parquet')
    with pytest.raises(ValueError, match='time of row 2 is nan'): read_parquet(tmp_path / 'x.parquet')


# Order

def test_equal_times_are_ordered_by_each_users_own_hash_and_not_by_the_file():
    users, items = np.repeat(np.arange(300), 3), np.tile([5, 6, 7], 300)
    a = interactions(users, items, np.zeros(900))
    shuffled = np.random.default_rng(0).permutation(900)
    b = interactions(users[shuffled], items[shuffled], np.zeros(900))
    assert (a.item == b.item).all()
    orders, counts = np.unique(a.item.reshape(-1, 3), axis=0, return_counts=True)
    assert len(orders) == 6 and counts.min() > 25                     # 50 of each order expected
    assert (interactions(users, items, np.zeros(900), seed=1).item != a.item).any()


def test_ties_by_item_and_by_file_do_as_they_say():
    columns = [1, 1, 1], [7, 5, 6], [0, 0, 0]
    assert named(interactions(*columns, ties='item'))[1] == [5, 6, 7]
    assert named(interactions(*columns, ties='file'))[1] == [7, 5, 6]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=40))
def test_every_event_is_kept_once_and_times_never_run_back(rows):
    rows = list({(u, i): (u, i, t) for u, i, t in rows}.values())
    data = interactions(*zip(*rows))
    back = [(int(data.users[u]), int(data.items[i]), int(t)) for u, i, t in zip(data.user, data.item, data.time)]
    assert sorted(back) == sorted(rows)
    same = np.diff(data.user) == 0
    assert (np.diff(data.user) >= 0).all() and (np.diff(data.time)[same] >= 0).all()


def test_repeats_are_refused_kept_or_cut():
    columns = [1, 1, 1], [2, 3, 2], [0, 1, 2]
    with pytest.raises(ValueError, match='user 1 meets item 2 twice'): interactions(*columns)
    assert named(interactions(*columns, repeats='keep')) == {1: [2, 3, 2]}
    assert named(interactions(*columns, repeats='first')) == {1: [2, 3]}


# Splits

def made(n_user=30, n_item=12, n=8, seed=0):
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(n_item)[:n] for _ in range(n_user)])
    return interactions(np.repeat(np.arange(n_user), n), items, rng.integers(0, 50, n_user * n))


def test_leave_one_out_holds_the_last_two_and_warns_of_the_others_future():
    data = made()
    with pytest.warns(UserWarning, match="lets training know the others' future"): split = leave_one_out(data)
    for u, h in enumerate(data.histories()):
        train = split.train.item[split.train.user == u]
        assert [*train, *split.valid.targets[u], *split.test.targets[u]] == [*h]
        assert [*split.until_test.item[split.until_test.user == u]] == [*h[:-1]]
        assert [*split.test.histories[u]] == [*h[:-1]] and [*split.valid.histories[u]] == [*h[:-2]]
    without = quiet(leave_one_out, data, with_valid=False)
    assert [*without.test.histories[0]] == [*data.histories()[0][:-2]] and 'without the validation' in without.protocol
    slow = np.mean([(split.train.time > t).mean() for t in split.test.time])
    assert split.future == pytest.approx(slow) and 0 < slow < 1


def test_short_users_only_train_and_are_counted():
    data = interactions([1, 2, 2, 3, 3, 3], [1, 1, 2, 1, 2, 3], range(6))
    split = quiet(leave_one_out, data)
    assert len(split.test) == 1 and len(split.train) == 4
    assert split.left_out == {'users with fewer than three interactions': 2, 'test items that training never saw': 1}
    with pytest.raises(ValueError, match='no user has three'): leave_one_out(data.keep(data.user < 2))


@pytest.mark.parametrize('targets', ['next', 'all'])
def test_a_global_split_knows_nothing_of_the_future(targets):
    data = made()
    split = global_time(data, .5, .75, targets=targets)
    assert split.future == 0 and known_future(split.train, split.valid) == 0
    assert split.until_test.time.max() < split.test.time.min() and len(split.until_test) > len(split.train)
    assert split.train.time.max() < split.valid.time.min() and split.valid.time.max() < split.test.time.min()
    for q in (split.valid, split.test):
        for u, h, t in zip(q.user, q.histories, q.targets):
            whole = data.histories()[u].tolist()
            assert whole[:len(h)] == [*h] and whole[len(h):len(h) + len(t)] == [*t] and len(h) and len(t)
            assert len(t) == 1 or targets == 'all'
    test_events = len(data) - (data.time < split.test.time.min()).sum()
    if targets == 'all': assert sum(map(len, split.test.targets)) == test_events


def test_held_out_users_do_not_train():
    split = by_user(made(200))
    train, valid, test = {*split.train.user}, {*split.valid.user}, {*split.test.user}
    assert not (train & valid or train & test or valid & test) and len(train | valid | test) == 200
    assert 8 < len(test) < 35 and all(len(h) == 7 for h in split.test.histories)


@pytest.mark.parametrize('split, options, words', [
    (global_time, dict(valid=.9, test=.8), 'must be 0 < valid < test < 1'),
    (global_time, dict(targets='some'), "must be 'next' or 'all'"),
    (by_user, dict(valid=.5, test=.5), 'leave users to train on')])
def test_an_impossible_split_is_named(split, options, words):
    with pytest.raises(ValueError, match=words): split(made(), **options)


def test_what_has_no_times_cannot_be_split_by_time():
    data = interactions([1, 1, 1], [1, 2, 3], ties='file')
    with pytest.raises(ValueError, match='no times'): global_time(data)
    assert leave_one_out(data).future is None


@pytest.mark.skipif(not os.environ.get('PAPERS_MIRROR'), reason='needs PAPERS_MIRROR')
def test_the_published_counts_of_the_sets():
    from papers_lib.lab.data import get
    films = read_movielens(get('ml-100k').path('u.data'))
    beauty = read_sequences(get('amazon_beauty').path('sequential_data.txt'))
    assert [len(films), films.n_user, films.n_item] == [100_000, 943, 1682]
    assert [len(beauty), beauty.n_user, beauty.n_item] == [198_502, 22_363, 12_101]


def test_three_copies_of_one_table_become_one():
    from papers_lib.lab.data import adapters
    right = b'1\t2\t3\t4\n189\t484\t5\t893266105\n89\t1\t5\t893266105\n'
    damaged = right.replace(b'189\t', b'89\t')
    packaged = b'user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n' + right.replace(b'\n', b'\r\n')
    assert {adapters['ml-100k'](raw) for raw in (right, damaged, packaged)} == {right}


# A stranger's columns

def test_columns_of_pandas_go_by_place_and_a_missing_value_is_named():
    pd = pytest.importorskip('pandas')
    table = pd.DataFrame(dict(u=[1, 1, 2], i=[5, 6, 7], t=[1, 2, float('nan')]), index=[9, 8, 7])
    assert len(interactions(table.u[:2], table.i[:2], table.t[:2])) == 2
    with pytest.raises(ValueError, match='time of row 3 is nan'): interactions(table.u, table.i, table.t)
    for users in (pd.array(['a', pd.NA], dtype='string'), pd.Series([1, pd.NA], dtype='Int64')):
        with pytest.raises(ValueError, match='user of row 2 is (<NA>|nan): must'): interactions(users, [1, 2], [1, 2])
    with pytest.raises(ValueError, match=r'seconds \(not nanoseconds\)'):
        interactions([1, 1], [1, 2], pd.to_datetime(pd.Series(['2020-01-01', '2020-01-02'])).astype('M8[ns]'))


@pytest.mark.parametrize('text, options, words', [
    ('user,item,timestamp,timestamp\n1,2,3,4\n', {}, "2 columns are called 'timestamp': must be one"),
    (f'user,item,timestamp\n1,{"x" * 200_000},3\n', {}, 'line 2: field larger than field limit'),
    ('user,item,timestamp\n1,2,3\n', dict(sep='::'), "sep='::': must be one character"),
    ('user,item,timestamp,stars\n1,2,3,1e300\n', dict(rating='stars'), "rating of row 1 is '1e300': must be a finite")])
def test_a_csv_file_that_cannot_be_read_says_why(tmp_path, text, options, words):
    with pytest.raises(ValueError, match=words): read_csv(write(tmp_path, 'x.csv', text), **options)


def test_a_parquet_file_that_cannot_be_read_says_why(tmp_path):
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq
    with pytest.raises(ValueError, match=r'none.parquet: no Parquet file that can be read \(there is none\)'):
        read_parquet(tmp_path / 'none.parquet')
    names = ['user', 'item', 'timestamp', 'timestamp']
    pq.write_table(pa.Table.from_arrays([pa.array([1, 1])] * 4, names=names), tmp_path / 'x.parquet')
    with pytest.raises(ValueError, match=r'\(Multiple matches for .*timestamp'): read_parquet(tmp_path / 'x.parquet')


def test_a_target_met_twice_is_asked_for_once():
    data = interactions([1] * 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9], range(10), repeats='keep')
    test = global_time(data, .6, .8, targets='all').test
    assert [t.tolist() for t in test.targets] == [[8]]


def test_queries_for_what_the_history_holds_are_counted_where_repeats_are_kept():
    data = interactions([1] * 4 + [2] * 3, [0, 1, 2, 0, 0, 1, 2], range(7), repeats='keep')
    assert quiet(leave_one_out, data).left_out['test queries for an item of their own history'] == 1


def test_whole_users_held_out_may_have_bought_what_training_never_saw():
    split = by_user(interactions(np.repeat(np.arange(60), 3), np.arange(180), np.arange(180)))
    assert split.left_out['test items that training never saw'] == len(split.test)
    with pytest.raises(ValueError, match='1 users are too few to hold'): by_user(interactions([1, 1], [2, 3], [4, 5]))


def test_queries_are_kept_by_a_mask_in_any_form():
    test = by_user(made(), .3, .3).test
    mask = np.arange(len(test)) % 2 == 0
    for rows in (mask, mask.tolist(), np.flatnonzero(mask), np.flatnonzero(mask).tolist()):
        kept = test.keep(rows)
        assert kept.user.tolist() == test.user[mask].tolist() and len(kept.histories) == len(kept) == mask.sum()
