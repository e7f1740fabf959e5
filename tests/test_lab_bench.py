"Races: which one runs, what a row holds, a peer from disk, memory in fresh processes."
import os
from functools import partial
from types import SimpleNamespace

import pytest, torch

from papers_lib.engine.parity import pair_of
from papers_lib.engine.stats import verdict
from papers_lib.gpt1 import GPT1, GPT1Config
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.lab import bench
from papers_lib.lab.bench import (
    DecodeRace,
    MemoryRace,
    NanoGPT,
    TrainRace,
    bench_batch,
    fresh_process,
    our_loss,
    race,
    run_races,
    select_races,
    speed_row,
    train_step,
    training_races,
)
from papers_lib.llama import LLaMA, LLaMAConfig
from repos import speed

CFG = GPT2Config(n_vocab=60, ctx_len=16, d_model=16, n_layer=1, n_head=2)
KEYS = ('S.train', 'S.train.memory', 'S.train.memory.compiled', 'S.decode', 'S.decode.floor', 'S.shots')

# a peer in the shape of nanoGPT: the names and the layout of its model.py, and nothing of its text
PEER = '''
from dataclasses import dataclass
import torch
from transformers import GPT2Config, GPT2LMHeadModel
CONV = ('c_attn.weight', 'c_proj.weight', 'c_fc.weight')
@dataclass
class GPTConfig:
    block_size:int; vocab_size:int; n_layer:int; n_head:int; n_embd:int; dropout:float; bias:bool
class GPT(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        print('number of parameters')
        inner = GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd,
                                           n_layer=c.n_layer, n_head=c.n_head, resid_pdrop=0., embd_pdrop=0.,
                                           attn_pdrop=0.))
        self.transformer, self.lm_head = inner.transformer, inner.lm_head
        self.inner = [inner]
        for name, p in self.named_parameters():
            if name.endswith(CONV): p.data = p.data.T.contiguous()
    def forward(self, ids, targets=None):
        turned = {k: v.T if k.endswith(CONV) else v for k, v in self.named_parameters()}
        logits = torch.func.functional_call(self.inner[0], turned, (ids,)).logits SLIP
        if targets is None: return logits, None
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    def generate(self, ids, n, temperature=1., top_k=None):
        for _ in range(n): ids = torch.cat([ids, self(ids)[0][:, -1:].argmax(-1)], 1)
        return ids
'''


@pytest.fixture
def peer(tmp_path):
    (tmp_path / 'model.py').write_text(PEER.replace('SLIP', ''))
    return tmp_path


# which race

@pytest.mark.parametrize(
    'only, keys',
    [
        (None, KEYS),
        ('S.train', ['S.train']),
        ('S.decode.floor', ['S.decode.floor']),
        ('S.decode.int8.loss', ['S.decode']),
        ('S.train.memory.compiled', ['S.train.memory.compiled']),
        ('S.train.nanogpt', ['S.train']),
        ('S.s', ['S.shots']),
        ('S.de', ['S.decode', 'S.decode.floor']),
    ],
)
def test_only_chooses_the_race_itself_or_the_longest_above_it_or_those_that_begin_so(only, keys):
    assert list(select_races(dict.fromkeys(KEYS), only)) == list(keys)


@pytest.mark.parametrize('only', ['', 'S.trainer', 'train', 'S.x'])
def test_an_unknown_race_is_told_with_those_that_exist(only):
    with pytest.raises(ValueError, match='the races are S.decode, S.decode.floor, S.shots'):
        select_races(dict.fromkeys(KEYS), only)


def test_rows_of_a_race_begin_with_its_key_and_only_asked_ones_come():
    give = lambda *ids: lambda seed: (speed(id=i) for i in ids)
    paper = SimpleNamespace(name='toy', races={'S.a': give('S.a', 'S.a.x', 'S.a.y'), 'S.b': give('S.b')})
    assert [r.id for r in run_races(paper)] == ['S.a', 'S.a.x', 'S.a.y', 'S.b'] and next(
        run_races(paper)
    ).verdict == 'holds'
    assert [r.id for r in run_races(paper, 'S.a.y')] == ['S.a.y']
    for odd in ('S.c', 'S.ab'):
        with pytest.raises(ValueError, match=f'the race S.a gave a row {odd}'):
            list(run_races(SimpleNamespace(name='toy', races={'S.a': give(odd)})))


def test_every_paper_names_its_races_by_the_beginning_of_their_rows():
    from papers_lib.lab.presets import paper_of
    from papers_lib.lab.results import paper_notebooks, read_results, results_dir
    for name in paper_notebooks():
        races = paper_of(name).races
        published = results_dir() / f'{name}.bench.json'
        for row in read_results(published)[0] if published.exists() else []: assert select_races(races, row.id), row.id


# what a row holds

def test_a_ratio_is_of_rounds_and_above_one_where_ours_is_faster():
    row = speed_row('S.x', 'x', dict(peer=[2., 3., 40.], ours=[1., 2., 10.]), 'peer', 'ours', 1., paper='toy')
    assert (
        row.ours == 2.0
        and row.baseline_value == 3.0
        and verdict(row) == 'holds'
        and row.n == 3
    )


def test_both_arms_of_a_step_do_the_same_work():
    torch.manual_seed(0)
    model = GPT2(CFG).train()
    before = [p.clone() for p in model.parameters()]
    batch = bench_batch(CFG, 3)
    assert (
        batch['ids'].shape == batch['targets'].shape == (3, 16)
        and (batch['ids'][:, 1:] == batch['targets'][:, :-1]).all()
    )
    step = train_step(model, batch, our_loss)
    losses = [step() for _ in range(12)]
    assert losses[-1] < losses[0] and any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_the_training_races_of_a_paper(monkeypatch):
    races = training_races('gpt2', GPT2, CFG, None)
    assert set(races) == {
        'S.train',
        'S.train.compiled',
        'S.train.bf16',
        'S.train.bf16.loss',
        'S.train.memory',
        'S.train.memory.compiled',
    }
    monkeypatch.setattr(bench, 'cpp_compiler', lambda: '')
    monkeypatch.setattr(bench, 'bfloat16_units', lambda: False)
    for key in set(races) - {'S.train', 'S.train.memory'}:
        assert list(races[key](0)) == [], key  # what this machine cannot do


def test_each_memory_is_measured_in_a_process_of_its_own():
    assert len({fresh_process(os.getpid), fresh_process(os.getpid), os.getpid()}) == 3
    with pytest.raises(Exception, match='terminated abruptly'): fresh_process(os._exit, 9)


def test_a_memory_row_holds_the_ratio_of_the_peaks(monkeypatch):
    asked = []
    def once(fn, model, cfg, arm, n_step, compiled):
        asked.append(arm)
        return dict(transformers=2**20 * 100., papers_lib=2**20 * (79. + len(asked) // 4))[arm]
    monkeypatch.setattr(bench, 'fresh_process', once)
    row, = MemoryRace('gpt2', GPT2, CFG, n=3)()
    assert (
        asked == ['transformers', 'papers_lib'] * 3
        and row.ours == 0.8
        and row.baseline_value == 100.0
        and verdict(row) == 'holds'
    )
    assert bench.training_peak(GPT2, CFG, 'papers_lib', 1) >= 0


# a peer

def test_a_peer_races_in_the_same_rounds(peer):
    paper = SimpleNamespace(
        name='gpt2',
        races={
            'S.train': TrainRace('gpt2', GPT2, CFG, n=3, batch_size=2),
            'S.generate': DecodeRace(
                'gpt2', 'S.generate.toy.1', 'toy', partial(pair_of, GPT2, CFG), 0.1, n_new=3, n_prompt=4, n=3
            ),
            'S.other': lambda seed: iter([speed(id='S.other')]),
        },
    )
    rows = {r.id: r for r in run_races(paper, peer=peer)}
    assert list(rows) == ['S.train', 'S.train.nanogpt', 'S.generate.toy.1', 'S.generate.toy.1.nanogpt', 'S.other']
    assert (
        rows['S.train.nanogpt'].baseline_name == 'nanogpt, seconds' and 'nanoGPT at' in rows['S.train.nanogpt'].protocol
    )
    assert rows['S.train.nanogpt'].n == rows['S.train'].n == 3
    assert [r.id for r in run_races(paper, 'S.train.nanogpt', peer=peer)] == ['S.train.nanogpt']
    with pytest.raises(ValueError, match='takes a peer'): list(run_races(paper, 'S.other', peer=peer))


def test_a_peer_that_computes_something_else_is_no_peer(peer, capsys):
    ours, theirs = pair_of(GPT2, CFG)
    net, loss = NanoGPT(peer)(theirs)
    batch = bench_batch(CFG, 2)
    assert (
        loss(net, batch).item() == pytest.approx(our_loss(ours, batch).item(), abs=1e-4)
        and capsys.readouterr().out == ''
    )
    (peer / 'model.py').write_text(PEER.replace('SLIP', '+ ids[..., None] * 1e-2'))
    with pytest.raises(ValueError, match='with the same weights its logits differ by'): NanoGPT(peer)(theirs)
    llama = pair_of(LLaMA, LLaMAConfig(n_vocab=60, ctx_len=16, d_model=16, n_layer=1, n_head=2, d_ff=32))[1]
    with pytest.raises(ValueError, match='nanoGPT is a GPT-2, this model is a llama'): NanoGPT(peer)(llama)


def test_a_gpt1_races_against_a_peer_of_its_sizes(peer):
    theirs = GPT1(GPT1Config(n_vocab=64, ctx_len=16, d_model=32, n_layer=2, n_head=2)).to_hf()
    net, loss = NanoGPT(peer)(theirs)
    ids = torch.arange(8)[None]
    assert loss(net, dict(ids=ids, targets=ids)).isfinite()
    assert net.state_dict()['transformer.wte.weight'].shape == (64, 32)


@pytest.mark.parametrize(
    'text, words',
    [
        (None, 'no model.py there'),
        ('1 +', r'cannot be loaded \(SyntaxError'),
        ('import nosuch', 'ModuleNotFound'),
        ('x = 1', 'has no GPT and GPTConfig'),
    ],
)
def test_what_is_not_a_checkout_of_nanogpt(tmp_path, text, words):
    if text is not None: (tmp_path / 'model.py').write_text(text)
    with pytest.raises(ValueError, match=words): NanoGPT(tmp_path).module()


def test_a_peers_module_leaves_nothing_behind(peer):
    import sys
    before, path = set(sys.modules), list(sys.path)
    NanoGPT(peer).module()
    assert not [n for n in set(sys.modules) - before if 'peer' in n or n == 'model'] and sys.path == path


def test_decoding_that_writes_other_tokens_is_no_race():
    def pair(seed): return pair_of(GPT2, CFG, seed)[0], pair_of(GPT2, CFG, seed + 1)[1]
    with pytest.raises(AssertionError, match='greedy tokens differ from transformers'):
        list(DecodeRace('gpt2', 'S.x', 'toy', pair, 1., n_new=8, n_prompt=4)(0))


def test_a_race_takes_the_peer_first():
    order = []
    row = race(
        'S.x', 'x', dict(theirs=lambda: order.append('theirs'), ours=lambda: order.append('ours')), 1.0, 3, paper='toy'
    )
    assert order == ['theirs', 'ours'] * 5 and row.metric == 'time of theirs / time of ours'


def test_a_race_of_two_rounds_or_of_different_answers_is_refused_before_anything_is_timed():
    called = []
    fns = dict(theirs=lambda: called.append('theirs') or 1, ours=lambda: called.append('ours') or 2)
    with pytest.raises(ValueError, match='S.x: 2 round.*at least 3'): race('S.x', 'x', fns, 1., 2, paper='toy')
    assert not called
    with pytest.raises(AssertionError, match='S.x: theirs and ours give different answers'):
        race('S.x', 'x', fns, 1., same=True, paper='toy')
    assert called == ['theirs', 'ours']


def test_what_is_timed_in_one_thread_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    assert bench.one_thread(lambda: (torch.get_num_threads(), torch.is_grad_enabled()))() == (1, False)
    def broken(): raise KeyError('x')
    with pytest.raises(KeyError): bench.one_thread(broken)()
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_an_export_gives_its_parity_and_its_times():
    for name in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(name)
    from papers_lib.nn.matchers import Student, StudentConfig
    net = Student(StudentConfig(200, d_emb=8, n_map=4)).eval()
    q, d = torch.randint(1, 200, (1, 5)), torch.randint(1, 200, (1, 7, 9))
    rows = {r.id: r for r in bench.onnx_race('demo', net, q, d, n=6, dataset='x', protocol='y')}
    assert {*rows} == {'onnx.gap', 'onnx.vs_torch', 'onnx.int8'} and verdict(rows['onnx.gap']) == 'holds'
    assert all(r.paper == 'demo' and r.dataset == 'x' for r in rows.values())
