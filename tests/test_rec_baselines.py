"One protocol for all recommenders: strangers, candidates, short lists, files; and each baseline against its formula."
import inspect, json, subprocess, sys, warnings

import numpy as np
import pytest
import torch

from papers_lib.rec import baselines
from papers_lib.rec.baselines import (
    BPRMF, EASE, ItemKNN, LargestId, Markov, Popularity, Random, load_recommender, recommenders, tune)
from papers_lib.rec.interactions import interactions, leave_one_out
from papers_lib.store.files import CorruptFile

N_USER, N_ITEM = 40, 15


def made(seed=0):
    rng = np.random.default_rng(seed)
    weights = np.linspace(3, 1, N_ITEM) / np.linspace(3, 1, N_ITEM).sum()
    rows = [rng.choice(N_ITEM, 6, replace=False, p=weights) for _ in range(N_USER)]
    rows[0] = np.arange(6)
    return interactions(np.repeat(np.arange(N_USER), 6), np.concatenate([*rows[:-1], np.arange(9, 15)]),
                        np.arange(N_USER * 6))


@pytest.fixture(scope='module')
def split():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return leave_one_out(made())


ALL = [Random(), Popularity(), LargestId(), Markov(), ItemKNN(), ItemKNN(window=2, shrink=3., n_near=4), EASE(lam=10.),
       BPRMF(d=4, n_epoch=3)]
ids = lambda m: str(m)[:30]


@pytest.fixture(params=ALL, ids=ids)
def fitted(request, split): return request.param.fit(split.train)


# The protocol

def test_every_baseline_is_tried_here():
    ours = {n for n, c in recommenders.items() if c.__module__ == baselines.__name__ and not inspect.isabstract(c)}
    assert {type(m).__name__ for m in ALL} == ours


def test_strangers_short_and_empty_histories_are_scored_alone_as_together(fitted):
    histories = [[3], [1, 2, 5, 8], [], [14, 0]]
    together = fitted.scores(histories)
    assert together.shape == (4, N_ITEM) and together.isfinite().all()
    for h, row in zip(histories, together): torch.testing.assert_close(fitted.scores([h])[0], row, atol=1e-5, rtol=1e-5)


def test_candidates_filter_and_short_lists(fitted):
    listed, scores = fitted.recommend([[3, 4], [5]], 5, candidates=[3, 4, 5, 6])
    assert set(listed[0]) == {5, 6, -1} and set(listed[1]) == {3, 4, 6, -1}
    assert np.isinf(scores[listed < 0]).all() and (np.diff(scores[0][:2]) <= 0).all()
    each, _ = fitted.recommend([[3], [3]], 1, candidates=[[3, 7], [3, 8]])
    assert each.tolist() == [[7], [8]]
    assert fitted.recommend([[3]], N_ITEM + 2, filter_seen=False)[0][0].tolist().count(-1) == 2
    assert fitted.recommend([], 3)[0].shape == (0, 3)


def test_blocks_change_nothing(fitted):
    histories = [[i % N_ITEM] for i in range(30)]
    whole = fitted.recommend(histories, 4)
    parts = [fitted.recommend(histories[a:a + 7], 4) for a in range(0, 30, 7)]
    assert (whole[0] == np.concatenate([p[0] for p in parts])).all()


def test_it_is_saved_and_loaded(fitted, tmp_path):
    again = load_recommender(fitted.save(tmp_path / 'm'))
    assert type(again) is type(fitted)
    assert torch.equal(again.scores([[1, 2], [7]]), fitted.scores([[1, 2], [7]]))
    assert {p.name for p in (tmp_path / 'm').iterdir()} >= {'config.json', 'model.safetensors'}


def test_a_reversed_history_and_none_at_all_have_scores(fitted):
    assert torch.equal(fitted.scores([np.array([1, 2])[::-1]]), fitted.scores([[2, 1]]))
    assert fitted.scores([]).shape == (0, N_ITEM) and fitted.recommend([], 3)[0].shape == (0, 3)


def test_fitting_twice_gives_the_same(fitted, split):
    before = fitted.scores([[1, 2], [7]])
    assert torch.equal(fitted.fit(split.train).scores([[1, 2], [7]]), before)


def test_the_held_out_items_are_not_learnt_from(fitted, split):
    "The same training events with other held-out ones: the same scores."
    before = fitted.scores([[1, 2]])
    data = made()
    other = data.keep(np.sort(np.concatenate([data.bounds[:-1] + j for j in range(4)])))
    assert torch.equal(fitted.fit(other).scores([[1, 2]]), before)


@pytest.mark.parametrize('use, words', [
    (lambda: Popularity().scores([[1]]), 'Popularity has not been fitted'),
    (lambda: Popularity().fit([[1, 2]]), 'train=list: must be Interactions'),
    (lambda: Popularity().fit(made().keep([])), 'no interactions to learn from'),
    (lambda: Popularity().fit(made()).scores([[99]]), r'history=\[99\]: must hold whole numbers from 0 to 14'),
    (lambda: Popularity().fit(made()).scores([[.5]]), r'history=\[0.5\]: must hold whole numbers'),
    (lambda: Popularity().fit(made()).scores([['1']]), r"history=\['1'\]: must hold whole numbers"),
    (lambda: Popularity().fit(made()).scores([[True]]), r'history=\[True\]: must hold numbers, not a mask'),
    (lambda: Popularity().fit(made()).recommend(np.array([1, 2]), 1), 'history=1: must be a list of numbers'),
    (lambda: Popularity().fit(made()).recommend([[]], 1, candidates=np.arange(15) > 9), r'np.flatnonzero\(mask\)'),
    (lambda: Popularity().fit(made()).recommend([[]], 1, candidates=[-1]), r'candidates=\[-1\]: must hold whole'),
    (lambda: Popularity().fit(made()).recommend([[1]], 0), 'k=0: must be at least 1'),
    (lambda: EASE(lam=0), 'EASE.lam=0: must be above 0'), (lambda: EASE(lam=np.inf), 'EASE.lam=inf'),
    (lambda: Markov(eps=np.nan), 'Markov.eps=nan'), (lambda: ItemKNN(shrink=np.inf), 'ItemKNN.shrink=inf'),
    (lambda: BPRMF(d=0), 'BPRMF.d=0'),
    (lambda: ItemKNN(window=-1), 'ItemKNN.window=-1'), (lambda: Markov(eps=-1), 'Markov.eps=-1'),
    (lambda: LargestId(numbering=(1, 1)).fit(made()), 'must hold the numbers 0 to 14, each once')])
def test_a_wrong_use_is_named(use, words):
    with pytest.raises(ValueError, match=words): use()


@pytest.mark.parametrize('change, error', [
    (dict(model_type='Oracle'), 'holds a Oracle'), (dict(depth=3), 'is no EASE')])
def test_a_folder_of_something_else_is_refused(tmp_path, change, error, split):
    from papers_lib.store.files import seal
    folder = EASE().fit(split.train).save(tmp_path / 'm')
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptFile): load_recommender(folder)
    seal(folder)
    with pytest.raises(ValueError, match=error): load_recommender(folder)


def test_only_a_saved_recommender_is_replaced(tmp_path, split):
    model = EASE().fit(split.train)
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(OSError, match='thesis.txt is there, which no save wrote'): model.save(tmp_path)
    with pytest.raises(OSError, match='thesis.txt is there'): model.save(tmp_path / 'thesis.txt')
    assert (tmp_path / 'thesis.txt').read_text() == 'mine'
    assert model.save(model.save(tmp_path / 'm')) == tmp_path / 'm'


def test_settings_of_numpy_are_kept(tmp_path, split):
    found = tune(ItemKNN(), dict(n_near=np.array([1, 2]), shrink=np.float32([0., 5.])), 4, split).model
    numbered = LargestId(np.arange(N_ITEM)[::-1]).fit(split.train)
    for model in (found, numbered):
        assert torch.equal(load_recommender(model.save(tmp_path / 'm')).scores([[1, 2]]), model.scores([[1, 2]]))


def test_a_class_of_another_module_says_what_to_import(tmp_path):
    told = '''
import sys
from papers_lib.rec.baselines import load_recommender
try: load_recommender(sys.argv[1])
except ValueError as e: print(e)
'''
    from papers_lib.rec.sequential import SASRec
    small = SASRec(d_model=4, n_layer=1, ctx_len=3, n_epoch=1, device='cpu')
    small.fit(interactions([0, 0, 1, 1], [0, 1, 1, 2], range(4))).save(tmp_path / 'm')
    said = subprocess.run([sys.executable, '-c', told, str(tmp_path / 'm')], capture_output=True, text=True, check=True)
    assert said.stdout == f'{tmp_path / "m"} holds a SASRec: import papers_lib.rec.sequential first, which defines it\n'


def test_a_list_does_not_change_what_was_learned():
    class Own(baselines.Recommender):
        def _fit(self, train): return dict(S=torch.arange(float(train.n_item)))
        def _scores(self, histories): return self._learned['S'][None]
    try: model = Own().fit(made())
    finally: del recommenders['Own']
    assert [model.recommend([[14]], 1)[0].tolist() for _ in range(2)] == [[[13]]] * 2
    assert model.recommend([[0]], 1)[0].tolist() == [[14]]


def test_a_model_of_nan_is_not_saved(tmp_path, split):
    model = EASE().fit(split.train)
    model.learned['B'][0, 0] = torch.nan
    with pytest.raises(ValueError): model.save(tmp_path / 'm')


# Each by its formula, slowly

def test_popularity_and_markov_count(split):
    rows = [split.train.item[split.train.user == u] for u in range(N_USER)]
    counts = np.array([sum(i in r for r in rows) for i in range(N_ITEM)])
    assert Popularity().fit(split.train).scores([[1]])[0].tolist() == counts.tolist()
    M = np.zeros((N_ITEM, N_ITEM))
    for r in rows:
        for a, b in zip(r, r[1:]): M[a, b] += 1
    model = Markov(eps=.3).fit(split.train)
    assert np.allclose(model.scores([[9, 2]])[0], M[2] + .3 * counts / counts.max())
    assert np.allclose(model.scores([[]])[0], .3 * counts / counts.max())


def test_neighbours_by_hand(split):
    X = np.zeros((N_USER, N_ITEM))
    X[split.train.user, split.train.item] = 1
    c, C = X.sum(0), X.T @ X
    K = C / (np.sqrt(np.outer(c, c)) + 3)
    np.fill_diagonal(K, 0)
    assert np.allclose(ItemKNN(shrink=3.).fit(split.train).scores([[4, 1]])[0], K[4] + K[1])
    near = np.sort(ItemKNN(shrink=3., n_near=4, window=1).fit(split.train).scores([[1, 4]])[0].numpy())[::-1]
    assert np.allclose(near[:4], np.sort(K[4])[::-1][:4]) and (near[4:] == 0).all()


def test_no_neighbour_is_dropped_that_is_as_near_as_one_that_is_kept(split):
    whole, K = ItemKNN().fit(split.train), lambda m: baselines._sparse(m.learned).toarray()
    for n in (1, 2, 4, 6):
        kept = K(ItemKNN(n_near=n).fit(split.train))
        for row, mine in zip(K(whole), kept):
            least = np.sort(row)[-n]
            assert np.array_equal(mine, np.where(row >= least, row, 0))
    assert (np.count_nonzero(kept, 1) > 6).any()                                   # such equals there are
    assert np.array_equal(K(ItemKNN(n_near=N_ITEM).fit(split.train)), K(whole))


def test_renaming_the_items_renames_the_neighbours(split):
    name = np.random.default_rng(3).permutation(N_ITEM)
    renamed = interactions(split.train.user, name[split.train.item], np.arange(len(split.train)))
    one, other = (baselines._sparse(ItemKNN(n_near=2).fit(d).learned).toarray() for d in (split.train, renamed))
    assert np.array_equal(other[name][:, name], one)


def test_ease_solves_its_ridge_without_the_diagonal(split):
    X = np.zeros((N_USER, N_ITEM))
    X[split.train.user, split.train.item] = 1
    B = EASE(lam=5.).fit(split.train).learned['B'].numpy().astype(float)
    assert (np.diag(B) == 0).all()
    for j in range(N_ITEM):                            # each column is the ridge of item j on all the others
        rest = np.arange(N_ITEM) != j
        A = X[:, rest]
        want = np.linalg.solve(A.T @ A + 5 * np.eye(N_ITEM - 1), A.T @ X[:, j])
        assert np.allclose(B[rest, j], want, atol=1e-4)


def test_the_next_number_comes_first_and_a_numbering_counts(split):
    listed = LargestId().fit(split.train).recommend([[3, 10, 4]], 6)[0][0]
    assert listed.tolist() == [11, 12, 13, 14, 9, 8]
    back = tuple(range(N_ITEM))[::-1]
    assert LargestId(numbering=back).fit(split.train).recommend([[3, 10, 4]], 3)[0][0].tolist() == [2, 1, 0]


def test_bpr_learns_what_a_group_likes():
    rng = np.random.default_rng(0)
    rows = [rng.permutation(8)[:6] + 8 * (u % 2) for u in range(60)]
    data = interactions(np.repeat(np.arange(60), 6), np.concatenate(rows), np.arange(360))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        split = leave_one_out(data)
    model = BPRMF(d=4, n_epoch=200).fit(split.train)
    own = model.recommend([[0, 1, 2], [8, 9, 10]], 4)[0]
    assert (own[0] < 8).all() and (own[1] >= 8).all()


def test_random_is_no_better_than_chance_and_its_seed_counts(split):
    a, b = Random().fit(split.train), Random(seed=1).fit(split.train)
    assert not torch.equal(a.scores([[1]]), b.scores([[1]]))
    S = a.scores([[i, j] for i in range(N_ITEM) for j in range(i)])
    assert abs(float(S.mean()) - .5) < .02 and len(S.unique()) > .99 * S.numel()


# Tuning

def test_tuning_tries_the_budget_and_tells_it(split):
    found = tune(ItemKNN(), dict(shrink=[0., 1., 5.], window=[0, 1]), 4, split)
    values = [v for _, v in found.trials]
    assert found.n == 4 and len({json.dumps(s) for s, _ in found.trials}) == 4 and 'best of 4' in str(found)
    best = dict(found.trials[int(np.argmax(values))][0])
    assert {k: getattr(found.model, k) for k in best} == best
    assert found.model.rank(split.valid).each('ndcg', 10).mean() == max(values)
    assert tune(Popularity(), {}, 4, split).n == 1


def test_tuning_never_asks_the_test_queries(split):
    from dataclasses import replace
    blind = replace(split, test=None)
    assert tune(EASE(), dict(lam=[1., 9.]), 2, blind).trials == tune(EASE(), dict(lam=[1., 9.]), 2, split).trials


@pytest.mark.parametrize('grid, budget, words', [
    (dict(lam=[1.]), 2, '1 configurations for a budget of 2'), (dict(lamda=[1.]), 1, "EASE has no setting 'lamda'"),
    (dict(lam=[1.]), 0, 'budget=0')])
def test_an_unfair_grid_is_refused(grid, budget, words, split):
    with pytest.raises(ValueError, match=words): tune(EASE(), grid, budget, split)


def test_without_implicit_one_sentence_says_what_to_install_and_a_saved_model_is_scored(split, tmp_path, monkeypatch):
    import sys
    model = BPRMF(d=4, n_epoch=2).fit(split.train)
    folder, want = model.save(tmp_path / 'm'), model.scores([[1, 2]])
    monkeypatch.setitem(sys.modules, 'implicit', None)
    monkeypatch.setitem(sys.modules, 'implicit.cpu.bpr', None)
    assert torch.equal(load_recommender(folder).scores([[1, 2]]), want)
    with pytest.raises(ImportError, match=r'BPRMF needs `implicit`, which comes with the extra `rec`: pip install'):
        BPRMF(d=4).fit(split.train)


def test_the_matrix_of_ease_lies_by_rows_so_that_no_block_of_users_copies_it():
    assert EASE().fit(made())._learned['B'].numpy().flags['C_CONTIGUOUS']
