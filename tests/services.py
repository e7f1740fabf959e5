"A server that speaks as OpenAI's does, on loopback, with a language model of ours behind it."
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from papers_lib.engine.score import score

KEY = 'a-secret-key'


class Service(BaseHTTPRequestHandler):
    def _say(self, told, status=200):
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _say_plainly(self, body):
        self.send_response(200)
        self.send_header('Content-Type', 'text/html' if body.startswith('<') else 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def _refuse(self, status, message): self._say(dict(error=dict(message=message)), status)

    def do_GET(self):
        if self.path != '/v1/models': return self._refuse(404, 'no such page')
        self._say(dict(object='list', data=[dict(id='ours', object='model', created=0, owned_by='us')]))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        server = self.server
        server.seen.append((self.path, asked, self.headers['Authorization']))
        server.headers.append(self.headers)
        with server.lock: trouble = server.troubles.pop(0) if server.troubles else None
        if server.key and self.headers['Authorization'] != f'Bearer {server.key}': return self._refuse(401, 'who?')
        if trouble: return self._refuse(trouble, server.trouble)
        if server.body: return self._say_plainly(server.body)
        if asked['model'] != 'ours': return self._refuse(404, 'no such model')
        pages = {'/v1/completions': self._complete, '/v1/chat/completions': self._chat}
        if self.path not in pages or self.path not in server.pages: return self._refuse(404, 'no such page')
        with server.lock: pages[self.path](asked)

    def _answer(self, usage=None, **choice):
        self._say(dict(id='1', object='x', created=0, model='ours', usage=usage,
                       choices=[dict(index=0, finish_reason='stop') | choice]))

    def _complete(self, asked):
        llm = self.server.llm
        if asked.get('echo') and self.server.scores: return self._echo(asked['prompt'])
        how = {k: asked.get(k, 0) for k in ('max_tokens', 'temperature', 'seed')}
        stop = asked.get('stop') if self.server.stops else None
        self._answer(text=llm.complete([asked['prompt']], stop=stop, **how)[0])

    def _echo(self, text):
        "The text and one more token, as servers write it."
        llm = self.server.llm
        ids = llm.tokenizer.encode(text)
        logp = [None, *(score(llm.model, ids[:1], [ids[1:]])[0] if ids[1:] else ())]
        more = llm.tokenizer.encode('x')[:1]
        names = [str(t) for t in ids + more]
        self._answer(text=text + 'x', logprobs=dict(tokens=names, token_logprobs=logp + [-9.]), usage=dict(
            prompt_tokens=len(ids), completion_tokens=1, total_tokens=len(ids) + 1))

    def _chat(self, asked):
        llm = self.server.llm
        text = llm.chat(asked['messages'], max_tokens=asked['max_tokens'], temperature=asked['temperature'],
                        seed=asked.get('seed', 0))
        if self.server.silent: return self._answer(message=dict(role='assistant', content=None))
        if not asked.get('stream'): return self._answer(message=dict(role='assistant', content=text))
        self.send_response(200)
        self.send_header('Content-Type', 'text/event-stream')
        self.end_headers()
        for letter in ['', *text]:
            event = dict(id='1', object='chat.completion.chunk', created=0, model='ours',
                         choices=[dict(index=0, delta=dict(content=letter), finish_reason=None)])
            self.wfile.write(f'data: {json.dumps(event)}\n\n'.encode())
        self.wfile.write(b'data: [DONE]\n\n')

    def log_message(self, *args): pass


@contextmanager
def serving(llm, **how):
    "Serve a model; `seen` of the server holds what it was asked."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Service)
    server.llm, server.lock, server.seen, server.headers = llm, threading.Lock(), [], []
    plain = dict(key='', troubles=[], trouble='come again', body='', scores=True, stops=True, silent=False,
                 pages=('/v1/completions', '/v1/chat/completions'))
    vars(server).update(plain | how)
    server.url = f'http://127.0.0.1:{server.server_port}/v1'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()
