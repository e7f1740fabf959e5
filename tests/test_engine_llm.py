"Language models as services: text of tokens in linear time, seeds, stop strings, recordings that pay once."
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from decoders import broken, tiny
from papers_lib.engine.generate import generate, stream
from papers_lib.engine.llm import (LLM, Continuation, LocalLLM, NotSupported, Recorded, cut, prompt_seeds, render,
                                   weights_hash)
from papers_lib.store.files import CorruptFile
from papers_lib.text.tokenizers import ByteTokenizer, FastBPE, train_fast_bpe, train_pieces

TEXTS = ['the capital of Italy is Rome', 'naïve café in 東京 costs 5 €', 'the capital of Spain is Madrid 𝄞'] * 40
BPE, PIECES = train_fast_bpe(TEXTS, 330), train_pieces(TEXTS, 330)
TOKENIZERS = {'bytes': ByteTokenizer(), 'bpe': BPE, 'pieces': PIECES}


def naive(tokenizer, prompt, ids): return tokenizer.decode([*prompt, *ids])[len(tokenizer.decode(prompt)):]


def random_row(tokenizer, rng, n):
    "Text, characters that were cut off, and any tokens at all."
    out = []
    while len(out) < n:
        ids = tokenizer.encode(''.join(rng.choice('aé€𝄞東 .x') for _ in range(rng.randint(1, 9))))
        kind = rng.randrange(3)
        if kind == 0: ids = ids[:rng.randint(1, len(ids))]
        if kind == 1: ids = [rng.randrange(5, tokenizer.n_vocab - 1) for _ in range(rng.randint(1, 30))]
        out += ids
    return out[:n]


@pytest.mark.parametrize('name', TOKENIZERS)
@pytest.mark.parametrize('seed', range(25))
def test_the_text_of_tokens_is_that_of_decoding_all_of_them_at_every_step(name, seed):
    tokenizer, rng = TOKENIZERS[name], random.Random(seed)
    prompt = tokenizer.encode('a café €') if seed % 2 else []
    ids, row, sure = random_row(tokenizer, rng, 60), Continuation(tokenizer, prompt), ''
    for n, token in enumerate(ids, 1):
        sure += row.add(token)
        assert row.text == sure + row.tail == naive(tokenizer, prompt, ids[:n])


@pytest.mark.parametrize('name', TOKENIZERS)
@pytest.mark.parametrize('seed', range(25))
def test_a_stop_string_is_found_at_the_same_token_as_by_decoding_everything(name, seed):
    tokenizer, rng = TOKENIZERS[name], random.Random(seed)
    prompt, ids = tokenizer.encode('a'), random_row(TOKENIZERS[name], random.Random(seed), 60)
    whole = naive(tokenizer, prompt, ids)
    at = rng.randrange(len(whole) - 4)
    for stop in (whole[at:at + 1], whole[at:at + 3], [whole[at:at + 4], 'never'], 'never'):
        ends = lambda new: any(s in naive(tokenizer, prompt, new) for s in ([stop] if isinstance(stop, str) else stop))
        row = Continuation(tokenizer, prompt, stop)
        for n in range(1, len(ids) + 1):
            assert row(ids[:n]) == ends(ids[:n])
            if row.ended: break
        assert row.text == cut(naive(tokenizer, prompt, ids[:n]), stop)


class Counting:
    "A tokenizer that counts the tokens it decodes."
    def __init__(self, tokenizer): self.tokenizer, self.n = tokenizer, 0
    def __getattr__(self, name): return getattr(self.tokenizer, name)
    def decode(self, ids):
        self.n += len(ids)
        return self.tokenizer.decode(ids)


@pytest.mark.parametrize('kind', ['text', 'random', 'continuation bytes'])
def test_looking_for_stop_strings_costs_linear_time(kind):
    rng, cost = random.Random(0), []
    for n in (200, 400, 800):
        tok = Counting(ByteTokenizer())
        ids = [97] * n if kind == 'text' else [0x80] * n if kind != 'random' else random_row(tok, rng, n)
        row = Continuation(tok, stop=['zzz'])
        for i in range(n): row(ids[:i + 1])
        cost.append(tok.n / n)
    assert max(cost) < 25 and cost[-1] < 1.3 * cost[0], cost


def test_complete_decodes_linearly_too():
    "The row is handed over whole at each step; only what is new in it is decoded."
    cost = []
    for n in (40, 160):
        tok = Counting(ByteTokenizer())
        LocalLLM(tiny(n_vocab=257, ctx_len=200), tok, hash='x').complete(['a'], max_tokens=n, stop='zzz')
        cost.append(tok.n / n)
    assert cost[1] < 1.3 * cost[0] < 30


# ---- one string is one stop string

@pytest.mark.parametrize('stop', ['END', ['END'], ('END',)])
def test_a_string_is_one_stop_string(stop):
    assert cut('DEN HAAG END', stop) == 'DEN HAAG '
    row = Continuation(ByteTokenizer(), stop=stop)
    assert not row(list(b'DEN HAAG EN')) and row(list(b'DEN HAAG END')) and row.text == 'DEN HAAG '


def test_complete_takes_a_string(llm):
    whole = llm.complete(['the capital'], max_tokens=20)[0]
    stop = whole[6:9]
    for s in (stop, [stop]): assert llm.complete(['the capital'], max_tokens=20, stop=s) == [whole[:whole.find(stop)]]


def test_a_recording_knows_a_string_and_a_list_of_one_as_the_same(tmp_path):
    service = Service()
    for stop in ('END', ['END']): Recorded(tmp_path, service).complete(['a'], max_tokens=3, stop=stop)
    assert service.asked == ['a']


@pytest.mark.parametrize('stop', ['', ['x', '']])
def test_an_empty_stop_string_is_refused(stop):
    with pytest.raises(ValueError, match="stop='': a stop string needs at least one character"): cut('text', stop)


# ---- seeds

@pytest.fixture(scope='module')
def llm(): return LocalLLM(tiny(n_vocab=BPE.n_vocab), BPE)


HOW = dict(max_tokens=8, temperature=1.)


def test_equal_prompts_differ_and_every_one_can_be_asked_for_alone(llm):
    prompts = ['the capital'] * 5
    five = llm.complete(prompts, **HOW)
    assert len(set(five)) == 5 and five == llm.complete(prompts, **HOW)
    assert llm.complete(['the', *prompts, 'of'], **HOW)[1:-1] == five
    assert [llm.complete(['the capital'], seed=s, **HOW)[0] for s in prompt_seeds(prompts)] == five
    assert not set(five) & set(llm.complete(prompts, seed=1, **HOW))


def test_equal_seeds_give_equal_texts_when_they_are_asked_for(llm):
    one, other, same = llm.complete(['the capital'] * 3, seed=[4, 5, 4], **HOW)
    assert one == same != other
    with pytest.raises(ValueError, match='2 seeds for 3 prompts'): llm.complete(['a'] * 3, seed=[4, 5], **HOW)


def test_greedy_texts_of_equal_prompts_are_equal(llm): assert len(set(llm.complete(['the'] * 3, max_tokens=5))) == 1


# ---- prompt + continuation = text

@pytest.mark.parametrize('tokenizer', [BPE, PIECES], ids=['bpe', 'pieces'])
def test_prompt_and_continuation_are_the_whole_text(tokenizer):
    llm = LocalLLM(tiny(n_vocab=tokenizer.n_vocab), tokenizer)
    spaces = 0
    for seed in range(12):
        for prompt in ('the capital of Italy is', 'costs 5 €'):
            ids = tokenizer.encode(prompt)
            rows = generate(llm.model, [ids], 6, stop=llm.ends)
            text = llm.complete([prompt], max_tokens=6)[0]
            assert prompt + text == tokenizer.decode(ids + rows[0])
            text = llm.complete([prompt], max_tokens=6, temperature=1.5, seed=seed)[0]
            spaces += text.startswith(' ')
    assert spaces or tokenizer is BPE, 'the case is met: a continuation that begins with a space'


def test_rows_of_a_padded_vocabulary_are_never_written():
    n, tok = BPE.n_vocab, BPE
    wide, exact = tiny(n_vocab=n + 300), tiny(n_vocab=n)
    exact.load_state_dict({k: v[:n] if len(v) == n + 300 else v for k, v in wide.state_dict().items()})
    prompts = ['the capital', 'naïve café', 'costs']
    for how in (dict(), dict(temperature=1.), dict(temperature=1.5, seed=2)):
        asked = [LocalLLM(m, tok).complete(prompts, max_tokens=20, **how) for m in (wide, exact)]
        assert asked[0] == asked[1]
    rows = generate(wide, [tok.encode(p) for p in prompts], 20)
    assert max(map(max, rows)) >= n, 'the case is met: the model prefers a row that is no token'
    assert max(map(max, generate(wide, [tok.encode(p) for p in prompts], 20, n_vocab=n))) < n
    assert max(stream(wide, tok.encode('costs'), 20, temperature=1., n_vocab=n)) < n


def test_a_model_of_nan_is_an_error(llm):
    bad = LocalLLM(broken(tiny(n_vocab=BPE.n_vocab)), BPE, hash='bad')
    for call in (lambda: bad.complete(['the'], max_tokens=3), lambda: bad.complete(['the'], **HOW),
                 lambda: bad.loglik('the', [' capital', ' king'])):
        with pytest.raises(FloatingPointError, match='row 0'): call()


def test_the_hash_names_weights_and_tokenizer(llm):
    other = train_fast_bpe(TEXTS[:1], 290)
    assert llm.hash == LocalLLM(llm.model, BPE).hash
    assert len({llm.hash, LocalLLM(llm.model, other).hash, LocalLLM(tiny(1, n_vocab=BPE.n_vocab), BPE).hash}) == 3
    assert weights_hash(llm.model) != weights_hash(tiny(1, n_vocab=BPE.n_vocab))


# ---- chat

CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIAL = {'<|im_start|>': BPE.n_vocab, '<|im_end|>': BPE.n_vocab + 1}
CHATTING = FastBPE(BPE.vocab | SPECIAL, BPE.merges, special=SPECIAL)


@pytest.fixture(scope='module')
def talker(): return LocalLLM(tiny(n_vocab=CHATTING.n_vocab, ctx_len=96), CHATTING, CHATML)


@pytest.mark.parametrize('stop', [None, 'e', ['of', ' the', 'is R'], ['a', 'é', '\n', '𝄞']])
def test_the_pieces_of_a_chat_are_its_text(talker, stop):
    several = 0
    for seed in range(20):
        how = dict(max_tokens=30, temperature=1.2, seed=seed, stop=stop)
        pieces = list(talker.chat_stream('naïve?', **how))
        assert ''.join(pieces) == talker.chat('naïve?', **how)
        several += len(pieces) > 3
        for s in [stop] if isinstance(stop, str) else stop or (): assert s not in ''.join(pieces)
    assert several, 'text does come in pieces'


def test_pieces_come_as_soon_as_they_are_certain(talker):
    calls = []
    hook = talker.model.norm_f.register_forward_hook(lambda *_: calls.append(1))
    next(talker.chat_stream('naïve?', max_tokens=40))
    hook.remove()
    assert len(calls) < 15


def test_a_message_cannot_end_its_turn(talker, llm):
    for say in (talker.chat, lambda m: list(talker.chat_stream(m))):
        with pytest.raises(ValueError, match='only the chat format may write'): say('Hi<|im_end|>')
    with pytest.raises(NotSupported, match='no chat template'): llm.chat('Hi')
    with pytest.raises(ValueError, match='roles must alternate'):
        render("{{ raise_exception('roles must alternate') }}", [])


# ---- recordings

class Service:
    "Answers in capitals; `fails` names prompts on which the line breaks, `nulls` those that it answers with nothing."
    hash = 'service'

    def __init__(self, fails=(), nulls=(), wait=None):
        self.fails, self.nulls, self.wait = set(fails), set(nulls), wait
        self.asked = []

    def complete(self, prompts, *, max_tokens, temperature=0., stop=None, seed=0):
        for p in prompts:
            if self.wait: self.wait()
            self.asked.append(p)
            if p in self.fails: raise ConnectionError(p)
        return [None if p in self.nulls else f'{p.upper()} {seed}' for p in prompts]

    def loglik(self, prompt, choices):
        self.asked.append(prompt)
        return [[-1.] * len(c.split()) for c in choices]


def test_a_call_that_fails_half_way_has_paid_for_nothing_twice(tmp_path):
    service, prompts = Service(fails=['p57']), [f'p{i}' for i in range(100)]
    with pytest.raises(ConnectionError): Recorded(tmp_path, service).complete(prompts, max_tokens=3)
    assert len(list(tmp_path.glob('*.json'))) == 57
    service.fails.clear()
    assert Recorded(tmp_path, service).complete(prompts, max_tokens=3) == [f'P{i} 0' for i in range(100)]
    assert sorted(service.asked) == sorted([*prompts, 'p57'])


@pytest.mark.parametrize('batch_size', [1, 4])
def test_concurrent_callers_pay_once(tmp_path, batch_size):
    lock = threading.Event()
    service, prompts = Service(wait=lambda: lock.wait(.005)), [f'p{i}' for i in range(12)]
    orders = [random.Random(i).sample(prompts, 12) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ask = lambda order: Recorded(tmp_path, service, batch_size=batch_size).complete(order, max_tokens=3)
        answers = list(pool.map(ask, orders))
    assert sorted(service.asked) == sorted(prompts)
    for order, row in zip(orders, answers): assert row == [f'{p.upper()} 0' for p in order]


def test_other_questions_need_not_wait(tmp_path):
    asking, done = threading.Event(), threading.Event()
    class Slow(Service):
        def complete(self, prompts, **how):
            if prompts == ['slow']:
                asking.set()
                assert done.wait(10)
            return super().complete(prompts, **how)
    tape = Recorded(tmp_path, Slow())
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(tape.complete, ['slow'], max_tokens=3)
        assert asking.wait(10)
        assert tape.complete(['quick'], max_tokens=3) == ['QUICK 0']
        done.set()
        assert slow.result() == ['SLOW 0']


def test_nothing_is_no_answer_and_is_not_kept(tmp_path):
    service = Service(nulls=['b'])
    with pytest.raises(ValueError, match="service answered None to 'b': it must be a text"):
        Recorded(tmp_path, service, batch_size=8).complete(['a', 'b', 'c'], max_tokens=3)
    service.nulls.clear()
    assert Recorded(tmp_path, service, batch_size=8).complete(['a', 'b', 'c'], max_tokens=3) == ['A 0', 'B 0', 'C 0']
    assert service.asked == ['a', 'b', 'c', 'b']


@pytest.mark.parametrize('answer', [None, [], [[-1.]], [[-1.], []], [[-1.], [float('nan')]], [[-1.], ['x']], 'text'])
def test_log_probabilities_are_checked_on_arrival(tmp_path, answer):
    service = Service()
    service.loglik = lambda prompt, choices: answer
    with pytest.raises(ValueError, match='service answered .* to .p.'):
        Recorded(tmp_path, service).loglik('p', ['a', 'b'])
    assert not list(tmp_path.glob('*.json'))


@pytest.mark.parametrize('damage', [
    lambda old: 'null', lambda old: '', lambda old: '{', lambda old: '[' * 100_000, lambda old: '\ufffd',
    *(lambda old, change=change: json.dumps(json.loads(old) | change)
      for change in (dict(answer=None), dict(answer=3), dict(llm='another'), dict(question={}))),
    lambda old: json.dumps({k: v for k, v in json.loads(old).items() if k != 'answer'}),
])
def test_a_damaged_recording_is_asked_for_again(tmp_path, damage):
    service = Service()
    tape = Recorded(tmp_path, service)
    tape.complete(['a'], max_tokens=3)
    file, = tmp_path.glob('*.json')
    whole = file.read_text(encoding='utf-8')
    file.write_text(damage(whole), encoding='utf-8')
    with pytest.raises(CorruptFile, match=file.name): Recorded(tmp_path, hash='service').complete(['a'], max_tokens=3)
    assert tape.complete(['a'], max_tokens=3) == ['A 0'] and service.asked == ['a', 'a']
    assert file.read_text(encoding='utf-8') == whole


def test_bytes_that_are_no_text_are_asked_for_again(tmp_path):
    tape = Recorded(tmp_path, Service())
    tape.complete(['a'], max_tokens=3)
    next(tmp_path.glob('*.json')).write_bytes(b'\xff\xfe\x00')
    assert tape.complete(['a'], max_tokens=3) == ['A 0']


@pytest.mark.parametrize('batch_size', [1, 2, 9])
def test_recording_changes_no_text(tmp_path, llm, batch_size):
    prompts = ['the capital', 'of', 'the capital', 'the capital', 'of']
    direct = llm.complete(prompts, seed=3, **HOW)
    tape = Recorded(tmp_path, llm, batch_size=batch_size)
    assert tape.complete(prompts[:1], seed=3, **HOW) == direct[:1]
    assert tape.complete(prompts, seed=3, **HOW) == direct
    assert Recorded(tmp_path, hash=llm.hash).complete(prompts, seed=3, **HOW) == direct
    assert tape.loglik('the', [' capital', ' king']) == llm.loglik('the', [' capital', ' king'])


def test_every_argument_is_part_of_the_key(tmp_path):
    service = Service()
    tape, base = Recorded(tmp_path, service), dict(max_tokens=3, temperature=.5, stop=['x'], seed=1)
    others = [dict(max_tokens=4), dict(temperature=.6), dict(stop=['y']), dict(stop=None), dict(seed=2)]
    for more in ({}, *others): tape.complete(['a'], **base | more)
    assert len(service.asked) == 1 + len(others)
    other = Service()
    other.hash = 'service 2'
    Recorded(tmp_path, other).complete(['a'], **base)
    assert other.asked == ['a']


def test_whoever_answers_is_behind_the_protocol(tmp_path, llm):
    for one in (llm, Recorded(tmp_path, llm), Service()): assert isinstance(one, LLM)
    with pytest.raises(NotSupported, match='no model to ask'):
        Recorded(tmp_path, hash='x').complete(['a'], max_tokens=3)
    with pytest.raises(ValueError, match='the hash of the model'): Recorded(tmp_path)
    with pytest.raises(ValueError, match='batch_size=0'): Recorded(tmp_path, llm, batch_size=0)
    with pytest.raises(ValueError, match='do not belong together'): LocalLLM(tiny(n_vocab=100), BPE)
