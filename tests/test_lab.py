"Data, presets, results, scoreboard: what is found, what is refused, what is shown."
import gzip, hashlib, http.server, json, os, re, shutil, socket, subprocess, sys, threading, time, zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from papers_lib.engine.stats import Row
from papers_lib.lab import data, results
from papers_lib.lab.presets import RunSpec, apply_overrides, check_parameters, missing_data
from papers_lib.lab.results import dirty, newest, notebook_hash, publish, published, read_results, write_results
from papers_lib.lab.runner import start
from papers_lib.lab.scoreboard import readme_table, rows_found, scoreboard, update_readme
from papers_lib.text.corpora import CorruptFile

TEXT = b'one\ntwo\n'


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty cache and mirror, and a registry with one small set, `toy`."
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path / 'cache')); monkeypatch.setenv('PAPERS_MIRROR', str(tmp_path / 'mirror'))
    (tmp_path / 'mirror/toy').mkdir(parents=True)
    data._checked.cache_clear(); data.unreachable.clear()
    monkeypatch.setitem(data.registry, 'toy', toy())
    yield tmp_path
    data._checked.cache_clear(); data.unreachable.clear()


def toy(official='', **kw): return data.DataSet('CC0', {'train.txt': data.File(hashlib.sha256(TEXT).hexdigest(), 2, 'train.txt.gz', official, **kw)})
def mirror(place, raw=TEXT): (place / 'mirror/toy/train.txt.gz').write_bytes(gzip.compress(raw))


def test_mirror_then_cache(place):
    mirror(place)
    first = data.get('toy'); assert str(first) == 'toy@mirror' and first.path('train.txt').read_bytes() == TEXT
    shutil.rmtree(place / 'mirror'); assert data.get('toy') == first
    with pytest.raises(ValueError, match="toy has no 'test.txt'"): first.path('test.txt')


def test_every_place_is_named_when_a_set_is_nowhere(place):
    with pytest.raises(data.NotFound, match=r'mirror: not there; official: not there; package: not there; embedded: not there.*PAPERS_MIRROR'): data.get('toy')
    assert not data.available('toy')


def test_a_file_is_read_out_of_a_wheel_and_the_wheel_is_not_installed(place, monkeypatch):
    with zipfile.ZipFile(place / 'toy_wheel-1.0-py3-none-any.whl', 'w') as z:
        z.writestr('toy_wheel/text.txt', TEXT); z.writestr('toy_wheel-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: toy-wheel\nVersion: 1.0\n')
        z.writestr('toy_wheel-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'); z.writestr('toy_wheel-1.0.dist-info/RECORD', '')
    monkeypatch.setenv('PIP_NO_INDEX', '1'); monkeypatch.setenv('PIP_FIND_LINKS', str(place))
    monkeypatch.setitem(data.registry, 'toy', toy(package='toy-wheel==1.0!toy_wheel/text.txt'))
    got = data.get('toy')
    assert str(got) == 'toy@package' and got.path('train.txt').read_bytes() == TEXT
    with pytest.raises(ImportError): import toy_wheel  # noqa: F401
    monkeypatch.setitem(data.registry, 'gone', toy(package='gone-wheel==1.0!text.txt'))
    for _ in range(2):                                            # the second time nobody is asked
        with pytest.raises(data.NotFound, match='gone-wheel==1.0|the package index cannot be reached'): data.get('gone')


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'wikitext2'"): data.get('wikitext-2')


@pytest.mark.parametrize('harm, words', [(lambda raw: raw[:-9], 'train.txt.gz.*truncated or altered'), (lambda raw: gzip.compress(b'other'), 'toy/train.txt from mirror.*not the one')])
def test_a_harmed_mirror_is_refused_and_leaves_nothing(place, harm, words):
    path = place / 'mirror/toy/train.txt.gz'; path.write_bytes(harm(gzip.compress(TEXT)))
    with pytest.raises(CorruptFile, match=words): data.get('toy')
    assert [p.name for p in (place / 'cache/data').iterdir() if p.is_dir()] == []
    mirror(place); assert data.get('toy').path('train.txt').exists()


def test_an_altered_cache_is_named(place):
    mirror(place); path = data.get('toy').path('train.txt'); path.write_bytes(b'one\ntwx\n'); data._checked.cache_clear()
    with pytest.raises(CorruptFile, match='train.txt.*altered.*remove'): data.get('toy')


@pytest.fixture
def server(place, monkeypatch):
    "A site on loopback: /whole serves the text, /archive a zip, /part promises more than it sends; Range is answered."
    asked = []
    archive = place / 'a.zip'
    with zipfile.ZipFile(archive, 'w') as z: z.writestr('../inside/train.txt', TEXT)

    class Site(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def do_GET(self):
            asked.append((self.path, self.headers.get('Range')))
            body = archive.read_bytes() if self.path == '/archive' else TEXT
            at = int((self.headers.get('Range') or 'bytes=0-')[6:-1])
            if self.path == '/missing': return self.send_error(404)
            self.send_response(206 if at else 200); self.send_header('Content-Length', str(len(body) - at)); self.end_headers()
            self.wfile.write(body[at:at + 3] if self.path == '/part' and not at else body[at:])

    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Site); threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield lambda path: f'http://127.0.0.1:{httpd.server_port}{path}', asked
    httpd.shutdown()


def test_official_address_and_archive_that_names_a_path_outside(place, server, monkeypatch):
    url, _ = server
    monkeypatch.setitem(data.registry, 'toy', toy(url('/whole'))); assert str(data.get('toy')) == 'toy@official'
    shutil.rmtree(place / 'cache')
    monkeypatch.setitem(data.registry, 'toy', toy(url('/archive!../inside/train.txt'))); assert data.get('toy').path('train.txt').read_bytes() == TEXT
    assert not list(place.rglob('inside'))


def test_an_interrupted_download_goes_on_where_it_stopped(place, server):
    url, asked = server
    with pytest.raises(CorruptFile, match='stopped at 3 bytes; run again'): data.download(url('/part'), place / 'f')
    assert data.download(url('/part'), place / 'f').read_bytes() == TEXT and asked[-1][1] == 'bytes=3-'
    with pytest.raises(data.NotFound, match='404'): data.download(url('/missing'), place / 'g')
    assert not (place / 'g').exists()


def test_an_unreachable_host_costs_its_three_seconds_once(place, monkeypatch):
    silent = socket.socket(); silent.bind(('127.0.0.1', 0)); silent.listen(1)          # accepts, never answers
    url = f'http://127.0.0.1:{silent.getsockname()[1]}/f'
    began = time.monotonic()
    with pytest.raises(data.NotFound, match='cannot be reached'): data.download(url, place / 'f')
    assert 2 < time.monotonic() - began < 5
    began = time.monotonic()
    with pytest.raises(data.NotFound, match='cannot be reached'): data.download(url, place / 'f')
    assert time.monotonic() - began < 0.2
    silent.close()


@pytest.mark.skipif(not os.environ.get('PAPERS_MIRROR'), reason='needs PAPERS_MIRROR')
@pytest.mark.parametrize('name', [n for n, s in data.registry.items() if all(f.mirror for f in s.files.values())])
def test_mirrored_sets_have_their_records(tmp_path, monkeypatch, name):
    monkeypatch.setenv('PAPERS_CACHE', str(tmp_path))
    for file, spec in data.registry[name].files.items():
        raw = data.get(name).path(file).read_bytes()
        assert (len(json.loads(raw)) if file.endswith('.json') else len(raw.splitlines())) == spec.records, file


def test_books_are_whole_and_small(place):
    got = data.get('books'); assert str(got) == 'books@embedded'
    for file, spec in data.registry['books'].files.items(): assert len(list(data.documents('books', file[:-4]))) == spec.records
    folder = Path(data.__file__).parent / 'books'
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 2 * 2**20 and (folder / 'LICENSE').exists()


def test_tokens_are_made_once_and_harm_is_named(place):
    corpus = data.lm_corpus('books', 300)
    path = corpus.train.folder / '00000.bin'; before = path.stat().st_mtime_ns
    assert corpus.tokenizer.n_vocab == 300 and data.lm_corpus('books', 300).train.folder == corpus.train.folder and path.stat().st_mtime_ns == before
    raw = path.read_bytes(); path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))       # sizes do not show it
    with pytest.raises(CorruptFile, match='00000.bin.*altered.*remove .*made again'): data.lm_corpus('books', 300)
    path.write_bytes(raw[:10])
    with pytest.raises(CorruptFile, match='00000.bin'): data.lm_corpus('books', 300)
    path.write_bytes(raw); merges = corpus.train.folder.parent / 'tokenizer/merges.txt'; lines = merges.read_text().splitlines(); assert data.lm_corpus('books', 300)
    merges.write_text('\n'.join([lines[0], lines[2], lines[1], *lines[3:]]) + '\n')
    with pytest.raises(CorruptFile, match='tokenizer: not the tokenizer'): data.lm_corpus('books', 300)


def test_hashes_are_compared_once_a_process(place, monkeypatch):
    from papers_lib.text import corpora
    data.lm_corpus('books', 300); asked = []
    monkeypatch.setattr(corpora, 'sha256', lambda path: asked.append(path))
    data.lm_corpus('books', 300); assert not asked


@pytest.mark.parametrize('error, network', [('httpx.ConnectError', True), ('TimeoutError', True), ('RepositoryNotFoundError', False), ('HFValidationError', False), ('MemoryError', False)])
def test_only_the_network_makes_the_hub_unreachable(place, monkeypatch, error, network):
    import huggingface_hub
    from huggingface_hub import errors
    def ask(*args, **kw):
        if error == 'httpx.ConnectError': raise errors.LocalEntryNotFoundError('not here') from type('ConnectError', (type('TransportError', (Exception,), {}),), {})('refused')
        if error == 'RepositoryNotFoundError': e = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError); e.args = ('404',); raise e
        raise getattr(errors, error, None) or __builtins__[error]
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', ask)
    with pytest.raises((data.NotFound, MemoryError)) as told: data.hf_checkpoint('someone/model')
    assert ('cannot be reached' in str(told.value)) == network == ('huggingface.co' in data.unreachable)


# presets

@dataclass(frozen=True)
class Toy:
    lr:float = 1.; n:int = 2; name:str|None = None; widths:tuple = (1, 2)
    def __post_init__(self):
        if self.n < 1: raise ValueError(f'Toy.n={self.n}: must be at least 1')


spec = RunSpec(Toy(), Toy(), Toy(), Toy())


def test_overrides_change_one_field_and_keep_its_type():
    new = apply_overrides(spec, '{"train.lr": 3, "model.name": "a", "claims.widths": [4, 5]}')
    assert (new.train, new.model, new.claims) == (Toy(lr=3.), Toy(name='a'), Toy(widths=(4, 5))) and isinstance(new.train.lr, float) and spec.train == Toy()


@pytest.mark.parametrize('text, words', [('{', 'not JSON'), ('[1]', 'must be an object'), ('{"lr": 1}', "override 'lr': must be model.X"), ('{"train.lrr": 1}', "did you mean 'lr'"),
                                         ('{"train.lr": Infinity}', 'train.lr=inf: must be a finite number'), ('{"claims.widths": [1, NaN]}', 'a list of finite'), ('{"train.n": "x"}', "train.n='x': must be a whole number"),
                                         ('{"data.name": "boks"}', "data.name='boks': must be a data set, did you mean 'books'"), ('{"model.name": 3}', 'must be text or null'), ('{"modle.n": 3}', "did you mean 'model'"),
                                         ('{"train.n": 1.5}', 'must be'), ('{"train.n": true}', 'must be'), ('{"train.n": 0}', 'Toy.n=0'), ('{"optimizer.lr": 1}', 'must be model.X')])
def test_bad_overrides_name_the_field(text, words):
    with pytest.raises(ValueError, match=words): apply_overrides(spec, text)


@pytest.mark.parametrize('parameters, words', [
    (dict(seed='abc'), "seed='abc': must be a whole number from 0"), (dict(seed=-1), 'seed=-1'), (dict(seed=True), 'seed=True'), (dict(n_seeds=-1), 'n_seeds=-1: must be'), (dict(n_seeds=1.5), 'n_seeds=1.5'),
    (dict(device='gpu'), "device='gpu': must be 'auto', 'cpu' or 'cuda', did you mean 'cuda'"), (dict(wandb_mode='ofline'), "did you mean 'offline'"), (dict(preset='tinny'), "did you mean 'tiny'"),
    (dict(claims='C7'), "no claim 'C7'"), (dict(claims=3), 'claims=3: must be'), (dict(out_dir=3), 'out_dir=3'), (dict(overrides='{"train.lrr": 1}'), "did you mean 'lr'")])
def test_one_check_of_parameters_for_the_runner_and_the_notebook(parameters, words):
    with pytest.raises(ValueError, match=words): check_parameters('toy', parameters, {'tiny': spec}, {'C1': ()})
    with pytest.raises(ValueError, match=words): start('toy', {'tiny': spec}, {'C1': ()}, **parameters)


def test_a_set_that_nobody_has_is_said_and_planned():
    from dataclasses import replace
    assert 'openwebtext' in missing_data(replace(spec, data=Toy(name='openwebtext'))) and not missing_data(replace(spec, data=Toy(name='books'))) and not missing_data(spec)


def test_start_makes_no_folder_until_something_is_written(repo):
    root = repo.parents[3]; before = sorted(root.rglob('*'))
    run = start('toy', {'tiny': spec}, {'C1': ('x', 'greater', 0.)}); assert sorted(root.rglob('*')) == before
    run.finish(); assert (run.out / 'results.json').exists()


# results and the scoreboard

def claim(**kw): return Row(**dict(paper='toy', kind='claim', id='C1', statement='A < B & "C" <script>', metric='gain', ours=1., ci95=[.5, 1.5], values=[1.], n_seeds=3, rule='greater', margin=0.) | kw)


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "A small repository with a finished run."
    (tmp_path / 'nbs').mkdir(); (tmp_path / 'settings.ini').write_text(''); (tmp_path / 'README.md').write_text('# x\n<!-- papers:begin -->\nOUTDATED\n<!-- papers:end -->\nend\n')
    nb = dict(cells=[dict(cell_type='markdown', source='# Toy paper\n\n> Nobody, 2020', metadata={}),
                     dict(cell_type='code', source='effect = 1.', metadata={}, outputs=[], execution_count=None)], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / 'nbs/01_toy.ipynb').write_text(json.dumps(nb))
    for args in (['init', '-q'], ['add', '.'], ['-c', 'user.name=t', '-c', 'user.email=t@t', 'commit', '-qm', 'x']): subprocess.run(['git', *args], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'runs/toy/cpu/1'
    write_results(folder / 'results.json', [claim(), Row('toy', 'table', 'T1', why='no data')], results.provenance('cpu', [0, 1, 2], time.time(), notebook=notebook_hash(nb)))
    (folder / 'status.json').write_text(json.dumps(dict(paper='toy', preset='cpu', status='finished')))
    (folder / 'toy.ipynb').write_text(json.dumps(nb))
    return folder


def change(path, f):
    d = json.loads(path.read_text()); f(d); path.write_text(json.dumps(d, indent=2))

def commit(root): subprocess.run(['git', '-c', 'user.name=t', '-c', 'user.email=t@t', 'commit', '-qam', 'y'], cwd=root, check=True)


def test_a_notebook_is_changed_by_its_code_and_by_nothing_else(repo):
    root = repo.parents[3]; notebook = root / 'nbs/01_toy.ipynb'; assert not dirty()
    change(notebook, lambda d: d['cells'][1].update(outputs=[dict(output_type='stream', name='stdout', text='1')], execution_count=7))
    change(notebook, lambda d: (d['metadata'].update(kernel='x'), d['cells'][0].update(source='# Toy paper, better said')))
    assert not dirty()
    change(notebook, lambda d: d['cells'][1].update(source='effect = 2.')); assert dirty()
    with pytest.raises(ValueError, match='the notebooks.*commit'): publish(repo)
    commit(root); assert not dirty()
    (root / 'nbs/02_new.ipynb').write_text(notebook.read_text()); assert dirty()


def test_a_run_is_published_with_the_notebook_of_its_commit_only(repo):
    def ran(hash): change(repo / 'results.json', lambda d: d['provenance'].update(notebook=hash))
    right = json.loads((repo / 'results.json').read_text())['provenance']['notebook']
    ran('0' * 64)
    with pytest.raises(ValueError, match='nbs/01_toy.ipynb as it ran is not the one that is committed'): publish(repo)
    change(repo / 'results.json', lambda d: d['provenance'].pop('notebook')); read_results(repo / 'results.json'); publish(repo)     # an older run: its executed copy tells
    change(repo / 'toy.ipynb', lambda d: d['cells'].insert(0, dict(cell_type='code', source='seed = 3', metadata=dict(tags=['injected-parameters'])))); publish(repo)
    change(repo / 'toy.ipynb', lambda d: d['cells'][2].update(source='effect = 3.'))
    with pytest.raises(ValueError, match='as it ran'): publish(repo)
    ran(right); publish(repo)


def test_the_newest_run_that_may_be_published_is_taken(repo):
    later = repo.parent / '2'; shutil.copytree(repo, later)
    assert newest('toy', 'cpu') == later
    change(later / 'results.json', lambda d: d['provenance'].update(overrides='{"train.lr": 1}')); assert newest('toy', 'cpu') == repo
    change(repo / 'status.json', lambda d: d.update(status='failed')); assert newest('toy', 'cpu') == later       # publish then says what is wrong with it
    with pytest.raises(ValueError, match='no finished run of preset gpu'): newest('toy', 'gpu')


def test_peak_memory_counts_the_processes_of_a_run_and_not_the_one_that_started_it():
    ballast = bytearray(900 * 2**20)
    code = ("import subprocess, sys\nfrom papers_lib.lab.results import peak_memory\nbefore = peak_memory()\n"
            "subprocess.run([sys.executable, '-c', 'x = bytearray(700 * 2**20)'])\nprint(before, peak_memory())")
    before, after = map(int, subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split())
    assert len(ballast) > 600 * 2**20 > before * 2**20 and after >= 700


def test_published_rows_reach_the_table_the_readme_and_the_page(repo):
    path = publish(repo); root = path.parents[1]
    assert path.name == 'toy.cpu.json' and published('toy').rows[0].verdict == 'holds' and 'not attempted: no data' in str(published('toy'))
    update_readme(); text = (root / 'README.md').read_text()
    assert readme_table() in text and 'OUTDATED' not in text and text.endswith('end\n') and '**holds**' in text
    page = scoreboard().read_text()
    assert '<script>' not in page.split('</thead>')[1].split('</tbody>')[0] and 'A &lt; B &amp; &quot;C&quot;' in page and 'src=' not in page and 'http' not in page
    assert 'href="toy/cpu/1/toy.ipynb"' in page and 'href="../nbs/01_toy.ipynb"' in page
    assert [(r['id'], r['published']['verdict'], r['local']['verdict']) for r in rows_found()] == [('C1', 'holds', 'holds'), ('T1', 'not attempted', 'not attempted')]
    shutil.rmtree(root / 'runs'); page = scoreboard().read_text()                 # a fresh clone: every published row still has its notebook
    links = re.findall('href="([^"]+)"', page); assert len(links) == 2 and all((root / 'runs' / link).exists() for link in links)
    assert [r['local'] for r in rows_found()] == [None, None]
    update_readme(); assert (root / 'README.md').read_text() == text


def browser():
    "A headless browser, or a skip that says what is missing."
    playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
    path = shutil.which('chromium')
    if not path: pytest.skip('needs the program chromium (Debian: apt-get install chromium)')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    return playwright.sync_playwright(), dict(executable_path=path, headless=True, args=flags)


def test_the_page_sorts_and_filters_in_a_browser(repo):
    values = dict(C1=2., C2=10., C3=-1.)
    rows = [claim(id=i, ours=v, ci95=[v - .5, v + .5], statement=f'statement {i}') for i, v in values.items()] + [Row('toy', 'table', 'T1', why='no data')]
    write_results(repo / 'results.json', rows, read_results(repo / 'results.json')[1]); publish(repo); page = scoreboard()
    play, how = browser()
    with play as p:
        b = p.chromium.launch(**how); tab = b.new_page(); wrong = []
        tab.on('pageerror', lambda e: wrong.append(str(e))); tab.goto(page.as_uri())
        shown = lambda: [r.locator('td').nth(1).inner_text() for r in tab.locator('tbody tr').all() if r.is_visible()]
        head = lambda name: tab.locator('th button', has_text=name).first.click()
        assert shown() == ['C1', 'C2', 'C3', 'T1'] and '4 of 4' in tab.locator('#count').inner_text()
        head('published'); assert shown() == ['C3', 'C1', 'C2', 'T1']                        # by number, not by letters; no number comes last
        head('published'); assert shown() == ['C2', 'C1', 'C3', 'T1'] and tab.locator('th[aria-sort=descending]').count() == 1
        head('row'); assert shown() == ['C1', 'C2', 'C3', 'T1']
        tab.fill('#q', 'Statement C2'); assert shown() == ['C2'] and '1 of 4' in tab.locator('#count').inner_text()
        tab.fill('#q', ''); tab.select_option('#verdict', 'fails'); assert shown() == ['C3']
        tab.select_option('#verdict', ''); tab.select_option('#kind', 'table'); assert shown() == ['T1']
        tab.select_option('#kind', ''); tab.select_option('#paper', 'toy'); assert len(shown()) == 4
        tab.locator('summary').first.click(); link = tab.get_by_role('link', name='notebook').first
        assert link.is_visible() and link.evaluate('a => a.href') == (repo.parents[3] / 'nbs/01_toy.ipynb').as_uri()
        assert not wrong; b.close()


def test_a_hand_edited_verdict_is_refused_everywhere(repo):
    path = publish(repo); path.write_text(path.read_text().replace('"holds"', '"fails"'))
    for look in (lambda: read_results(path), lambda: published('toy'), scoreboard, readme_table):
        with pytest.raises(ValueError, match="toy.cpu.json: row C1 says 'fails', its numbers say 'holds'"): look()
    path.write_text(path.read_text().replace('"fails"', '"holds"').replace('"margin"', '"margins"'))
    with pytest.raises(ValueError, match="row 'C1': field"): read_results(path)
    path.write_text('{"schema": 2}')
    with pytest.raises(ValueError, match='schema 1'): read_results(path)


@pytest.mark.parametrize('change, words', [(dict(overrides='{"train.lr": 1}'), 'overridden'), (dict(claims='C1'), 'only'), (dict(dirty=True), 'commit')])
def test_what_must_not_be_published(repo, change, words):
    d = json.loads((repo / 'results.json').read_text()); d['provenance'] |= change; (repo / 'results.json').write_text(json.dumps(d))
    with pytest.raises(ValueError, match=words): publish(repo)
    assert not (repo.parents[3] / 'results').exists()


def test_a_failed_run_and_a_dirty_tree_are_not_published(repo):
    (repo / 'status.json').write_text(json.dumps(dict(paper='toy', preset='cpu', status='failed')))
    with pytest.raises(ValueError, match='only a finished one'): publish(repo)
    (repo / 'status.json').write_text(json.dumps(dict(paper='toy', preset='cpu', status='finished'))); (repo.parents[3] / 'settings.ini').write_text('x')
    with pytest.raises(ValueError, match='commit, run again'): publish(repo)


def test_rows_that_stand_twice_or_are_no_number(tmp_path):
    with pytest.raises(ValueError, match='C1 stand more than once'): write_results(tmp_path / 'r', [claim(), claim()], {})
    with pytest.raises(ValueError, match='ci95'): write_results(tmp_path / 'r', [claim(ci95=[0, float('nan')])], {})
    assert not (tmp_path / 'r').exists()


# the package

def test_import_is_quick_and_needs_neither_torch_nor_notebooks():
    code = ("import time; t = time.perf_counter(); import papers_lib, sys; took = time.perf_counter() - t\n"
            "print(took, [m for m in ('torch', 'nbdev', 'IPython', 'wandb', 'papermill', 'matplotlib') if m in sys.modules])")
    took, loaded = min(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split(' ', 1) for _ in range(3))
    assert float(took) < 0.3 and loaded.strip() == '[]'


def test_library_needs_no_notebook_software():
    code = ("import sys\nfor m in ('nbdev', 'IPython', 'wandb', 'papermill', 'matplotlib', 'nbformat', 'fastcore', 'jupyterlab'): sys.modules[m] = None\n"
            "import papers_lib.gpt2, papers_lib.lab.cli, papers_lib.lab.scoreboard, papers_lib.lab.plots, papers_lib.lab.runner")
    subprocess.run([sys.executable, '-c', code], check=True)
