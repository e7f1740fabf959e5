"The page and README's table: what is shown, escaped, linked, sorted, and what is passed over."
import re, shutil

import pytest

from papers_lib.engine.stats import Row
from papers_lib.lab import scoreboard as page_of
from papers_lib.lab.results import publish, read_results, write_results
from papers_lib.lab.scoreboard import readme_table, rows_found, scoreboard, title, update_readme
from repos import add_run, change, claim, speed, toy_repo
from test_lab_results import OTHERS


@pytest.fixture
def repo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy_repo(tmp_path)


def test_published_rows_reach_the_readme_and_the_page(repo, tmp_path):
    publish(repo)
    update_readme()
    text = (tmp_path / 'README.md').read_text()
    assert readme_table() in text and 'OUTDATED' not in text and text.endswith('end\n') and '**holds**' in text
    page = scoreboard().read_text()
    assert 'src=' not in page and '://' not in page                               # one file, no outside part
    assert 'href="toy/cpu/20200101-000000/toy.ipynb"' in page and 'href="../nbs/01_toy.ipynb"' in page
    both = [(r['id'], r['published']['verdict'], r['local']['verdict']) for r in rows_found()]
    assert both == [('C1', 'holds', 'holds'), ('T1', 'not attempted', 'not attempted')]
    shutil.rmtree(tmp_path / 'runs')                                              # a fresh clone
    links = re.findall('href="([^"]+)"', scoreboard().read_text())
    assert len(links) == 2 and all((tmp_path / 'runs' / link).exists() for link in links)
    assert [r['local'] for r in rows_found()] == [None, None]
    update_readme()
    assert (tmp_path / 'README.md').read_text() == text


TEXTS = ('statement', 'metric', 'unit', 'protocol', 'dataset', 'paper_ref')

@pytest.mark.parametrize('field', [*TEXTS, 'id', 'why', 'preset', 'date', 'commit', 'cpu'])
def test_whatever_a_file_says_is_text_and_not_markup(repo, field):
    evil = '<img src=x onerror=alert(1)>"\'&{{ 7 * 7 }}</td>'
    def harm(d):
        if field in ('preset', 'date', 'commit'): d['provenance'][field] = evil
        elif field == 'cpu': d['provenance']['machine']['cpu'] = evil
        else: d['rows'][1 if field == 'why' else 0][field] = evil
    change(repo / 'results.json', harm)
    page = scoreboard().read_text()
    assert '<img' not in page and '&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;{{ 7 * 7 }}&lt;/td&gt;' in page


def test_a_speed_of_another_cpu_is_shown_as_such(repo, tmp_path):
    here = add_run(tmp_path, preset='bench', rows=[speed(), claim()])
    assert 'measured on another CPU' not in scoreboard().read_text()
    change(here / 'results.json', lambda d: d['provenance']['machine'].update(cpu='Elbrus <8>'))
    page = scoreboard().read_text()
    assert page.count('measured on another CPU: Elbrus &lt;8&gt;') == 1           # the claim is not a matter of speed
    publish(here)
    assert '| bench (Elbrus <8>) |' in readme_table()


@pytest.mark.parametrize('text', OTHERS)
def test_a_foreign_file_takes_nothing_else_with_it(repo, tmp_path, capsys, text):
    publish(repo)
    (tmp_path / 'results/odd.cpu.json').write_text(text)
    half = add_run(tmp_path, '20300101-000000', preset='tiny')
    (half / 'results.json').write_text(text)
    page, told = scoreboard().read_text(), capsys.readouterr().err
    assert page.count('<tr data-paper') == 2 and 'odd.cpu.json' in page           # the page itself says what it lacks
    assert 'odd.cpu.json' in told and 'results.json' in told and 'passed over' in told
    assert readme_table().count('**holds**') == 1 and len(rows_found()) == 2


@pytest.mark.parametrize('text', ['', '[]', '{"cells": []}', '{"cells": 3}', '{"cells": [{}]}', '{"cells": [{"source": ""}]}'])
def test_a_notebook_without_a_title_is_called_by_its_file(tmp_path, text):
    (tmp_path / '01_odd.ipynb').write_text(text)
    assert title(tmp_path / '01_odd.ipynb') == ('01_odd.ipynb', '')


def test_the_newest_local_run_is_shown_by_number(repo, tmp_path):
    for name, value in (('20200101-000000-9', 2.), ('20200101-000000-11', 3.)):
        add_run(tmp_path, name, rows=[claim(ours=value, ci95=[value, value + 1])])
    assert [r['local']['ours'] for r in rows_found()] == [3.]


def test_a_claims_picture_lies_where_its_interval_does():
    lo, mid, hi = map(float, page_of._picture(claim(ours=1., ci95=[.5, 1.5], margin=0.)))
    assert 60 < lo < mid < hi <= 115
    lo, mid, hi = map(float, page_of._picture(claim(ours=-1., ci95=[-1.5, -.5], margin=0.)))
    assert 5 <= lo < mid < hi < 60
    assert page_of._picture(claim(ci95=[1., 1.])) is None and page_of._picture(speed()) is None


def browser():
    "A headless browser, or a skip that says what is missing."
    playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
    path = shutil.which('chromium')
    if not path: pytest.skip('needs the program chromium (Debian: apt-get install chromium)')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync']
    return playwright.sync_playwright(), dict(executable_path=path, headless=True, args=flags)


def test_the_page_sorts_and_filters_in_a_browser(repo, tmp_path):
    values = dict(C1=2., C2=10., C3=-1.)
    rows = [claim(id=i, ours=v, ci95=[v - .5, v + .5], statement=f'statement {i}') for i, v in values.items()]
    rows.append(Row('toy', 'table', 'T1', why='no data'))
    write_results(repo / 'results.json', rows, read_results(repo / 'results.json')[1])
    publish(repo)
    page = scoreboard()
    play, how = browser()
    with play as p:
        b = p.chromium.launch(**how)
        tab = b.new_page()
        wrong = []
        tab.on('pageerror', lambda e: wrong.append(str(e)))
        tab.goto(page.as_uri())
        shown = lambda: [r.locator('td').nth(1).inner_text() for r in tab.locator('tbody tr').all() if r.is_visible()]
        head = lambda name: tab.locator('th button', has_text=name).first.click()
        count = lambda: tab.locator('#count').inner_text()
        assert shown() == ['C1', 'C2', 'C3', 'T1'] and '4 of 4' in count()
        head('published')                                  # by number, not by letters; no number comes last
        assert shown() == ['C3', 'C1', 'C2', 'T1']
        head('published')
        assert shown() == ['C2', 'C1', 'C3', 'T1'] and tab.locator('th[aria-sort=descending]').count() == 1
        head('row')
        assert shown() == ['C1', 'C2', 'C3', 'T1']
        tab.fill('#q', 'Statement C2')
        assert shown() == ['C2'] and '1 of 4' in count()
        tab.fill('#q', '')
        tab.select_option('#verdict', 'fails')
        assert shown() == ['C3']
        tab.select_option('#verdict', '')
        tab.select_option('#kind', 'table')
        assert shown() == ['T1']
        tab.select_option('#kind', '')
        tab.select_option('#paper', 'toy')
        assert len(shown()) == 4
        tab.locator('summary').first.click()
        link = tab.get_by_role('link', name='notebook').first
        assert link.is_visible() and link.evaluate('a => a.href') == (tmp_path / 'nbs/01_toy.ipynb').as_uri()
        assert not wrong
        b.close()
