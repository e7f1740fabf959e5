"Presets: what a paper declares, what is refused before anything starts, what is planned."
import sys
from dataclasses import dataclass, fields, replace

import pytest
from torch import nn

from papers_lib.engine.stats import equal_power, power
from papers_lib.lab.presets import (Claim, DataConfig, Paper, RunSpec, apply_overrides, check_parameters, finite,
                                    measured_claims,
                                    missing_data, paper_of, plan)
from papers_lib.lab.run import start


@dataclass(frozen=True)
class Toy:
    lr:float = 1.
    n:int = 2
    name:str|None = None
    widths:tuple = (1, 2)
    d_ff:int|None = None
    n_vocab:int = 2048
    ctx_len:int = 8
    n_layer:int = 1
    d_model:int = 4

    def __post_init__(self):
        if self.n < 1: raise ValueError(f'Toy.n={self.n}: must be at least 1')


@dataclass(frozen=True)
class Steps:
    n_step:int = 10
    batch_size:int = 4
    lr:float = 1.
    seed:int = 0


@dataclass(frozen=True)
class Grids:
    widths:tuple = ()
    n_step_sums:int = 0
    shares:tuple = (0.5,)


class Net(nn.Linear):
    def __init__(self, cfg):
        if cfg.name == 'foo': raise KeyError('foo')
        super().__init__(cfg.d_model, cfg.n_vocab)
        self.cfg = cfg


spec = RunSpec(Toy(), Steps(), DataConfig(), Grids())
claims = dict(C1=Claim('Section 1', 'Wider is better', 'greater', 0., needs=('widths',)),
              C2=Claim('Section 2', 'All come back', 'exact', bound=1.),
              C3=Claim('Section 3', 'Sums', 'greater', 0., needs=('n_step_sums', 'shares')),
              C4=Claim('Section 4', 'Words', 'less', 0., over='units'))
toy = Paper('toy', Net, {'tiny': spec, 'cpu': replace(spec, claims=Grids((1, 2), 5), n_seeds=5)}, claims)


# overrides

def test_overrides_change_one_field_and_keep_its_type():
    new = apply_overrides(spec, '{"train.lr": 3, "model.name": "a", "claims.widths": [4, 5]}')
    assert (new.train, new.model, new.claims) == (Steps(lr=3.), Toy(name='a'), Grids((4, 5)))
    assert isinstance(new.train.lr, float) and spec.train == Steps()


def test_overrides_that_need_each_other_are_applied_together():
    @dataclass(frozen=True)
    class Heads:
        d:int = 8
        n:int = 4
        def __post_init__(self):
            if self.d % self.n: raise ValueError('n must divide d')
    heads = replace(spec, model=Heads())
    assert apply_overrides(heads, {'model.d': 9, 'model.n': 3}).model == Heads(9, 3)
    with pytest.raises(ValueError, match='must divide'): apply_overrides(heads, {'model.d': 9})


@pytest.mark.parametrize('text, words', [
    ('{', 'not JSON'), ('[1]', 'must be an object'), ('{"lr": 1}', "override 'lr': must be model.X"),
    ('{"train.lrr": 1}', "did you mean 'lr'"),
    ('{"train.lr": Infinity}', 'train.lr=inf: must be a finite number'),
    ('{"claims.widths": [1, NaN]}', 'a list of finite'),
    ('{"model.n": "x"}', "model.n='x': must be a whole number"),
    ('{"data.name": "boks"}', "data.name='boks': must be a data set, did you mean 'books'"),
    ('{"model.name": 3}', 'must be text or null'), ('{"modle.n": 3}', "did you mean 'model'"),
    ('{"model.n": 1.5}', 'must be'),
    ('{"model.n": true}', 'must be'), ('{"model.n": 0}', 'Toy.n=0'), ('{"optimizer.lr": 1}', 'must be model.X')])
def test_bad_overrides_name_the_field(text, words):
    with pytest.raises(ValueError, match=words): apply_overrides(spec, text)


def test_the_vocabulary_is_set_in_one_place_and_moves_both():
    new = apply_overrides(spec, {'data.n_vocab': 512})
    assert new.data.n_vocab == new.model.n_vocab == 512
    with pytest.raises(ValueError, match='model.n_vocab=512: has no effect, the corpus decides: set data.n_vocab'):
        apply_overrides(spec, {'model.n_vocab': 512})
    alone = replace(spec, data=Grids())                       # no text decides here
    assert apply_overrides(alone, {'model.n_vocab': 512}).model.n_vocab == 512


@pytest.mark.parametrize('key, words', [('model.d_ff', 'write null'), ('train.seed', 'the run decides: set seed')])
def test_a_value_without_effect_is_refused(key, words):
    with pytest.raises(ValueError, match=f'{key}=0: has no effect.*{words}'): apply_overrides(spec, {key: 0})


def test_a_value_that_the_configuration_replaces_is_refused():
    @dataclass(frozen=True)
    class Rounded:
        d_ff:int = 64
        def __post_init__(self): object.__setattr__(self, 'd_ff', 64 * -(-self.d_ff // 64))
    with pytest.raises(ValueError, match='model.d_ff=65: has no effect, Rounded makes it 128'):
        apply_overrides(replace(spec, model=Rounded()), {'model.d_ff': 65})


def other(value):
    "A further value of the same type."
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    if isinstance(value, tuple): return [7]
    return 'wikitext2' if isinstance(value, str) else 16


@pytest.mark.parametrize('part', ['model', 'train', 'data', 'claims'])
def test_every_field_acts_or_is_refused(part):
    for f in fields(getattr(spec, part)):
        value = other(getattr(getattr(spec, part), f.name)) if f.name != 'name' or part == 'data' else 'other'
        try: new = apply_overrides(spec, {f'{part}.{f.name}': value})
        except ValueError as e: assert 'has no effect' in str(e) and f.name in ('n_vocab', 'seed')
        else: assert new != spec


# parameters

@pytest.mark.parametrize('parameters, words', [
    (dict(seed='abc'), "seed='abc': must be a whole number from 0"), (dict(seed=-1), 'seed=-1'),
    (dict(seed=True), 'seed=True'),
    (dict(n_seeds=-1), 'n_seeds=-1: must be'), (dict(n_seeds=1.5), 'n_seeds=1.5'),
    (dict(wandb_mode='ofline'), "did you mean 'offline'"),
    (dict(device='gpu'), "device='gpu': must be 'auto', 'cpu' or 'cuda', did you mean 'cuda'"),
    (dict(preset='tinny'), "did you mean 'tiny'"),
    (dict(claims='C7'), "no claim 'C7'"), (dict(claims=3), 'claims=3: must be'), (dict(out_dir=3), 'out_dir=3'),
    (dict(overrides='{"train.lrr": 1}'), "did you mean 'lr'"),
    # what would be known after minutes only
    (dict(claims='C1'), "claims='C1': preset tiny leaves C1 out; set claims.widths, or take preset cpu"),
    (dict(claims='C2,C3'), "leaves C3 out; set claims.n_step_sums, or take"),
    (dict(preset='cpu', overrides='{"claims.widths": []}', claims='C1'), 'leaves C1 out'),
    (dict(preset='cpu', n_seeds=1), 'n_seeds=1: C1, C3 is judged by an interval over seeds'),
    (dict(preset='cpu', n_seeds=1, claims='C1'), 'n_seeds=1: C1 is judged'),
    (dict(overrides='{"model.name": "foo"}'), "Net cannot be built.*KeyError: 'foo'")])
def test_one_check_of_parameters_for_the_runner_and_the_notebook(parameters, words):
    with pytest.raises(ValueError, match=words): check_parameters(toy, parameters)
    with pytest.raises(ValueError, match=words): start(toy, **parameters)


@pytest.mark.parametrize('parameters', [
    dict(), dict(claims='none'), dict(n_seeds=1), dict(claims='C2'), dict(preset='cpu'),
    dict(preset='cpu', n_seeds=1, claims='C2,C4'),
    dict(preset='cpu', n_seeds=1, claims='none'), dict(claims='C1', n_seeds=2, overrides='{"claims.widths": [3]}')])
def test_what_can_be_measured_is_let_through(parameters):
    assert isinstance(check_parameters(toy, parameters), RunSpec)


def test_a_paper_without_a_module_is_checked_as_far_as_it_goes():
    assert check_parameters('draft', dict(preset='cpu', seed=3)) is None
    with pytest.raises(ValueError, match="draft: unknown preset 'cpuu', did you mean 'cpu'"):
        check_parameters('draft', dict(preset='cpuu'))


def test_which_claims_a_run_measures():
    at = lambda preset, asked: measured_claims(toy, preset, toy.runs[preset], asked)
    assert at('tiny', 'all') == [] == at('cpu', 'none')
    assert at('cpu', 'all') == ['C1', 'C2', 'C3', 'C4'] and at('tiny', 'C2,C4') == ['C2', 'C4']
    without = apply_overrides(toy.runs['cpu'], {'claims.widths': []})
    assert measured_claims(toy, 'cpu', without) == ['C2', 'C3', 'C4']


# declarations

@pytest.mark.parametrize('make, words', [
    (lambda: Claim('x', 'x', 'bigger'), "Claim.rule='bigger'"),
    (lambda: Claim('x', 'x', 'equal', 0.), 'a margin above 0'),
    (lambda: Claim('x', 'x', 'greater'), 'Claim.margin: rule .greater. needs one'),
    (lambda: Claim('x', 'x', 'exact'), 'Claim.bound: rule .exact. needs one'),
    (lambda: Claim('x', 'x', 'less', 0., controls={'placebo': 'none'}), "must be one of nothing, effect, floor"),
    (lambda: Claim('x', 'x', 'exact', bound=1., controls={'placebo': 'nothing'}), 'placebo.*has no margin.*floor'),
    (lambda: Claim('x', 'x', 'less', 0., looks=(10, 5)), 'increasing numbers of seeds'),
    (lambda: Claim('x', 'x', 'less', 0., n=0), 'Claim.n=0'),
    (lambda: Claim('x', 'x', 'less', float('nan')), 'must be finite'),
    (lambda: Claim('x', 'x', 'less', 0., over='users'), "Claim.over='users'"),
    (lambda: Paper('t', Net, dict(tinny=spec), {}), "did you mean 'tiny'"),
    (lambda: Paper('t', Net, dict(tiny=spec), dict(C1=Claim('x', 'x', 'less', 0., needs=('width',)))),
     "C1.needs: Grids has no field 'width'"),
    (lambda: DataConfig(n_vocab=256), 'must be at least 257'), (lambda: replace(spec, n_seeds=0), 'n_seeds=0')])
def test_a_wrong_declaration_is_refused_where_it_stands(make, words):
    with pytest.raises(ValueError, match=words): make()


def test_the_power_of_a_claim_follows_from_its_rule():
    alike = Claim('x', 'x', 'equal', .1, expected=0., spread=.05, n=5)
    assert alike.power == pytest.approx(equal_power(0., .05, 5, .1)) and alike.power > .5
    assert replace(alike, expected=None).power is None and replace(alike, expected=.3).power < 1e-3
    assert replace(alike, rule='greater', expected=.3).power == pytest.approx(power(.3, .05, 5, .1))
    assert alike.design == replace(alike, expected=None).design
    assert Claim('x', 'x', 'exact', bound=1., controls={'chance': 'floor'}).controls       # a floor needs no margin


def test_a_paper_is_found_by_its_name(monkeypatch):
    import types
    assert paper_of('nopaper') is None
    module = types.ModuleType('papers_lib.toy')
    monkeypatch.setitem(sys.modules, 'papers_lib.toy', module)
    with pytest.raises(ValueError, match=r"papers_lib.toy has no `paper`.*paper = Paper\('toy'"): paper_of('toy')
    module.paper = toy
    assert paper_of('toy') is toy


def test_an_error_inside_a_papers_module_is_not_taken_for_its_absence(tmp_path, monkeypatch):
    import papers_lib
    (tmp_path / 'broken.py').write_text('import nothing_of_this_name', encoding='utf-8')
    monkeypatch.setattr(papers_lib, '__path__', [*papers_lib.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match='nothing_of_this_name'): paper_of('broken')


# the plan

def test_a_plan_counts_and_takes_overrides():
    small = plan(toy, spec)
    assert small['tokens'] == 10 * 4 * 8 and small['parameters'] == 4 * 2048 + 2048 and small['data'] == 'books'
    assert small['state_bytes'] == 16 * small['parameters'] and small['checkpoint_bytes'] == 12 * small['parameters']
    large = plan(toy, apply_overrides(spec, {'train.n_step': 20}))
    assert large['tokens'] == 2 * small['tokens'] and large['flops'] == 2 * small['flops']


def test_a_set_that_nobody_has_is_said_and_planned():
    openwebtext = replace(spec, data=DataConfig('openwebtext'))
    assert 'openwebtext' in missing_data(openwebtext) and missing_data(openwebtext) == plan(toy, openwebtext)['data']
    assert not missing_data(spec) and not missing_data(replace(spec, data=Grids()))


def test_the_grid_of_a_run_names_every_number_and_leaves_empty_grids_out():
    assert spec.grid['claims.n_step_sums'] == 0 and spec.grid['train.n_step'] == 10 and spec.grid['n_seeds'] == 1
    assert 'claims.widths' not in spec.grid and 'model.name' not in spec.grid and spec.grid['claims.shares'] == [.5]
    assert spec.grid_hash == replace(spec, claims=replace(spec.claims, widths=())).grid_hash
    for part, change in (('claims', dict(n_step_sums=1)), ('train', dict(lr=0.)), ('model', dict(d_model=8))):
        other = replace(spec, **{part: replace(getattr(spec, part), **change)})
        assert other.grid_hash != spec.grid_hash, change


def test_no_depth_hides_an_undefined_number():
    assert finite({'a': [1., (2, 'x')]}) and not finite([{'a': (1., float('nan'))}]) and not finite(float('inf'))
