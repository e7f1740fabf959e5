"Which rows a figure shows, and where."
import re
from xml.etree import ElementTree

import numpy as np, pytest

from papers_lib.engine.stats import Row, median_interval
from papers_lib.lab.plots import errors, forest, loss_curves, shown
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


def test_no_arm_is_left_out_for_want_of_a_colour():
    ax, = loss_curves({f'arm {i}': [[(0, 1. + i), (1, float(i))]] for i in range(8)}).axes
    assert len(ax.lines) == 8 and ax.lines[6].get_color() == ax.lines[0].get_color()


def drawn(picture):
    "Each claim of a forest: its verdict, then the ends of the shade and of the interval, in pixels."
    out = []
    for group in re.split('(?=<text[^>]*class="verdict [a-z-]+">)', picture)[1:]:
        shade = re.search('<rect x="([-.0-9]+)" y="[-.0-9]+" width="([.0-9]+)" height="18"', group)
        bar = re.search('<path d="M([.0-9]+) [.0-9]+H([.0-9]+)"', group)
        ends = (float(shade[1]), float(shade[1]) + float(shade[2]), *map(float, bar.groups())) if bar else ()
        out.append((re.search('class="verdict [a-z-]+">([^<]+)<', group)[1], ends))
    return out


def test_a_forest_shows_every_claim_with_its_verdict_and_what_did_not_hold_first():
    rows = [claim(id='C10'), claim(id='C2'), claim(id='C3', ours=0., ci95=[-1., 1.], verdict='inconclusive'),
            claim(id='C4', ours=-1., ci95=[-2., -.5], verdict='fails'), point('A', 1.),
            claim(id='C5', ours=None, ci95=None, why='there is no corpus', verdict='not attempted')]
    for r in rows: r.verdict = r.verdict or 'holds'
    for width in (960, 350):
        picture = forest([('toy', rows, dict(preset='cpu')), ('toy', [point('B', 1.)], dict(preset='bench'))], width)
        assert [v for v, _ in drawn(picture)] == ['fails', 'inconclusive', 'holds', 'holds', 'not attempted']
        assert re.findall(r'>(C\d+):', picture) == ['C4', 'C3', 'C2', 'C10', 'C5']
        assert '5 claims: 1 fails, 1 inconclusive, 2 holds, 1 not attempted' in picture
        assert 'there is no corpus' in picture and 'preset bench' not in picture


@pytest.mark.parametrize('rule, margin, ours, ci95', [
    ('greater', 0., 1., [.5, 1.5]), ('greater', .7, 1., [.5, 1.5]), ('greater', 2., 1., [.5, 1.5]),
    ('greater', -.01, .005, [.003, .008]), ('trend', 0., .01, [-.006, .025]), ('greater', 0., -.1, [-.2, -.05]),
    ('equal', .02, .001, [-.01, .012]), ('equal', .02, -.02, [-.06, .016]), ('equal', .02, .5, [.4, .6]),
    ('less', .1, -.5, [-.6, -.4]), ('less', .1, -.1, [-.15, .05]), ('less', .1, .5, [.4, .6]),
])
def test_an_interval_lies_in_the_shade_if_and_only_if_its_claim_holds(rule, margin, ours, ci95):
    row = claim(rule=rule, margin=margin, ours=ours, ci95=ci95)
    low, high = dict(equal=(-margin, margin), less=(-np.inf, -margin)).get(rule, (margin, np.inf))
    inside, outside = low <= ci95[0] and ci95[1] <= high, ci95[1] < low or ci95[0] > high
    row.verdict = 'holds' if inside else 'fails' if outside else 'inconclusive'
    (_, (start, stop, left, right)), = drawn(forest([('toy', [row], dict(preset='cpu'))]))
    assert (start <= left and right <= stop) == inside
    assert (right < start or left > stop) == outside


def test_a_forest_is_a_file_that_reads_whatever_its_rows_say():
    says = '<script>a</script> & [/b] \x1b[31m \x00 $x$ ]]> \ud800'
    row = claim(unit='<u>', why=says, verdict='holds', tests=says)
    picture = forest([('<toy>', [row], dict(preset='"cpu"'))], names={'<toy>': '<i>Toy</i>'})
    tree = ElementTree.fromstring(picture.encode('utf-8'))
    assert {e.tag.split('}')[1] for e in tree.iter()} == {'svg', 'style', 'rect', 'text', 'path', 'circle'}
    words = ' '.join(e.text for e in tree.iter() if e.tag.endswith('text'))
    assert '<script>a</script>' in words and '<i>Toy</i>, preset "cpu"' in words and picture._repr_svg_() == picture
    assert forest([('<toy>', [row], dict(preset='"cpu"'))], names={'<toy>': '<i>Toy</i>'}) == picture


def test_a_claim_without_an_interval_is_a_point_and_nothing_at_all_is_a_picture_too():
    exact = claim(rule='exact', margin=None, bound=1., ours=1., ci95=None, verdict='holds')
    (_, (start, stop, left, right)), = drawn(forest([('toy', [exact], dict(preset='cpu'))]))
    assert start <= left == right <= stop
    nought = claim(ours=0., ci95=[0., 0.], verdict='inconclusive')                     # no scale of its own
    assert 'nan' not in forest([('toy', [nought], dict(preset='cpu'))])
    assert '0 claims' in forest([])
