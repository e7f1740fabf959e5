"Models that are trained once: what makes another one of them."
from dataclasses import replace

import pytest
import torch

from papers_lib.engine import recipe
from papers_lib.engine.checkpoint import load_model
from papers_lib.engine.train import TrainConfig
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.lab import data, pretrain
from papers_lib.lab.presets import DataConfig, RunSpec
from papers_lib.lab.pretrain import pretrained_folder
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
    assert notes == [dict(small=data.known('small').hash)] * 2
    model = load_model(folder, GPT2, GPT2Config)
    again, _ = recipe.train_lm(lambda n_vocab: GPT2(replace(spec.model, n_vocab=n_vocab)),
                               data.lm_corpus('small', 300), spec.train, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_a_training_that_fails_leaves_nothing(monkeypatch, tmp_path):
    def fails(*args, **kw): raise ArithmeticError('too much')
    monkeypatch.setattr(pretrain, 'train_lm', fails)
    with pytest.raises(ArithmeticError): pretrained_folder(GPT2, spec, 0)
    assert not [p for p in (tmp_path / 'models').iterdir() if not p.name.endswith('.lock')]
