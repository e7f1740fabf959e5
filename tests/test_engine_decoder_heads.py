"The layer that a task puts on a decoder: what is dropped, what is refused, what padding may not change."
import numpy as np, pytest, torch

from papers_lib.engine.decoder_heads import (
    TaskModel, class_logps, fine_tune_decoder, task_batch, task_batches, task_loss)
from papers_lib.engine.train import TrainConfig
from papers_lib.nn.stack import Sizes, Stack


def decoder():
    torch.manual_seed(0)
    return Stack(Sizes(60, 24, 32, 2, 4)).eval()


def task_model(n_class=3, **options): return TaskModel(decoder(), n_class, **options).eval()


def test_what_is_dropped_is_dropped_of_all_answers_alike():
    task = task_model(choice=True).train()
    with torch.no_grad(): task.out.weight.fill_(1.)
    h, at = torch.ones(1, 2, 4, 32), torch.tensor([[3, 3]])
    for _ in range(5):
        first, second = task.classify(h, at)[0]
        assert torch.isclose(first, second, atol=1e-4)      # dropped apart, they would differ by one or more


@pytest.mark.parametrize('n_class, choice, rows, labels', [
    (3, False, [[[1, 2, 3]], [[4] * 20]], [2, 0]), (1, False, [[[1, 2], [2, 1]], [[3], [3]]], [.3, 1.]),
    (0, True, [[[1, 2], [3]], [[4], [5], [6, 7, 8]]], [1, 2])])
def test_examples_beside_each_other_count_as_if_alone(n_class, choice, rows, labels):
    task = task_model(n_class, choice=choice)
    both, alone = class_logps(task, rows), [class_logps(task, [row])[0] for row in rows]
    for found, each in zip(both, alone):
        assert np.allclose(found[:len(each)], each, atol=1e-5) and (found[len(each):] == -np.inf).all()
    whole = task_loss(task, task_batch(rows, labels)).item()
    assert np.isclose(whole, sum(task_loss(task, task_batch([r], [y])).item() for r, y in zip(rows, labels)), rtol=1e-5)


def test_a_label_outside_the_classes_is_refused():
    train = TrainConfig(n_step=1, batch_size=2, lr=1e-3)
    rows = [[[1, 2]], [[3]]]
    tune = lambda rows, labels, n, **how: fine_tune_decoder(decoder(), rows, labels, n, train, seed=0, **how)
    with pytest.raises(ValueError, match='example 1, label 3: there are 3 classes'): tune(rows, [0, 3], 3)
    with pytest.raises(ValueError, match='example 0, label -1: there are 3 classes'): tune(rows, [-1, 0], 3)
    with pytest.raises(ValueError, match='example 1, label 0.5: there are 2 classes'): tune(rows, [0, 0.5], 2)
    with pytest.raises(ValueError, match='label 1.5: a grade lies between 0 and 1'): tune(rows, [0.2, 1.5], 1)
    with pytest.raises(ValueError, match='example 1, label 1: there are 1 answers'):
        tune([rows[0] * 2, rows[1]], [1, 1], 0, choice=True)
    with pytest.raises(ValueError, match='1 labels'): task_batches(rows, [0], 2)


def test_a_sequence_over_the_window_is_refused_before_training():
    rows = [[[1, 2]], [[1, 2], [3] * 25]]
    with pytest.raises(ValueError, match='example 1: a sequence of 25 tokens, the model reads at most ctx_len=24'):
        fine_tune_decoder(decoder(), rows, [0, 1], 2, TrainConfig(n_step=1, batch_size=2, lr=1e-3), seed=0)


def test_batches_go_on_where_they_stopped():
    make = lambda: task_batches([[[60, i, 62]] for i in range(7)], list(range(7)), 3, seed=1)
    whole, half = make(), make()
    seen = [next(whole)['targets'].tolist() for _ in range(6)]
    state = [next(half) for _ in range(2)] and half.state()
    again = make()
    again.load_state(state)
    assert [next(again)['targets'].tolist() for _ in range(4)] == seen[2:]
    with pytest.raises(ValueError, match='other examples'): task_batches([[[1, 2]]], [0], 1).load_state(state)
