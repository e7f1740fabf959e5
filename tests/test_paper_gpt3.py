"GPT-3: windows that change nothing but what they hide, and rules that decide which text is read."
import ast, json
from dataclasses import replace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from papers_lib.engine.parity import parity, random_model
from papers_lib.engine.score import score
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.gpt3 import (
    GPT3, GPT3Config, MinHash, QualityClassifier, claims, decontaminate, draw_sources, kept_by_quality,
    near_duplicates, recipe, sizes)
from papers_lib.engine.recipe import learn
from papers_lib.engine.train import TrainConfig
from papers_lib.lab.results import paper_notebooks
from papers_lib.nn.stack import Parts, Sizes, Stack
from papers_lib.text.synthetic import repeats
from shrunken import rows_of_a_small_run

cfg = GPT3Config(n_vocab=90, ctx_len=40, d_model=32, n_layer=3, n_head=2, window=6)
same_sizes = dict(n_vocab=90, ctx_len=40, d_model=32, n_layer=3, n_head=2)
two = random_model(GPT2, GPT2Config(**same_sizes))
ids = torch.randint(90, (2, 40), generator=torch.Generator().manual_seed(0))


def holding(model, weights=two):
    "Give a model the weights of another."
    model.load_state_dict(weights.state_dict())
    return model.eval()


@pytest.mark.parametrize('window', [40, 1000])
def test_a_window_over_the_whole_context_is_gpt2_bit_for_bit(window):
    assert holding(GPT3(replace(cfg, window=window)))(ids).equal(two(ids))


def test_a_narrower_window_is_not_gpt2():
    assert parity(holding(GPT3(cfg)), two.to_hf(), ids) > 1e-3


@pytest.mark.parametrize('window', [1, 6])
def test_gpt3_is_the_stack_with_windows_in_turn(window):
    stack = holding(Stack(Sizes(**same_sizes), Parts(windows=(None, window))))
    assert holding(GPT3(replace(cfg, window=window)))(ids).equal(stack(ids))


def test_a_banded_model_is_neither_exported_nor_read():
    with pytest.raises(ValueError, match='GPT3 is not GPT2'): GPT3(cfg).to_hf()
    with pytest.raises(ValueError, match='GPT3 is not GPT2'): GPT3.from_hf(two.to_hf())


@pytest.mark.parametrize('n_layer, windows', [(1, (None,)), (3, (None, 6, None)), (4, (None, 6, None, 6))])
def test_every_other_layer_is_local(n_layer, windows): assert GPT3(replace(cfg, n_layer=n_layer)).windows == windows


def test_candidates_side_by_side_see_the_same_window():
    model = holding(GPT3(cfg))
    prompt, candidates = ids[0, :20].tolist(), [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 9], [7], [8, 8, 8]]
    for ours, c in zip(score(model, prompt, candidates), candidates):
        logp = model(torch.tensor([prompt + c[:-1]])).log_softmax(-1)[0, 19:]
        assert torch.allclose(torch.tensor(ours), logp.gather(-1, torch.tensor(c)[:, None])[:, 0], atol=1e-4)


def test_table_2_1_is_whole():
    assert list(sizes) == list(recipe)
    assert all(s.d_model % s.n_head == 0 and s.ctx_len == 2048 for s in sizes.values())
    with pytest.raises(ValueError, match='GPT3Config.window=0'): replace(cfg, window=0)
    with pytest.raises(ValueError, match='GPT3Config.n_head=3'): replace(cfg, n_head=3)


def test_data_rules():
    docs = [f'{w} and some words that belong to document number {w} only' for w in ('one', 'two')]
    again = near_duplicates([docs[0], docs[0], 'something else entirely here'])
    assert again.tolist() == [False, True, False]
    assert kept_by_quality(np.ones(100), np.random.default_rng(0)).all()
    unrelated = 'an unrelated test text of no consequence at all for anybody who reads it now'
    assert decontaminate(docs, [unrelated]) == [[d] for d in docs]
    with pytest.raises(ValueError, match='no text of a test set'): decontaminate(docs, [])


@settings(max_examples=50)
@given(st.lists(st.sampled_from('abcdefgh'), min_size=1, max_size=8), st.integers(0, 1000))
def test_a_signature_is_of_the_set_of_words(words, seed):
    m = MinHash(seed=seed)
    signs = m.signature(' '.join(words)), m.signature(' '.join(sorted(words * 2)))
    assert m.similarity(*signs) == 1.


@settings(max_examples=50)
@given(st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=5).filter(any), st.floats(1, 100))
def test_sources_are_drawn_by_the_ratio_of_their_weights(weights, factor):
    drawn = draw_sources(weights, 200, seed=1)
    assert all(weights[i] > 0 for i in drawn)
    scaled = draw_sources([factor * w for w in weights], 200, seed=1)
    assert (drawn == scaled).mean() > 0.99                                   # but for the rounding of the shares


def test_the_classifier_ranks_the_reference_above_what_it_was_set_against():
    good = [f'the king went to the house of the lord on day {i}' for i in range(40)]
    bad = [f'next page home {i} home page next {i} buy now' for i in range(40)]
    judge = QualityClassifier(good[:20], bad[:20])
    assert judge.score(good[20:]).min() > judge.score(bad[20:]).max()


def test_copying_learns_what_it_can_see_only():
    "Two layers that see the whole text learn to repeat a period; where the second sees two tokens they do not."
    train = TrainConfig(n_step=800, batch_size=32, lr=5e-3)
    texts = repeats(train.n_step * train.batch_size + 1, 32, 8, np.random.default_rng(1))
    test = torch.from_numpy(repeats(500, 32, 8, np.random.default_rng(2)))
    copied = {}
    for windows in (None, (None, 2)):
        make = lambda: Stack(Sizes(n_vocab=8, ctx_len=32, d_model=32, n_layer=2, n_head=2), Parts(windows=windows))
        net, _ = learn(make, texts.ravel(), train, seed=0)
        with torch.inference_mode(): right = net(test[:, :-1]).argmax(-1) == test[:, 1:]
        copied[windows] = right[:, -8:].float().mean().item()
    assert copied[None] > copied[None, 2] + 0.15 and copied[None] > 0.5


# What a reader of the committed article sees

cells = json.loads(paper_notebooks()['gpt3'].read_text(encoding='utf-8'))['cells']
text_of = lambda cell: ''.join(cell['source'])

def test_figures_of_claims_are_drawn_from_rows():
    "None names what `run.grid` and `run.map` gave: a point that no row holds cannot be checked by anyone."
    trees = [ast.parse(text_of(c)) for c in cells if c['cell_type'] == 'code']
    names = lambda tree, kind: {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}
    measures = lambda s: any(isinstance(n, ast.Attribute) and n.attr in ('grid', 'map') for n in ast.walk(s))
    made = [s for t in trees for s in ast.walk(t) if isinstance(s, ast.Assign) and measures(s.value)]
    arrays = set().union(*(names(target, ast.Store) for s in made for target in s.targets))
    assert {'taught', 'grown', 'crawled', 'mixed', 'local', 'copied', 'leaked', 'mended', 'told', 'wrote'} <= arrays
    drawing = [t for t in trees if 'shown' in names(t, ast.Load)]
    assert len(drawing) > len(claims) and not [n for t in drawing for n in names(t, ast.Load) & arrays]


@pytest.mark.slow
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    rows = rows_of_a_small_run('gpt3', tmp_path, {
        'model.d_model': 16, 'model.n_layer': 2, 'model.n_head': 2, 'model.ctx_len': 64, 'model.window': 8,
        'data.n_vocab': 1024, 'train.n_step': 20, 'train.n_warmup': 2, 'claims.widths': [16, 24],
        'claims.n_step_lesson': 5, 'claims.scales': [4, 8], 'claims.n_step_mix': 5, 'claims.windows': [4, 16],
        'claims.n_step': 5, 'claims.n_step_copy': 5, 'claims.n_step_sums': 5, 'claims.n_token': 0})
    trained = {'C1', 'C1.d16', 'C1.d24.k1', 'C2', 'C2.k0', 'C2.k7', 'C3', 'C3.curvature', 'C3.d8', 'L.efficiency', 'C4',
               'C4.filter', 'C4.dedup', 'C6', 'C6.16', 'C6.copy', 'C9', 'C9.1', 'C9.cleaned'}
    assert trained <= {id for id, r in rows.items() if r['ours'] is not None}
    assert rows['C9.found']['ours'] == 1. and rows['C9.false']['ours'] == 0.
    for id in ('C7', 'C8'): assert rows[id]['why']                            # no model was asked
