"The reading site: every page builds, names pages that are there, asks nothing outside, fits wide and narrow windows."
import contextlib, functools, io, json, os, re, shutil, sys, warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from papers_lib.lab import runner
from papers_lib.lab.results import paper_notebooks
from papers_lib.lab.scoreboard import published_files, scoreboard

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / 'nbs'))
sphinx_build = pytest.importorskip('sphinx.cmd.build', reason="needs sphinx: pip install -e '.[dev]'").main
_reading = pytest.importorskip('_reading', reason="needs sphinx and myst-nb: pip install -e '.[dev]'")


PYTHON = dict(language_info=dict(name='python'))


def build(source, out, *options):
    "Build a site here: a process of its own imports for three seconds. Its status and what it said."
    fixed = ['-q', '-N', '-b', 'html', '-c', str(root / 'nbs')]
    with contextlib.redirect_stderr(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        status = sphinx_build([*fixed, *options, str(source), str(out)])
    return status, said.getvalue()


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')
    status, said = build(root / 'nbs', out)
    assert status == 0 and 'WARNING' not in said, said
    return out


def notebook(*cells):
    "A notebook as text: a string is Markdown, a list holds the source of code that printed a word."
    def cell(source):
        if isinstance(source, str): return dict(cell_type='markdown', metadata={}, source=source)
        printed = dict(output_type='stream', name='stdout', text='printed')
        return dict(cell_type='code', metadata={}, source=source[0], execution_count=None, outputs=[printed])
    return json.dumps(dict(cells=[cell(c) for c in cells], metadata=PYTHON, nbformat=4, nbformat_minor=4))


# Cells

@pytest.mark.parametrize('source, shown', [
    ('#| export\nx = 1', 'x = 1'),
    ('#| export\n#| slow\n\nx = 1\n', 'x = 1'),
    ('# | export\nx = 1', 'x = 1'),
    ('x = """\n#| not a directive\n"""', 'x = """\n#| not a directive\n"""'),
    ('# a comment\nx = 1', '# a comment\nx = 1'),
    ('#| hide\nx = 1', None),
    ('#| default_exp nn.x', None),
    ('', None),
    ('#| export\n    ', None),
])
def test_directives_go_and_hidden_cells_with_them(source, shown):
    cells = _reading.read(notebook('# Title', [source])).cells
    assert [c.source for c in cells] == ['# Title'] + [s for s in [shown] if s is not None]


def test_a_hidden_input_leaves_its_output_and_keeps_its_tags():
    text = json.loads(notebook(['#| hide_input\nx = 1'], ['#| hide_output\nx = 1']))
    text['cells'][0]['metadata']['tags'] = ['parameters']
    first, second = _reading.read(json.dumps(text)).cells
    assert first.metadata.tags == ['parameters', 'remove-input'] and second.metadata.tags == ['remove-output']


def test_prose_that_looks_like_a_directive_stays():
    assert _reading.read(notebook('#| hide\n')).cells[0].source == '#| hide\n'


# Links

def linked(body, page='01_one', docs=('01_one', 'nn/02_two')):
    "The body of a page after its references became links."
    app = SimpleNamespace(env=SimpleNamespace(found_docs=set(docs)))
    context = dict(body=body, pathto=lambda page: f'to/{page}.html')
    _reading.link_pages(app, page, 'page.html', context, None)
    return context['body']


@pytest.mark.parametrize('before, after', [
    ('<span class="pre">nbs/nn/02_two</span>', '<span class="pre">{}nbs/nn/02_two</a></span>'),
    ('<span class="pre">02_two</span>', '<span class="pre">{}02_two</a></span>'),
    ('<span class="c1"># see nbs/nn/02_two.ipynb</span>', '<span class="c1"># see {}nbs/nn/02_two.ipynb</a></span>'),
    ('<a href=""><span class="pre">nbs/nn/02_two</span></a>', '<a href=""><span class="pre">nbs/nn/02_two</span></a>'),
    ('<span class="s1">nbs/nn/09_none</span>', '<span class="s1">nbs/nn/09_none</span>'),
    ('<span class="pre">10_000</span> and nbs/nn/02_two', '<span class="pre">10_000</span> and nbs/nn/02_two'),
])
def test_a_page_that_inline_code_or_a_comment_names_is_a_link(before, after):
    assert linked(before) == after.format('<a class="reference internal" href="to/nn/02_two.html">')


def test_a_page_that_is_not_there_fails_the_build_by_name(tmp_path):
    text = notebook('# Home\n\nSee `nbs/nn/03_three`.', ['x = 1  # see nbs/08_eight'])
    (tmp_path / 'index.ipynb').write_text(text, encoding='utf-8')
    status, said = build(tmp_path, tmp_path / 'out', '-D', 'html_static_path=_static')
    assert status != 0
    assert 'page index names nbs/08_eight, nbs/nn/03_three: there is no such notebook' in ' '.join(said.split())


# All pages

def pages(site): return sorted(p for p in site.rglob('*.html') if '_static' not in p.parts)


def test_every_notebook_is_a_page_without_directives(site):
    for path in sorted((root / 'nbs').rglob('*.ipynb')):
        page = (site / path.relative_to(root / 'nbs')).with_suffix('.html')
        code = re.sub(r'<[^>]*>', '', page.read_text(encoding='utf-8'))
        assert not re.search(r'^#\| (export|hide|default_exp|slow)', code, re.M), page.name


def test_what_pages_load_lies_in_the_site(site):
    for page in pages(site):
        text = page.read_text(encoding='utf-8')
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"#]+)"', text)
        loaded += re.findall(r'<link\b[^>]*\brel="stylesheet"[^>]*\bhref="([^"#]+)"', text)
        for address in loaded:
            assert (page.parent / address.split('?')[0]).exists(), f'{page.name}: {address}'


def test_the_first_page_shows_every_claim_and_every_paper(site):
    text = (site / 'index.html').read_text(encoding='utf-8')
    claims = [r for _, rows, _ in published_files() for r in rows if r.kind == 'claim']
    for verdict in {r.verdict for r in claims}:
        n = sum(r.verdict == verdict for r in claims)
        drawn = text.count(f'class="verdict {verdict.replace(" ", "-")}">{verdict}</text>')
        assert drawn == 2 * n, f'{verdict}: drawn for wide and for narrow windows'
    for path in paper_notebooks().values(): assert f'<div class="card"><a href="{path.stem}.html">' in text


def test_the_order_of_pages_has_one_source():
    told = (root / 'nbs/index.md').read_text(encoding='utf-8')
    rooms = {p.parent.name for p in (root / 'nbs').glob('*/*.ipynb')}
    assert all(told.count(f'\n{room}/*\n') == 1 for room in rooms)


# In a browser

@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
    path = shutil.which('chromium')
    if not path: pytest.skip('needs the program chromium (Debian: apt-get install chromium)')
    flags = ['--disable-gpu'] + ['--no-sandbox'] * (os.getuid() == 0)
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=path, headless=True, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope='module')
def visit(browser):
    "Open a page, once a width; what it asks for outside this machine's files is in `asked`."
    @functools.cache
    def open_page(path, width):
        tab = browser.new_page(viewport=dict(width=width, height=900))
        tab.asked = []
        note = lambda r: None if r.url.split(':')[0] in ('file', 'data', 'blob', 'about') else tab.asked.append(r.url)
        tab.on('request', note)
        tab.goto(path.as_uri())
        tab.wait_for_function('!document.querySelector("script[src*=MathJax]") || window.MathJax && MathJax.isReady'
                              ' && MathJax.Hub.queue.pending === 0 && document.fonts.status === "loaded"')
        return tab
    return open_page


@pytest.mark.parametrize('name, width', [
    ('index', 1280), ('index', 390), ('nn/04_positions', 1280), ('nn/04_positions', 390), ('04_gpt2', 390)])
def test_a_page_fits_its_window_and_asks_nothing_outside(site, visit, name, width):
    tab = visit(site / f'{name}.html', width)
    wide = '[document.documentElement, document.querySelector(".content")].map(e => e.scrollWidth - e.clientWidth)'
    assert tab.evaluate(wide) == [0, 0] and tab.asked == []


@pytest.mark.parametrize('width', [1280, 390])
def test_equations_are_set_in_glyphs_that_are_there(site, visit, width):
    tab = visit(site / 'nn/04_positions.html', width)
    families = tab.evaluate('[...document.fonts].filter(f => f.status === "loaded").map(f => f.family)')
    assert any('STIXMathJax' in f for f in families)
    boxes = tab.evaluate('[...document.querySelectorAll("div.math .MathJax .math")].map(e => e.offsetWidth)')
    assert len(boxes) >= 3 and min(boxes) > 50 and tab.locator('.merror').count() == 0


def test_a_line_of_code_has_110_characters_in_a_window_of_1280(site, visit):
    tab = visit(site / 'nn/04_positions.html', 1280)
    fits = tab.evaluate('''() => {
        const pre = document.querySelector('.cell_input pre'), s = document.createElement('span')
        s.textContent = 'x'.repeat(110); pre.prepend(s, '\\n')
        return pre.scrollWidth <= pre.clientWidth && s.getBoundingClientRect().height < 30 }''')
    assert fits


@pytest.mark.parametrize('width', [1280, 390])
def test_every_verdict_is_in_sight_without_going_sideways(site, visit, width):
    tab = visit(site / 'index.html', width)
    ends = tab.evaluate('''[...document.querySelectorAll('.papers-forest text.verdict')].map(
        e => e.getBoundingClientRect()).filter(r => r.width).map(r => [r.left, r.right])''')
    n = sum(r.kind == 'claim' for _, rows, _ in published_files() for r in rows)
    assert len(ends) >= n + 1 and all(0 <= left and right <= width for left, right in ends)


def test_a_run_s_page_and_the_scoreboard_ask_nothing_outside(visit, tmp_path):
    text = notebook('# A run\n\n$$ a = \\mathbb{E}[b] \\tag{1} $$', ['#| export\nx = 1'])
    (tmp_path / 'toy.ipynb').write_text(text, encoding='utf-8')
    runner._render(tmp_path, 'toy')
    tab = visit(tmp_path / 'toy.html', 1280)
    assert tab.asked == [] and tab.locator('.MathJax .math').count() == 1
    assert visit(scoreboard(tmp_path / 'board.html', tmp_path), 1280).asked == []
