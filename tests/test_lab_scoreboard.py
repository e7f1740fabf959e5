"The page and README's tables: what is shown, escaped, linked, sorted, folded, and what is passed over."
import json, re, shutil

import pytest
from bs4 import BeautifulSoup

from papers_lib.engine.stats import Row, paired_t
from papers_lib.lab import scoreboard as page_of
from papers_lib.lab.results import publish, read_results, repo_root, write_results
from papers_lib.lab.scoreboard import FoundRow, readme_table, rows_found, scoreboard, title, update_readme, verdicts
from repos import add_run, change, claim, speed, toy_repo
from test_lab_results import OTHERS


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy_repo(tmp_path)


EFFECTS = {'holds': (1., 1.2, 1.3), 'fails': (-1., -1.2, -1.3), 'inconclusive': (-1., 1., .2)}

def judged(id, verdict='holds', **kw):
    "A claim whose arms give it this verdict; *not identified* by a reason, *not attempted* without a number."
    about = dict(says=f'the paper of {id}', tests=f'test of {id}', metric='gain', unit='bits', rule='greater',
                 margin=.1)
    if verdict == 'not attempted': return Row('toy', 'claim', id, **about | dict(why='no data') | kw)
    if verdict == 'not identified': kw = dict(why='a placebo works too') | kw
    effect = paired_t(EFFECTS.get(verdict, EFFECTS['holds']), (0., .1, .05), ('with', 'without'))
    return Row('toy', 'claim', id, **effect.facts() | about | kw)


def evidence(id, kind='table', **kw): return Row('toy', kind, id, **dict(metric='m', ours=1., rule='scaled') | kw)


def rewrite(repo, rows, publishing=True, **prov):
    "Give the run of a repository other rows and other facts."
    write_results(repo / 'results.json', rows, read_results(repo / 'results.json')[1] | prov)
    if publishing: publish(repo)


def soup(): return BeautifulSoup(scoreboard().read_text(encoding='utf-8'), 'html.parser')
def lines(page): return page.select('.claims > tbody')
def name(line): return line.select_one('.line th').get_text(' ', strip=True)
def said(tag): return ' '.join(tag.get_text(' ').split())


def test_published_rows_reach_the_readme_and_the_page(repo, tmp_path):
    publish(repo)
    update_readme()
    text = (tmp_path / 'README.md').read_text()
    assert readme_table() in text and 'OUTDATED' not in text and text.endswith('end\n') and '**holds**' in text
    assert (tmp_path / page_of.PICTURE).read_text() == page_of.published_forest() and f']({page_of.PICTURE})' in text
    page = scoreboard().read_text()
    assert 'src=' not in page and '://' not in page and 'url(' not in page        # one file, no outside part
    assert 'href="toy/cpu/20200101-000000/toy.ipynb"' in page and 'href="../nbs/01_toy.ipynb"' in page
    both = [(r['id'], r['published']['verdict'], r['local']['verdict']) for r in rows_found()]
    assert both == [('C1', 'holds', 'holds'), ('T1', 'not attempted', 'not attempted')]
    shutil.rmtree(tmp_path / 'runs')                                              # a fresh clone
    links = re.findall('href="([^"]+)"', scoreboard().read_text())
    assert links and all((tmp_path / 'runs' / link).exists() for link in links)
    assert [r['local'] for r in rows_found()] == [None, None]
    update_readme()
    assert (tmp_path / 'README.md').read_text() == text


EVIL = '<img src=x onerror=alert(1)>"\'&{{ 7 * 7 }}</td>[/tags]\x1b[31m\u202e<!-- papers:end -->'
SEEN = EVIL.replace('\x1b', '\\x1b').replace('\u202e', '\\u202e')
TEXTS = ('says', 'tests', 'metric', 'unit', 'protocol', 'dataset', 'baseline_name', 'paper_ref')

@pytest.mark.parametrize('field', [*TEXTS, 'id', 'why', 'preset', 'date', 'commit', 'cpu', 'seeds', 'carried'])
def test_whatever_a_file_says_is_text_and_not_markup(repo, field):
    def harm(d):
        if field in ('preset', 'date', 'commit'): d['provenance'][field] = EVIL
        elif field == 'cpu': d['provenance']['machine']['cpu'] = EVIL
        elif field == 'seeds': d['provenance']['seeds'] = [EVIL]
        elif field == 'carried':
            d['provenance']['variants'] = dict(computed=1, carried=[dict(n=2, commit=EVIL, machine=EVIL)])
        else: d['rows'][1 if field == 'why' else 0][field] = EVIL
    change(repo / 'results.json', harm)
    page = scoreboard().read_text(encoding='utf-8')
    assert '<img' not in page and '\x1b' not in page and '\u202e' not in page
    assert SEEN in soup().get_text()


@pytest.mark.parametrize('field', ['tests', 'unit', 'id', 'cpu', 'metric'])
def test_whatever_a_file_says_is_text_in_the_readme(repo, tmp_path, field):
    publish(add_run(tmp_path, preset='bench', rows=[speed(baseline_name='transformers, seconds')]))
    publish(repo)
    for path in (tmp_path / 'results').glob('toy.*.json'):
        change(path, lambda d: d['provenance']['machine'].update(cpu=f'{EVIL}|\n') if field == 'cpu'
               else d['rows'][0].update({field: f'{EVIL}|\n'}))
    update_readme()
    text = (tmp_path / 'README.md').read_text(encoding='utf-8')
    assert '<img' not in text and '\x1b' not in text and '&lt;img' in text and text.count('<!-- papers:end -->') == 1
    tables = [block.splitlines() for block in readme_table().split('\n\n') if block.startswith('|')]
    bars = lambda line: len(re.findall(r'(?<!\\)\|', line))
    assert len(tables) == 3 and all(len({bars(line) for line in table}) == 1 for table in tables)
    update_readme()
    assert (tmp_path / 'README.md').read_text(encoding='utf-8') == text


def test_a_speed_of_another_cpu_is_shown_as_such(repo, tmp_path):
    here = add_run(tmp_path, preset='bench', rows=[speed(), claim()])
    assert 'measured on another CPU' not in scoreboard().read_text()
    change(here / 'results.json', lambda d: d['provenance']['machine'].update(cpu='Elbrus <8>'))
    page = scoreboard().read_text()
    assert page.count('measured on another CPU: Elbrus &lt;8&gt;') == 1           # the claim is not a matter of speed


@pytest.mark.parametrize('text', OTHERS)
def test_a_foreign_file_takes_nothing_else_with_it(repo, tmp_path, capsys, text):
    publish(repo)
    (tmp_path / 'results/odd.cpu.json').write_text(text)
    half = add_run(tmp_path, '20300101-000000', preset='tiny')
    (half / 'results.json').write_text(text)
    page, told = soup(), capsys.readouterr().err
    assert len(lines(page)) == 1
    assert 'odd.cpu.json' in said(page.select_one('[role=note]'))                 # the page itself says what it lacks
    assert 'odd.cpu.json' in told and 'results.json' in told and 'passed over' in told
    assert readme_table().count('**holds**') == 1 and len(rows_found()) == 2


@pytest.mark.parametrize(
    'text', ['', '[]', '{"cells": []}', '{"cells": 3}', '{"cells": [{}]}', '{"cells": [{"source": ""}]}']
)
def test_a_notebook_without_a_title_is_called_by_its_file(tmp_path, text):
    (tmp_path / '01_odd.ipynb').write_text(text)
    assert title(tmp_path / '01_odd.ipynb') == ('01_odd.ipynb', '')


def test_the_newest_local_run_is_shown_by_number(repo, tmp_path):
    for stamp, verdict in (('20200101-000000-9', 'holds'), ('20200101-000000-11', 'fails')):
        add_run(tmp_path, stamp, rows=[judged('C1', verdict)])
    assert [r['local']['verdict'] for r in rows_found()] == ['fails']


# what is folded, and where

def test_a_claim_has_one_line_and_what_nobody_attempted_is_folded(repo, tmp_path):
    rewrite(repo, [judged('C1'), judged('C2', 'not attempted'), judged('C10', 'fails')])
    add_run(tmp_path, preset='tiny', rows=[judged('C1', 'not attempted'), judged('C2', 'not attempted'), judged('C10')])
    page = soup()
    assert [name(line) for line in lines(page)] == ['toy C10 cpu', 'toy C1 cpu', 'toy C10 tiny', 'toy C2 cpu']
    by_name = {name(line): line for line in lines(page)}
    assert said(by_name['toy C2 cpu'].select_one('.why')) == 'not attempted: no data'
    assert said(by_name['toy C10 tiny'].select_one('.verdict')) == 'here holds'
    folded = page.select('section.paper .absent li')
    assert [said(li) for li in folded] == ['C1, C2 tiny, this machine no data']


def test_evidence_stands_beneath_its_claim_and_the_rest_by_kind(repo):
    rows = [judged('C1'), judged('C10'), evidence('C1.arm'), evidence('C10.arm'), evidence('T1.x'), evidence('C3.arm'),
            evidence('T2', ours=None, why='no data'), evidence('T3', ours=None, why='no data'),
            evidence('P.same', 'parity', rule='at_most', bound=1e-5, ours=1e-7)]
    rewrite(repo, rows)
    page = soup()
    inside = {name(line): [said(th) for th in line.select('.rows tbody th')] for line in lines(page)}
    assert inside == {'toy C1 cpu': ['C1.arm cpu'], 'toy C10 cpu': ['C10.arm cpu']}
    groups = {said(g.summary): [said(th) for th in g.select('tbody th')] for g in page.select('.group')}
    tables = "the paper's tables, and further measurements: 2 scaled down, 2 not attempted"
    assert groups == {tables: ['C3.arm cpu', 'T1.x cpu'], 'equal numbers: 1 holds': ['P.same cpu']}
    assert [said(li) for li in page.select('.group .absent li')] == ['T2, T3 cpu, published, this machine no data']


def test_the_summary_counts_claims_with_failures_first(repo):
    told = ('holds', 'not identified', 'holds', 'fails', 'not attempted', 'inconclusive')
    rewrite(repo, [judged(f'C{i}', v) for i, v in enumerate(told)] + [evidence('T1')])
    assert verdicts(read_results(repo / 'results.json')[0]) == (
        'claims: 1 fails, 1 not identified, 1 inconclusive, 2 holds, 1 not attempted; other rows: 1 scaled down')
    page = soup()
    head, *body = [[said(cell) for cell in tr.select('th, td')] for tr in page.select('.summary tr')]
    assert head == ['paper', 'run', 'fails', 'not identified', 'inconclusive', 'holds', 'not attempted', 'claims']
    counts = ['1', '1', '1', '2', '1', '6']
    assert body == [['Toy paper', f'cpu, {where}', *counts] for where in ('published', 'this machine')]
    assert [name(line)[4:6] for line in lines(page)] == ['C3', 'C1', 'C5', 'C0', 'C2', 'C4']     # and so do the lines


# what a claim says of itself

def facts(line): return {said(dt): said(dt.find_next_sibling('dd')) for dt in line.select('dt')}

def test_a_claim_tells_all_that_a_verdict_rests_on(repo):
    rewrite(repo, [judged('C1', design='ab12', looks=[3], baseline_name='base', baseline_value=2.)],
            variants=dict(computed=3, carried=[dict(n=4, commit='0ldc0mm1t', machine='Old CPU')]))
    line, = lines(soup())
    told = facts(line)
    assert told['the paper says'] == 'the paper of C1' and told['we test'] == 'test of C1'
    assert told["after Holm's correction"] == 'holds' and re.fullmatch(r'.+ to .+ bits', told['one new seed'])
    assert told['variants'] == '3 computed, 4 carried over (4 from commit 0ldc0mm1t on Old CPU)'
    assert told['design'] == 'ab12' and told['looks'] == '3' and told['held against'] == 'base 2'
    assert told['seeds'] == "3 of the run's 0, 1, 2" and told['machine'] and told['commit'] and told['date']
    assert 'no control' in said(line.summary) and not line.select('.tag')
    assert '4 of 7 variants carried over' in readme_table()                       # where else the result is seen


def test_marks_say_what_to_know_before_believing(repo, tmp_path):
    weak = judged('C1', rule='greater', margin=.8)                                # clears its margin, but only just
    rewrite(repo, [weak, *(judged(f'C{i}', 'inconclusive') for i in range(2, 9))], publishing=False,
            migrated={'from': 1, 'no_arms': ['C1'], 'not_checked': ['C2']})
    old = dict(paper='toy', id='C3', commit='x')
    lines_of = [dict(old, design='a', date='2026-01-01', why='first'),
                dict(old, design='b', date='2026-02-02', why='the placebo was missing')]
    (tmp_path / 'results').mkdir(exist_ok=True)
    (tmp_path / 'results/designs.jsonl').write_text('\n'.join(map(json.dumps, lines_of)) + '\n')
    found = {name(line)[4:6]: line for line in lines(soup())}
    tags = {id: [said(t) for t in line.select('.tag')] for id, line in found.items()}
    assert tags['C1'] == ['Holm: inconclusive', 'arms not kept'] and tags['C4'] == []
    assert tags['C2'] == ['not recomputed'] and tags['C3'] == ['redesigned']
    changed = facts(found['C3'])['redesigned']
    assert 'the placebo was missing' in changed and 'first' not in changed
    assert facts(found['C1'])['arms not kept'] == 'the values of both arms were not kept'


def test_controls_are_shown_with_what_they_must_do(repo):
    def control(must, values):
        e = paired_t(values, (0., .1, .05), ('a', 'b'))
        return dict(name=f'arm {must}', must=must, ours=e.mean, ci95=e.ci95, values=e.values, test=e.test)
    controls = [control('nothing', EFFECTS['holds']), control('effect', EFFECTS['holds']),
                dict(name='skipped', must='floor', ours=None, ci95=None, values=None, test='')]
    rewrite(repo, [judged('C1', controls=controls)], publishing=False)
    line, = lines(soup())
    rows = [said(tr) for tr in line.select('table.rows tbody tr')]
    assert said(line.select_one('.verdict')) == 'here not identified' and '3 controls' in said(line.summary)
    assert rows[0].startswith('arm nothing must show nothing') and 'must show the effect' in rows[1]
    assert 'not measured' in rows[2]


def test_a_bar_places_effect_interval_and_margin_in_their_unit():
    def places(verdict='holds', **kw):
        f = FoundRow(judged('C1', verdict, **kw), {})
        return page_of._bar(f, page_of._scale([f]))
    b = places()
    assert b['zero'] < b['marks'][0]['x'] < b['ends'][0] < b['at'] < b['ends'][1] <= 240 and b['new'] is None
    assert b['region'][0] == b['marks'][0]['x'] and sum(b['region']) == 240       # it holds right of the margin
    b = places('fails')
    assert b['ends'][1] < b['zero'] < b['marks'][0]['x']
    b = places(rule='less')                                                       # it holds left of minus the margin
    assert b['region'][0] == 0 and sum(b['region']) == b['marks'][0]['x'] < b['zero']
    b = places('inconclusive', rule='equal', margin=.5)
    assert [m['label'] for m in b['marks']] == ['', 'margin ±0.5'] and b['zero_label']
    assert abs(sum(b['region']) - b['marks'][1]['x']) < .1 and b['region'][0] == b['marks'][0]['x']
    exact = FoundRow(Row('toy', 'claim', 'C1', ours=1., rule='exact', bound=1.), {})
    assert page_of._bar(exact, page_of._scale([exact]))['region'] is None
    assert page_of._bar(FoundRow(judged('C1', 'not attempted'), {}), None) is None
    wide = FoundRow(judged('C1'), {}, one_seed=[-5., 7.])
    both = page_of._scale([wide, f := FoundRow(judged('C1'), {})])
    assert page_of._bar(wide, both)['at'] == page_of._bar(f, both)['at']          # both sides share one scale


def test_the_readme_lists_every_claim_and_names_the_cpu(repo, tmp_path):
    rewrite(repo, [judged('C10', 'fails'), judged('C2', 'not attempted'), judged('C1')])
    against = {'S.a': 'transformers, seconds', 'S.b': 'full texts, seconds', 'S.c': 'nanoGPT at 325be85, seconds'}
    here = add_run(tmp_path, preset='bench', rows=[speed(id=id, baseline_name=b) for id, b in against.items()])
    change(here / 'results.json', lambda d: d['provenance']['machine'].update(cpu='Elbrus 8', cores=2, gpu=None))
    publish(here)
    papers, claims, speeds = (block for block in readme_table().split('\n\n') if block.startswith('|'))
    assert 'Of 2 measured claims, 2 have no control.' in readme_table()
    assert 'Toy paper' in papers and 'claims: 1 fails, 1 holds, 1 not attempted' in papers
    assert [line.split('|')[1].strip() for line in claims.splitlines()[2:]] == ['toy C1', 'toy C2', 'toy C10']
    assert '| toy C2 | test of C2 | cpu |  | **not attempted** |' in claims and '| what we test |' in claims
    assert 'Elbrus 8, 2 cores' in speeds
    assert 'S.a' in speeds and 'S.c' in speeds and 'S.b' not in speeds            # races against other libraries only


# in a browser

@pytest.fixture(scope='module')
def browser():
    "A headless browser, or a skip that says what is missing."
    playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
    path = shutil.which('chromium')
    if not path: pytest.skip('needs the program chromium (Debian: apt-get install chromium)')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync']
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=path, headless=True, args=flags)
        yield opened
        opened.close()


def tab_of(browser, address, **how):
    "Open a page that may ask nobody for anything; what goes wrong in it, or is asked for, is in `wrong`."
    tab = browser.new_context(**how).new_page()
    tab.wrong = []
    tab.on('pageerror', lambda e: tab.wrong.append(str(e)))
    tab.on('request', lambda r: r.url.startswith('file:') or tab.wrong.append(r.url))
    tab.goto(address)
    return tab


def test_the_page_sorts_and_filters_and_its_address_keeps_that(repo, tmp_path, browser):
    told = dict(C1='holds', C2='not identified', C3='fails', C10='holds')
    more = [evidence('C1.small'), evidence('T1', ours=None, why='no data'), speed()]
    rewrite(repo, [judged(id, v) for id, v in told.items()] + more)
    address = scoreboard().as_uri()
    tab = tab_of(browser, address, viewport=dict(width=1280, height=800))
    shown = lambda: [t.split()[1] for t in tab.locator('.line:visible > th').all_inner_texts()]
    sort = lambda by: tab.locator(f'th[data-sort={by}] button').click()
    count = lambda: tab.locator('#count').inner_text()
    assert shown() == ['C3', 'C2', 'C1', 'C10'] and count() == '4 of 4 claims, 2 of 2 other rows'
    sort('claim')                                              # as a person counts, not by letters
    assert shown() == ['C1', 'C2', 'C3', 'C10'] and tab.locator('th[aria-sort=ascending]').count() == 1
    sort('claim')
    assert shown() == ['C10', 'C3', 'C2', 'C1'] and tab.url.endswith('#sort=-claim')
    tab.select_option('#verdict', 'holds')
    tab.fill('#q', 'Test OF')
    assert shown() == ['C10', 'C1'] and 'verdict=holds' in tab.url
    tab.reload()                                               # the address holds it all
    assert shown() == ['C10', 'C1'] and tab.input_value('#verdict') == 'holds' and tab.input_value('#q') == 'Test OF'
    assert tab_of(browser, tab.url).locator('.line:visible').count() == 2
    tab.click('#clear')
    sort('verdict')
    tab.select_option('#kind', 'speed')
    assert shown() == [] and tab.locator('.group tbody tr:visible').count() == 1   # its group has opened
    tab.select_option('#kind', '')
    assert shown() == ['C3', 'C2', 'C1', 'C10'] and tab.locator('.group tbody tr:visible').count() == 0
    tab.fill('#q', 'C1.small')                                 # evidence brings its claim along
    assert shown() == ['C1'] and tab.get_by_text('C1.small').is_visible()
    tab.fill('#q', '')
    tab.locator('.summary a', has_text='1').first.click()
    assert shown() == ['C3'] and 'verdict=fails' in tab.url
    tab.go_back()
    assert len(shown()) == 4
    tab.locator('.more summary').first.click()
    link = tab.get_by_role('link', name='notebook').first
    assert link.is_visible() and link.evaluate('a => a.href') == (tmp_path / 'nbs/01_toy.ipynb').as_uri()
    for odd in ('#paper=nonsense&sort=nonsense', '#=&&=%', f'#q={EVIL[:20]}'): tab.goto(address + odd)
    assert not tab.wrong


def test_without_scripts_everything_is_there(repo, browser):
    rewrite(repo, [judged('C1'), judged('C2', 'fails'), evidence('C1.arm'), evidence('T1')])
    tab = tab_of(browser, scoreboard().as_uri(), java_script_enabled=False)
    assert tab.locator('.line:visible').count() == 2 and not tab.locator('#filters').is_visible()
    for summary in tab.locator('details:visible > summary').all(): summary.click()
    assert tab.get_by_text('the paper of C1').is_visible() and tab.get_by_text('T1').first.is_visible()


@pytest.fixture(scope='module')
def real_page(tmp_path_factory):
    "The page of the published results, with runs of this machine beside some of them."
    where = tmp_path_factory.mktemp('board')
    for path in sorted((repo_root() / 'results').glob('*.json')):
        paper, preset, _ = path.name.split('.')
        if paper == 'gpt3': continue
        folder = where / f'runs/{paper}/{preset}/20200101-000000'
        folder.mkdir(parents=True)
        shutil.copy(path, folder / 'results.json')
        (folder / 'status.json').write_text(json.dumps(dict(paper=paper, preset=preset, status='finished')))
    return {'alone': scoreboard(where / 'alone.html', runs=where / 'none'),
            'beside runs': scoreboard(where / 'beside.html', runs=where / 'runs')}


def sideways(tab): return tab.evaluate('document.documentElement.scrollWidth - document.documentElement.clientWidth')

@pytest.mark.parametrize('width', [1280, 700, 390])
def test_no_verdict_needs_sideways_scrolling(real_page, browser, width):
    for which, page in real_page.items():
        tab = tab_of(browser, page.as_uri(), viewport=dict(width=width, height=800))
        assert sideways(tab) <= 0, which
        chips = [c.bounding_box() for c in tab.locator('.claims > tbody .verdict .chip').all()]
        n = len({(r['paper'], r['id']) for r in rows_found() if (r['published'] or r['local'])['kind'] == 'claim'})
        assert len(chips) >= n > 0
        assert all(c and c['width'] > 20 and c['x'] >= 0 and c['x'] + c['width'] <= width for c in chips), which
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert sideways(tab) <= 0, f'{which}, all open'
        assert not tab.wrong


def test_what_heads_the_page_stays_in_view(real_page, browser):
    tab = tab_of(browser, real_page['alone'].as_uri(), viewport=dict(width=1280, height=800))
    tab.locator('.line').last.scroll_into_view_if_needed()
    head, bar = tab.locator('.claims > thead th').first.bounding_box(), tab.locator('#filters').bounding_box()
    assert abs(bar['y']) < 1 and abs(head['y'] - bar['height']) < 1
