"BERT: the public class both ways, the heads and their labels, pre-training's loss and optimizer, sentence vectors."
from dataclasses import replace

import numpy as np, pytest, torch

from papers_lib.bert import (
    BERT, BERTConfig, BERTEncoder, claims, paper, pretrain, pretrained, pretraining_loss, masked_loss, runs, sizes)
from papers_lib.engine.checkpoint import load_model
from papers_lib.engine import heads
from papers_lib.engine.heads import Classifier, SentenceEncoder, Tagger, fine_tune, label_scores
from papers_lib.engine.parity import random_model
from papers_lib.engine.train import IGNORE, TrainConfig, UncorrectedAdamW, adamw, uncorrected_adamw
from papers_lib.lab.data import SentenceCorpus, available, get
from papers_lib.nn.blocks import truncated
from papers_lib.text.masking import labelled_examples
from papers_lib.text.tagged import UPOS, Tagged, tagged_examples
from papers_lib.text.wordpiece import SPECIALS, FastWordPiece
from shrunken import rows_of_a_small_run

CFG = BERTConfig(n_vocab=60, ctx_len=32, d_model=32, n_layer=3, n_head=4, d_ff=64)
LETTERS = [*SPECIALS, *'abcdefghijklmnopqrstuvwxyz']


def some(**over): return random_model(BERT, replace(CFG, **over))


def batch():
    ids = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    return dict(input_ids=ids, token_type_ids=(torch.arange(12) > 6).long().expand(3, 12),
                attention_mask=(torch.arange(12) < torch.tensor([[12], [9], [4]])).long())


@torch.inference_mode()
def gap(ours, theirs):
    x = batch()
    real = x['attention_mask'].bool()
    a, b = ours(x['input_ids'], x['token_type_ids'], real), theirs(**x)
    hidden = theirs.bert(**x).last_hidden_state
    pairs = ((a.logits[real], b.prediction_logits[real]), (a.nsp, b.seq_relationship_logits),
             (a.hidden[real], hidden[real]))
    return max(((x - y).abs().max() / y.abs().max().clamp(min=1)).item() for x, y in pairs)


@pytest.mark.parametrize('over', [{}, dict(n_head=1), dict(n_layer=1, d_ff=40), dict(eps=1e-5)])
def test_equal_to_transformers_both_ways(over):
    model = some(**over)
    hf = model.to_hf()
    assert gap(model, hf) <= 1e-5 and gap(BERT.from_hf(hf), hf) <= 1e-5


def test_a_folder_is_read_as_the_model_is(tmp_path):
    hf = some().to_hf()
    hf.save_pretrained(tmp_path)
    assert gap(BERT.from_hf(tmp_path), hf) <= 1e-5


def test_a_headless_checkpoint_and_a_prefix_of_its_layers():
    from transformers import BertModel
    hf = some().to_hf()
    bare = BertModel(hf.config, add_pooling_layer=False)
    bare.load_state_dict({k.removeprefix('bert.'): v for k, v in hf.state_dict().items()}, strict=False)
    ids = batch()['input_ids']
    whole, front = BERT.encoder.from_hf(bare.eval()), BERT.encoder.from_hf(hf, layers=2)
    states = bare(ids, output_hidden_states=True).hidden_states
    assert isinstance(whole, BERTEncoder) and torch.allclose(whole(ids), states[3], atol=1e-5)
    assert torch.allclose(front(ids), states[2], atol=1e-5)
    with pytest.raises(ValueError, match='layers=4: this model has 3'): BERT.encoder.from_hf(hf, layers=4)


def test_old_names_of_gain_and_bias_are_read(tmp_path):
    from safetensors.torch import save_file
    hf = some().to_hf()
    hf.save_pretrained(tmp_path)
    old = {k.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): v.clone()
           for k, v in hf.state_dict().items() if 'decoder' not in k}
    save_file(old, tmp_path / 'model.safetensors')
    assert gap(BERT.from_hf(tmp_path), hf) <= 1e-5


@pytest.mark.parametrize('change, words', [
    (dict(hidden_act='gelu_new'), 'hidden_act'), (dict(is_decoder=True), 'is_decoder'),
    (dict(position_embedding_type='relative_key'), 'position_embedding_type')])
def test_another_model_is_refused_by_name(change, words):
    hf = some().to_hf()
    for k, v in change.items(): setattr(hf.config, k, v)
    with pytest.raises(ValueError, match=words): BERT.from_hf(hf)


def test_wrong_keys_are_named_at_once(tmp_path):
    from safetensors.torch import save_file
    hf = some().to_hf()
    hf.save_pretrained(tmp_path)
    tensors = {k: v.clone() for k, v in hf.state_dict().items() if 'decoder' not in k}
    del tensors['bert.encoder.layer.1.attention.self.key.weight'], tensors['cls.seq_relationship.bias']
    save_file(tensors | {'spare.weight': torch.zeros(1)}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError) as e: BERT.from_hf(tmp_path)
    assert all(w in str(e.value) for w in ('blocks.1.attn.qkv.weight', 'follows.bias', 'spare.weight'))


def test_the_papers_sizes():
    def n(cfg, heads):
        with torch.device('meta'): model = BERT(cfg)
        return sum(p.numel() for k, p in model.named_parameters() if heads or k.startswith(('encoder', 'pooler')))
    assert [n(sizes['base'], False), n(sizes['large'], False)] == [109_482_240, 335_141_888]
    assert n(sizes['base'], True) == 109_482_240 + 622_650 + 1_538


def test_norms_stand_after_the_addition_and_none_at_the_end():
    encoder = some().encoder
    assert [not b.pre for b in encoder.blocks] == [True] * 3 and not hasattr(encoder, 'norm_f')
    assert encoder.norm.eps == 1e-12


def test_sequences_over_the_table_are_refused():
    with pytest.raises(ValueError, match='at most ctx_len=32'): some()(torch.zeros(1, 33, dtype=torch.long))


def test_first_weights_are_cut_at_two_deviations():
    torch.manual_seed(0)
    w = BERT(replace(CFG, n_vocab=4000)).encoder.tok_emb.weight
    assert w.abs().max() <= 0.04 + 1e-7 and abs(w.std().item() - 0.0176) < 5e-4       # 0.88 of 0.02 are left
    z = torch.linspace(-4, 4, 9)
    assert (truncated(z).diff() > 0).all()


def examples():
    x = batch()
    ids, pad = x['input_ids'], x['attention_mask'].bool()
    hidden = pad & (torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3)
    share = hidden.sum() / 3
    return dict(ids=ids, segments=x['token_type_ids'], pad=pad, targets=torch.where(hidden, ids, IGNORE),
                labels=torch.tensor([0, 1, 1]), weight=share.expand(3))


def test_the_loss_is_that_of_the_public_class_and_only_hidden_pieces_count():
    model, x = some(), examples()
    n = (x['targets'] != IGNORE).sum()
    told = model.to_hf()(input_ids=x['ids'], token_type_ids=x['segments'], attention_mask=x['pad'].long(),
                         labels=x['targets'], next_sentence_label=x['labels']).loss
    assert torch.allclose(pretraining_loss(model, x) / n, told, atol=1e-5)
    other = x | dict(labels=1 - x['labels'])
    assert masked_loss(model, other) == masked_loss(model, x)
    assert not torch.allclose(pretraining_loss(model, other), pretraining_loss(model, x))


def test_the_first_update_with_and_without_correction():
    g, lr = 0.3, 0.1
    cfg = TrainConfig(n_step=1, batch_size=1, lr=lr, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.)
    moved = {}
    for make in (adamw, uncorrected_adamw):
        layer = torch.nn.Linear(1, 1, bias=False)
        before = layer.weight.item()
        opt = make(layer, cfg)
        layer.weight.grad = torch.tensor([[g]])
        opt.step()
        moved[make.__name__] = before - layer.weight.item()
        assert opt.param_groups[0]['lr'] == lr and opt.param_groups[0]['eps'] == 1e-6          # as they were asked for
    assert moved['adamw'] == pytest.approx(lr, rel=1e-3)
    assert moved['uncorrected_adamw'] == pytest.approx(lr * 0.1 * g / ((0.001 * g * g) ** 0.5 + 1e-6), rel=1e-4)


def test_norms_and_biases_do_not_decay_and_embeddings_do():
    opt = uncorrected_adamw(some(), runs['paper'].train)
    decayed, not_decayed = opt.param_groups
    assert isinstance(opt, UncorrectedAdamW) and decayed['weight_decay'] == 0.01 and not_decayed['weight_decay'] == 0
    assert any(p.shape == (60, 32) for p in decayed['params']) and all(p.ndim == 1 for p in not_decayed['params'])


def test_texts_by_length_have_the_same_vectors():
    model = SentenceEncoder(some(n_vocab=31).encoder, FastWordPiece(LETTERS), max_tokens=20)
    texts = ['a b c', 'a', ' '.join('abcdefghij' * 5), '', 'z y', 'q r s t u v']
    a, b = (model.embed(texts, batch_size=2, by_length=by) for by in (True, False))
    assert np.abs(a - b).max() < 1e-5 and np.abs(np.linalg.norm(a, axis=1) - 1).max() < 1e-5
    assert max(map(len, model.pieces(texts))) == 20
    assert [t for _, t in model.nearest('z y', texts, n=1)] == ['z y']


class NotMoved(torch.Tensor):
    "A tensor that nobody has moved to a device yet."
    def to(self, *args, **options): return self.as_subclass(torch.Tensor).to(*args, **options)


def test_sentences_are_embedded_where_the_encoder_is_and_in_its_type(monkeypatch):
    model = SentenceEncoder(some(n_vocab=31).encoder, FastWordPiece(LETTERS))
    texts = ['a b c', 'z y', 'q r s t u v']
    plain, padded = model.embed(texts), heads.padded_batch
    monkeypatch.setattr(heads, 'padded_batch', lambda *a: [x.as_subclass(NotMoved) for x in padded(*a)])
    moved = lambda module, args, kwargs: [type(x) is torch.Tensor or pytest.fail('was not moved')
                                          for x in (*args, *kwargs.values())]
    hook = model.encoder.register_forward_pre_hook(lambda *a: moved(*a) and None, with_kwargs=True)
    assert np.array_equal(model.embed(texts), plain)
    hook.remove()
    model.encoder.bfloat16()
    coarse = model.embed(texts)
    assert coarse.dtype == np.float32 and np.abs(np.linalg.norm(coarse, axis=1) - 1).max() < 1e-5
    assert (coarse * plain).sum(1).min() > .999
    if torch.cuda.is_available():
        model.encoder.float().cuda()
        assert np.abs(model.embed(texts) - plain).max() < 1e-4


@pytest.mark.skipif(not available('all-minilm-l6-v2'), reason='all-MiniLM-L6-v2 is not at hand')
def test_the_public_model_gives_the_vectors_of_transformers():
    from transformers import AutoModel, BertTokenizerFast
    from papers_lib.bert import minilm
    root = get('all-minilm-l6-v2').root
    texts = ['The train is late.', 'Naïve cats — 的人有 — sleep!', 'x ' * 300, '']
    tok, net = BertTokenizerFast.from_pretrained(root), AutoModel.from_pretrained(root).eval()
    x = tok(texts, padding=True, truncation=True, max_length=256, return_tensors='pt')
    with torch.inference_mode(): h = net(**x).last_hidden_state
    real = x['attention_mask'][..., None]
    theirs = torch.nn.functional.normalize((h * real).sum(1) / real.sum(1), dim=-1).numpy()
    assert np.abs(minilm().embed(texts) - theirs).max() <= 1e-5


def test_races_run_at_a_toy_size():
    rows = [*replace(paper.races['S.train'], cfg=CFG, n=3)(0)]
    for key in ('S.embed.same', 'S.embed.sorted'): rows += paper.races[key](0, n_text=20, cfg=CFG, n=3)
    assert [r.id for r in rows] == ['S.train', 'S.embed.same', 'S.embed.sorted']
    assert [r.bound for r in rows] == [1., 1., 1.5]


def corpus(n_doc=4):
    rng = np.random.default_rng(0)
    docs = [[rng.integers(5, 31, 6).tolist() for _ in range(12)] for _ in range(n_doc)]
    return SentenceCorpus(FastWordPiece(LETTERS), docs, docs[:2], docs[:2])


def test_pretraining_follows_its_seed_and_has_no_correction():
    cfg, train = replace(CFG, n_vocab=31, dropout=0.), replace(runs['tiny'].train, n_step=3, batch_size=2)
    a, b, c = (pretrain(cfg, train, corpus(), seed) for seed in (0, 0, 1))
    same = lambda x, y: all(p.equal(q) for p, q in zip(x.parameters(), y.parameters()))
    assert same(a, b) and not same(a, c) and not a.training
    # bias correction would move weights by the rate at once; without it the first steps are ten times smaller or less
    torch.manual_seed(0)
    first, one = BERT(cfg), pretrain(cfg, replace(train, n_step=1, n_warmup=0), corpus(), 0)
    moved = max((p - q).abs().max().item() for p, q in zip(first.parameters(), one.parameters()))
    assert 2 * train.lr < moved < 3.5 * train.lr                          # 0.1 / sqrt(0.001) = 3.16 of the rate


def test_without_the_loss_of_pairs_their_head_stays_as_it_was_drawn():
    cfg, train = replace(CFG, n_vocab=31, dropout=0.), replace(runs['tiny'].train, n_step=3, batch_size=2)
    torch.manual_seed(0)
    drawn = BERT(cfg)
    alone, both = (pretrain(cfg, train, corpus(), 0, loss_fn=loss) for loss in (masked_loss, pretraining_loss))
    for part in ('follows', 'pooler'):
        first, left, moved = (getattr(model, part).weight for model in (drawn, alone, both))
        assert left.equal(first) and not moved.equal(first)
    assert not alone.encoder.tok_emb.weight.equal(drawn.encoder.tok_emb.weight)


def test_a_corpus_of_one_document_has_no_random_next_text():
    with pytest.raises(ValueError, match='at least two'):
        pretrain(replace(CFG, n_vocab=31), replace(runs['tiny'].train, n_step=1, batch_size=1), corpus(1), 0)


def test_a_preset_is_trained_once_and_read_again(tmp_path, monkeypatch):
    from papers_lib import bert
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    was = runs['tiny']
    small = replace(was, model=replace(was.model, d_model=8, n_head=1, d_ff=8, n_layer=1, n_vocab=31),
                    train=replace(was.train, n_step=1, n_warmup=0, batch_size=2))
    monkeypatch.setitem(bert.runs, 'tiny', small)
    monkeypatch.setattr(bert, 'sentence_corpus', lambda name, n_vocab: corpus())
    folder = pretrained('tiny', seed=3)
    made = (folder / 'model.safetensors').stat().st_mtime_ns
    model, tok = load_model(folder, BERT, BERTConfig), FastWordPiece.load(folder)
    assert model.cfg.n_vocab == tok.n_vocab and pretrained('tiny', seed=3) == folder
    assert (folder / 'model.safetensors').stat().st_mtime_ns == made and pretrained('tiny', seed=4) != folder


def tagged():
    return tagged_examples([Tagged('d', [*'abcd'], ['NOUN', 'VERB', 'NOUN', 'X'])] * 4, FastWordPiece(LETTERS), 8)


def pairs(): return labelled_examples([('a b', 'c'), ('d', 'e f')] * 2, [0, 2] * 2, 3, FastWordPiece(LETTERS), 10)


def test_fine_tuning_trains_everything_and_corrects_its_means():
    for make, rows in ((lambda e: Tagger(e, len(UPOS), dropout=0.), tagged()),
                       (lambda e: Classifier(e, 3, dropout=0.), pairs())):
        torch.manual_seed(0)
        model = make(some(n_vocab=31, dropout=0.).encoder)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        fine_tune(model, rows, TrainConfig(n_step=1, batch_size=4, lr=1e-4, weight_decay=0.), 'cpu')
        moved = {k: (p - before[k]).abs().max().item() for k, p in model.named_parameters()}
        assert all(x <= 1.01e-4 for x in moved.values()) and moved['out.weight'] > 0.9e-4   # not 3.16 of it
        assert moved['encoder.tok_emb.weight'] > 0.9e-4 and not model.training


def test_a_label_is_read_at_the_first_place_through_the_pooler():
    net = some(n_vocab=31)
    model, rows = Classifier(net.encoder, 3, pooler=net.pooler).eval(), pairs()
    ids, kinds, pad = (torch.from_numpy(x) for x in (rows.ids, rows.segments, rows.pad))
    wanted = net.pooled(net.encoder(ids.long(), kinds.long(), pad)) @ model.out.weight.T + model.out.bias
    assert torch.allclose(model(ids.long(), kinds.long(), pad)[:, 0], wanted, atol=1e-6)
    nats, hits, row = label_scores(model, rows, batch_size=3)
    assert row.tolist() == [0, 1, 2, 3] and hits.tolist() == (wanted.argmax(1) == torch.tensor([0, 2] * 2)).tolist()
    assert np.allclose(nats, -wanted.log_softmax(1)[range(4), [0, 2] * 2].detach().numpy(), atol=1e-5)


def test_a_class_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match='a label is 16: this model knows the classes 0 to 4'):
        fine_tune(Tagger(some(n_vocab=31).encoder, 5), tagged(), TrainConfig(n_step=1, batch_size=4, lr=1e-3))


@pytest.mark.slow
@pytest.mark.skipif(not all(map(available, ('all-minilm-l6-v2', 'ud_ewt', 'sick'))), reason='no public weights or sets')
def test_every_claim_is_measured_by_a_run_shrunken_by_overrides(tmp_path):
    few = [1e-3, 2e-3, 3e-3]
    rows = rows_of_a_small_run('bert', tmp_path, {
        'model.d_model': 16, 'model.n_layer': 1, 'model.n_head': 2, 'model.d_ff': 32, 'train.n_step': 4,
        'train.n_warmup': 1, 'claims.n_step': 8, 'claims.n_tagged': 16, 'claims.tag_steps': 2, 'claims.widths': [16],
        'claims.pair_rates': few, 'claims.pair_steps': 2, 'claims.n_pair': 32,
        'claims.rates_of_study': few, 'claims.public_steps': 1, 'claims.public_rates': [1e-5, 2e-5, 3e-5],
        'claims.layer_rates': few, 'claims.tasks': ['sst2', 'mrpc'], 'claims.task_steps': 1, 'claims.gap_steps': 2,
        'claims.gap_rates': few, 'claims.rates': few})
    told = {id for id, r in rows.items() if r['ours'] is not None}
    assert {f'C{i}' for i in range(1, 10)} <= told and all(rows[f'C{i}']['n_seeds'] == 2 for i in range(1, 10))
    assert {'C1.both-ways', 'C2.with-the-pair-loss', 'C2.nats.labels-dealt-anew', 'C2.next', 'C3.frozen.100-0-0',
            'C4.left.1', 'C5.16', 'C6.4', 'C7.weighted', 'C8.exact.told.5',
            'T4.untold.right-length', 'T5.sst2', 'T5.mrpc'} <= told


def test_what_is_declared():
    assert [*claims] == [f'C{i}' for i in range(1, 10)] and [*paper.runs] == ['tiny', 'cpu', 'gpu', 'paper']
    assert claims['C9'].power > 0.5 and claims['C9'].margin > 0
    told = runs['paper'].train
    assert [told.n_step, told.batch_size, told.lr, told.n_warmup, told.eps] == [1_000_000, 256, 1e-4, 10_000, 1e-6]
