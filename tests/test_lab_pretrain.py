"Models that are trained once: what makes another one of them."
import gzip
import hashlib
import math
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch

from papers_lib.engine import recipe
from papers_lib.engine.checkpoint import load_model, save_model
from papers_lib.engine.train import TrainConfig
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.lab import data, memo, pretrain
from papers_lib.engine.evaluate import held_out
from papers_lib.engine.recipe import split_for, train_lm
from papers_lib.lab.memo import map_variants
from papers_lib.lab.presets import DataConfig, RunSpec
from papers_lib.lab.pretrain import Tuned, pretrained_folder, tune_rate
from papers_lib.store.cache import reading

spec = RunSpec(GPT2Config(n_vocab=300, ctx_len=16, d_model=16, n_layer=1, n_head=1),
               TrainConfig(n_step=2, batch_size=2, lr=1e-2),
               DataConfig('small', 300), None)


@pytest.fixture(autouse=True)
def trainings(tmp_path, monkeypatch, small):
    "An empty cache, and the seeds that were trained."
    seeds = []
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    def counted(*args, **kw):
        seeds.append(kw['seed'])
        return recipe.train_lm(*args, **kw)
    monkeypatch.setattr(pretrain, 'train_lm', counted)
    return seeds


def test_a_model_is_trained_once_and_another_for_whatever_is_other(trainings):
    first = pretrained_folder(GPT2, spec, 0)
    assert pretrained_folder(GPT2, spec, 0) == first and trainings == [0]
    others = [pretrained_folder(GPT2, spec, 1),
              pretrained_folder(GPT2, replace(spec, train=replace(spec.train, lr=1e-3)), 0),
              pretrained_folder(GPT2, replace(spec, model=replace(spec.model, n_layer=2)), 0)]
    assert len({first, *others}) == 4 and trainings == [0, 1, 0, 0]


def test_a_found_model_is_the_trained_one_and_its_text_is_noted(trainings):
    notes = []
    for _ in range(2):
        with reading() as noted: folder = pretrained_folder(GPT2, spec, 0)
        notes.append(noted)
    name = folder.parent.name
    key = name.rpartition('-')[2]
    assert notes == [{'small': data.known('small').hash, f'pretrained/{name}': key}] * 2 and len(key) == 32
    assert memo.finders['pretrained'](name) == key                                   # so that what read it is kept
    model = load_model(folder, GPT2, GPT2Config)
    again, _ = recipe.train_lm(lambda n_vocab: GPT2(replace(spec.model, n_vocab=n_vocab)),
                               data.lm_corpus('small', 300), spec.train, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_a_training_that_fails_leaves_nothing(monkeypatch, tmp_path):
    def fails(*args, **kw): raise ArithmeticError('too much')
    monkeypatch.setattr(pretrain, 'train_lm', fails)
    with pytest.raises(ArithmeticError): pretrained_folder(GPT2, spec, 0)
    assert not [p for p in (tmp_path / 'models').iterdir() if not p.name.endswith('.lock')]


# ---- a learning rate for every arm

RATES = (1e-3, 1e-2, 1e-1)


def curve(*, best, lr, seed, split='tune', spoilt=()):
    "Stand in for a training run: a parabola in the logarithm of the rate; some rates diverge, in a seed or in all."
    if lr in spoilt: return dict(split=split, loss=None if seed % 2 else math.nan)
    return dict(split=split, loss=2 + math.log10(lr / best) ** 2 * (1 + seed % 2))


def tune(arms, rates=RATES, seeds=(100, 101), fn=curve, **fixed):
    return tune_rate(fn, arms, rates, seeds, fan_out=lambda fn, configs: [fn(**c) for c in configs], **fixed)


def test_each_arm_gets_its_own_rate_and_hands_on_the_whole_grid():
    found = tune(dict(slow=dict(best=1e-2), fast=dict(best=5e-2)), dict(slow=RATES, fast=(0.1, 0.05, 0.01)))
    assert found['slow'] == Tuned(1e-2, [1e-3, 1e-2, 1e-1], [[3., 4.], [2., 2.], [3., 4.]], [100, 101])
    assert found['fast'].rate == 0.05 and found['fast'].rates == [0.01, 0.05, 0.1]
    assert not found['slow'].edge and found['slow'].means == [3.5, 2., 3.5]
    assert str(found['slow']) == 'rate 0.01, inside the grid (0.001: 3.500, 0.01: 2.000, 0.1: 3.500; 2 tuning seeds)'


@pytest.mark.parametrize('best, rate, edge', [(1e-4, 1e-3, True), (1e-3, 1e-3, True), (1e-2, 1e-2, False),
                                              (0.9e-2, 1e-2, False), (1e-1, 1e-1, True), (1., 1e-1, True)])
def test_a_minimum_at_the_edge_is_said(best, rate, edge):
    found = tune(dict(a=dict(best=best)), reversed(RATES))['a']
    assert (found.rate, found.edge) == (rate, edge) and ('at the edge of' in str(found)) == edge


def test_the_mean_over_seeds_chooses_and_what_diverged_is_never_chosen():
    by_seed = {100: {1e-3: 1., 1e-2: 3., 1e-1: 2.}, 101: {1e-3: 9., 1e-2: 3., 1e-1: 3.}}
    noisy = lambda *, lr, seed: dict(split='tune', loss=by_seed[seed][lr])
    assert tune(dict(a={}), fn=noisy)['a'].rate == 1e-1
    assert tune(dict(a={}), fn=noisy, seeds=[100])['a'].rate == 1e-3
    found = tune(dict(a=dict(best=1e-2, spoilt=[1e-2])))['a']
    assert found.rate == 1e-3 and found.losses[1] == [math.inf, math.inf]
    assert tune(dict(a=dict(best=1e-2, spoilt=RATES)))['a'].edge                    # no rate trains it


@pytest.mark.parametrize('best, widen, rate, edge, n', [
    (1e-2, 2, 1e-2, False, 3), (1e-3, 1, 1e-3, False, 4), (1e-1, 2, 1e-1, False, 4), (1e-4, 1, 1e-4, True, 4),
    (1e-4, 2, 1e-4, False, 5), (1e-9, 2, 1e-5, True, 5), (1e9, 2, 10., True, 5)])
def test_a_grid_goes_on_beyond_the_edge_at_which_its_best_rate_lies(best, widen, rate, edge, n):
    found = tune(dict(a=dict(best=best)), widen=widen)['a']
    assert (found.rate, found.edge, len(found.rates)) == (pytest.approx(rate), edge, n)
    assert found.rates == sorted(found.rates) and len(found.losses) == n


def test_a_grid_goes_on_for_every_arm_and_no_rate_runs_twice():
    asked = []
    def counted(fn, configs):
        asked.extend((c['best'], c['lr'], c['seed']) for c in configs)
        return [fn(**c) for c in configs]
    arms = dict(low=dict(best=1e-4), inside=dict(best=1e-2), high=dict(best=1.))
    found = tune_rate(curve, arms, RATES, (100, 101), widen=2, fan_out=counted)
    assert len({*asked}) == len(asked) == 3 * 2 * 7                      # a step to either side, twice
    assert {len(t.rates) for t in found.values()} == {7} and not any(t.edge for t in found.values())
    own = tune(dict(a=dict(best=1e-4), b=dict(best=1.)), dict(a=RATES, b=(1., 3., 9.)), widen=1)
    assert own['a'].rates == pytest.approx([1e-4, *RATES])
    assert own['b'].rates == pytest.approx([1 / 3, 1, 3, 9], rel=.02)
    with pytest.raises(ValueError, match='widen=-1: must be at least 0'): tune(dict(a=dict(best=1.)), widen=-1)


@pytest.mark.parametrize('fields, words', [
    (dict(seeds=(0, 1)), 'from 100 on'), (dict(seeds=(99, 100)), 'from 100 on'), (dict(seeds=(100, 100)), 'each once'),
    (dict(seeds=()), 'from 100 on'), (dict(seeds=(100.,)), 'from 100 on'), (dict(seeds=(True, 100)), 'from 100 on'),
    (dict(rates=(1e-3, 1e-2)), 'at least three'), (dict(rates=(1e-3, 1e-2, 1e-2)), 'at least three'),
    (dict(rates=(1e-3, 1e-2, 1e-1, 1e-1)), 'each once'), (dict(rates=(0., 1e-2, 1e-1)), 'above 0'),
    (dict(rates=(1e-3, 1e-2, math.inf)), 'above 0'), (dict(rates=(1e-3, 1e-2, math.nan)), 'above 0'),
    (dict(rates=dict(a=RATES)), 'same names'), (dict(rates=dict(a=RATES, b=(*RATES, 1.))), 'same number .*: a 3, b 4'),
    (dict(arms={}), 'same names'), (dict(split='valid'), "seed 100 was scored on 'valid'"),
    (dict(fn=lambda **kw: dict(loss=1.)), 'scored on None'), (dict(fn=lambda **kw: dict(split='tune')), 'scored on')])
def test_what_does_not_choose_fairly_is_refused(fields, words):
    arms = fields.pop('arms', dict(a=dict(best=1.), b=dict(best=1.)))
    with pytest.raises(ValueError, match=words): tune(arms, **fields)


def trained(*, n_layer, lr, seed, train):
    corpus = data.lm_corpus('small', 300)
    make = lambda n_vocab: GPT2(replace(spec.model, n_vocab=n_vocab, n_layer=n_layer))
    net, _ = train_lm(make, corpus, TrainConfig(**train | dict(lr=lr)), seed=seed)
    return held_out(net, corpus, split=split_for(seed))


def test_a_real_choice_reads_the_tuning_text_and_every_run_is_kept(small, tmp_path, monkeypatch, books):
    text = books[16].encode('utf-8')
    (tmp_path / 'mirror/small/tune.txt.gz').write_bytes(gzip.compress(text))
    tuning = {'tune.txt': data.FileSpec(hashlib.sha256(text).hexdigest(), 1, mirror='tune.txt.gz')}
    monkeypatch.setitem(data.registry, 'small', replace(small, files=small.files | tuning))
    corpus, made = data.lm_corpus('small', 300), []
    assert (len(corpus.train), len(corpus.tune)) > (len(corpus.valid), 0)
    assert corpus.tokenizer.decode(corpus.tune[:].tolist()[:-1]) == books[16]
    def fan_out(fn, configs):
        made.append(len([*(tmp_path / 'variants').glob('trained-*/record.json')]))
        return map_variants(fn, configs, workers=1)
    arms = dict(flat=dict(n_layer=1), deep=dict(n_layer=2))
    choose = partial(tune_rate, trained, arms, RATES, [100], fan_out=fan_out, train=asdict(spec.train))
    first, again = choose(), choose()
    assert first == again and made == [0, 6]                                       # six runs, and none the second time
    want = trained(n_layer=1, lr=RATES[0], seed=100, train=asdict(spec.train))
    assert first['flat'].losses[0] == [want['loss']] and want['n_tokens'] == len(corpus.tune)
    assert trained(n_layer=1, lr=RATES[0], seed=0, train=asdict(spec.train))['n_tokens'] == len(corpus.valid)


def untrained(model_cls, spec, seed, folder): save_model(folder, model_cls(spec.model))


def untrained_too(model_cls, spec, seed, folder): untrained(model_cls, spec, seed, folder)


def test_a_training_of_ones_own_is_part_of_the_key(trainings):
    folders = [pretrained_folder(GPT2, spec, 3, fn) for fn in (untrained, untrained, untrained_too)]
    assert not trainings and folders[0] == folders[1] != folders[2]
    assert load_model(folders[0], GPT2, GPT2Config).cfg == spec.model
