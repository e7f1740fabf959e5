"Tasks as text: what is asked, what is an answer, and a mixture by its rule."
import numpy as np, pytest

from papers_lib.lab.tasks import task_at_hand
from papers_lib.lab.data import available
from papers_lib.lab.text_tasks import TextTask, rouge_1, rouge_l, task_mixture, text_pairs, text_tasks, titled_reviews


def test_every_class_has_a_word_that_is_read_back():
    for task in text_tasks.values():
        for label, word in enumerate(task.words):
            assert task.target(label) == word and task.read(word) == label
        assert len({*task.words}) == len(task.words)


@pytest.mark.parametrize('grade, said', [
    (0, '0.0'), (3.75, '3.8'), (3.69, '3.6'), (3.9, '4.0'), (5., '5.0'), (2.5, '2.4')])
def test_grades_are_rounded_to_a_fifth(grade, said):
    task = text_tasks['stsb']
    assert task.target(grade) == said and task.read(said) == float(said)


@pytest.mark.parametrize('said', ['', '3', '3.7', '5.2', '-1.0', '6.0', ' 3.8', '3.80', 'acceptable'])
def test_what_is_no_grade_is_none(said):
    assert text_tasks['stsb'].read(said) is None


def test_grades_are_26_strings():
    assert len({text_tasks['stsb'].target(g / 100) for g in range(501)}) == 26


def test_sources_name_their_fields():
    assert text_tasks['rte'].source('A.', 'B.') == 'rte sentence1: A. sentence2: B.'
    assert text_tasks['translation'].source('Hello.') == 'translate English to German: Hello.'
    with pytest.raises(ValueError): text_tasks['rte'].source('A.')
    assert text_tasks['cola'].read('Acceptable') is None
    assert TextTask('say:').target('so') == 'so'


@pytest.mark.parametrize('name', ['sst2', 'cola', 'rte', 'mrpc', 'stsb'])
def test_published_sets_become_pairs_of_text(name):
    if not task_at_hand(name): pytest.skip(f'needs the set of {name}')
    pairs = text_pairs(name, 'test')
    assert len(pairs) > 200 and all(s.startswith(f'{name} sentence') for s, _ in pairs)
    assert all(text_tasks[name].read(t) is not None for _, t in pairs)


def test_unknown_tasks_are_named():
    with pytest.raises(ValueError, match="unknown task 'sts'.*stsb"): text_pairs('sts', 'train')


def test_a_mixture_draws_by_size_up_to_its_limit():
    tasks = [[('a', i) for i in range(100)], [('b', i) for i in range(5000)], [('c', 0)]]
    drawn = task_mixture(tasks, 400, 20_000, np.random.default_rng(0))
    share = {k: sum(name == k for name, _ in drawn) / 20_000 for k in 'abc'}
    assert share == pytest.approx({'a': 100 / 501, 'b': 400 / 501, 'c': 1 / 501}, abs=0.01)
    assert len({i for name, i in drawn if name == 'b'}) > 4000             # examples beyond the limit are drawn too
    again = [task_mixture(tasks, 400, 50, np.random.default_rng(1)) for _ in range(2)]
    assert again[0] == again[1]
    for args, said in [((tasks, 0), 'limit=0'), (([], 5), 'needs tasks'), (([[1], []], 5), 'each of them an example')]:
        with pytest.raises(ValueError, match=said): task_mixture(*args, 3, np.random.default_rng(0))


def test_a_review_stands_in_one_part_only():
    if not available('clothing-reviews'): pytest.skip('needs the reviews')
    parts = {split: titled_reviews(split) for split in ('train', 'tune', 'valid')}
    assert [len(x) for x in parts.values()] == [15_831, 1_906, 1_938]
    texts = [{r.text for r in x} for x in parts.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert all(r.headline and r.text for x in parts.values() for r in x)
    assert 0.8 < np.mean([r.recommended for r in parts['train']]) < 0.85


def test_titles_are_scored_by_their_longest_common_words():
    pytest.importorskip('rouge_score')
    found = rouge_l(['dress lovely a', 'Lovely dresses', '', 'lovely'], ['a lovely dress'] * 4)
    assert found == pytest.approx([1 / 3, 0.8, 0, 0.5])
    with pytest.raises(ValueError): rouge_l(['a'], [])
    assert rouge_1(['dress lovely a', 'no'], ['A lovely dress!', 'yes']) == pytest.approx([1, 0])
    with pytest.raises(ValueError): rouge_1(['a'], [])
