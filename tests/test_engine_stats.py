"Intervals cover what they say, what stands in a row follows from its values, and a verdict follows from a row alone."
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from papers_lib.engine import stats
from papers_lib.engine.stats import (
    VALUES_LOST, Row, bootstrap, control, crossed, effect, equal_power, estimators, holm, look_level, mean_t,
    median_interval, new_seed, over_units, p_value, paired_hits, paired_t, power, rank_skill, share, slope, time_ratio,
    trend_t, trends, unidentified, verdict, verdict_rules)


# coverage, by simulation, at the sizes that are used: 93 to 97 of 100

def covers(draw, truth, n=1500, seed=1):
    "Share of intervals that hold the truth."
    rng = np.random.default_rng(seed)
    found = [draw(rng).ci95 for _ in range(n)]
    return np.mean([lo <= truth <= hi for lo, hi in found])


@pytest.mark.parametrize('n', [5, 15])
def test_the_paired_interval_covers(n):
    def draw(rng):
        seed = 5 * rng.normal(size=n)
        return paired_t(seed + rng.normal(size=n), seed + rng.normal(size=n))
    assert .93 <= covers(draw, 0.) <= .97


@pytest.mark.parametrize('of_seed, of_doc', [(.3, .3), (1., .1), (.1, 1.)])
def test_the_crossed_interval_covers(of_seed, of_doc):
    def draw(rng):
        tokens = rng.integers(50, 500, 40)
        table = of_seed * rng.normal(size=(5, 1)) + of_doc * rng.normal(size=(1, 40)) + rng.normal(size=(5, 40))
        return crossed(table, weights=tokens)
    assert .93 <= covers(draw, 0.) <= .97


def test_an_interval_over_seeds_alone_does_not_cover_other_documents():
    def draw(rng):
        return mean_t((rng.normal(size=(1, 40)) + .1 * rng.normal(size=(5, 40))).mean(1))
    assert covers(draw, 0.) < .5


def test_the_stratified_bootstrap_covers():
    chances = (.3, .5, .7)
    def draw(rng):
        return over_units([(rng.random(n) < p).astype(float) for n, p in zip((40, 100, 60), chances)], groups='strata')
    assert .93 <= covers(draw, .5, n=400) <= .97


def test_the_bootstrap_over_clusters_covers_where_one_over_units_does_not():
    def questions(rng): return [rng.normal() + .3 * rng.normal(size=8) for _ in range(30)]
    assert .93 <= covers(lambda rng: over_units(questions(rng), groups='clusters'), 0., n=600) <= .97
    assert covers(lambda rng: over_units(np.concatenate(questions(rng))), 0., n=60) < .8


@pytest.mark.parametrize('p, n, least, most', [(.3, 50, .93, .97), (.5, 200, .93, .97), (.02, 50, .95, .99)])
def test_the_interval_of_a_share_covers(p, n, least, most):
    "With p = 0.02 and 50 tries only 92.2 and 98.2 of 100 can be had: the number of hits is whole. It is the safe one."
    weight = scipy_stats.binom.pmf(np.arange(n + 1), n, p)
    inside = [lo <= p <= hi for lo, hi in (share(k, n).ci95 for k in range(n + 1))]
    assert least <= float(weight @ inside) <= most


def test_the_median_interval_covers():
    for n in (7, 15): assert covers(lambda rng: median_interval(rng.normal(size=n)), 0., n=800) > .94


def test_looking_three_times_costs_no_more_than_five_in_a_hundred():
    rng, looks, wrong = np.random.default_rng(7), (5, 10, 15), 0
    drawn = rng.normal(size=(4000, 15))
    for x in drawn:
        for n in looks:
            lo, hi = effect('t over seeds', {'d': x[:n].tolist()}, look_level(looks, n)).ci95
            if lo > 0 or hi < 0:
                wrong += 1
                break
    assert wrong / len(drawn) <= .055
    careless = np.mean([any(not lo <= 0 <= hi for lo, hi in (mean_t(x[:n]).ci95 for n in looks)) for x in drawn[:1000]])
    assert careless > .08


def test_power_is_what_simulation_finds():
    rng = np.random.default_rng(8)
    clears = np.mean([paired_t(rng.normal(1.5, 1., 5), np.zeros(5)).ci95[0] > .2 for _ in range(3000)])
    assert power(1.5, 1., 5, margin=.2) == pytest.approx(clears, abs=.03)
    assert power(1., 1., 20) > power(1., 1., 5) > power(.5, 1., 5)


# what each estimator is

def test_pairing_takes_out_what_the_seeds_share():
    rng = np.random.default_rng(2)
    seed, a, b = rng.normal(size=8) * 5, rng.normal(size=8) * .1, rng.normal(size=8) * .1
    paired, single = paired_t(seed + a, seed + b), mean_t(seed + a)
    assert np.ptp(paired.ci95) < np.ptp(single.ci95) / 5
    assert paired.ci95 == pytest.approx(scipy_stats.ttest_rel(seed + a, seed + b).confidence_interval(.95), abs=1e-9)


def test_a_crossed_mean_weighs_units_and_subtracts_the_second_arm():
    e = crossed([[1., 2.], [3., 5.]], [[0., 0.], [1., 1.]], weights=[1, 3], names=('a', 'b'))
    assert e.mean == pytest.approx(((1 + 6) / 4 + (2 + 12) / 4) / 2) and (e.n, e.n_seeds) == (2, 2)
    assert list(e.values) == ['a', 'b', 'weights']


def test_strata_weigh_alike_and_clusters_by_their_units():
    sets = [[0.] * 50 + [1.] * 50, [1.] * 15 + [0.] * 5]
    assert over_units(sets, groups='strata').mean == pytest.approx(.625)
    clusters = over_units([[1.]] * 10 + [[0., 0.]] * 10, groups='clusters')
    assert clusters.mean == pytest.approx(1 / 3) and clusters.n == 20


def test_none_of_many_is_not_exactly_none():
    assert share(0, 300).ci95 == pytest.approx([0., .01222], abs=1e-4)
    assert share([True] * 30, scale=100).ci95 == pytest.approx([88.43, 100.], abs=.01)


def test_paired_hits_agree_with_mcnemars_exact_test():
    rng = np.random.default_rng(3)
    for _ in range(50):
        a, b = rng.random(60) < .6, rng.random(60) < .45
        e, b10, b01 = paired_hits(a, b), int((a & ~b).sum()), int((~a & b).sum())
        assert e.mean == pytest.approx(a.mean() - b.mean())
        clear = e.ci95[0] > 0 or e.ci95[1] < 0
        assert clear == (scipy_stats.binomtest(b10, b10 + b01).pvalue < .05)


def test_five_rounds_of_three_are_five_rounds():
    full, light = np.arange(15.).reshape(5, 3) + 10, np.full((5, 3), 5.)
    e = time_ratio({'float32': full, 'int8': light}, 'float32', 'int8')
    assert e.n == 5 and e.mean == pytest.approx(17 / 5) and e.ci95 == pytest.approx([11 / 5, 23 / 5])
    assert median_interval([3., 1., 2.]).ci95 == [1., 3.]


def test_the_bootstrap_of_a_mean_is_about_its_t_interval():
    x = np.random.default_rng(4).exponential(size=400)
    assert bootstrap(x) == pytest.approx(mean_t(x).ci95, abs=.02)
    assert over_units(x, scale=100).ci95 == pytest.approx([100 * v for v in mean_t(x).ci95], abs=2.)


def test_trends_are_those_of_every_seed_by_itself():
    rng, x = np.random.default_rng(5), np.log([1., 2., 5., 9.])
    y = rng.normal(size=(4, 6))
    r = trends(x, y)
    for i in range(6):
        assert r['slope'][i] == pytest.approx(-np.polyfit(x, y[:, i], 1)[0])
        assert r['step'][i] == pytest.approx((-np.diff(y[:, i])).min())
        assert r['curve'][i] == pytest.approx(np.polyfit(x, y[:, i], 2)[0])
    assert trends(x[:2], y[:2])['curve'] is None
    assert slope(x, y.T) == pytest.approx(-r['slope'])
    assert trend_t(x, y).ci95 == pytest.approx(mean_t(r['slope']).ci95)
    assert trend_t(x, y, falls=False).mean == pytest.approx(-trend_t(x, y).mean)


def test_ranking_by_confidence_shows_skill_and_its_absence():
    right = np.arange(100) < 50
    good, none = rank_skill(right, -np.arange(100.)), rank_skill(right, np.random.default_rng(6).random(100))
    assert good['rho'] > .8 and good['top'] == .5 and good['fifths'] == [1., 1., .5, 0., 0.]
    assert abs(none['rho']) < .3
    assert rank_skill(right, np.zeros(100))['rho'] is None and rank_skill(np.ones(9), np.arange(9.))['rho'] is None
    assert rank_skill(right, np.arange(100.))['rho'] == pytest.approx(-good['rho'])


@pytest.mark.parametrize('call,words', [
    (lambda: mean_t([1.]), 'at least 2'), (lambda: mean_t([1., math.nan]), 'must be a finite number'),
    (lambda: paired_t([1., 2.], [1.]), 'the same seeds'), (lambda: bootstrap(np.ones(9)), 'at least 10'),
    (lambda: bootstrap(np.ones(20), n=100), 'at least 2,000'), (lambda: rank_skill([1, 0], [1.]), '2 answers and 1'),
    (lambda: rank_skill([], []), '0 answers'), (lambda: over_units(np.arange(9.)), 'at least 10'),
    (lambda: effect('t over seeds', {'a': [1., True]}), 'must be a finite number'),
    (lambda: effect('t over seeds', {'a': [1., '2']}), 'must be a finite number'),
    (lambda: effect('t over seeds', {'a': 3.}), 'must be a list'),
    (lambda: effect('t over seeds', {'a': [1., 2.], 'b': [1., 2.], 'c': [1., 2.]}), 'at most 2 arms'),
    (lambda: effect('t over seeds', {}), 'must name the arms'), (lambda: effect('z', {'a': [1.]}), "test='z'"),
    (lambda: effect('share', dict(hits=5, of=3)), 'no share'),
    (lambda: effect('share', dict(hits=True, of=3)), 'no share'),
    (lambda: crossed([[1., 2.]]), 'at least 2 seeds'), (lambda: crossed(np.eye(3), weights=[1, 0, 1]), 'above 0'),
    (lambda: paired_hits([0, 2], [1, 1]), 'hits are 0 or 1'), (lambda: median_interval([1., 2.]), 'at least 3'),
    (lambda: rank_skill([1, 0, 1, 0], [1., 2., 3., 4.]), '4 answers: fifths need at least 5'),
    (lambda: over_units([[1., 2.]] * 12 + [[]], groups='clusters'), "'first': group 12 is empty"),
    (lambda: over_units([[1.] * 12, []], groups='strata'), "'first': group 1 is empty"),
    (lambda: over_units([], groups='clusters'), "'first': no group"), (lambda: paired_hits([], []), 'no tries'),
    (lambda: equal_power(0., 0., 5, 1.), 'spread above 0'), (lambda: equal_power(0., 1., 5, 0.), 'margin=0'),
    (lambda: look_level((5, 10), 7), 'looks at 5, 10'), (lambda: power(1., 0., 5), 'spread above 0'),
])
def test_what_is_too_little_or_no_number_is_refused(call, words):
    with pytest.raises(ValueError, match=words): call()


def test_a_single_value_has_a_spread_of_nothing_and_no_nan():
    assert paired_hits([True], [False]).sd == over_units([1.]).sd == 0.


@pytest.mark.parametrize('expected, n, margin', [(0., 5, 1.5), (.3, 10, 1.), (-.3, 10, 1.), (.9, 40, 1.), (0., 3, .5)])
def test_the_power_of_equality_is_the_share_of_intervals_inside_the_margins(expected, n, margin):
    x = np.random.default_rng(4).normal(expected, 1., (20_000, n))
    half = scipy_stats.t.ppf(.975, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
    inside = np.mean((x.mean(1) - half >= -margin) & (x.mean(1) + half <= margin))
    assert equal_power(expected, 1., n, margin) == pytest.approx(inside, abs=.012)


def test_the_power_of_equality_at_its_ends():
    assert equal_power(0., 1e-3, 5, 1.) == pytest.approx(1.) and equal_power(3., 1., 1000, 1.) < 1e-6
    known = 2 * scipy_stats.norm.cdf(.1 * math.sqrt(5000) - 1.96) - 1       # so many units that the spread is known
    assert equal_power(0., 1., 5000, .1) == pytest.approx(known, abs=1e-3)


# the verdict

def row(lo, hi, kind='claim', **fields):
    "A row over two seeds whose interval is about [lo, hi]."
    half = (hi - lo) / 2 / scipy_stats.t.ppf(.975, 1)
    e = mean_t([(lo + hi) / 2 - half, (lo + hi) / 2 + half])
    return Row('x', kind, 'C1', **e.facts() | dict(rule='greater', margin=0.) | fields)


@pytest.mark.parametrize('lo,hi,rule,margin,word', [
    (.1, .3, 'greater', 0., 'holds'), (-.3, -.1, 'greater', 0., 'fails'), (-.1, .3, 'greater', 0., 'inconclusive'),
    (.1, .3, 'greater', .2, 'inconclusive'), (.1, .3, 'trend', .05, 'holds'), (.1, .3, 'less', .4, 'fails'),
    (.1, .3, 'less', 0., 'fails'), (-.3, -.1, 'less', .05, 'holds'), (-.3, -.1, 'less', .2, 'inconclusive'),
    (-.1, .1, 'equal', .2, 'holds'), (.3, .4, 'equal', .2, 'fails'), (.1, .4, 'equal', .2, 'inconclusive'),
    (-.02, .01, 'greater', -.01, 'inconclusive'), (-.005, .01, 'greater', -.01, 'holds'),
])
def test_the_verdict_on_a_claim(lo, hi, rule, margin, word):
    assert verdict(row(lo, hi, rule=rule, margin=margin)) == word


def test_less_is_the_mirror_of_greater():
    mirrored = dict(holds='holds', fails='fails', inconclusive='inconclusive')
    for lo, hi in ((.1, .3), (-.3, -.1), (-.1, .3)):
        assert verdict(row(-hi, -lo, rule='less')) == mirrored[verdict(row(lo, hi))]


@pytest.mark.parametrize('kind', ['speed', 'leak'])
def test_a_speed_or_a_leak_can_be_inconclusive(kind):
    words = [verdict(row(lo, hi, kind, rule='at_least', bound=1.)) for lo, hi in ((1.01, 2.), (.5, .9), (.9, 1.1))]
    assert words == ['holds', 'fails', 'inconclusive']
    words = [verdict(row(lo, hi, kind, rule='at_most', bound=1.)) for lo, hi in ((.5, .9), (1.1, 2.), (.9, 1.1))]
    assert words == ['holds', 'fails', 'inconclusive']


def test_a_share_is_held_against_its_bound_by_its_exact_interval():
    clean = Row('x', 'leak', 'L', rule='at_most', bound=.01, **share(0, 1000).facts())
    few = Row('x', 'leak', 'L', rule='at_most', bound=.01, **share(0, 100).facts())
    assert (verdict(clean), verdict(few)) == ('holds', 'inconclusive')
    every = Row('x', 'claim', 'C1', rule='exact', bound=1., **share(50, 50).facts())
    most = Row('x', 'claim', 'C1', rule='exact', bound=.9, **share(50, 50).facts())
    assert (verdict(every), verdict(most)) == ('holds', 'holds')
    most.values, most.bound = dict(hits=30, of=30), .9
    most.ci95 = share(30, 30).ci95
    assert verdict(most) == 'fails'


def test_the_bound_of_a_share_is_read_on_its_scale():
    judged = lambda k, bound: verdict(Row('x', 'claim', 'C1', rule='exact', bound=bound, **share(k, 50, 100).facts()))
    assert (judged(50, 100), judged(49, 100), judged(0, 0), judged(1, 0)) == ('holds', 'fails', 'holds', 'fails')
    assert (judged(50, 90), judged(46, 90), judged(50, 1)) == ('holds', 'fails', 'holds')


def test_reproduced_needs_a_narrow_interval_and_a_small_tolerance():
    table = dict(kind='table', rule='paper', paper_value=30.)
    assert verdict(row(29., 31., margin=1., **table)) == 'reproduced'
    assert verdict(row(20., 28., margin=1., **table)) == 'not reproduced'
    assert verdict(row(-970., 1030., margin=1., **table)) == 'not reproduced'
    with pytest.raises(ValueError, match='at most 5 %'): verdict(row(29., 31., margin=2., **table))


def test_every_kind_has_rules_and_every_other_rule_is_refused():
    for kind, rules in verdict_rules.items():
        for rule in {r for rs in verdict_rules.values() for r in rs} | {'bigger'}:
            r = row(.9, 1.1, kind, rule=rule, bound=1., paper_value=1., margin=.01)
            if rule in rules: assert verdict(r)
            else:
                with pytest.raises(ValueError, match=f'rule={rule!r}'): verdict(r)


# what a row says and its values do not

@pytest.mark.parametrize('field,value', [
    ('margin', None), ('margin', math.nan), ('margin', True), ('ci95', [0.]), ('ci95', [1., 2.]),
    ('ci95', [math.nan, 1.]), ('ci95', [.2, .8]), ('ci95', [.5, .5]), ('ours', math.inf), ('ours', True), ('ours', .6),
    ('n_seeds', 15), ('test', 'bootstrap over units'), ('values', None), ('values', {'effect': [.4]}),
    ('values', {'effect': [.4, math.nan]}), ('values', {'effect': [.4, .7]}),
])
def test_a_field_changed_by_hand_is_found(field, value):
    r = row(0., 1.)
    assert verdict(r) == 'inconclusive'
    setattr(r, field, value)
    with pytest.raises(ValueError, match='row C1: '): verdict(r)


def test_a_number_without_values_is_no_claim_and_no_speed():
    for kind, rule in (('claim', 'greater'), ('speed', 'at_least'), ('leak', 'at_most')):
        with pytest.raises(ValueError, match='needs values'):
            verdict(Row('x', kind, 'C1', ours=1., rule=rule, margin=0., bound=0.))
    assert verdict(Row('x', 'parity', 'P', ours=1e-6, rule='at_most', bound=1e-5)) == 'holds'
    assert verdict(Row('x', 'parity', 'P', ours=1e-4, rule='at_most', bound=1e-5)) == 'fails'


def test_equal_values_have_no_interval_and_decide_nothing():
    e = mean_t([.5, .5, .5])
    assert e.ci95 is None and verdict(Row('x', 'claim', 'C1', rule='greater', margin=0., **e.facts())) == 'inconclusive'


def test_values_that_were_not_kept_give_no_verdict():
    told = dict(ours=.5, ci95=[.4, .6], test=VALUES_LOST, rule='greater', margin=0., n_seeds=1)
    with pytest.raises(ValueError, match='values were not kept'): verdict(Row('x', 'claim', 'C1', **told))
    assert verdict(Row('x', 'claim', 'C1', **told, why='an older file')) == 'not identified'
    assert verdict(Row('x', 'table', 'T1', **told | dict(rule='scaled', margin=None))) == 'scaled down'


@pytest.mark.parametrize('name', sorted(set(estimators) - {'slope over seeds', 'fall over seeds', 'share'}))
def test_every_estimator_reads_its_values_with_suspicion(name):
    for odd in ({'a': [[True] * 12] * 12}, {'a': 'text'}, {'a': [[math.inf] * 12] * 12}, {'a': None}):
        with pytest.raises(ValueError): effect(name, odd)


# controls

def test_a_claim_whose_controls_misbehave_is_not_identified():
    def judged(must, lo, hi):
        e = row(lo, hi)
        c = control('arm', must, mean_t(e.values['effect']))
        return verdict(row(.4, .6, controls=[c]))
    assert judged('nothing', -.1, .1) == 'holds' and judged('nothing', .1, .3) == 'not identified'
    assert judged('nothing', -.2, .8) == 'not identified'                  # half the effect, however uncertain
    assert judged('effect', .5, .9) == 'holds' and judged('effect', -.1, .1) == 'not identified'
    assert judged('floor', -.1, .3) == 'holds' and judged('floor', -.3, -.1) == 'not identified'
    assert verdict(row(.4, .6, controls=[control('arm', 'nothing', None)])) == 'not identified'
    assert verdict(row(.4, .6, why='minima outside the grid')) == 'not identified'


def test_a_control_is_believed_no_more_than_a_row():
    c = control('arm', 'nothing', mean_t([-.1, .1]))
    r = row(.4, .6, controls=[c | dict(ours=.05)])
    with pytest.raises(ValueError, match='control arm: its values say'): verdict(r)
    with pytest.raises(ValueError, match='unknown or missing'): verdict(row(.4, .6, controls=[dict(name='arm')]))
    with pytest.raises(ValueError, match="must='none'"): control('arm', 'none', None)
    shown = row(.4, .6, controls=[control('arm', 'nothing', mean_t([1., 1.02]))])
    assert unidentified(shown) == 'arm shows the effect too'


def test_models_that_ran_without_a_number_are_not_the_same_as_none():
    assert verdict(Row('x', 'claim', 'C1', why='no data')) == 'not attempted'
    assert verdict(Row('x', 'claim', 'C1', why='no minimum inside the grid', n_seeds=3)) == 'not identified'
    with pytest.raises(ValueError, match='why'): verdict(Row('x', 'claim', 'C1'))


# beside the verdict

def claims_of(*values):
    rules = dict(rule='greater', margin=0.)
    return [Row('x', 'claim', f'C{i + 1}', **rules, **mean_t(v).facts()) for i, v in enumerate(values)]


def test_holm_asks_more_of_many_claims_and_never_less():
    rng = np.random.default_rng(9)
    rows = claims_of(*[(.8 + rng.normal(size=5)).tolist() for _ in range(12)])
    plain, corrected = [verdict(r) for r in rows], list(holm(rows).values())
    order = sorted(range(12), key=lambda i: p_value(rows[i]))
    stop = next((k for k, i in enumerate(order) if p_value(rows[i]) > .05 / (12 - k)), 12)
    for k, i in enumerate(order): assert corrected[i] == (plain[i] if k < stop else 'inconclusive')
    assert plain.count('holds') > corrected.count('holds')
    assert p_value(rows[0]) == pytest.approx(scipy_stats.ttest_1samp(rows[0].values['effect'], 0).pvalue, rel=1e-2)


def test_one_new_seed_falls_into_its_interval():
    rng, inside = np.random.default_rng(10), 0
    for _ in range(1000):
        x = rng.normal(size=6)
        lo, hi = new_seed(claims_of(x[:5].tolist())[0])
        inside += lo <= x[5] <= hi
    assert abs(inside / 1000 - .95) < .025
    assert new_seed(Row('x', 'speed', 'S', **median_interval([1., 2., 3.]).facts())) is None


def test_a_row_comes_back_from_its_dictionary():
    r = row(0., 1., controls=[control('arm', 'nothing', mean_t([-.1, .1]))], looks=[5, 10])
    assert Row.from_dict(r.to_dict()) == r
    with pytest.raises(ValueError, match='odd'): Row.from_dict(r.to_dict() | dict(odd=1))
    with pytest.raises(ValueError, match='ci95'): Row.from_dict({k: v for k, v in r.to_dict().items() if k != 'ci95'})


def test_one_drawing_serves_every_level_and_each_content_has_its_own(monkeypatch):
    rng, drawn = np.random.default_rng(3), []
    a, b = rng.normal(.5, 1, 40), rng.normal(size=40)
    real = np.random.default_rng
    monkeypatch.setattr(stats.np.random, 'default_rng', lambda *seed: (drawn.append(seed), real(*seed))[1])
    stats._drawn.clear()
    wide, narrow = (stats.effect('bootstrap over units', dict(a=[*a], b=[*b]), level).ci95 for level in (.99, .5))
    assert len(drawn) == 1 and wide[0] < narrow[0] < narrow[1] < wide[1]
    stats._drawn.clear()
    assert stats.effect('bootstrap over units', dict(a=[*a], b=[*b]), .5).ci95 == narrow          # drawn anew: the same
    other = stats.effect('bootstrap over units', dict(a=[*(a + 1)], b=[*b]), .5).ci95
    assert len(drawn) == 3 and other[0] > narrow[0] + .9


def test_the_error_level_of_a_claim_is_its_own_and_is_found_once(monkeypatch):
    clears, asked = stats._clears, []
    monkeypatch.setattr(stats, '_clears', lambda row, level: (asked.append(row.id), clears(row, level))[1])
    stats._error_levels.clear()
    row = lambda id, margin: Row('toy', 'claim', id, rule='greater', margin=margin, **mean_t([.8, 1., 1.2]).facts())
    easy, hard = stats.p_value(row('C1', .1)), stats.p_value(row('C2', .7))
    n = len(asked)
    assert easy < hard and stats.p_value(row('C1', .1)) == easy and len(asked) == n
