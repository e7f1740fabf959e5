"GPT4Rec: no answer in its question, exact losses and cuts, the rows of a small run."
import json
from dataclasses import replace

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from papers_lib.engine.parity import random_model
from papers_lib.engine.train import IGNORE, lm_loss
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.gpt4rec import (
    AFTER, BEFORE, GPT4Rec, Purchases, QueryBatches, TitlePrompts, answer_nats, backbone, claims, distinct, paper,
    public_backbone, query_batch, query_loss, runs, teach_queries, title_tokenizer, write_queries)
from papers_lib.lab.data import available
from papers_lib.lab.presets import plan
from papers_lib.lab.results import published
from papers_lib.lab.shops import asked_users
from papers_lib.llama import LLaMA, LLaMAConfig
from papers_lib.text.search import BM25
from papers_lib.text.tokenizers import train_fast_bpe
from decoders import write_gguf
from shrunken import rows_of_a_small_run

LLAMA = LLaMAConfig(n_vocab=300, ctx_len=64, d_model=64, n_layer=2, n_head=4, n_kv_head=2, d_ff=96, tied=True)
TITLES = ['Red silk scarf', 'Blue hat', 'Ring of gold, 3.4 oz (Pack of 2)', 'Long green gloves', 'M',
          'Amélie', '七人の侍', 'If....']


@pytest.fixture(scope='module')
def tok():
    return train_fast_bpe([f' {t}.' for t in TITLES] + [BEFORE + AFTER] * 9, 340)


@pytest.fixture(scope='module')
def net(tok):
    torch.manual_seed(0)
    return GPT2(GPT2Config(n_vocab=tok.n_vocab, ctx_len=96, d_model=16, n_layer=2, n_head=2)).eval()


@pytest.fixture(scope='module')
def shop():
    return Purchases('made').shop()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 7), max_size=12), st.integers(28, 90))
def test_a_cut_prompt_keeps_its_question_and_the_latest_titles(tok, history, room):
    prompts = TitlePrompts(tok, TITLES, room, 16)
    ids = prompts.prompt(history)
    assert len(ids) <= room and ids[-len(prompts.after):] == prompts.after
    assert ids[:len(prompts.before)] == prompts.before
    whole = TitlePrompts(tok, TITLES, 10_000, 16).prompt(history)
    body = ids[len(prompts.before):-len(prompts.after)]
    assert whole[len(whole) - len(prompts.after) - len(body):-len(prompts.after)] == body
    assert whole == tok.encode(BEFORE + ''.join(f' {TITLES[i]}.' for i in history) + AFTER)


def test_an_answer_in_its_own_prompt_is_refused(tok):
    prompts = TitlePrompts(tok, ['Heat', 'Speed', 'HEAT!'], 64, 16)
    for item in (0, 2):
        with pytest.raises(ValueError, match="'heat': its title is in the prompt already"): prompts.pair([0, 1], item)
    prompts.pair([0], 1)
    with pytest.raises(ValueError, match='n_prompt=12: must be at least'): TitlePrompts(tok, TITLES, 12, 16)


def test_answers_end_and_long_ones_are_cut(tok):
    prompts = TitlePrompts(tok, TITLES, 64, 6)
    assert all(a[-1] == tok.eot and len(a) <= 6 for a in prompts.answers)
    assert all(tok.eot not in a[:-1] for a in prompts.answers)


def test_the_loss_counts_the_answer_alone_or_all_and_padding_never(tok, net):
    prompts = TitlePrompts(tok, TITLES, 64, 16)
    pairs = [prompts.pair([0], 1), prompts.pair([0, 1, 3], 2)]
    with torch.no_grad():
        for whole in (False, True):
            batch = query_batch(pairs, tok.eot, whole)
            alone = sum(query_loss(net, query_batch([p], tok.eot, whole)) for p in pairs)
            assert torch.allclose(query_loss(net, batch), alone, rtol=1e-5)
            assert torch.allclose(query_loss(net, batch), lm_loss(net, batch), rtol=1e-5)
            n = sum(len(a) + (len(p) - 1 if whole else 0) for p, a in pairs)
            assert int((batch['targets'] != IGNORE).sum()) == n
    from papers_lib.rec.interactions import Queries
    asked = Queries(np.arange(2), [np.array([0]), np.array([0, 1, 3])], [np.array([1]), np.array([2])], None)
    with torch.no_grad():
        want = [float(query_loss(net, query_batch([p], tok.eot))) for p in pairs]
    np.testing.assert_allclose(answer_nats(net, prompts, asked, batch_size=2), want, rtol=1e-5)


def test_batches_go_on_where_they_stopped_and_a_pass_asks_each_user_once(tok, shop):
    prompts = TitlePrompts(title_tokenizer(shop, 400), shop.titles, 80, 16)
    fresh = lambda **k: QueryBatches(prompts, shop.train.histories(), 16, 3, **k)
    one, other = fresh(), fresh()
    n_batch = len(one.histories) // 16
    assert n_batch > 3
    whole = [next(one) for _ in range(2 * n_batch + 2)]
    for _ in range(n_batch + 1): next(other)
    later = fresh()
    later.load_state(other.state())
    for batch in whole[n_batch + 1:]:
        again = next(later)
        assert all(again[k].equal(v) for k, v in batch.items())
    last = fresh(cut='last')
    answers = {tuple(prompts.answers[h[-1]]) for h in last.histories}
    for _ in range(3):
        assert all(tuple(t[t != IGNORE].tolist()) in answers for t in next(last)['targets'])
    with pytest.raises(ValueError, match="cut='first'"): fresh(cut='first')
    with pytest.raises(ValueError, match='no history has two items'): QueryBatches(prompts, [np.array([1])], 4, 0)


def test_queries_of_many_users_are_those_of_each_alone(tok, net):
    prompts = TitlePrompts(tok, TITLES, 64, 16)
    asked = [prompts.prompt(h) for h in ([0], [1, 2, 3], [4], [5, 6, 7, 0])]
    for penalty in (0., 1.):
        together = write_queries(net, tok, asked, 4, 6, batch_size=3, length_penalty=penalty)
        for p, row in zip(asked, together):
            alone, = write_queries(net, tok, [p], 4, 6, length_penalty=penalty)
            assert [q for q, _ in row] == [q for q, _ in alone] and len(row) == 4
            np.testing.assert_allclose([s for _, s in row], [s for _, s in alone], rtol=1e-4)


def test_queries_of_the_same_words_are_one():
    told = [('Red hat', -1.), ('red  HAT!', -2.), ('...', -3.), ('blue', -4.), ('', -5.)]
    assert distinct(told) == ['Red hat', 'blue']
    assert distinct([('?', 0.)]) == []


def test_a_recommender_returns_nothing_seen_and_only_candidates(tok, net):
    rec = GPT4Rec(net, tok, TitlePrompts(tok, TITLES, 64, 16), BM25(TITLES))
    rec.queries = lambda histories, m: [['silk scarf', 'hat gold', 'm gloves']] * len(histories)
    assert rec.recommend([[0], []], 4, m=3)[0][0, 0] != 0
    ids, scores = rec.recommend([[]], 9, m=3, candidates=[1, 3])
    assert ids[0].tolist() == [1, 3] + [-1] * 7
    assert scores[0, :2].tolist() == [rec.index.score('hat gold', [1])[0], rec.index.score('m gloves', [3])[0]]
    assert (scores[0, 2:] == -np.inf).all() and scores.shape == ids.shape
    assert rec.recommend([[0]], 1, m=3, filter_seen=False)[0].tolist() == [[0]]
    assert rec.recommend([[]], 2, m=3, candidates=[])[0].tolist() == [[-1, -1]]
    for wrong, words in ((np.arange(8) > 3, r'np.flatnonzero\(mask\)'), ([-1], r'candidates=\[-1\]'), ([.5], 'whole')):
        with pytest.raises(ValueError, match=words): rec.recommend([[]], 2, m=3, candidates=wrong)
    for wrong, words in (([0, 1], 'history=0: must be a list'), ([[-1]], r'history=\[-1\]'), ([[1.7]], r'=\[1.7\]')):
        with pytest.raises(ValueError, match=words): rec.recommend(wrong, 2, m=3)
    rec.queries = lambda histories, m: [[]] * len(histories)
    assert rec.recommend([[0]], 3)[0].tolist() == [[-1] * 3]


def test_titles_that_are_none_and_answers_without_room_are_refused(tok):
    with pytest.raises(ValueError, match=r'titles\[1\]=nan: must be a text'):
        TitlePrompts(tok, ['a', float('nan')], 64, 16)
    for n in (0, -3):
        with pytest.raises(ValueError, match=f'n_query={n}: must be at least 1'): TitlePrompts(tok, TITLES, 64, n)


def test_each_user_may_have_candidates_of_his_own(tok, net):
    rec = GPT4Rec(net, tok, TitlePrompts(tok, TITLES, 64, 16), BM25(TITLES))
    rec.queries = lambda histories, m: [['silk scarf', 'hat gold', 'm gloves']] * len(histories)
    own = [[1, 3], [0, 1, 4], []]
    ids, scores = rec.recommend([[], [1], [2]], 3, m=3, candidates=own)
    assert ids.tolist() == [[1, 3, -1], [0, 4, -1], [-1] * 3]
    for h, c, row, s in zip([[], [1], [2]], own, ids, scores):
        alone = rec.recommend([h], 3, m=3, candidates=c)
        assert (alone[0] == row).all() and (alone[1] == s).all()
    with pytest.raises(ValueError, match='2 lists of candidates for 3 histories'):
        rec.recommend([[], [1], [2]], 3, m=3, candidates=own[:2])


def test_a_writer_learns_the_made_shop(shop):
    goods, spec = Purchases('made', n_vocab=300), runs['tiny']
    cfg = replace(spec.model, d_model=32)
    net, tok = backbone(goods, cfg, replace(spec.train, n_step=30))
    asked, _ = asked_users(shop, 30)
    before = answer_nats(net, TitlePrompts(tok, shop.titles, 80, 16), asked).mean()
    prompts = teach_queries(net, tok, shop, replace(spec.train, n_step=60, n_warmup=6), 16, 0, device='cpu')
    assert answer_nats(net, prompts, asked).mean() < before - 1


def test_dealt_titles_refuse_no_pair_and_leave_new_items_theirs(tok):
    own, dealt, other = (Purchases('made', deal=d).shop() for d in (0, 1, 2))
    assert sorted(own.titles) == sorted(dealt.titles) and own.titles != dealt.titles != other.titles
    assert all(a == b for a, b, seen in zip(own.titles, dealt.titles, own.seen) if not seen)
    prompts = TitlePrompts(tok, dealt.titles, 80, 16)
    for h in dealt.train.histories():
        if len(h) > 1: prompts.pair(h[:-1], h[-1])


@pytest.mark.parametrize('field, value', [('valid', 0.), ('test', 1.), ('cold', 1.), ('n_item', -1), ('n_vocab', 100)])
def test_purchases_that_are_none_are_named(field, value):
    with pytest.raises(ValueError, match=f'Purchases.{field}={value}'): Purchases(**{field: value})


@pytest.mark.parametrize('preset', runs)
def test_every_preset_can_be_built_and_planned(preset):
    with torch.device('meta'): GPT2(runs[preset].model)
    assert plan(paper, runs[preset])['parameters'] > 10_000
    claim = runs[preset].claims
    assert claim.n_query + 40 < runs[preset].model.ctx_len


def test_every_claim_of_the_card_is_declared_and_could_be_seen():
    assert [*claims] == [f'C{i}' for i in range(1, 11)]
    assert all(c.power is not None for c in claims.values())


def test_published_tables_hold_the_trivial_rows_and_no_number_of_the_paper():
    rows = {r.id: r for r in published('gpt4rec').rows}
    if not rows: pytest.skip('nothing is published yet')
    recall = {m: rows[f'T.{m}.recall.10'].ours for m in ('random', 'popularity', 'markov', 'bm25_last', 'bm25_all')}
    assert recall['random'] < recall['popularity'] < recall['markov']
    assert all(r.paper_value is None for r in rows.values())
    assert rows['L.prompt'].verdict == rows['P.bm25'].verdict == 'holds'
    shortcomings = 'content-unused', 'new-items', 'interests-unexplained'
    assert {f'T.shortcoming.{x}' for x in shortcomings} <= set(rows)


@pytest.mark.parametrize('ctx_len', [96, 128])
def test_a_public_llama_writes_as_its_file_says(tmp_path, shop, ctx_len):
    model = random_model(LLaMA, LLAMA)
    net, tok = public_backbone(str(write_gguf(tmp_path / 'web.gguf', model)), ctx_len)
    ids = torch.tensor([tok.encode('low lower lowest')])
    assert net.cfg == replace(LLAMA, ctx_len=ctx_len) and torch.equal(net(ids), model(ids))
    prompts = TitlePrompts(tok, shop.titles, ctx_len - 8, 8)
    asked, _ = asked_users(shop, 4, 2)
    before = answer_nats(net, prompts, asked)
    assert len(write_queries(net, tok, [prompts.prompt(h.tolist()) for h in asked.histories], 3, 8)) == len(asked)
    teach_queries(net, tok, shop, replace(runs['tiny'].train, n_step=6, batch_size=8, lr=1e-2), 8, 0, device='cpu')
    assert answer_nats(net, prompts, asked).mean() < before.mean() - 1


@pytest.mark.slow
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    if not available('ml-100k'): pytest.skip('needs ml-100k')
    web = write_gguf(tmp_path / 'web.gguf', random_model(LLaMA, LLAMA))
    rows = rows_of_a_small_run('gpt4rec', tmp_path, {
        'data.name': 'ml-100k', 'data.n_item': 120, 'data.n_vocab': 400, 'model.d_model': 16, 'train.n_step': 4,
        'train.n_warmup': 1, 'train.batch_size': 8, 'claims.n_tune': 2, 'claims.n_read': 4, 'claims.n_user': 30,
        'claims.n_cold': 10, 'claims.n_query': 10, 'claims.queries': [1, 3], 'claims.n_epoch': 1,
        'claims.grid': [[1.5, 0.75], [0.6, 0.3]], 'claims.films': 'ml-100k', 'claims.title_items': 80,
        'claims.title_users': 30, 'claims.title_steps': 4, 'claims.public_steps': 2, 'claims.public_users': 12,
        'claims.backbones': [str(web), str(tmp_path / 'none.gguf')]})
    assert {'C1.web-before.10', 'C1.web-after.10', 'C1.gpt4rec-few.10'} <= set(rows)
    assert not any('none' in id for id in rows)
    for side in ('beauty', 'films'):
        for arm in ('gpt4rec', 'gpt4rec-dealt', 'gpt4rec-again', 'sasrec', 'bm25-last', 'bm25-last-dealt', 'no-search'):
            assert 0 <= rows[f'C7.{arm}.{side}']['ours'] <= 1
    dated, undated = (rows[f'C7.bm25-last{x}.films']['ours'] for x in ('', '-no-year'))
    assert undated == pytest.approx(dated)                                             # no title here has a year
    worth = [rows[f'C7.worth.{side}']['ours'] for side in ('beauty', 'films')]
    assert rows['C7']['ours'] == pytest.approx(worth[0] - worth[1])
    for id, claim in claims.items():
        assert rows[id]['ours'] is not None, id
        assert {c['name'] for c in rows[id]['controls'] or ()} == set(claim.controls)
        assert json.dumps(rows[id]['values'])
