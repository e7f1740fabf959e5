"Say whether papers_lib/ is a fresh export and every notebook is clean; print what differs and exit 1 if not."

import filecmp, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[1]


def files(folder, pattern):
    "Relative paths below a folder, caches left out."
    return {
        p.relative_to(folder) for p in folder.rglob(pattern) if not {'__pycache__', '.ipynb_checkpoints'} & set(p.parts)
    }


def differing(a, b, pattern):
    "Paths that are in one tree only, or differ."
    both = files(a, pattern) & files(b, pattern)
    return sorted(
        (files(a, pattern) ^ files(b, pattern)) | {p for p in both if not filecmp.cmp(a / p, b / p, shallow=False)}
    )


def untagged(nbs):
    "Paper notebooks whose `parameters` tag is lost: every override would be lost in silence."
    for path in sorted(nbs.glob('[0-9][0-9]_*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        if sum('parameters' in c['metadata'].get('tags', []) for c in cells) != 1:
            yield path.name


def unfit(nbs):
    "Notebooks whose outputs are no fit reading."
    for path in sorted(nbs.rglob('*.ipynb')):
        outputs = [o for c in json.loads(path.read_text(encoding='utf-8'))['cells'] for o in c.get('outputs', [])]
        if any(o['output_type'] == 'error' for o in outputs):
            yield f'{path.relative_to(nbs)} holds an error'
        if re.search(r'(?<![\w.])/(home|root|Users|work|tmp)/', json.dumps(outputs)):
            yield f'{path.relative_to(nbs)} shows a path of the machine it ran on'


def main():
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp) / 'copy'
        for name in ('nbs', 'papers_lib'):
            shutil.copytree(
                root / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
            )
        shutil.copy(root / 'settings.ini', copy)
        for module in (copy / 'papers_lib').rglob('*.py'):
            if module.name != '__init__.py':
                module.unlink()  # a module without a notebook must not survive
        for command in ('nbdev_export', 'nbdev_clean'):
            subprocess.run([command], cwd=copy, check=True, env=os.environ | {'PYTHONPATH': str(copy)})
        wrong = [
            f'papers_lib/{p} is not what its notebook exports: run `make export`'
            for p in differing(copy / 'papers_lib', root / 'papers_lib', '*.py')
        ]
        wrong += [f'nbs/{p} is not clean: run `make export`' for p in differing(copy / 'nbs', root / 'nbs', '*.ipynb')]
    wrong += [f'nbs/{name}: exactly one cell must be tagged `parameters`' for name in untagged(root / 'nbs')]
    wrong += [f'nbs/{what}: run it again' for what in unfit(root / 'nbs')]
    print('\n'.join(wrong) or 'papers_lib/ equals a fresh export, notebooks are clean')
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
