"What the reading site adds to Sphinx: notebooks without their machinery, links to pages, the first page."
import html, re
from collections import Counter

import nbformat
from docutils import nodes
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

from papers_lib.lab.plots import forest
from papers_lib.lab.results import paper_notebooks
from papers_lib.lab.scoreboard import published_files, title

directives = re.compile(r'(?:[ \t]*#[ \t]*\|.*(?:\n|\Z))*')   # the lines that begin a cell and are meant for nbdev
numbered = re.compile(r'\d\d_\w+')   # a page beside one that was named in full
named = re.compile(r'nbs/((?:\w+/)?\d\d_\w+)(?:\.ipynb)?')
# a link that is there already, a piece of inline code, a comment in code
places = re.compile(r'<a\b.*?</a>|(<span class="(?:pre|c1)">)([^<]*)(</span>)', re.S)


def shown(cell):
    "Take the directives off a cell; None if nothing of it is meant for readers."
    if cell.cell_type != 'code': return cell
    lead = directives.match(cell.source)[0]
    cell.source = cell.source[len(lead):].strip('\n')
    said = re.findall(r'#\s*\|\s*(\w+)', lead)
    if 'hide' in said or not cell.source.strip(): return None
    tags = {'hide_input': 'remove-input', 'hide_output': 'remove-output'}
    if more := [tags[word] for word in said if word in tags]:
        cell.metadata['tags'] = [*cell.metadata.get('tags', []), *more]
    return cell


def read(text):
    "Read a notebook as a reader wants it: myst-nb calls this."
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells = [cell for cell in map(shown, notebook.cells) if cell is not None]
    return notebook


def link_pages(app, pagename, templatename, context, doctree):
    "Make links of the pages that prose and comments name; a page that is not there fails the build."
    if 'body' not in context: return
    by_name = {page.rpartition('/')[2]: page for page in app.env.found_docs}
    missing = set()

    def link(page, text):
        if page not in app.env.found_docs: missing.add(f'nbs/{page}')
        return f'<a class="reference internal" href="{context["pathto"](page)}">{text}</a>'

    def mend(place):
        start, text, end = place.groups()
        if start is None: return place[0]
        if numbered.fullmatch(text) and text in by_name: return start + link(by_name[text], text) + end
        return start + named.sub(lambda m: link(m[1], m[0]), text) + end
    context['body'] = places.sub(mend, context['body'])
    if missing:
        raise SphinxError(f'page {pagename} names {", ".join(sorted(missing))}: there is no such notebook; '
                          f'correct the name')


class Drawn(SphinxDirective):
    "A part of a page that is drawn from the published results, afresh at each build."
    def run(self):
        self.env.note_reread()
        return [nodes.raw('', self.draw(), format='html')]


class Forest(Drawn):
    "Every published claim, for wide and for narrow windows."
    def draw(self):
        files, names = published_files(), {name: title(path)[0] for name, path in paper_notebooks().items()}
        return ''.join(f'<div class="forest {window}">{forest(files, width, names)}</div>'
                       for window, width in (('wide', 960), ('narrow', 350)))


class Cards(Drawn):
    "A card a paper: its title, what it is, where its claims stand."
    def draw(self):
        files = published_files()
        cards = (card(name, path, files) for name, path in paper_notebooks().items())
        return f'<div class="cards">{"".join(cards)}</div>'


def card(name, path, files):
    "One paper's card."
    heading, subtitle = map(html.escape, title(path))
    stand = ''.join(verdicts(rows, prov['preset']) for paper, rows, prov in files if paper == name)
    return (f'<div class="card"><a href="{html.escape(path.stem)}.html">{heading}</a><p>{subtitle}</p>'
            f'{stand or "<p>nothing published yet</p>"}</div>')


def verdicts(rows, preset):
    "Count the verdicts of the claims of one published file; a file of speeds has none."
    counts = Counter(r.verdict for r in rows if r.kind == 'claim')
    if not counts: return ''
    badges = (f'<li class="{verdict.replace(" ", "-")}">{n} {verdict}</li>' for verdict, n in sorted(counts.items()))
    return (f'<p>{counts.total()} claims, preset {html.escape(preset)}</p>'
            f'<ul class="verdicts">{"".join(badges)}</ul>')


def setup(app):
    app.add_directive('forest', Forest)
    app.add_directive('cards', Cards)
    app.connect('html-page-context', link_pages)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
