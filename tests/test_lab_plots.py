"Which rows a figure shows, and where."
import numpy as np, pytest

from papers_lib.engine.stats import Row, median_interval
from papers_lib.lab.plots import effect_plot, errors, loss_curves, shown
from papers_lib.lab.results import publish
from repos import add_run, claim, toy_repo


def point(id, value):
    around = median_interval([value - 0.5, value, value + 1.0])
    return Row('toy', 'table', id, rule='scaled', **around.facts())


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy_repo(tmp_path)


def test_a_figure_shows_this_run_else_the_largest_published_preset_that_has_its_rows(repo, tmp_path):
    for preset, rows in (
        ('tiny', [point('A.1', 1.0), point('B.1', 1.0)]),
        ('cpu', [point('A.1', 2.0), point('A.10', 3.0), point('A.9', 4.0)]),
    ):
        publish(add_run(tmp_path, preset=preset, rows=rows))
    ids = lambda found: ([(r.id, r.ours) for r in found[0]], found[1])
    assert ids(shown([point('A.3', 9.)], r'A\.\d+', 'toy')) == ([('A.3', 9.)], '')
    assert ids(shown([Row('toy', 'table', 'A.3', why='none')], r'A\.\d+', 'toy')) == (
        [('A.1', 2.0), ('A.9', 4.0), ('A.10', 3.0)],
        'cpu',
    )
    assert ids(shown([], r'B\.\d+', 'toy')) == ([('B.1', 1.)], 'tiny')
    assert shown([], r'A', 'toy') == shown([], r'A\.1', 'other') == ([], '')      # a whole id, and this paper's


def test_error_bars_end_where_the_intervals_do():
    y, e = errors([point('A', 1.), point('B', 3.)], shift=10.)
    assert y.tolist() == [11., 13.] and (y - 10 - e[0]).tolist() == [.5, 2.5] and (y - 10 + e[1]).tolist() == [2., 4.]


def test_curves_have_the_mean_of_their_seeds_and_a_band_only_over_seeds():
    fig = loss_curves(dict(a=[[(0, 3.), (1, 1.)], [(0, 5.), (1, 3.)]], b=[[(0, 2.), (1, 2.)]]))
    ax, = fig.axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[4., 2.], [2., 2.]] and len(ax.collections) == 1


def test_a_forest_draws_claims_with_intervals_only():
    rows = [
        claim(id='C1'),
        claim(id='C2', ours=0.0, ci95=[-1.0, 1.0], verdict='inconclusive'),
        Row('toy', 'claim', 'C3', why='x'),
        point('A', 1.0),
    ]
    ax, = effect_plot(rows).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ['C2', 'C1']
    assert all(np.abs(line.get_xdata()).max() <= 1.0001 for line in ax.lines)
