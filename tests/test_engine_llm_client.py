"A model behind an address answers as the same model does here, and what goes wrong on the way is one sentence."
import threading
import time

import pytest

from decoders import tiny
from papers_lib.engine.llm import LLM, LocalLLM, NotSupported, Recorded, cut
from papers_lib.engine.llm_client import OpenAICompatible
from papers_lib.text.tokenizers import FastBPE, train_fast_bpe
from services import KEY, serving

TEXTS = ['the capital of Italy is Rome', 'naïve café in 東京 costs 5 €', 'the capital of Spain is Madrid 𝄞'] * 40
BPE = train_fast_bpe(TEXTS, 330)
SPECIAL = {'<|im_start|>': BPE.n_vocab, '<|im_end|>': BPE.n_vocab + 1}
TOKENS = FastBPE(BPE.vocab | SPECIAL, BPE.merges, special=SPECIAL)
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
PROMPTS = ['the capital', 'naïve café', 'the capital', 'costs']


@pytest.fixture(scope='module')
def llm(): return LocalLLM(tiny(n_vocab=TOKENS.n_vocab, ctx_len=96), TOKENS, CHATML)


@pytest.fixture(autouse=True)
def no_key(monkeypatch): monkeypatch.delenv('OPENAI_API_KEY', raising=False)


@pytest.mark.parametrize('how', [dict(), dict(temperature=1.), dict(temperature=1., seed=3, stop=[' the', 'e'])])
def test_texts_continued_there_are_those_continued_here(llm, how):
    with serving(llm) as server:
        far = OpenAICompatible('ours', server.url, chat=False)
        assert isinstance(far, LLM)
        assert far.complete(PROMPTS, max_tokens=12, **how) == llm.complete(PROMPTS, max_tokens=12, **how)
        assert far.complete([], max_tokens=12) == []
    assert sorted(asked['prompt'] for _, asked, _ in server.seen) == sorted(PROMPTS)


def test_scores_from_there_are_those_from_here(llm):
    choices = [' of Italy is Rome', ' of Spain', 's']
    with serving(llm) as server:
        far = OpenAICompatible('ours', server.url, chat=False)
        there, here = far.loglik('the capital', choices), llm.loglik('the capital', choices)
        assert far.loglik('the capital', []) == []
    assert [len(row) for row in there] == [len(row) for row in here]
    assert [x for row in there for x in row] == pytest.approx([x for row in here for x in row], abs=1e-5)


def test_what_does_not_score_says_so(llm):
    with serving(llm, scores=False) as server:
        with pytest.raises(NotSupported, match='does not score the text that it is given'):
            OpenAICompatible('ours', server.url, chat=False).loglik('the', [' capital'])
        with pytest.raises(NotSupported, match='scores no text'):
            OpenAICompatible('ours', server.url).loglik('the', [' capital'])
        with pytest.raises(ValueError, match='shares no first token'):
            server.scores = True
            OpenAICompatible('ours', server.url, chat=False).loglik('t', ['he'])


def test_an_assistant_answers_prompts_and_conversations(llm):
    turns = [dict(role='system', content='be brief'), dict(role='user', content='naïve?')]
    with serving(llm) as server:
        far = OpenAICompatible('ours', server.url)
        assert far.complete(PROMPTS[:2], max_tokens=9) == [llm.chat(p, max_tokens=9) for p in PROMPTS[:2]]
        for asked in ('naïve?', turns):
            for how in (dict(max_tokens=20), dict(max_tokens=20, temperature=1.2, seed=4)):
                pieces = list(far.chat_stream(asked, **how))
                assert ''.join(pieces) == far.chat(asked, **how) == llm.chat(asked, **how)
                assert len(pieces) > 3
    assert {path for path, *_ in server.seen} == {'/v1/chat/completions'}


def test_answers_are_cut_where_the_service_takes_no_stop_strings(llm):
    whole = llm.complete(PROMPTS, max_tokens=20)
    stop = ['zz1', 'zz2', 'zz3', 'zz4', whole[0][3:5]]                     # the fifth is never sent
    with serving(llm, stops=False) as server:
        far = OpenAICompatible('ours', server.url, chat=False)
        said = far.complete(PROMPTS, max_tokens=20, stop=stop)
        assert said == [cut(text, stop) for text in whole] != whole
        assert all(len(asked['stop']) == 4 for _, asked, _ in server.seen)
        answer = llm.chat('naïve?', max_tokens=20)
        for stop in (answer[3], answer[4:6]):
            said = ''.join(OpenAICompatible('ours', server.url).chat_stream('naïve?', max_tokens=20, stop=stop))
            assert said == cut(answer, stop).strip() != answer


def test_equal_prompts_get_seeds_of_their_own(llm):
    with serving(llm) as server:
        five = OpenAICompatible('ours', server.url, chat=False).complete(['the'] * 5, max_tokens=8, temperature=1.)
    assert len(set(five)) == 5 and len({asked['seed'] for _, asked, _ in server.seen}) == 5


def test_requests_go_out_together_and_answers_keep_their_order():
    class Slow:
        tokenizer = hash = None
        def complete(self, prompts, **how):
            time.sleep(.05 * int(prompts[0]))
            return [prompts[0].upper()]
    class Free:      # no lock: the server answers side by side
        def __enter__(self): pass
        def __exit__(self, *_): pass
    with serving(Slow(), lock=Free()) as server:
        far, began = OpenAICompatible('ours', server.url, chat=False, n_worker=8), time.time()
        assert far.complete(list('87654321'), max_tokens=1) == list('87654321')
        assert time.time() - began < .05 * 36 * .75


# ---- keys

def test_the_key_comes_from_the_environment_and_is_shown_nowhere(llm, monkeypatch, tmp_path):
    with serving(llm, key=KEY) as server:
        with pytest.raises(PermissionError, match='asks for a key: say by `key`') as e:
            OpenAICompatible('ours', server.url).complete(['a'], max_tokens=2)
        monkeypatch.setenv('MY_KEY', f'{KEY}\r\n')                        # a file of another system was read
        far = OpenAICompatible('ours', server.url, key='MY_KEY')
        Recorded(tmp_path, far).complete(['a'], max_tokens=2)
        assert server.seen[-1][2] == f'Bearer {KEY}'
        server.key = 'another'
        with pytest.raises(PermissionError, match='MY_KEY') as wrong: far.complete(['a'], max_tokens=2)
        server.key, server.troubles, server.trouble = '', [403], f'what is Bearer {KEY}?'
        with pytest.raises(RuntimeError, match='answered 403: .*Bearer .the key') as back:
            far.complete(['a'], max_tokens=2)
    shown = [str(e.value), str(wrong.value), str(back.value), repr(far), far.hash,
             *(p.read_text() for p in tmp_path.glob('*.json'))]
    assert len(shown) == 6 and not any(KEY in s for s in shown)
    for harm in ('a\nb', 'schlüssel'):
        monkeypatch.setenv('MY_KEY', harm)
        with pytest.raises(ValueError, match='MY_KEY: what the environment holds is no key') as odd:
            OpenAICompatible('ours', server.url, key='MY_KEY')
        assert harm not in str(odd.value)


def test_what_is_meant_for_openai_goes_nowhere_else(llm, monkeypatch):
    for name, value in dict(OPENAI_API_KEY=KEY, OPENAI_ORG_ID='us', OPENAI_PROJECT_ID='ours',
                            OPENAI_CUSTOM_HEADERS=f'Authorization: Bearer {KEY}').items():
        monkeypatch.setenv(name, value)
    with serving(llm) as server:
        OpenAICompatible('ours', server.url, chat=False).complete(['a'], max_tokens=2)
        headers = {k.lower(): v for k, v in server.headers[-1].items()}
    assert headers['authorization'] == 'Bearer none' and not any(k.startswith('openai-') for k in headers)
    assert OpenAICompatible('gpt')._client.api_key == KEY and OpenAICompatible('gpt')._client.organization == 'us'


def test_a_key_does_not_travel_unencrypted(monkeypatch):
    monkeypatch.setenv('MY_KEY', KEY)
    plain = 'http://example.org/v1'
    with pytest.raises(ValueError, match='unencrypted; use https, or no key') as e:
        OpenAICompatible('ours', plain, key='MY_KEY')
    assert KEY not in str(e.value)
    assert OpenAICompatible('ours', plain)._client.api_key == OpenAICompatible('ours', plain, key='')._client.api_key
    OpenAICompatible('ours', 'https://example.org/v1', key='MY_KEY')
    for url, said in (('example.org', 'write an address'), ('https://a:b@example.org/v1', 'it will be shown'),
                      ('https://example.org/v1?key=b', 'it will be shown'), ('file:///etc/passwd', 'write an address'),
                      ('http://127.0.0.1:abc/v1', 'write an address'), ('http://[::1/v1', 'write an address')):
        with pytest.raises(ValueError, match=said): OpenAICompatible('ours', url)


def test_a_proxy_is_not_asked_about_this_machine(llm, monkeypatch):
    for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY'): monkeypatch.setenv(name, 'http://127.0.0.1:9')
    for name in ('NO_PROXY', 'no_proxy'): monkeypatch.delenv(name, raising=False)
    with serving(llm) as server:
        assert OpenAICompatible('ours', server.url, chat=False, n_retry=0).complete(['the'], max_tokens=2)


# ---- what goes wrong

def test_what_fails_for_the_moment_is_asked_again(llm):
    with serving(llm, troubles=[429, 500]) as server:
        far = OpenAICompatible('ours', server.url, chat=False)
        assert far.complete(['the'], max_tokens=3) == llm.complete(['the'], max_tokens=3)
        assert len(server.seen) == 3


@pytest.mark.parametrize('how, model, exc, said', [
    (dict(troubles=[400]), 'ours', RuntimeError, 'answered 400'),
    (dict(), 'theirs', ValueError, "has no model 'theirs'; it has ours"),
    (dict(pages=['/v1/chat/completions']), 'ours', ValueError, 'try the other `chat`'),
])
def test_a_refusal_is_a_sentence(llm, how, model, exc, said):
    with serving(llm, **how) as server:
        with pytest.raises(exc, match=said):
            OpenAICompatible(model, server.url, chat=False).complete(['a'], max_tokens=2)
        with pytest.raises(ValueError, match='most addresses end in /v1'):
            OpenAICompatible('ours', server.url.removesuffix('/v1'), chat=False).complete(['a'], max_tokens=2)


@pytest.mark.parametrize('body', ['<html>log in</html>', '{"error": {"message": "no"}}', '{oops', '{"choices": []}',
                                  '{"choices": null}'])
@pytest.mark.parametrize('chat', [True, False])
def test_a_page_for_people_is_no_answer(llm, body, chat):
    with serving(llm, body=body) as server:
        far = OpenAICompatible('ours', server.url, chat=chat, n_retry=0)
        with pytest.raises(RuntimeError, match='sent no answer but .*most addresses end in /v1|answered'):
            far.complete(['a'], max_tokens=2)
        if chat:
            with pytest.raises(RuntimeError, match='sent no answer but|answered'): far.chat('a', max_tokens=2)


def test_nothing_is_no_answer(llm):
    with serving(llm, silent=True) as server:
        with pytest.raises(ValueError, match='gave no text'):
            OpenAICompatible('ours', server.url).complete(['a'], max_tokens=2)


def test_who_does_not_answer_is_named(llm):
    with serving(llm) as server: gone = server.url
    with pytest.raises(ConnectionError, match='127.0.0.1:.* cannot be reached'):
        OpenAICompatible('ours', gone, n_retry=0).complete(['a'], max_tokens=2)
    class Stuck:
        def complete(self, prompts, **how): threading.Event().wait(.6)
    with serving(Stuck()) as server, pytest.raises(TimeoutError, match='no answer in 0.2 s'):
        OpenAICompatible('ours', server.url, chat=False, n_retry=0, timeout=.2).complete(['a'], max_tokens=2)


def test_settings_are_checked():
    for how, said in ((dict(n_worker=0), 'n_worker=0'), (dict(timeout=0), 'timeout=0')):
        with pytest.raises(ValueError, match=said): OpenAICompatible('ours', 'http://127.0.0.1:9/v1', **how)
    with pytest.raises(ValueError, match='OPENAI_API_KEY is not set'): OpenAICompatible('ours')
    with pytest.raises(ValueError, match='MY_KEY is not set'):
        OpenAICompatible('ours', 'http://127.0.0.1:9/v1', key='MY_KEY')


def test_the_hash_names_model_address_kind_and_revision():
    made = lambda model='ours', url='http://127.0.0.1:9/v1', **how: OpenAICompatible(model, url, **how).hash
    told = [made(), made('theirs'), made(url='http://127.0.0.1:8/v1'), made(chat=False), made(revision='2')]
    assert len(set(told)) == 5 and made() == made(url='http://127.0.0.1:9/v1/', timeout=3., n_worker=2)
