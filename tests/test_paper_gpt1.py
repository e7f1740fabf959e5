"GPT-1: where its norms stand, what is cut and what never is, what padding may not change, and what it declares."
import json, math, os
from dataclasses import replace

import numpy as np, pytest, torch
from torch.nn import functional as F

from papers_lib.engine.decoder_heads import TaskModel, class_logps, fine_tune_decoder, task_batch
from papers_lib.engine.parity import parity, random_model
from papers_lib.engine.train import IGNORE, TrainConfig, param_groups
from papers_lib.gpt1 import (
    GPT1, FineTuneLoss, GPT1Config, Marks, choice_input, claims, pair_input, paper, read_release, runs, single_input,
    sizes, task_input, two_order_input, with_marks)
from papers_lib.lab.tasks import ChoiceExample, Example
from papers_lib.nn.stack import Parts, Sizes, Stack
from papers_lib.store.files import CorruptFile
from papers_lib.text.tokenizers import BadVocabulary, WordBPE, train_word_bpe, word_tokens
from shrunken import rows_of_a_small_run

CFG = GPT1Config(n_vocab=60, ctx_len=24, d_model=32, n_layer=2, n_head=4, dropout=0.)
MARKS = Marks.after(60)


def some(**over): return random_model(GPT1, replace(CFG, **over))


def tokens(b=2, t=20): return torch.randint(60, (b, t), generator=torch.Generator().manual_seed(0))


def task_model(**options):
    torch.manual_seed(0)
    return TaskModel(with_marks(some())[0], 3, **options).eval()


def test_the_released_size():
    with torch.device('meta'):
        plain, marked = GPT1(sizes['117M']), GPT1(replace(sizes['117M'], n_vocab=40478 + 3))
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert (count(plain), count(marked)) == (116_534_784, 116_537_088)


def test_norms_stand_after_the_sums_and_nothing_stands_after_the_last():
    torch.manual_seed(0)
    h = GPT1(CFG).eval().hidden(tokens()).detach()
    assert torch.allclose(h.mean(-1), torch.zeros(2, 20), atol=1e-5)
    assert torch.allclose(h.var(-1, correction=0), torch.ones(2, 20), atol=1e-2)
    assert not any(name.startswith('norm_f') for name in GPT1(CFG).state_dict())


@pytest.mark.parametrize('std', [0.02, 0.07])
def test_every_matrix_is_drawn_alike(std):
    torch.manual_seed(0)
    model = GPT1(replace(CFG, n_vocab=2000, ctx_len=400, d_model=64, n_layer=6, init_std=std))
    assert sizes['117M'].init_std == 0.02 and model.to_hf().config.initializer_range == std
    for name, p in model.named_parameters():
        if p.dim() == 2: assert abs(p.std() / std - 1) < 0.1, name
        else: assert p.unique().tolist() == [0. if name.endswith('bias') else 1.]


def test_the_class_is_the_stack_of_its_parts():
    model = some()
    stack = Stack(Sizes(60, 24, 32, 2, 4), Parts(placement='post', residual_init='plain')).eval()
    stack.load_state_dict(model.state_dict())
    assert torch.allclose(stack(tokens()), model(tokens()), atol=1e-6)


@pytest.mark.parametrize('over', [{}, dict(n_head=1), dict(n_layer=1, eps=1e-3)])
def test_logits_equal_transformers_both_ways(over, tmp_path):
    model = some(**over)
    hf = model.to_hf()
    assert parity(model, hf, tokens()) <= 1e-5 and parity(GPT1.from_hf(hf), hf, tokens()) <= 1e-5
    hf.save_pretrained(tmp_path)
    assert GPT1.from_hf(tmp_path)(tokens()).equal(GPT1.from_hf(hf)(tokens()))


@pytest.mark.parametrize('over', [dict(afn='relu'), dict(afn='swish'), dict(n_special=3)])
def test_a_checkpoint_that_computes_something_else_is_refused(over, tmp_path):
    some().to_hf().save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(config | over))
    with pytest.raises(ValueError, match=next(iter(over))): GPT1.from_hf(tmp_path)


def release(model, folder):
    state, found = model.state_dict(), [model.positions.weight, model.tok_emb.weight]
    for i in range(model.cfg.n_layer):
        for layer in ('attn.qkv', 'attn.out', 'norm1', 'mlp.fc', 'mlp.proj', 'norm2'):
            w = state[f'blocks.{i}.{layer}.weight']
            found += [w.T[None] if w.dim() == 2 else w, state[f'blocks.{i}.{layer}.bias']]
    flat = np.concatenate([t.detach().numpy().ravel() for t in found])
    for i, part in enumerate(np.array_split(flat, 12)): np.save(folder / f'params_{i}.npy', part)   # 10 sorts after 9
    (folder / 'params_shapes.json').write_text(json.dumps([list(t.shape) for t in found]))


def test_the_layout_of_the_release_is_read(tmp_path):
    model = some()
    release(model, tmp_path)
    assert read_release(tmp_path, n_head=4)(tokens()).equal(model(tokens()))


def test_a_damaged_release_is_named(tmp_path):
    release(some(), tmp_path)
    (tmp_path / 'params_3.npy').unlink()
    with pytest.raises(CorruptFile, match='its shapes hold'): read_release(tmp_path, n_head=4)


def test_the_document_is_cut_and_never_question_or_answer():
    document, question, answers = list(range(50)), [51, 52, 53], [[54], [55, 56]]
    rows = choice_input(document, question, answers, MARKS, 24)
    for row, answer in zip(rows, answers):
        assert row[0] == MARKS.start and row[-len(answer) - 1:-1] == answer and row[-1] == MARKS.extract
        cut = row.index(MARKS.delimiter)
        assert row[cut - 3:cut] == question and row[1:cut - 3] == document[:cut - 4]
    assert max(map(len, rows)) == 24 and rows[0][:10] == rows[1][:10]
    with pytest.raises(ValueError, match='never cut'): choice_input([1], [2] * 20, [[3] * 9], MARKS, 24)


@pytest.mark.parametrize('n, m', [(2, 3), (2, 40), (40, 2), (40, 40), (10, 11), (0, 5)])
def test_a_pair_shares_the_room_and_leaves_none_unused(n, m):
    a, b = [1] * n, [2] * m
    row, = pair_input(a, b, MARKS, 24)
    kept = row.count(1), row.count(2)
    assert sum(kept) == min(n + m, 21) and all(k >= min(have, 10) for k, have in zip(kept, (n, m)))
    first, second = two_order_input(a, b, MARKS, 24)
    assert (first.count(1), first.count(2)) == (second.count(1), second.count(2))
    assert two_order_input(b, a, MARKS, 24) == [second, first]
    assert len(single_input(a, MARKS, 24)[0]) == min(n + 2, 24)


def test_marks_are_new_rows_and_the_others_stay():
    model = some()
    wider, marks = with_marks(model)
    assert (marks.start, marks.delimiter, marks.extract) == (60, 61, 62)
    assert torch.allclose(wider(tokens())[..., :60], model(tokens()), atol=1e-6)


def test_padding_changes_neither_class_nor_loss():
    task = task_model()
    rows = [single_input([1, 2, 3], MARKS, 24), single_input(list(range(20)), MARKS, 24)]
    rows += [pair_input([1], [2], MARKS, 24)]
    alone = np.concatenate([class_logps(task, [row]) for row in rows])
    assert np.allclose(class_logps(task, rows), alone, atol=1e-5)
    each = sum(FineTuneLoss()(task, task_batch([row], [y])).item() for row, y in zip(rows, (0, 1, 2)))
    assert math.isclose(FineTuneLoss()(task, task_batch(rows, [0, 1, 2])).item(), each, rel_tol=1e-5)


def test_the_loss_is_written_out_here():
    task, row = task_model(), single_input([5, 6, 7, 8], MARKS, 24)
    ids = torch.tensor(row)
    h = task.model.hidden(ids[0][None])
    label = -F.linear(h[0, -1], task.out.weight, task.out.bias).log_softmax(-1)[2]
    lm = F.cross_entropy(task.model.head(h[0, :-1]), ids[0][1:])             # a mean; the first token is no target
    assert torch.isclose(FineTuneLoss(0.5)(task, task_batch([row], [2])), label + 0.5 * lm, atol=1e-5)
    assert torch.isclose(FineTuneLoss(0.)(task, task_batch([row], [2])), label, atol=1e-5)
    assert (task_batch([row], [2])['next'] == IGNORE).sum() == 1


def test_both_orders_give_one_answer_and_choices_share_a_softmax():
    task = task_model()
    ab, ba = ([two_order_input(x, y, MARKS, 24)] for x, y in (([1, 2], [3] * 30), ([3] * 30, [1, 2])))
    assert np.allclose(class_logps(task, ab), class_logps(task, ba), atol=1e-6)
    choice = class_logps(task_model(choice=True), [choice_input([1], [2], [[3], [4], [5, 6]], MARKS, 24)])
    assert choice.shape == (1, 3) and math.isclose(np.exp(choice).sum(), 1, rel_tol=1e-5)


def test_examples_with_fewer_answers_count_as_if_alone():
    task = task_model(choice=True)
    rows = [choice_input([1], [2], answers, MARKS, 24) for answers in ([[3], [4, 4]], [[3], [4], [5], [6, 7]])]
    both, alone = class_logps(task, rows), [class_logps(task, [row])[0] for row in rows]
    assert np.allclose(both[0, :2], alone[0], atol=1e-5) and (both[0, 2:] == -np.inf).all()
    assert np.allclose(both[1], alone[1], atol=1e-5)
    each = sum(FineTuneLoss()(task, task_batch([row], [1])).item() for row in rows)
    assert math.isclose(FineTuneLoss()(task, task_batch(rows, [1, 1])).item(), each, rel_tol=1e-5)


def test_a_grade_is_fitted_by_its_cross_entropy():
    torch.manual_seed(0)
    task = TaskModel(with_marks(some())[0], 1).eval()
    row = two_order_input([1, 2], [3], MARKS, 24)
    low, high = class_logps(task, [row])[0]
    assert math.isclose(np.exp(low) + np.exp(high), 1, rel_tol=1e-5)
    loss = FineTuneLoss(0.)(task, task_batch([row], [0.3])).item()
    assert math.isclose(loss, -(0.7 * low + 0.3 * high), rel_tol=1e-5)


def test_a_sequence_over_the_window_is_refused():
    with torch.device('meta'): released = GPT1(sizes['117M'])
    with pytest.raises(ValueError, match='sequence of 513 tokens: the model reads at most ctx_len=512'):
        released(torch.zeros(1, 513, dtype=torch.long, device='meta'))


def test_texts_that_leave_no_room_are_refused():
    for write in (pair_input, two_order_input):
        with pytest.raises(ValueError, match='ctx_len=4: no room for texts beside 3 marks'): write([1], [2], MARKS, 4)
        assert write([1, 3], [2, 4], MARKS, 5)[0] == [60, 1, 61, 2, 62]
    with pytest.raises(ValueError, match='ctx_len=3: no room for texts beside 2 marks'): single_input([1], MARKS, 3)


def test_every_kind_of_example_has_its_sequences():
    encode = lambda text: [len(w) for w in text.split()]
    write = lambda e, **how: task_input(e, encode, MARKS, 12, **how)
    assert write(Example(('a bb',), 0)) == [[60, 1, 2, 62]]
    assert write(Example(('a', 'bb ccc'), 0)) == [[60, 1, 61, 2, 3, 62]]
    assert write(Example(('a', 'bb'), 0.5), both_orders=True) == [[60, 1, 61, 2, 62], [60, 2, 61, 1, 62]]
    asked = ChoiceExample('a ' * 9, 'bb bb', ('ccc', 'dddd dddd'), 0)
    assert write(asked) == [[60, 1, 1, 1, 1, 1, 2, 2, 61, 3, 62], [60, 1, 1, 1, 1, 1, 2, 2, 61, 4, 4, 62]]
    assert write(ChoiceExample('', '', ('ccc',), 0)) == [[60, 61, 3, 62]]


def test_a_task_is_learnt_and_a_run_repeats():
    rows = [single_input([i % 2 + 1] * 5, MARKS, 24) for i in range(40)]
    labels = [i % 2 for i in range(40)]
    train = TrainConfig(n_step=20, batch_size=8, lr=3e-3, weight_decay=0.01)
    tune = lambda: fine_tune_decoder(with_marks(some())[0], rows, labels, 2, train, seed=0, loss=FineTuneLoss())
    made = [class_logps(tune(), rows) for _ in range(2)]
    assert np.array_equal(*made) and (made[0].argmax(1) == labels).mean() == 1


def test_weight_decay_is_of_matrices():
    decays, rest = param_groups(task_model(), 0.01)
    assert all(p.dim() > 1 for p in decays['params']) and all(p.dim() == 1 for p in rest['params'])


def test_words_are_cut_and_lower_cased():
    assert word_tokens('She DIDN\'T say "no"… It\'s\n\n Emma—yes!') == [
        'she', 'did', "n't", 'say', '"', 'no', '"', '...', 'it', "'s", '\n', 'emma', '-', 'yes', '!']


def test_the_fast_bpe_equals_the_one_to_read():
    fast = train_word_bpe(['the cat sat on the mat, the fat cat sat still ' * 3], 60)
    slow = WordBPE(fast.vocab, fast.merges)
    rng = np.random.default_rng(0)
    letters = list("the cat sat fm,.'\n é中🙂</w>")
    for s in (''.join(rng.choice(letters, 30)) for _ in range(300)): assert fast.encode(s) == slow.encode(s), s
    assert slow.decode(slow.encode('The  CAT sat')) == 'the cat sat'


def test_a_damaged_word_vocabulary_is_named(tmp_path):
    (tmp_path / 'v.json').write_text('{"<unk>": 0, "a</w>": 1, "b": 2, "ba</w>": 3}')
    (tmp_path / 'm.txt').write_text('#version: 0.2\nb a</w>\n')
    assert WordBPE.from_files(tmp_path / 'v.json', tmp_path / 'm.txt').encode('BA b') == [3, 0]
    (tmp_path / 'm.txt').write_text('#version: 0.2\nb c</w>\n')
    with pytest.raises(BadVocabulary, match='c</w>'): WordBPE.from_files(tmp_path / 'v.json', tmp_path / 'm.txt')


def test_what_is_declared():
    assert paper.claims is claims and set(runs) == {'tiny', 'cpu', 'gpu', 'paper'}
    assert [*claims] == [f'C{i}' for i in range(1, 10)]
    assert all(c.controls and c.margin > 0 and c.needs and c.power is not None for c in claims.values())
    assert runs['paper'].model == sizes['117M'] and runs['paper'].train.lr == 2.5e-4
    assert all(step % runs['cpu'].train.eval_every == 0 for step in runs['cpu'].claims.steps)   # where weights are kept
    assert runs['cpu'].claims.steps[-1] == runs['cpu'].train.n_step


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get('PAPERS_MIRROR'), reason='needs PAPERS_MIRROR: the labelled sets')
def test_every_cell_of_the_claims_runs_and_gives_its_rows(tmp_path):
    rows = rows_of_a_small_run('gpt1', tmp_path, {
        'model.d_model': 16, 'model.n_head': 2, 'model.ctx_len': 64, 'data.n_vocab': 512, 'train.n_step': 20,
        'train.n_warmup': 2, 'train.eval_every': 5, 'claims.steps': [5, 10, 20], 'claims.n_label': 48,
        'claims.n_judged': 40, 'claims.n_epoch': 1, 'claims.n_draw': 2, 'claims.rates': [1e-3, 1e-2, 1e-1],
        'claims.low_rates': [1e-4, 1e-3, 1e-2], 'claims.sizes': [32, 48, 64], 'claims.n_watch': 1,
        'claims.n_pair': 32, 'claims.n_document': 16, 'claims.n_question': 12})
    assert all(rows[f'C{i}']['n_seeds'] == 2 for i in range(1, 10))
    arms = {'C1.read-books', 'C1.entries-shuffled', 'C2.misled.64', 'C3.blocks.0', 'C3.blocks.2', 'C3.fresh',
            'C4.LSTM', 'C4.loss.LSTM', 'C5.LSTM.20', 'C5.Transformer.5', 'C5.rise.LSTM', 'C6.one-order-twice',
            'C6.no-delimiter', 'C7.written.contiguous', 'C7.mixed.shuffled-sentences', 'C7.tasks', 'C8.no-document',
            'C8.cut.multirc', 'C9.misled'}
    assert arms <= {id for id, r in rows.items() if r['ours'] is not None}
    assert rows['P.symmetry']['verdict'] == 'holds' and 0 < rows['C8.cut.boolq']['ours'] <= 1
