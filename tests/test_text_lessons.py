"Lessons: what a world holds, and that a lesson never tells its answer."
import numpy as np, pytest

from papers_lib.text.lessons import draw_lesson, draw_world

MARKS = dict(begin=[0], link=[1, 2], end=[3])


@pytest.mark.parametrize('seed', range(5))
def test_names_cues_and_answers_are_different_words(seed):
    w = draw_world(range(50, 90), np.random.default_rng(seed), n_task=3, n_cue=5)
    parts = [{*map(int, x.flat)} for x in (w.names, w.cues, w.answers)]
    assert [len(x) for x in parts[:2]] == [3, 5] and len(parts[2]) <= 5 and w.answers.shape == (3, 5)
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


@pytest.mark.parametrize('named', [False, True])
@pytest.mark.parametrize('k', range(8))
def test_a_lesson_shows_pairs_of_one_task_and_leaves_the_last_answer_open(k, named):
    w, rng = draw_world(range(50, 90), np.random.default_rng(k)), np.random.default_rng(k)
    for _ in range(20):
        ids, right = draw_lesson(w, rng, k, named, **MARKS)
        body = ids[1 + 2 * named:] + [right, 3]
        pairs = np.array(body).reshape(k + 1, 5)
        cues = [[*w.cues].index(c) for c in pairs[:, 0]]
        assert ids[0] == 0 and (pairs[:, 1:3] == [1, 2]).all() and (pairs[:, 4] == 3).all() and len({*cues}) == k + 1
        tasks = [t for t in range(4) if (w.answers[t, cues] == pairs[:, 3]).all()]
        assert tasks and (not named or [*w.names].index(ids[1]) in tasks)


def test_what_makes_no_world_and_no_lesson_is_refused():
    with pytest.raises(ValueError, match='19 words'): draw_world(range(19), np.random.default_rng(0))
    w = draw_world(range(20), np.random.default_rng(0))
    for k in (-1, 8):
        with pytest.raises(ValueError, match=f'k={k}'): draw_lesson(w, np.random.default_rng(0), k, False, **MARKS)
