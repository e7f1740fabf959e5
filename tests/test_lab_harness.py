"lm-eval: our decoders give the numbers of our own scorer, and of lm-eval's own adapter for `transformers`."
import importlib, os, random, socket, sys

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

pytest.importorskip('lm_eval', reason="lm-eval is not installed: pip install -e '.[eval]'")
from lm_eval.api.instance import Instance

from decoders import tiny
from papers_lib.engine.choices import Question, Schema, ask, ask_written
from papers_lib.engine.generate import generate
from papers_lib.engine.llm import Recorded
from papers_lib.engine.score import score, token_nll
from papers_lib.engine.llm import LocalLLM
from papers_lib.engine.parity import random_model
from papers_lib.gpt2 import GPT2, GPT2Config
from papers_lib.lab import data, harness
from papers_lib.lab.harness import HarnessLM, evaluate, loglik_pairs, write_all, write_task
from papers_lib.lab.questions import questions as question_set
from papers_lib.llama import LLaMA, LLaMAConfig, smollm2
from papers_lib.text.tokenizers import EOT, ByteTokenizer, train_fast_bpe, train_pieces

TEXT = next(iter(data.documents('books')))[:60_000]
WORDS = TEXT.split()
TOK = train_fast_bpe([TEXT], 500)
SIZE = dict(n_vocab=500, ctx_len=64, d_model=32, n_layer=2, n_head=2)
LLM = LocalLLM(random_model(LLaMA, LLaMAConfig(**SIZE, d_ff=64)), TOK)
ACC = dict(aggregation='mean', higher_is_better=True)


def some(rng, n):
    at = rng.randrange(len(WORDS) - n)
    return ' '.join(WORDS[at:at + n])


def requests(kind, args):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0, metadata=('t', i, 1)) for i, a in enumerate(args)]


def made_up(n, seed=0):
    rng = random.Random(seed)
    return [
        Question(
            some(rng, rng.randint(1, 8)),
            tuple(f' {some(rng, rng.randint(1, 4))} é' for _ in range(3)),
            rng.randrange(3),
        )
        for _ in range(n)
    ]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(self, address): raise AssertionError(f'{address} is called')
    monkeypatch.setattr(socket.socket, 'connect', refuse)


def outcome(found, task, metric): return [bool(s[metric]) for s in found['samples'][task]]


@pytest.fixture(scope='module')
def theirs():
    "lm-eval's adapter for `transformers` around the same weights and vocabulary."
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    inner = Tokenizer.from_str(TOK._inner.to_str()); inner.add_special_tokens([EOT])
    assert inner.token_to_id(EOT) == TOK.eot
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=EOT, pad_token=EOT)
    return HFLM(pretrained=LLM.model.to_hf(), tokenizer=fast, device='cpu', batch_size=1, max_length=64)


@pytest.mark.parametrize(
    'llm',
    [LLM, LocalLLM(random_model(GPT2, GPT2Config(**SIZE)), TOK), LocalLLM(tiny(n_vocab=257), ByteTokenizer())],
    ids=['llama', 'gpt2', 'bytes'],
)
def test_a_local_task_gives_the_hits_of_ask(tmp_path, llm, no_network):
    rng = random.Random(1)
    questions = (
        made_up(24)
        if llm.tokenizer is TOK
        else [Question(some(rng, 1), tuple(f' {some(rng, 1)}' for _ in range(3)), i % 3) for i in range(24)]
    )
    names = ('acc', 'acc_norm', 'acc_bytes', 'acc_mutual_info')
    write_task(tmp_path, 'made_up', questions, metric_list=[dict(ACC, metric=m) for m in names])
    found, hits = evaluate(llm, tmp_path), ask(llm, questions, rules=('sum', 'char'))
    results = found['results']['made_up']
    assert outcome(found, 'made_up', 'acc') == hits['sum'].tolist() and results['acc,none'] == pytest.approx(
        hits['sum'].mean()
    )
    assert outcome(found, 'made_up', 'acc_norm') == hits['char'].tolist() and results['acc_norm,none'] == pytest.approx(
        hits['char'].mean()
    )
    assert 0 < sum(hits['sum']) < 24 and (
        llm is not LLM or hits['sum'].tolist() != hits['char'].tolist()
    )  # they could differ
    by_byte, informed = [], []
    for q in questions:
        logp = np.array([sum(x) for x in llm.loglik(q.context, list(q.choices))])
        by_byte.append(np.argmax(logp / [len(c.encode()) for c in q.choices]) == q.answer)
        alone = [sum(x) for x in score(llm.model, [llm.tokenizer.eot], [llm.tokenizer.encode(c) for c in q.choices])]
        informed.append(np.argmax(logp - alone) == q.answer)
    assert (
        outcome(found, 'made_up', 'acc_bytes') == by_byte and outcome(found, 'made_up', 'acc_mutual_info') == informed
    )


def test_written_answers_are_those_of_complete(tmp_path, no_network):
    contexts = [q.context for q in made_up(10, seed=2)]
    texts = LLM.complete(contexts, max_tokens=6, stop=['e'])
    questions = [Question(c, (t if i % 2 else t + '!', 'never')) for i, (c, t) in enumerate(zip(contexts, texts))]
    write_task(
        tmp_path,
        'written',
        questions,
        output_type='generate_until',
        doc_to_choice=None,
        doc_to_target='choices',
        generation_kwargs=dict(until=['e'], max_gen_toks=6, do_sample=False),
        metric_list=[dict(ACC, metric='exact_match')],
    )
    found = evaluate(LLM, tmp_path)
    assert [s['resps'][0][0] for s in found['samples']['written']] == texts
    assert (
        outcome(found, 'written', 'exact_match') == [False, True] * 5
        and found['results']['written']['exact_match,none'] == 0.5
    )
    whole = [
        Question(q.context, (LLM.complete([q.context], max_tokens=6, stop=['\n'])[0],) if i % 2 else ('never',))
        for i, q in enumerate(questions)
    ]
    write_task(tmp_path, 'lines', whole, output_type='generate_until', doc_to_choice=None, doc_to_target='choices',
               generation_kwargs=dict(until='\n', max_gen_toks=6), metric_list=[dict(ACC, metric='exact_match')])
    assert (
        outcome(evaluate(LLM, tmp_path, ['lines']), 'lines', 'exact_match')
        == ask_written(LLM, whole, max_tokens=6, same=str).tolist()
    )


def test_a_real_set_gives_the_hits_of_ask(tmp_path):
    if not os.environ.get('PAPERS_MIRROR'): pytest.skip('needs PAPERS_MIRROR')
    try: llm, questions = smollm2(), question_set('piqa')[:20]
    except data.NotFound as e: pytest.skip(f'SmolLM2 or PIQA cannot be had: {e}')
    write_task(tmp_path, 'piqa', questions)
    found, hits = evaluate(llm, tmp_path), ask(llm, questions, rules=('sum', 'char'))
    assert (
        outcome(found, 'piqa', 'acc') == hits['sum'].tolist()
        and outcome(found, 'piqa', 'acc_norm') == hits['char'].tolist()
    )
    assert (
        found['results']['piqa']['acc,none'] == pytest.approx(hits['sum'].mean()) and hits['sum'].mean() > 0.55
    )  # a coin gives 0.5
    assert found['config']['model_hash'] == llm.hash


def test_numbers_are_those_of_lm_evals_own_adapter(theirs):
    rng, ours = random.Random(0), HarnessLM(LLM)
    pairs = [(some(rng, n), f' {some(rng, rng.randint(1, 4))}') for n in (1, 5, 20, 60, 200)] * 2
    long = pairs[4][0]
    pairs += [
        (long, f' {some(rng, 2)}'),
        (pairs[1][0], ' the'),
        ('', some(rng, 3)),
        (pairs[1][0] + ' ', some(rng, 2)),
        (pairs[1][0] + '\n', some(rng, 1)),
    ]
    pairs += [
        (c, TOK.decode(generate(LLM.model, [TOK.encode(c)], n)[0]))
        for n, c in ((1, 'It is'), (2, 'She was'), (3, 'Her mother had'))
    ]
    with pytest.warns(UserWarning, match='cut from the left'):
        got = ours.loglikelihood(requests('loglikelihood', pairs))
    want = theirs.loglikelihood(requests('loglikelihood', pairs), disable_tqdm=True)
    assert np.allclose([x for x, _ in got], [x for x, _ in want], atol=1e-3)
    assert [g for _, g in got] == [g for _, g in want] and 1 <= sum(g for _, g in got) < len(got)
    texts = [(WORDS[0],), (some(rng, 30),), (some(rng, 400),)]
    assert np.allclose(
        ours.loglikelihood_rolling(requests('loglikelihood_rolling', texts)),
        theirs.loglikelihood_rolling(requests('loglikelihood_rolling', texts), disable_tqdm=True),
        rtol=1e-5,
    )
    wishes = [(some(rng, n), dict(until=['e ', '\n'], max_gen_toks=9)) for n in (1, 4, 70, 12)] + [
        (some(rng, 3), dict(until=[], max_gen_toks=4))
    ]
    with pytest.warns(UserWarning, match='cut from the left'):
        got = ours.generate_until(requests('generate_until', wishes))
    assert got == theirs.generate_until(requests('generate_until', wishes), disable_tqdm=True)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(['', 'a', 'It is', 'th', 'of the', 'She ']), st.text('aehint s', min_size=1, max_size=5)
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(),
)
def test_each_request_has_one_answer_whatever_is_asked_with_it(pairs, rng):
    together = loglik_pairs(LLM, pairs)
    for pair, (logp, greedy) in zip(pairs, together):
        (alone, same), = loglik_pairs(LLM, [pair])
        assert logp == pytest.approx(alone, abs=1e-3) and greedy == same
    order = list(range(len(pairs))); rng.shuffle(order)
    mixed = loglik_pairs(LLM, [pairs[i] for i in order])
    assert [x for x, _ in mixed] == pytest.approx([together[i][0] for i in order], abs=1e-3)


@settings(max_examples=40)
@given(
    st.sampled_from(['It i', 'She wa', 'of th', 'a', 'Mr']),
    st.lists(st.text('aehinst', min_size=1, max_size=4), min_size=2, max_size=4, unique=True),
)
def test_merging_letters_leave_the_ranking_of_score_text(context, ends):
    context = f'It was so {context}'
    ours, together = (
        [x for x, _ in loglik_pairs(LLM, [(context, e) for e in ends])],
        [sum(x) for x in LLM.loglik(context, ends)],
    )
    assert np.ptp(np.subtract(together, ours)) < 1e-3                # a constant: the end of the context


def test_greedy_is_what_the_model_writes():
    written = ((c, generate(LLM.model, [TOK.encode(c)], 4)[0]) for c in ('It is', 'The king', 'He', 'In the', 'And so'))
    context, ids = next((c, ids) for c, ids in written if TOK.encode(TOK.decode(ids[:1])) == ids[:1])
    (_, hit), (_, other) = loglik_pairs(LLM, [(context, TOK.decode(ids[:1])), (context, ' never')])
    assert hit and not other
    for i in range(4):
        wrong = list(ids); wrong[i] = (wrong[i] + 1) % 500
        assert [h for _, h in score(LLM.model, TOK.encode(context), [ids, wrong, ids[:2]], greedy=True)] == [
            True,
            False,
            True,
        ]


def test_rolling_is_the_sum_of_token_nll_and_keeps_the_order():
    rng = random.Random(3)
    texts = [some(rng, n) for n in (1, 200, 10)]
    want = [-token_nll(LLM.model, TOK.encode(t), 64, 64, eot=TOK.eot).sum(dtype=float) for t in texts]
    assert (
        HarnessLM(LLM).loglikelihood_rolling(requests('loglikelihood_rolling', [(t,) for t in texts])) == want
        and len(TOK.encode(texts[1])) > 64
    )


def test_a_shared_prompt_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(
        harness,
        'score',
        lambda model, prompt, ends, **kw: (
            read.append((TOK.decode(prompt), len(ends))),
            score(model, prompt, ends, **kw),
        )[1],
    )
    pairs = [('It is', ' a'), ('She was', ' the'), ('It is', ' the'), ('It is', ' a')]
    answers = loglik_pairs(LLM, pairs)
    assert read == [('It is', 2), ('She was', 1)] and answers[0] == answers[3] != answers[2]


def test_sampled_answers_are_drawn_by_number_and_seed():
    wish = [('It is', dict(do_sample=True, temperature=1., max_gen_toks=8))] * 6
    first = write_all(LLM, wish, batch_size=6)
    assert (
        write_all(LLM, wish, batch_size=2) == first and len(set(first)) == 6 and write_all(LLM, wish, seed=1) != first
    )


def test_an_answer_keeps_the_space_before_its_first_piece():
    tok = train_pieces([TEXT], 330)
    contexts, spaces = ['It is', 'She was', 'He said that', 'the'], 0
    for seed in range(12):
        llm = LocalLLM(tiny(seed, n_vocab=tok.n_vocab), tok)
        told = write_all(llm, [(c, dict(max_gen_toks=8)) for c in contexts])
        assert told == llm.complete(contexts, max_tokens=8)
        spaces += sum(t.startswith(' ') for t in told)
    assert spaces, 'the case is met: a continuation that begins with a space'


def test_answers_kept_by_lm_eval_are_taken_again(tmp_path, monkeypatch):
    write_task(tmp_path, 'made_up', made_up(6))
    first = evaluate(LLM, tmp_path, use_cache=str(tmp_path / 'answers'))
    monkeypatch.setattr(harness, 'score', None)  # nobody is asked
    assert (
        evaluate(LLM, tmp_path, use_cache=str(tmp_path / 'answers'))['results']['made_up']
        == first['results']['made_up']
    )


def test_faults_are_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="continuation '' after 'It is' is empty"): loglik_pairs(LLM, [('It is', '')])
    with pytest.raises(ValueError, match='no room for one in a context of ctx_len=64'):
        loglik_pairs(LLM, [('It is', ' the' * 70)])
    with pytest.raises(ValueError, match='256 tokens after the prompt leave no room'): write_all(LLM, [('It is', {})])
    with pytest.raises(ValueError, match="'num_beams': 4.*only until"):
        write_all(LLM, [('It is', dict(num_beams=4, max_gen_toks=4))])
    with pytest.raises(TypeError, match='Recorded has no model, tokenizer, ends'):
        HarnessLM(Recorded(tmp_path, hash='h'))
    with pytest.raises(ValueError, match='a Schema is not a text with its choices'):
        write_task(tmp_path, 'w', [Schema(('a', 'b'), ' c')])
    with pytest.raises(ValueError, match='there are no questions'): write_task(tmp_path, 'w', [])
    with pytest.raises(ValueError, match='no task file'): evaluate(LLM, tmp_path)
    write_task(tmp_path, 'w', made_up(1))
    with pytest.raises(ValueError, match="unknown task 'v'.* has w"): evaluate(LLM, tmp_path, ['v'])
    for name in ('lm_eval', 'lm_eval.api.model'):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, 'papers_lib.lab.harness')
    with pytest.raises(
        ModuleNotFoundError, match=r"needs the extra `eval` \(lm_eval.* is missing\): pip install -e '\.\[eval\]'"
    ):
        importlib.import_module('papers_lib.lab.harness')


def test_a_file_that_is_written_again_within_one_file_time_is_read_again(tmp_path):
    hits = []
    for answer in (0, 1, 0):
        write_task(tmp_path, 'again', [Question('It is', (' a', ' the'), answer)] * 3)
        for path in tmp_path.glob('again.*'): os.utime(path, (1e9, 1e9))             # of equal size and equal time
        hits.append(evaluate(LLM, tmp_path)['results']['again']['acc,none'])
    assert hits[0] == hits[2] == 1 - hits[1]
