"The terminal: text is shown and not obeyed, tables cut nothing, lines are written over or come now and then."
import io, os, pty, re, subprocess, sys, textwrap

import pytest
from hypothesis import given, settings, strategies as st

from papers_lib.lab.terminal import TextStream, amount, as_line, duration, job_lines, megabytes, print_table

EVIL = '[/red]\x1b[31m<b>x'
SEEN = r'[/red]\x1b[31m<b>x'


# text

@given(st.text())
def test_nothing_that_is_shown_is_obeyed(text):
    line = as_line(text)
    line.encode('utf-8')
    assert not re.search('[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]', line)
    assert as_line(line) == line                            # what was shown is shown as it is
    kept = ''.join(c for c in text if c.isprintable() and not c.isspace())
    assert all(c in line for c in kept)


@pytest.mark.parametrize('text, shown', [
    (EVIL, SEEN), ('a\x9b31mb', r'a\x9b31mb'), ('\u202eevil', r'\u202eevil'), ('\ud800', r'\ud800'),
    ('a\r\nb\tc', 'a b c'), ('\x07\x08\x7f', r'\x07\x08\x7f'), ('naïve 漢字', 'naïve 漢字')])
def test_a_line_of_text(text, shown): assert as_line(text) == shown


def test_what_libraries_print_is_shown():
    stream = io.StringIO()
    with_colours = TextStream(stream)
    print('a', EVIL, file=with_colours)
    print('50 %\r', end='', file=with_colours)              # a bar of progress writes its line again
    assert stream.getvalue() == f'a {SEEN}\n50 %\r' and not with_colours.isatty()


# amounts

@pytest.mark.parametrize('n, words', [
    (0, '0'), (999_499, '999,499'), (1e6, '1 million'), (1.0712e6, '1.07 million'), (99.96e6, '100 million'),
    (124_439_808, '124 million'), (999.6e6, '1 billion'), (3e11, '300 billion')])
def test_amounts(n, words): assert amount(n) == words


@pytest.mark.parametrize('n, words', [
    (0, '0.0 MB'), (1, '0.1 MB'), (1.115e6, '1.1 MB'), (9.949e6, '9.9 MB'), (9.95e6, '10 MB'), (98_362_432, '98 MB'),
    (999.4e6, '999 MB'), (999.5e6, '1 GB'), (1.56e9, '1.56 GB')])
def test_sizes(n, words): assert megabytes(n) == words


@pytest.mark.parametrize('n, words', [(0, '0 s'), (119.4, '119 s'), (120, '2 min'), (7199, '120 min'), (7200, '2 h'),
                                      (9000, '2.5 h'), (360_000, '100 h')])
def test_times(n, words): assert duration(n) == words


# tables

def printed(heads, rows, columns, monkeypatch, **kw):
    monkeypatch.setenv('COLUMNS', str(columns))
    file = io.StringIO()
    print_table(heads, rows, file=file, **kw)
    return file.getvalue()


WORDS = ['claims:', 'inconclusive', 'not attempted', SEEN, 'a-word-that-is-a-good-deal-longer-than-its-column', '漢字']


@pytest.mark.parametrize('columns', [20, 40, 80, 200])
def test_no_text_of_a_table_is_lost(monkeypatch, columns):
    rows = [['gpt2', 'cpu', [EVIL, 'holds: C1'], ' '.join(WORDS * 4)], ['a-long-name', 'tiny', '', '/a/b' * 30]]
    text = printed(['paper', 'preset', 'status', 'verdicts'], rows, columns, monkeypatch)
    assert '…' not in text and max(map(len, text.splitlines())) <= columns
    told = ['paperpresetstatusverdicts', *(as_line(' '.join(c) if isinstance(c, list) else c) for r in rows for c in r)]
    assert sorted(re.sub(r'\s', '', text)) == sorted(''.join(told).replace(' ', ''))


# marks without a width of their own, signs of two cells, flags, letters that are joined, a selector of variants
SIGNS = '\u0301\u200d\ufe0f👍🏽漢\u0e33\u1100\u1161🇩🇪\u200b\u20e3µ '


@settings(max_examples=100)
@given(st.lists(st.lists(st.text(st.characters() | st.sampled_from(SIGNS), max_size=60), min_size=3, max_size=3),
                max_size=4))
def test_no_text_of_any_table_is_lost(rows):
    file = io.StringIO()
    print_table(['a', 'b', 'c'], rows, file=file)
    plain = lambda text: sorted(re.sub(r'\s', '', text))
    assert plain(file.getvalue()) == plain('abc' + ''.join(as_line(c) for row in rows for c in row))


def test_words_stay_whole_where_they_fit_and_short_columns_are_served_first(monkeypatch):
    rows = [['smollm2-135m-instruct', '98 MB', 'Apache-2.0 (files); the sets: AFL, CC BY', 'gpt3 C2, C7-C8, tables']]
    lines = printed(['set', 'size', 'licence', 'needed by'], rows, 60, monkeypatch, right=['size']).splitlines()
    assert lines[1].startswith('smollm2-135m-instruct  98 MB  ')
    assert {w for line in lines[1:] for w in line.split()} == {w for cell in rows[0] for w in cell.split()}


def test_a_table_has_no_colour_but_on_a_terminal(monkeypatch):
    assert '\x1b' not in printed(['a'], [['[red]b[/red] :smile:']], 80, monkeypatch)
    assert '[red]b[/red] :smile:' in printed(['a'], [['[red]b[/red] :smile:']], 80, monkeypatch)


# lines of what runs

def test_without_a_terminal_a_job_has_a_line_now_and_then(monkeypatch):
    clock, log = [0.], io.StringIO()
    monkeypatch.setattr('time.monotonic', lambda: clock[0])
    with job_lines(log) as lines:
        lines.say(f'gpt2: started {EVIL}')
        for clock[0] in range(0, 95):
            lines.show(dict(gpt2=f'cell {int(clock[0])}/60') | (dict(llama='cell 1/9') if clock[0] >= 50 else {}))
    assert log.getvalue().splitlines() == [
        f'gpt2: started {SEEN}', 'gpt2: cell 30/60', 'gpt2: cell 60/60', 'llama: cell 1/9', 'gpt2: cell 90/60']


def test_a_closed_terminal_stops_nothing():
    class Closed(io.StringIO):
        def write(self, text): raise OSError(5, 'Input/output error')
    with job_lines(Closed(), every=0) as lines:
        lines.say('started')
        lines.show(dict(gpt2='cell 1/9'))


SCRIPT = '''
import sys
from papers_lib.lab.terminal import TextStream, job_lines
sys.stderr = TextStream(sys.stderr)                           # as a command has it
with job_lines() as lines:
    lines.say('gpt2: started')
    for n in range(5): lines.show({'gpt2': f'cell {n}/60', 'llama': 'a line ' * 30 + '\\x1b[31m'})
    lines.say('gpt2: finished [/red]\\x1b[32m')
    lines.show({'llama': 'cell 9/9'})
print('the end')
'''


def on_a_terminal(**env):
    "Run the script on a terminal of 80 columns; what the terminal got."
    mine, its = pty.openpty()
    p = subprocess.Popen([sys.executable, '-c', textwrap.dedent(SCRIPT)], stdout=its, stderr=its, stdin=its,
                         env=os.environ | dict(COLUMNS='80', LINES='24', TERM='xterm') | env)
    os.close(its)
    got = b''
    while True:
        try: block = os.read(mine, 65536)
        except OSError: break
        if not block: break
        got += block
    assert p.wait() == 0
    return got.decode('utf-8')


def test_on_a_terminal_lines_are_written_over():
    got = on_a_terminal()
    assert got.count('gpt2   cell') >= 5 and '\x1b[1A' in got           # the same line again and again
    assert '\x1b[31m' not in got and '\x1b[32m' not in got and r'gpt2: finished [/red]\x1b[32m' in got
    assert all(len(re.sub('\x1b\\[[0-9?]*[A-Za-z]', '', line)) <= 80 for line in re.split('[\r\n]', got))
    assert got.rstrip().endswith('the end') and got.rindex('\x1b[?25h') > got.rindex('\x1b[?25l')   # the cursor is back


def test_a_terminal_that_can_only_print_gets_no_escape_sequences():
    got = on_a_terminal(TERM='dumb')
    assert '\x1b' not in got and got.split('\r\n')[0] == 'gpt2: started'
