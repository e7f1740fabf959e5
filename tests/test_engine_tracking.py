"Trackers: every whole record comes back, however the writer died."
import json, subprocess, sys

import pytest

from papers_lib.engine.tracking import JSONLTracker, NoTracker, Tracker, read_jsonl

RECORDS = [dict(step=i, loss=1 / (i + 1), name='é\n') for i in range(5)]


def test_a_file_cut_anywhere_gives_its_whole_records_and_goes_on(tmp_path):
    path = tmp_path / 'whole.jsonl'
    tracker = JSONLTracker(path)
    for r in RECORDS: tracker.log({k: v for k, v in r.items() if k != 'step'}, r['step'])
    tracker.summary(dict(loss=1.))
    raw = path.read_bytes()
    for n in range(len(raw) + 1):
        cut = tmp_path / 'cut.jsonl'
        cut.write_bytes(raw[:n])
        n_whole = sum(line == full for line, full in zip(raw[:n].split(b'\n'), raw.split(b'\n')) if line)
        left = [*RECORDS, dict(summary=dict(loss=1.))][:n_whole]
        assert read_jsonl(cut) == left, n
        again = JSONLTracker(cut)
        again.log(dict(loss=0.), step=9)
        again.finish(ok=False)
        assert read_jsonl(cut) == [*left, dict(step=9, loss=0.), dict(finished=False)], n


def test_a_killed_writer_leaves_what_it_logged(tmp_path):
    code = ('import os, signal\nfrom papers_lib.engine.tracking import JSONLTracker\n'
            f'JSONLTracker({str(tmp_path / "a.jsonl")!r}).log(dict(loss=1.5), 3)\nos.kill(os.getpid(), signal.SIGKILL)')
    subprocess.run([sys.executable, '-c', code])
    assert read_jsonl(tmp_path / 'a.jsonl') == [dict(step=3, loss=1.5)]


@pytest.mark.parametrize('line', ['[1]', 'loss 2.5', '7', '"x'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / 'a.jsonl').write_text(json.dumps(RECORDS[0]) + f'\n{line}\n{{}}\n', encoding='utf-8')
    with pytest.raises(ValueError, match='a.jsonl: line 2'): read_jsonl(tmp_path / 'a.jsonl')


def test_every_tracker_has_every_method():
    wanted = {k for k in vars(Tracker) if not k.startswith('_')}
    assert wanted == {'log', 'summary', 'figure', 'finish'}
    for cls in (NoTracker, JSONLTracker): assert wanted <= {*vars(cls)}
