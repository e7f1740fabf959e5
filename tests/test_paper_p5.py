"P5: prompts that are right or refused, words told to the encoder alone, one score three ways, leaks that are found."
import math, re

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from papers_lib.lab.data import available
from papers_lib.lab.presets import plan
from papers_lib.p5 import (
    P5, P5Config, RATIOS, UNSEEN, made_list, p5_batch, p5_batches, p5_loss, paper, prompt_pieces, runs, sizes,
    templates)
from papers_lib.rec.item_ids import FIRST, SCHEMES, item_names, redealt, residual_codes, spectral_codes, walked_numbers
from papers_lib.rec.interactions import interactions, leave_one_out
from papers_lib.rec.leaks import next_number_hits
from papers_lib.rec.prompts import fill
from papers_lib.rec.spelling import (
    BINS, Catalogue, IdPieces, MixtureBatches, PublicBeams, Task, catalogue_scores, ranks_in_lists, rating_target,
    read_rating, read_sources, search_items, training_window, whole_word_ids, without_seen)
from papers_lib.t5 import T5, T5Config

RIGHT = dict(user=7, name='customer 7', item='1012', title='Red Thread', star=4, rating=4.2, answer='yes',
             opinion='like', history=['1001', '1002'], candidates=['1003', '1004'], target='1003', headline='good',
             review='so good', explanation='it fits', feature='fit', brand='Acme', price='5.00')
small = dict(ctx_len=64, d_model=32, n_layer=2, n_head=4, d_head=8, d_ff=64, dropout=0.)


def made(n_vocab=None, seed=0, **more):
    torch.manual_seed(seed)
    return P5(P5Config(n_vocab=n_vocab or IdPieces(prompt_pieces(600)).n_vocab, **small | more)).eval()


@pytest.mark.parametrize('id', templates)
def test_every_wording_is_filled_and_nothing_is_left_in_braces(id):
    source, target = fill(templates[id], RIGHT)
    assert source.strip() and target.strip() and not re.search(r'[{}]', source + target)
    for name in templates[id].fields:
        with pytest.raises(ValueError, match=f'template {id}: no {name!r}'):
            fill(templates[id], {k: v for k, v in RIGHT.items() if k != name})


def test_the_collection_has_the_papers_shape():
    needs = {'1-5': {'user', 'item', 'title', 'rating'}, '2-8': {'name', 'history', 'candidates', 'target'},
             '3-7': {'feature', 'user', 'item', 'rating', 'explanation'}, '4-3': {'name', 'review', 'headline'},
             '5-2': {'item', 'name', 'answer'},
             'Z-6': {'feature', 'star', 'user', 'title', 'brand', 'price', 'explanation'}}
    for id, fields in needs.items(): assert {*templates[id].fields} == fields, id
    assert len(templates) == 54 and len(UNSEEN) == 12
    assert len({t.source for t in templates.values()}) == 54
    assert templates['5-8'].source == ('We want to make recommendation for user_{user} .  Select the best item from '
                                       'these candidates : \n {candidates}')
    assert sum(RATIOS.values()) == 38


@pytest.mark.parametrize('field, value', [
    ('user', 'A1YJ'), ('user', 0), ('user', True), ('user', 7.5), ('star', 6), ('star', 2.5), ('star', math.nan),
    ('rating', math.nan), ('rating', 'good'), ('title', ''), ('title', None), ('history', []), ('history', '1001'),
    ('history', ['1', '']), ('candidates', ['1']), ('candidates', ['1', '1']),
    ('answer', 'maybe'), ('opinion', 'love')])
def test_a_value_that_makes_no_prompt_is_named(field, value):
    template = next(t for t in templates.values() if field in t.fields)
    with pytest.raises(ValueError, match=rf'template {template.id}: {field}='): fill(template, RIGHT | {field: value})


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from('ab 19_,<>→é\n'), max_size=20))
def test_any_text_is_read_and_a_piece_has_its_words_number(text):
    tok = IdPieces(prompt_pieces(600), ['<a1>'])
    ids, words = tok.read(text)
    assert ids == tok.encode(text) and len(ids) == len(words)
    assert words == sorted(words) and {*words} <= {*range(1, len(text.split()) + 1)}


@settings(max_examples=60)
@given(st.lists(st.integers(10, 50), min_size=1, max_size=4))
def test_a_rating_is_read_as_it_was_written(tenths):
    tok = IdPieces(prompt_pieces(600))
    written = ' , '.join(f'{x / 10:.1f}' for x in tenths)
    assert tok.decode(tok.encode(written)) == written
    assert read_rating(tok.decode(tok.encode(f'{tenths[0] / 10:.1f}'))) == tenths[0] / 10


def test_words_numbers_are_those_of_the_marks():
    "The rule by SentencePiece's marks and the rule by words agree where no number is cut our way."
    pieces = prompt_pieces(600)
    text = 'Here is the purchase history list of customer : try to recommend next item'
    told = whole_word_ids(pieces._inner.encode(text, out_type=str))
    ids, words = IdPieces(pieces).read(text)
    assert told == [*words, 0] and ids == pieces.encode(text)


def test_a_model_has_the_papers_sizes():
    from papers_lib.engine.recipe import n_params
    with torch.device('meta'): found = [round(n_params(P5(c)) / 1e6, 2) for c in (sizes['small'], sizes['base'])]
    assert found == [60.75, 223.28]
    with pytest.raises(ValueError, match='n_word'): P5Config(n_word=1)


def test_words_are_told_to_the_encoder_in_training_and_in_a_search():
    net = made()
    tok = IdPieces(prompt_pieces(600))
    inputs = read_sources(['user_12 has 1001 , 1002'], tok, 64)
    bare = {k: v for k, v in inputs.items() if k != 'whole_word'}
    assert (net.prefill(**inputs)[0] - net.prefill(**bare)[0]).abs().max() > .01
    other = inputs | dict(whole_word=inputs['whole_word'].flip(1))
    assert (net.prefill(**inputs)[0] - net.prefill(**other)[0]).abs().max() > 1e-3
    tgt = torch.tensor([[0, 5]])
    full = net(inputs['src'], tgt, src_mask=inputs['src_mask'], whole_word=inputs['whole_word'])
    logits, cache = net.prefill(**inputs)
    assert torch.allclose(full[:, 0], logits, atol=1e-5)
    assert torch.allclose(full[:, 1], net.step(tgt[:, 1:], cache)[0], atol=1e-5)
    with pytest.raises(ValueError, match='words'): made(n_word=2).prefill(**inputs)


def test_a_call_with_a_cache_goes_on_where_it_stopped():
    net, tok = made(), IdPieces(prompt_pieces(600))
    inputs, tgt = read_sources(['user_12 has 1001 , 1002', 'user_1 has 1003'], tok, 64), torch.tensor([[0, 5, 9]] * 2)
    told = {k: v for k, v in inputs.items() if k != 'src'}
    with torch.no_grad():
        full, cache = net(inputs['src'], tgt, **told), net.read(**inputs)
        parts = [net(None, part, cache=cache) for part in (tgt[:, :1], tgt[:, 1:])]
        assert cache.length == 3 and torch.allclose(torch.cat(parts, 1), full, atol=1e-5)
        one, other = (net.prefill(**inputs)[1] for _ in range(2))
        last = net(None, tgt[:, 1:], cache=one)[:, -1]
        assert torch.allclose(last, net.step(tgt[:, 1:], other)[0], atol=1e-5)


def test_padding_changes_no_answer():
    net, tok = made(), IdPieces(prompt_pieces(600))
    one, two = 'user_12 has 1001 , 1002', 'user_13 has 1003 , 1004 , 1005 , 1006 , 1007'
    alone = net.prefill(**read_sources([one], tok, 64))[0]
    beside = net.prefill(**read_sources([one, two], tok, 64))[0][:1]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_a_t5_becomes_a_p5_and_back():
    torch.manual_seed(1)
    t5 = T5(T5Config(n_vocab=100, **small)).eval()
    net = P5.from_t5(t5, 130)
    src, tgt = torch.randint(3, 100, (2, 6)), torch.randint(3, 100, (2, 3))
    with torch.no_grad(): assert torch.allclose(net.as_t5()(src, tgt)[..., :100], t5(src, tgt), atol=1e-5)
    with pytest.raises(ValueError, match='n_vocab=90'): P5.from_t5(t5, 90)
    with pytest.raises(ValueError, match='not T5'): P5.from_hf(t5)


def test_the_loss_weighs_examples_alike_and_does_not_depend_on_how_a_batch_is_cut():
    net, tok = made(), IdPieces(prompt_pieces(600))
    pairs = [('a', 'yes'), ('b', 'a much longer answer than the other one'), ('c', '4.2')]
    batch = p5_batch(pairs, tok, net.cfg)
    n = (batch['targets'] != -100).sum()
    each = [p5_loss(net, p5_batch([p], tok, net.cfg)) / (len(tok.encode(p[1])) + 1) for p in pairs]
    whole = p5_loss(net, batch)
    assert torch.allclose(whole / n, sum(each) / 3, atol=1e-5)
    parts = sum(p5_loss(net, {k: v[i:i + 1] for k, v in batch.items()}) for i in range(3))
    assert torch.allclose(parts, whole, atol=1e-4)
    long = p5_batch([('1001 , ' * 200, 'yes')], tok, net.cfg)
    with pytest.raises(ValueError, match='pairs: must hold at least one'): p5_batch([], tok, net.cfg)
    with pytest.raises(ValueError, match='n_vocab=100: must be above'): p5_batch(pairs, tok, made(100).cfg)
    assert long['src'].shape == (1, 64) and long['src'][0, -1] == tok.eot


def test_a_model_learns_one_batch_by_heart():
    net, tok = made(seed=3).train(), IdPieces(prompt_pieces(600))
    pairs = [(f'user_{i} has 100{i}', f'10{i}{i}') for i in range(8)]
    batch, opt = p5_batch(pairs, tok, net.cfg), torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(250):
        loss = p5_loss(net, batch) / (batch['targets'] != -100).sum()
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss < .05


@pytest.mark.parametrize('star', range(1, 6))
def test_ratings_stay_near_their_star(star):
    drawn = [rating_target(star, np.random.default_rng(i)) for i in range(400)]
    low, high = BINS[star - 1]
    assert all(1 <= x <= 5 and round(x, 1) == x for x in drawn)
    assert np.mean([low - .05 <= x <= high + .05 for x in drawn]) > .9
    assert read_rating(f'{drawn[0]:.1f}') == drawn[0] and read_rating('five') is None and read_rating('9') == 5


@settings(max_examples=100)
@given(st.integers(2, 30), st.integers(0, 10**6))
def test_a_window_is_within_the_training_events(n, seed):
    window, target = training_window([*range(n)], np.random.default_rng(seed))
    assert window == [*range(window[0], target)] and window[0] <= 2 and target >= max(1, n - 3)


def test_a_mixture_resumes_and_repeats():
    tok, cfg = IdPieces(prompt_pieces(600)), made().cfg
    tasks = [Task(30, 2, lambda i, rng: (f'user_{i + 1}', str(rng.integers(1000, 9999))))]
    a, b = (p5_batches(tasks, 7, tok, cfg, seed=4) for _ in range(2))
    first = [next(a) for _ in range(12)]
    for _ in range(5): next(b)
    state = b.state()
    c = p5_batches(tasks, 7, tok, cfg, seed=4)
    c.load_state(state)
    for want in first[5:]: assert torch.equal(next(c)['tgt'], want['tgt'])
    with pytest.raises(ValueError, match='differ'): p5_batches(tasks, 7, tok, cfg, seed=5).load_state(state)
    with pytest.raises(ValueError, match='batch_size'): MixtureBatches(tasks, 61, list)


def walkers(n_user=60, n_own=4):
    rows = [[0, 1, *range(10 * u, 10 * u + n_own)] for u in range(1, n_user + 1)]
    return interactions(np.repeat(np.arange(n_user), 2 + n_own), np.concatenate(rows), ties='file')


@pytest.mark.parametrize('seed', range(3))
def test_a_walk_over_whole_sequences_tells_the_answer_and_the_others_do_not(seed):
    data = walkers()
    split = leave_one_out(data)
    number = lambda scheme: np.array([int(x) for x in item_names(scheme, data, split.train, seed)])
    hits = {s: next_number_hits(split.test, number(s), 1).mean() for s in ('published', 'training', 'random')}
    assert hits['published'] == 1 and hits['training'] < .1 and hits['random'] < .1
    assert sorted(number('published')) == [*range(FIRST, FIRST + data.n_item)]


def test_training_schemes_do_not_read_what_is_held_out():
    data = walkers()
    split = leave_one_out(data)
    other = interactions(data.users[data.user], data.items[data.item[::-1].copy()], ties='file', repeats='keep')
    for scheme in ('training', 'collaborative', 'random', 'token'):
        assert item_names(scheme, data, split.train) == item_names(scheme, other, split.train), scheme


def test_schemes_are_seeded_and_unique():
    data = walkers()
    split, rng = leave_one_out(data), np.random.default_rng(0)
    told = dict(titles=[f'a thing {i % 5}' for i in range(data.n_item)], vectors=rng.standard_normal((data.n_item, 4)))
    for s in SCHEMES:
        names = item_names(s, data, split.train, 1, **told)
        assert len({*names}) == data.n_item and names == item_names(s, data, split.train, 1, **told)
        Catalogue(names, prompt_pieces(600))
    spelt = [{*item_names(s, data, split.train, 1, **told)} for s in ('semantic', 'dealt')]
    assert spelt[0] == spelt[1]
    for bad in (['x'] * 3, ['x'] * (data.n_item - 1) + [' ']):
        with pytest.raises(ValueError, match='title'): item_names('title', data, split.train, titles=bad)
    with pytest.raises(ValueError, match='vector'): item_names('semantic', data, split.train)
    with pytest.raises(ValueError, match='finite'): residual_codes(np.array([[np.nan]]))
    with pytest.raises(ValueError, match='n_code=1'): spectral_codes(data, 1)
    assert redealt([1, 2, 3], 0) != redealt([1, 2, 3], 1)


@pytest.mark.parametrize('titles, names', [
    (['X', 'X', 'X no 2'], ['X', 'X no 3', 'X no 2']), (['X no 2', 'x', 'X', 'X'], ['X no 2', 'x', 'X no 3', 'X no 4']),
    (['X', 'X', 'X'], ['X', 'X no 2', 'X no 3']), (['X', '<X>', 'x no 2', 'X NO 2'], ['X', 'X no 3', 'x no 2',
                                                                                      'X NO 2 no 2'])])
def test_a_numbered_title_is_nobody_elses(titles, names):
    data = interactions([1] * len(titles), range(len(titles)), range(len(titles)))
    assert item_names('title', data, data, titles=titles) == names


def test_two_items_written_alike_are_refused():
    with pytest.raises(ValueError, match='twice'): Catalogue(['the sea', 'the  sea'], prompt_pieces(600))


@pytest.fixture(scope='module')
def uneven():
    "A catalogue of ids with one to four pieces that share inner pairs, and a model over it."
    names = [str(n) for n in [*range(1, 40), *range(130, 150), *range(3901, 3921), *range(103900, 103910)]]
    catalogue = Catalogue(names + ['<a1>', '<a1><b2>', '<b2>'], prompt_pieces(600))
    net = made(catalogue.tok.n_vocab, seed=2)
    with torch.no_grad():
        for p in net.parameters(): p.mul_(1.7)                  # sharper, so that lists differ between sources
    texts = [f'user_{i} has {", ".join(names[i:i + 2 + i % 4])}'.replace(',', ' ,') for i in range(9)]
    return catalogue, net, texts


def test_constrained_beams_are_transformers_lists(uneven):
    catalogue, net, texts = uneven
    mine = search_items(net, texts, catalogue)
    theirs = PublicBeams(net, catalogue, net.as_t5().to_hf()).search(read_sources(texts, catalogue.tok, 64))
    assert (mine == theirs).all() and (mine >= 0).all()
    assert len({tuple(r) for r in mine.tolist()}) > 1


def test_beams_that_hold_all_items_are_the_exact_ranking(uneven):
    catalogue, net, texts = uneven
    scores = catalogue_scores(net, read_sources(texts, catalogue.tok, 64), catalogue)
    assert torch.isfinite(scores).all()
    from papers_lib.engine.generate import beam_search
    found = beam_search(net, read_sources(texts, catalogue.tok, 64), len(catalogue), 20, catalogue.max_tokens,
                        length_penalty=1., early_stopping='never', eot=catalogue.tok.eot, allowed=catalogue.trie)
    assert [[catalogue.item[tuple(t)] for t, _ in row] for row in found] == scores.topk(20).indices.tolist()
    for row, s in zip(found, scores):
        for t, total in row:
            assert math.isclose(total / (len(t) + 1), s[catalogue.item[tuple(t)]], abs_tol=1e-5)


class NotMoved(torch.Tensor):
    "A tensor that nobody has moved to a device yet."
    def to(self, *args, **options): return self.as_subclass(torch.Tensor).to(*args, **options)


class Placed(torch.overrides.TorchFunctionMode):
    "Notes tensors that are made without saying where."
    def __init__(self):
        super().__init__()
        self.lost = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.arange) and not (kwargs or {}).get('device'): self.lost.append(func.__name__)
        return func(*args, **kwargs or {})


def test_the_catalogue_is_scored_where_the_model_is(uneven, monkeypatch):
    catalogue, net, texts = uneven
    inputs = read_sources(texts, catalogue.tok, 64)
    want, prefill, step = catalogue_scores(net, inputs, catalogue), net.prefill, net.step
    def moved(f):
        def call(*args, **kwargs):
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            assert tensors and all(type(x) is torch.Tensor for x in tensors)
            with torch._C.DisableTorchFunction(): return f(*args, **kwargs)       # what is inside is the model's own
        return call
    monkeypatch.setattr(net, 'prefill', moved(prefill))
    monkeypatch.setattr(net, 'step', moved(step))
    with Placed() as made_there:
        got = catalogue_scores(net, {k: v.as_subclass(NotMoved) for k, v in inputs.items()}, catalogue)
    assert torch.equal(got, want) and made_there.lost == []
    if torch.cuda.is_available():
        import copy
        there = catalogue_scores(copy.deepcopy(net).cuda(), inputs, catalogue)
        assert there.is_cuda and (there.cpu() - want).abs().max() < 1e-3


def test_no_third_string_can_be_written(uneven):
    catalogue, net, texts = uneven
    eot = catalogue.tok.eot
    assert eot in catalogue.trie.next(catalogue.codes[0], eot)
    leaf = catalogue.tok.encode('103905')
    assert catalogue.trie.next(leaf, eot) == [eot]
    assert catalogue.trie.next(catalogue.tok.encode('139')[1:], eot) == []            # an inner piece begins nothing


def test_strings_that_are_no_item_keep_their_place(uneven):
    catalogue, net, texts = uneven
    free = search_items(net, texts, catalogue, constrained=False)
    assert free.shape == (9, 20) and (free == -1).any()
    assert ranks_in_lists(np.array([[-1, -1, 5], [5, 1, 2]]), [5, 9]).tolist() == [[3.], [np.inf]]
    assert without_seen(np.array([[5, 6, -1]]), [[5]]).tolist() == [[6, -1, -1]]


def test_made_lists_go_on_behind_a_run_only():
    rng, runs_on = np.random.default_rng(0), []
    for _ in range(200):
        source, target = made_list(0, rng)
        listed = [int(x) for x in re.findall(r'\d{4}', source.split('\n')[1])]
        runs_on.append(int(target) == listed[-1] + 1)
        if runs_on[-1]: assert listed[-1] == listed[-2] + 1
    assert .65 < np.mean(runs_on) < .85


@pytest.mark.parametrize('preset', runs)
def test_every_preset_can_be_planned(preset):
    told = plan(paper, runs[preset])
    assert told['parameters'] > 0 and told['tokens'] > 0


def test_claims_are_those_of_the_card():
    assert [*paper.claims] == [f'C{i}' for i in range(1, 12)]
    assert all(c.controls for id, c in paper.claims.items() if id not in ('C8', 'C11'))


@pytest.mark.skipif(not available('amazon_beauty'), reason='amazon_beauty is on the mirror only')
def test_the_published_numbering_of_beauty_tells_the_answer():
    from papers_lib.lab.ratings import events
    data = events('amazon_beauty', ties='file')
    split = leave_one_out(data)
    told = [next_number_hits(split.test, np.array([int(x) for x in item_names(s, data, split.train)]), 5).mean()
            for s in ('published', 'training', 'random')]
    assert told[0] > .045 and max(told[1:]) < .01
    assert (walked_numbers(data, 0) != walked_numbers(split.train, 0)).any()


def test_the_notebook_runs_at_a_size_that_teaches_nothing(tmp_path):
    from shrunken import rows_of_a_small_run
    rows = rows_of_a_small_run('p5', tmp_path, {
        'data.name': 'ml-100k', 'data.share': .2, 'train.n_step': 4, 'train.n_warmup': 1, 'train.batch_size': 8,
        'model.d_model': 16, 'model.d_head': 4, 'model.d_ff': 16, 'claims.n_count': 2, 'claims.n_test': 30,
        'claims.n_exact': 3, 'claims.rates': [1e-3, 2e-3, 4e-3],
        'claims.scheme_steps': 2, 'claims.scheme_batch': 8, 'claims.sasrec': 1,
        'claims.rating_steps': 2, 'claims.review_steps': 3, 'claims.family_steps': 2})
    assert rows['C1']['values'].keys() == {'whole sequences', 'training events'}
    assert rows['C1.rule.published']['ours'] >= 0 and rows['C8.no_item']['ours'] >= 0
    assert rows['P.logits']['verdict'] == 'holds'
    if available('all-minilm-l6-v2'):
        for id in ('C4', 'C5', 'C10'): assert rows[id]['values'].keys() == {*paper.claims[id].arms}, id
        assert {'C5.sasrec.hr10', 'C10.dealt.rare', 'C4.popularity.hr10', 'C4.random_again.ndcg5',
                'C10.collaborative.rare', 'C4.token_bare.hr10'} <= rows.keys()
        free = {a: rows[f'C10.{a}.no_item']['ours'] for a in ('title', 'semantic', 'token')}
        assert all(0 <= x <= 1 for x in free.values()) and free['title'] > 0, free
    if available('clothing-reviews'):
        for id in ('C2', 'C7', 'C9'): assert rows[id]['values'].keys() == {*paper.claims[id].arms}, id
        assert {'C2.median', 'C7.bleu.great', 'C9.right.all.Z-1-after-64', 'C9.area.none.Z-1', 'C9.right.always',
                'C9.explained.told', 'C9.rating.none'} <= rows.keys()
    if available('amazon_musical_instruments'):
        assert {f'C2.five.{x}' for x in ('error.1-6', 'hr10.2-13', 'hit10.popularity', 'rouge.3-12')} <= rows.keys()
    assert {f'T.{arm}' for arm in ('random', 'popularity', 'markov', 'ease', 'largest_published')} <= rows.keys()


def test_more_beams_than_items_give_what_there_is():
    catalogue = Catalogue(['1001', '1002', '12'], prompt_pieces(600))
    found = search_items(made(catalogue.tok.n_vocab), ['user_1 has 1001'], catalogue)
    assert sorted(found[0, :3].tolist()) == [0, 1, 2] and (found[0, 3:] == -1).all()
