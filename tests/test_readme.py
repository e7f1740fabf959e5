"README's commands and its example are the ones that work."
import configparser, re, shlex, subprocess, sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from papers_lib.lab import data
from papers_lib.lab.cli import app
from papers_lib.lab.scoreboard import PICTURE, published_files, published_forest, readme_table
from papers_lib.store.fetch import NotFound
from services import serving

root = Path(__file__).resolve().parents[1]
readme = (root / 'README.md').read_text(encoding='utf-8')
blocks = re.findall(r'```(\w+)\n(.*?)```', readme, re.S)
commands = [line.split('#')[0].strip() for kind, body in blocks if kind == 'bash' for line in body.splitlines()]
commands += re.findall(r'`(papers [^`]+|make [a-z]+)`', readme)


def test_it_opens_with_the_two_commands():
    assert [c for c in commands if c.startswith('make')][:2] == ['make reproduce', 'make test']


@pytest.mark.parametrize('command', sorted({c for c in commands if c.startswith('make')}))
def test_targets_exist_and_explain_themselves(command):
    target = command.split()[1]
    assert re.search(rf'^{target}:.*## \w', (root / 'Makefile').read_text(encoding='utf-8'), re.M)


@pytest.mark.parametrize('command', sorted({c for c in commands if c.startswith('papers ')}))
def test_command_lines_are_understood(command):
    name, *rest = shlex.split(command)[1:]
    told = CliRunner().invoke(app, [name, '--help'], env=dict(COLUMNS='200')).output
    assert 'Usage' in told
    for option in (r for r in rest if r.startswith('--')): assert option in re.sub(r'\x1b\[[0-9;]*m', '', told), option


def run_example(word, cwd=None, **other):
    example, = (body for kind, body in blocks if kind == 'python' and word in body)
    for old, new in other.values(): example = example.replace(old, new)
    return subprocess.run([sys.executable, '-c', example], capture_output=True, text=True, check=True, cwd=cwd,
                          encoding='utf-8').stdout


def test_the_example_runs(): assert re.fullmatch(r'\[\[\d+(, \d+){4}\]\]\n', run_example('GPT2Config'))


@pytest.fixture
def smollm2():
    try: data.get('smollm2-135m-instruct')
    except NotFound as e: pytest.skip(f'SmolLM2 cannot be had: {e}')


def test_the_chat_example_knows_the_capital_of_france(smollm2): assert 'Paris' in run_example('llm.chat')


def test_the_example_of_a_service_is_answered_once_and_recorded(tmp_path):
    class Wise:
        def chat(self, messages, **how): return f'{messages[-1]["content"]} Paris.'
    with serving(Wise()) as server:
        where = dict(url=('http://127.0.0.1:8000/v1', server.url), model=('my-model', 'ours'))
        told = [run_example('OpenAICompatible', tmp_path, **where) for _ in range(2)]
    assert told == ["['What is the capital of France? Paris.']\n"] * 2 and len(server.seen) == 1
    assert len(list((tmp_path / 'answers').glob('*.json'))) == 1


def test_the_harness_example_knows_both_capitals(smollm2, tmp_path):
    pytest.importorskip('lm_eval', reason="lm-eval is not installed: pip install -e '.[eval]'")
    assert run_example('write_task', tmp_path) == '1.0\n' and (tmp_path / 'runs/tasks/capitals.yaml').exists()


def test_the_lighter_weights_example_answers(smollm2): assert 'Rome' in run_example('packed')


def test_the_recommender_example_reads_a_strangers_table(tmp_path):
    rows = [f'{c},{p},{i}' for c in range(12) for i, p in enumerate(['tea', 'pot', 'cup', 'jam'])]
    (tmp_path / 'orders.csv').write_text('\n'.join(['customer,product,second', *rows]), encoding='utf-8')
    assert run_example('read_csv', tmp_path) == "1.0\n[['cup', 'jam']]\n"       # nothing in the eight places left


def test_links_lead_somewhere():
    for link in re.findall(r'\]\((?!http)([^)#]+)\)', readme): assert (root / link).exists(), link
    headings = {h.lower().replace(' ', '-') for h in re.findall(r'^##+ (.+)$', readme, re.M)}
    assert set(re.findall(r'\]\(#([^)]+)\)', readme)) <= headings


def test_the_table_is_the_one_the_results_give():
    table = readme.split('<!-- papers:begin -->\n')[1].split('<!-- papers:end -->')[0]
    assert table.strip() == readme_table()


def test_the_picture_is_the_one_the_results_give():
    assert f']({PICTURE})' in readme
    assert (root / PICTURE).read_text(encoding='utf-8') == str(published_forest())


def test_every_published_claim_is_listed_with_what_we_test():
    claims = [(paper, r) for paper, rows, _ in published_files() for r in rows if r.kind == 'claim']
    assert claims and '| claim | what we test |' in readme
    for paper, r in claims:
        named = paper.replace('_', r'\_')
        assert f'| {named} {r.id} |' in readme and f'**{r.verdict}**' in readme


def test_a_speed_names_its_machine():
    _, head, *races = readme.split('### Speed\n\n')[1].split('<!--')[0].strip().splitlines()
    assert races and all(line.split('|')[-2].strip() not in ('', 'unknown machine') for line in races)


def test_version_address_and_licence_are_the_repositorys():
    config = configparser.ConfigParser()
    config.read(root / 'settings.ini', encoding='utf-8')
    cite, = (body for kind, body in blocks if kind == 'bibtex')
    about = config['DEFAULT']
    assert f"{{{about['version']}}}" in cite and f"{{{about['git_url']}}}" in cite
    first = (root / 'LICENSE').read_text(encoding='utf-8').split()
    assert ' '.join(first[:2]) == 'Apache License' and '[Apache License 2.0](LICENSE)' in readme
