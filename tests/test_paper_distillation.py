"Distillation: the teacher's head, a lesson's parts, declared claims, the races, every cell of the claims in small."
import math

import numpy as np
import pytest
import torch

from papers_lib import distillation
from papers_lib.distillation import (
    CrossEncoder, Lesson, TeacherConfig, claims, distill, lists, paper, pool, race_textcnn, reader, runs, scored,
    stored, students, tables)
from papers_lib.engine.checkpoint import load_model, save_model
from papers_lib.engine.distil import DistilLoss, ListBatches, frozen, score_pairs, train_matcher
from papers_lib.engine.llm import weights_hash
from papers_lib.engine.train import TrainConfig
from papers_lib.lab.data import available
from papers_lib.lab.presets import plan
from papers_lib.lab.relevance import judged
from papers_lib.lab.results import published
from papers_lib.nn.matchers import Student, StudentConfig, make_student
from papers_lib.text.lexicon import Lexicon
from papers_lib.text.wordpiece import SPECIALS, FastWordPiece
from shrunken import rows_of_a_small_run

SMALL = TeacherConfig(n_vocab=50, ctx_len=40, d_model=16, n_layer=2, n_head=2, d_ff=32, hidden=8, cls=1, sep=2)


def teacher(seed=0):
    torch.manual_seed(seed)
    return CrossEncoder(SMALL).eval()


def rows(n=20):
    "Queries and documents that share a token where the document is the positive."
    rng = np.random.default_rng(0)
    q = rng.integers(3, 50, (n, 4)).astype(np.int32)
    d = rng.integers(3, 50, (2 * n, 6)).astype(np.int32)
    d[:n, :4] = q
    return dict(queries=q, docs=d, query=np.arange(n), doc=np.stack([np.arange(n), np.arange(n, 2 * n)], 1))


@pytest.mark.parametrize('preset', runs)
def test_every_preset_can_be_built_and_planned(preset):
    with torch.device('meta'): Student(runs[preset].model)
    told = plan(paper, runs[preset])
    assert told['parameters'] > 1000 and told['tokens'] > 0


def test_all_claims_of_the_card_are_declared_and_those_with_a_design_could_fail():
    assert [*claims] == [f'C{i}' for i in range(1, 14)]
    for id, c in claims.items():
        if c.needs == ('later',): continue
        assert c.controls and c.margin > 0, id
        assert c.power is None or c.power > .5, id


def test_padding_and_neighbours_move_no_score_of_the_teacher():
    model, q, d = teacher(), torch.randint(3, 50, (3, 5)), torch.randint(3, 50, (3, 2, 9))
    q[0, 2:], d[0, 0, 3:], d[1, 1, 1:] = 0, 0, 0
    with torch.inference_mode():
        whole = model(q, d)
        assert torch.allclose(whole[:1, :1], model(q[:1, :2], d[:1, :1, :3]), atol=1e-5)
        assert torch.allclose(whole[1:2, 1:], model(q[1:2], d[1:2, 1:, :1]), atol=1e-5)


def test_the_head_reads_three_views():
    model = teacher()
    assert model.inner.weight.shape == (8, 48) and model.out.weight.shape == (1, 8)
    with torch.no_grad(): model.inner.weight.mul_(100)                   # a tanh: no score beyond the output's weights
    with torch.inference_mode(): z = model(torch.randint(3, 50, (4, 5)), torch.randint(3, 50, (4, 3, 9)))
    assert z.abs().max() <= model.out.weight.abs().sum() + model.out.bias.abs().sum() + 1e-5


def test_a_student_step_leaves_the_frozen_teacher_and_the_copied_embeddings_as_they_are():
    model, r = teacher(), rows()
    with frozen(model):
        scores = score_pairs(model, r['queries'], r['docs'], r['query'], r['doc'])
        net = make_student(StudentConfig(50, d_emb=16, n_map=4, cls=1, sep=2),
                           model.encoder.tok_emb.weight.detach().numpy().copy())
        before = weights_hash(net.tok_emb)
        train_matcher(net, ListBatches(**r, scores=scores, batch_size=10), DistilLoss(a=1.),
                      TrainConfig(5, 10, 1e-2), device='cpu')
    assert weights_hash(net.tok_emb) == before and not any(p.grad is not None for p in model.parameters())


LOSSES = DistilLoss(a=0.), DistilLoss('mse', .5), DistilLoss('margin', 1.), DistilLoss('kl', .5, 2.)


@pytest.mark.parametrize('loss', LOSSES)
def test_each_loss_trains_a_student(loss):
    r = rows()
    scores = np.tile(np.float32([1, -1]), (20, 1))
    net = make_student(StudentConfig(50, d_emb=16, n_map=8, cls=1, sep=2, dropout=0.), seed=1)
    train_matcher(net, ListBatches(**r, scores=scores, batch_size=10), loss, TrainConfig(60, 10, 1e-2), device='cpu')
    z = score_pairs(net, r['queries'], r['docs'], r['query'], r['doc'])
    assert np.mean(z[:, 0] > z[:, 1]) > .9


def test_a_teacher_learns_by_its_hinge():
    model, r = teacher(), rows()
    first = train_matcher(model, ListBatches(**r, scores=None, batch_size=10), DistilLoss(a=0.),
                          TrainConfig(60, 10, 3e-3), device='cpu')
    z = score_pairs(first, r['queries'], r['docs'], r['query'], r['doc'])
    assert np.mean(z[:, 0] > z[:, 1]) > .8 and not first.training


def test_training_goes_on_where_it_stopped_and_refuses_another_loss(tmp_path):
    r, train = rows(), lambda n: TrainConfig(n, 10, 1e-2, schedule='constant', save_every=2)
    scores = np.tile(np.float32([1, -1]), (20, 1))
    def run(n, loss=DistilLoss(), folder=None):
        net = make_student(StudentConfig(50, d_emb=16, n_map=4, cls=1, sep=2), seed=1)
        return train_matcher(net, ListBatches(**r, scores=scores, batch_size=10), loss, train(n), 'cpu', folder)
    whole = run(6, folder=tmp_path / 'a')
    run(4, folder=tmp_path / 'b')
    assert weights_hash(run(6, folder=tmp_path / 'b')) == weights_hash(whole)
    with pytest.raises(ValueError, match='made with other settings'): run(6, DistilLoss(a=.9), tmp_path / 'b')


@pytest.mark.parametrize('field', ['n_list', 'n_neg', 'n_doc', 'layers'])
def test_a_lesson_that_is_none_is_named(field):
    with pytest.raises(ValueError, match=f'Lesson.{field}=0: must be at least 1'): Lesson(**{field: 0})


def test_texts_are_cut_to_twice_the_words_that_are_read():
    texts = judged('toy', [('a b c', 'a ' * 50, 1)])
    q, d = tables(Lesson(n_query=2, n_doc=5), texts, Lexicon(['a', 'b', 'c']))
    assert q.tolist() == [[2, 3, 4]] and d.shape == (1, 10)


def test_a_teacher_scores_in_the_arithmetic_of_its_lesson():
    model, r = teacher(), rows()
    pairs = r['queries'], r['docs'], r['query'], r['doc'][:, 0]
    plain, rounded = (scored(Lesson(dtype=t), model, *pairs) for t in ('float32', 'bfloat16'))
    assert np.array_equal(plain, score_pairs(model, *pairs)) and not np.array_equal(plain, rounded)
    assert np.abs(plain - rounded).max() < .05 * max(1, np.abs(plain).max())


@pytest.mark.slow
def test_a_chinese_teacher_reads_characters():
    pytest.importorskip('gensim')
    if not available('qbqtc'): pytest.skip('needs qbqtc')
    lesson = Lesson('qbqtc', 40, 2, n_hard=2, n_easy=1, n_test=12, n_tune=12, n_query=8, n_doc=12, layers=1,
                    n_taught=32, dtype='float32', width=16)
    tok = reader(lesson)
    assert tok.cut == 'characters' and all(len(w) == 1 for w in tok.words)
    assert max(map(len, pool(lesson, 'train').docs)) <= 12
    assert stored(lesson, 'lists').shape == (len(lists(lesson)), 3)
    assert stored(lesson, 'test').shape == pool(lesson, 'test').query.shape      # some find fewer candidates


def test_a_lesson_of_wikiqa_has_its_lists():
    if not available('wikiqa'): pytest.skip('needs wikiqa')
    lesson = runs['cpu'].data
    test, wide = pool(lesson, 'test'), lists(lesson)
    assert len(test.queries) == 243 and wide.doc.shape[1] == 5
    assert max(len(d.split()) for d in test.docs) <= lesson.n_doc
    assert not {*test.queries} & {*pool(lesson, 'train').queries}


WORDS = 'red blue green black white dress shirt skirt coat hat fits runs small large long short soft warm'.split()


@pytest.fixture
def public(tmp_path, monkeypatch):
    "A teacher's folder of one small encoder, which also stands in for the packaged one."
    pytest.importorskip('pyarrow')
    tok = FastWordPiece([*SPECIALS, *WORDS])
    cfg = TeacherConfig(n_vocab=tok.n_vocab, ctx_len=100, d_model=64, n_layer=1, n_head=2, d_ff=32, hidden=8,
                        cls=tok.cls, sep=tok.sep)
    torch.manual_seed(0)
    save_model(tmp_path / 'teacher', CrossEncoder(cfg), tok)
    monkeypatch.setattr(distillation, 'find_spec', lambda name: None)          # the export has its own test
    return tmp_path


def file_of(folder, n=40, **columns):
    import pyarrow as pa, pyarrow.parquet as pq
    rng = np.random.default_rng(0)
    draw = lambda k: [' '.join(rng.choice(WORDS, k)) for _ in range(n)]
    made = dict(query=[f'{w} {i}' for i, w in enumerate(draw(2))], positive=draw(5), negative=draw(6)) | columns
    pq.write_table(pa.table(made), folder / 'triples.parquet')
    return folder / 'triples.parquet'


SHORT = TrainConfig(4, 8, 1e-2, save_every=2)


@pytest.mark.parametrize('student', students)
def test_a_strangers_triples_become_a_student_with_a_card(public, student):
    cfg = StudentConfig(**dict(vars(students[student]), d_emb=16, d_model=16, hidden=8))
    out = distill(file_of(public), public / 'teacher', cfg, public / 'out', train=SHORT, device='cpu')
    net, card = load_model(out / 'model', Student, StudentConfig), (out / 'README.md').read_text()
    assert net.cfg.n_vocab == len(SPECIALS) + len(WORDS) and 'queries left aside' in card and '40 rows of 2' in card
    again = distill(file_of(public), public / 'teacher', cfg, public / 'out', train=SHORT, device='cpu')   # finished
    assert weights_hash(load_model(again / 'model', Student, StudentConfig)) == weights_hash(net)


def test_labels_of_the_file_are_scores_or_leads(public):
    small = StudentConfig(d_emb=16, n_map=4, hidden=8)
    kw = dict(train=SHORT, device='cpu')
    cards = []
    for name, labels in (('scores', [[1., -1.]] * 39 + [[2., 0.]]), ('leads', [[2.]] * 39 + [[1.]])):
        out = distill(file_of(public, labels=labels), public / 'teacher', small, public / name, **kw)
        cards.append((out / 'README.md').read_text())
    assert all('leads of' in c for c in cards)


@pytest.mark.parametrize('columns, told', [
    (dict(query=['a'] * 39 + ['']), 'row 39: its query is empty'), (dict(negative=[None] * 40), 'positives only'),
    (dict(labels=[[1., 2., 3.]] * 40), '2 scores or 1 lead'),
    (dict(labels=[[math.nan, 1.]] * 40), 'not a finite number'),
    (dict(query=['red'] * 40, positive=['dress'] * 40, negative=['hat'] * 39 + ['dress']), 'row 39: .* its positive')])
def test_what_cannot_be_right_is_refused_before_anything_is_trained(public, columns, told):
    with pytest.raises(ValueError, match=told):
        distill(file_of(public, **columns), public / 'teacher', out=public / 'out', train=SHORT)
    assert not (public / 'out').exists()


def test_a_teacher_of_another_architecture_is_named(public):
    net = Student(StudentConfig(23, d_emb=8, n_map=2))
    save_model(public / 'other', net, FastWordPiece([*SPECIALS, *WORDS]))
    with pytest.raises(ValueError, match='holds a Student, not a CrossEncoder'):
        distill(file_of(public), public / 'other', out=public / 'out', train=SHORT)
    with pytest.raises(ValueError, match="did you mean 'textcnn'"):
        distill(file_of(public), public / 'teacher', 'textcnm', public / 'out')


def test_a_vocabulary_that_misses_most_words_warns_with_the_share(public):
    foreign = ['蚂蚁花呗违约'] * 40
    with pytest.warns(UserWarning, match=r'\d+% of the pieces of the documents are unknown'):
        distill(file_of(public, positive=foreign, negative=[t + '一次' for t in foreign]), public / 'teacher',
                StudentConfig(d_emb=16, n_map=4, hidden=8), public / 'out', train=SHORT, device='cpu')


def test_a_run_in_the_folder_of_other_rows_is_refused(public):
    small = StudentConfig(d_emb=16, n_map=4, hidden=8)
    distill(file_of(public), public / 'teacher', small, public / 'out', train=SHORT, device='cpu')
    with pytest.raises(ValueError, match='made with other settings'):
        distill(file_of(public, n=30), public / 'teacher', small, public / 'out', train=SHORT, device='cpu')


EXPORTED = ('textcnn', 'two towers'), ('bilstm', 'two towers'), ('transformer', 'joint')


@pytest.mark.slow
@pytest.mark.parametrize('arch, reading', EXPORTED)
def test_an_export_is_equal_at_sizes_that_its_example_did_not_have(tmp_path, arch, reading):
    for name in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(name)
    from papers_lib.engine.onnx_matcher import OnnxMatcher, export_onnx, onnx_gap
    torch.manual_seed(0)
    net = Student(StudentConfig(200, arch, reading, d_emb=8, d_model=8, n_map=4, cls=1, sep=2)).eval()
    assert onnx_gap(net, OnnxMatcher(export_onnx(net, tmp_path / 'm.onnx', 200)), 200) < 1e-4


@pytest.mark.slow
def test_the_races_give_the_rows_that_the_issue_names():
    found = {r.id: r for r in race_textcnn(n=40, n_teacher=3, teacher=TeacherConfig(n_layer=1))}
    assert {*found} == {'textcnn.100docs.p95_ms', 'textcnn.vs_teacher'}
    assert all(math.isfinite(r.ours) and r.values for r in found.values())


def test_published_claims_name_their_controls():
    for r in published('distillation').rows:
        if r.kind == 'claim' and r.ours is not None: assert {c['name'] for c in r.controls} == {*claims[r.id].controls}


def check_rows_of_c10(rows):
    "Arms at both shares and with all labels, gains, costs; the small language models beside."
    arms = {f'C10.{arm}-{x}' for arm in ('few-labels', 'gpt-1', 'distilled', 'shuffled', 'by-a-cnn') for x in (.2, .6)}
    beside = {'C10.few-labels-1', 'C10.gpt-1-1', 'C10.over-teacher', 'C10.gain-0.2', 'C10.gain-0.6', 'C10.ms-gpt-1',
              'C10.ms-cnn', 'C10.gpt-2-hard', 'C10.gpt-2-hard-and-soft', 'C10.gpt-2-gain'}
    assert {id for id in rows if id.startswith('C10.')} == arms | beside
    assert {len(x) for x in rows['C10']['values'].values()} == {2} and rows['C10']['n'] == 500
    assert {c['name'] for c in rows['C10']['controls']} == {*claims['C10'].controls}


@pytest.mark.slow
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    if not available('wikiqa'): pytest.skip('needs wikiqa')
    rows = rows_of_a_small_run('distillation', tmp_path, {
        'data.n_list': 60, 'data.n_test': 30, 'data.n_tune': 20, 'data.layers': 1, 'data.n_taught': 32,
        'data.n_doc': 12, 'train.n_step': 5, 'model.d_emb': 8, 'model.n_map': 4, 'model.hidden': 8,
        'claims.exchanged': .3, 'claims.n_word': 300, 'claims.blocks': 1, 'claims.part': .01, 'claims.first': 20,
        'claims.copies': [2, 1], 'claims.rates': [.001, .01, .1], 'claims.few_rates': [.001, .01, .1],
        'claims.deep_rates': [.001, .01, .1], 'claims.tune_seeds': [100], 'claims.scarce': [.2, .6],
        'claims.backbone': 'tiny', 'claims.gpt1_rates': [.001, .003, .01], 'claims.lm_steps': 5})
    for name, set_ in (
            ('C6', 'ud_ewt'), ('C8', 'qbqtc'), ('C9', 'qbqtc'), ('C10', 'sentence_classification'), ('C12', 'scifact')):
        if not available(set_): pytest.skip(f'{name} needs {set_}')
    assert all(rows[id]['ours'] is not None for id in claims), {id: rows[id]['why'] for id in claims}
    check_rows_of_c10(rows)
    assert len(rows['C1']['values']['hard alone']) == 2 and 'T.cost.textcnn.100' in rows
    assert rows['C12.bm25.ndcg']['ours'] <= rows['C12.ceiling.ndcg']['ours'] and rows['C8.grades-majority']['ours'] > .5
    assert 0 < rows['C13.dropped-0']['ours'] < rows['C13.dropped-0.5']['ours'] < 1
