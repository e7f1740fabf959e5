"""The embedded `books` text, from two Debian packages: r-cran-janeaustenr (six novels), bible-kjv (King James Bible).

Needs apt-get (to download), the program `bible` of the package bible-kjv, and the Python package rdata (extra `data`).
A document is a chapter; hard line ends inside a paragraph are joined.
One chapter in twenty, chosen by its hash, is held out. Of those of each novel, and of the Bible, one in five judges,
from the shortest to the longest; the others are for choosing learning rates.
"""

import gzip, hashlib, lzma, re, shutil, subprocess, tempfile, zlib
from pathlib import Path

from papers_lib.text.corpora import SEPARATOR, clean, dealt, is_held_out

target = Path(__file__).resolve().parents[1] / 'papers_lib/lab/books'
packages = {'r-cran-janeaustenr': '1.0.0-1'}
titles = dict(
    sensesensibility='Sense and Sensibility',
    prideprejudice='Pride and Prejudice',
    mansfieldpark='Mansfield Park',
    emma='Emma',
    northangerabbey='Northanger Abbey',
    persuasion='Persuasion',
)
limit = 2_000_000  # bytes, compressed


def austen(root):
    "Read the novels from R's lazy-loading database: an index, and zlib chunks after a four-byte length."
    import rdata

    base = root / 'usr/lib/R/site-library/janeaustenr/data'
    parse = lambda raw: rdata.conversion.convert(rdata.parser.parse_data(raw))
    index, raw = parse(gzip.decompress((base / 'Rdata.rdx').read_bytes())), (base / 'Rdata.rdb').read_bytes()
    for name in titles:
        start, size = index['variables'][name]
        yield (
            name,
            '\n'.join(
                '' if line is None else str(line) for line in parse(zlib.decompress(raw[start + 4 : start + size]))
            ),
        )


def unwrap(text):
    "Join the lines of a paragraph, drop the underscores that mark italics."
    return '\n'.join(' '.join(p.split()) for p in re.split(r'\n\s*\n', text.replace('_', '')) if p.strip())


def chapters(text):
    "Cut a novel at its chapter headings; what stands before the first is the title page."
    parts = re.split(r'(?m)^(?=\s*CHAPTER\s|\s*Chapter\s)', text)
    return [clean(unwrap(p)) for p in parts[1:] if len(p.split()) > 50]


def bible(text):
    "Join the verses of each chapter, their numbers left out."
    out = {}
    for line in text.splitlines():
        if m := re.match(r'(\S+?)(\d+):\d+ (.*)', line):
            out.setdefault((m[1], m[2]), []).append(m[3])
    return [clean('\n'.join(verses)) for verses in out.values()]


def split(sources):
    "Part the documents of each source into training, tuning and judging text; their order stays."
    out = {'train': [], 'tune': [], 'valid': []}
    for docs in sources:
        held = [d for d in docs if is_held_out(d)]
        judges = dict(zip(held, dealt(held)))
        for d in docs:
            out['train' if d not in judges else 'valid' if judges[d] else 'tune'].append(d)
    return out


def main():
    if not shutil.which('bible'):
        raise RuntimeError('the program `bible` is missing: apt-get install bible-kjv')
    with tempfile.TemporaryDirectory() as tmp:
        for name, version in packages.items():
            subprocess.run(['apt-get', 'download', '-qq', f'{name}={version}'], cwd=tmp, check=True)
            subprocess.run(['dpkg', '-x', *Path(tmp).glob(f'{name}_*.deb'), tmp], check=True)
        novels = [chapters(text) for _, text in austen(Path(tmp))]
    scripture = bible(
        subprocess.run(
            ['bible', '-f', 'Gen1:1-Rev22:21'], stdin=subprocess.DEVNULL, capture_output=True, text=True
        ).stdout
    )
    target.mkdir(parents=True, exist_ok=True)
    size = 0
    for name, part in split([*novels, scripture]).items():
        text = f'\n{SEPARATOR}\n'.join(part) + '\n'
        packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
        size += len(packed)
        (target / f'{name}.txt.xz').write_bytes(packed)
        print(
            f'{name}: {len(part)} documents, {len(text.split()):,} words, {len(text.encode()):,} bytes, '
            f'{len(packed):,} compressed, '
            f'sha256 of the text {hashlib.sha256(text.encode()).hexdigest()}'
        )
    print(f'{sum(map(len, novels))} chapters of Austen, {len(scripture)} of the Bible; {size:,} of {limit:,} bytes')
    if size > limit:
        raise RuntimeError(f'{size:,} bytes compressed: more than {limit:,}')
