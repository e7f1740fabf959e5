"Intervals cover what they say, trends and rankings are their formulas, and a verdict follows from a row alone."
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from papers_lib.engine.stats import (Row, bootstrap, mean_t, median_interval, over_units, paired_t, rank_skill, slope,
                                     trends, verdict, verdict_rules)


def test_the_t_interval_covers_the_mean_in_95_of_100():
    rng = np.random.default_rng(1)
    for n in (2, 3, 10):
        inside = [lo <= 0 <= hi for lo, hi in (mean_t(rng.normal(size=n)).ci95 for _ in range(2000))]
        assert abs(np.mean(inside) - .95) < .02


def test_pairing_takes_out_what_the_seeds_share():
    rng = np.random.default_rng(2)
    seed, a, b = rng.normal(size=8) * 5, rng.normal(size=8) * .1, rng.normal(size=8) * .1
    paired, single = paired_t(seed + a, seed + b), mean_t(seed + a)
    assert np.ptp(paired.ci95) < np.ptp(single.ci95) / 5
    assert paired.ci95 == pytest.approx(scipy_stats.ttest_rel(seed + a, seed + b).confidence_interval(.95), abs=1e-9)


@pytest.mark.parametrize('call,words', [
    (lambda: mean_t([1.]), 'at least 2'), (lambda: mean_t([1., math.nan]), 'must be finite'),
    (lambda: paired_t([1., 2.], [1.]), 'the same seeds'), (lambda: bootstrap(np.ones(9)), 'at least 10'),
    (lambda: bootstrap(np.ones(20), n=100), 'at least 2,000'), (lambda: rank_skill([1, 0], [1.]), '2 answers and 1'),
    (lambda: rank_skill([], []), '0 answers'),
])
def test_too_little_is_refused(call, words):
    with pytest.raises(ValueError, match=words): call()


def test_the_median_interval_covers_the_median():
    rng = np.random.default_rng(3)
    for n in (7, 15):
        found = [median_interval(rng.normal(size=n)).ci95 for _ in range(1000)]
        assert np.mean([lo <= 0 <= hi for lo, hi in found]) > .94
    assert median_interval([3., 1., 2.]).ci95 == [1., 3.]


def test_the_bootstrap_of_a_mean_is_about_its_t_interval():
    x = np.random.default_rng(4).exponential(size=400)
    assert bootstrap(x) == pytest.approx(mean_t(x).ci95, abs=.02)
    assert over_units(x, 100).ci95 == pytest.approx([100 * v for v in bootstrap(x)])


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


def test_ranking_by_confidence_shows_skill_and_its_absence():
    right = np.arange(100) < 50
    good, none = rank_skill(right, -np.arange(100.)), rank_skill(right, np.random.default_rng(6).random(100))
    assert good['rho'] > .8 and good['top'] == .5 and good['fifths'] == [1., 1., .5, 0., 0.]
    assert abs(none['rho']) < .3
    assert rank_skill(right, np.zeros(100))['rho'] is None and rank_skill(np.ones(9), np.arange(9.))['rho'] is None
    assert rank_skill(right, np.arange(100.))['rho'] == pytest.approx(-good['rho'])


def row(lo, hi, kind='claim', **fields):
    return Row('x', kind, 'C1', ours=(lo + hi) / 2, ci95=[lo, hi], **dict(rule='greater', margin=0.) | fields)


@pytest.mark.parametrize('lo,hi,rule,margin,word', [
    (.1, .3, 'greater', 0., 'holds'), (-.3, -.1, 'greater', 0., 'fails'), (-.1, .3, 'greater', 0., 'inconclusive'),
    (.1, .3, 'greater', .2, 'inconclusive'), (.1, .3, 'trend', .05, 'holds'), (.1, .3, 'less', .4, 'fails'),
    (-.1, .1, 'equal', .2, 'holds'), (.3, .4, 'equal', .2, 'fails'), (.1, .4, 'equal', .2, 'inconclusive'),
])
def test_the_verdict_on_a_claim(lo, hi, rule, margin, word):
    assert verdict(row(lo, hi, rule=rule, margin=margin)) == word


def test_every_kind_has_rules_and_every_other_rule_is_refused():
    for kind, rules in verdict_rules.items():
        for rule in {r for rs in verdict_rules.values() for r in rs} | {'bigger'}:
            r = row(1., 1., kind, rule=rule, bound=1., paper_value=1.)
            if rule in rules: assert verdict(r)
            else:
                with pytest.raises(ValueError, match=f'rule={rule!r}'): verdict(r)


@pytest.mark.parametrize('field,value', [('margin', None), ('margin', math.nan), ('ci95', [0.]), ('ci95', [1., 2.]),
                                         ('ci95', [math.nan, 1.]), ('ours', math.inf)])
def test_a_row_that_lacks_what_it_needs_has_no_verdict(field, value):
    r = row(0., 1.)
    setattr(r, field, value)
    with pytest.raises(ValueError, match=f'row C1: {field}'): verdict(r)


def test_a_row_comes_back_from_its_dictionary():
    r = row(0., 1., values=[1., 2.], n_seeds=2)
    assert Row.from_dict(r.to_dict()) == r
    with pytest.raises(ValueError, match='odd'): Row.from_dict(r.to_dict() | dict(odd=1))
    with pytest.raises(ValueError, match='ci95'): Row.from_dict({k: v for k, v in r.to_dict().items() if k != 'ci95'})
