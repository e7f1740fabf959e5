// Filters and order of the page; both stand in the address (#paper=gpt2&verdict=fails), so that a view can be sent.
const one = selector => document.querySelector(selector), all = (selector, from = document) => [...from.querySelectorAll(selector)];
const fields = ['q', 'paper', 'verdict', 'kind', 'preset'].map(id => document.getElementById(id));
const claims = all('.claims > tbody'), table = one('.claims'), narrow = matchMedia('(max-width: 699px)');
let sort = '';

// a claim's own words, without those of its evidence
const words = e => (e.matches('tbody') ? all('.line, .facts, .controls', e) : [e]).map(part => part.textContent).join(' ').toLowerCase();
const text = new Map(all('[data-kind]').map(e => [e, words(e)]));
const fits = e => fields.every(f => !f.value || (f.id === 'q'
  ? f.value.toLowerCase().split(/\s+/).every(word => text.get(e).includes(word))
  : (e.dataset[f.id] || '').split('|').includes(f.value)));

// what a filter opened it closes again; what a reader opened stays
function open(details, yes) {
  if (yes && !details.open) { details.open = true; details.dataset.opened = '' }
  else if (!yes && 'opened' in details.dataset) { details.open = false; delete details.dataset.opened }
}

// a claim that fits stands with all its evidence; else it stands where some of its evidence fits, with that alone
function filter() {
  const some = fields.some(f => f.value), deep = fields.some(f => f.value && f.id !== 'paper');
  let n = 0;
  for (const claim of claims) {
    const fit = fits(claim), inner = all('[data-kind]', claim), hits = inner.filter(fits);
    inner.forEach(e => e.hidden = !fit && !hits.includes(e));
    claim.hidden = !fit && !hits.length;
    n += fit;
    all('details', claim).forEach(d => open(d, !fit && all('[data-kind]', d).some(e => hits.includes(e))));
  }
  const rest = all('section.paper [data-kind]'), shown = rest.filter(fits);
  rest.forEach(e => e.hidden = !shown.includes(e));
  all('section.paper, section.paper details').forEach(e => {
    const has = all('[data-kind]', e).some(x => !x.hidden);
    e.hidden = !has;
    if (e.tagName === 'DETAILS') open(e, deep && has);
  });
  table.hidden = claims.every(e => e.hidden);
  all('table.rows').forEach(t => t.hidden = all('[data-kind]', t).length > 0 && all('[data-kind]', t).every(e => e.hidden));
  one('#count').textContent = `${n} of ${claims.length} claims, ${shown.length} of ${rest.length} other rows`;
  one('#clear').disabled = !some;
}

function order() {
  const down = sort.startsWith('-'), key = sort.replace('-', '') || 'verdict';
  const at = { claim: e => [+e.dataset.claim], verdict: e => [+e.dataset.rank, +e.dataset.claim], here: e => [+e.dataset.here, +e.dataset.claim] }[key];
  const less = (a, b) => a.map((x, i) => x - b[i]).find(d => d) || 0;
  [...claims].sort((a, b) => less(at(a), at(b)) * (down ? -1 : 1)).forEach(e => table.append(e));
  all('th[data-sort]').forEach(th => th.dataset.sort === key
    ? th.setAttribute('aria-sort', down ? 'descending' : 'ascending') : th.removeAttribute('aria-sort'));
}

function read() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const f of fields) {
    f.value = wanted.get(f.id) || '';
    if (f.selectedIndex === -1) f.value = '';
  }
  sort = /^-?(claim|verdict|here)$/.test(wanted.get('sort')) ? wanted.get('sort') : '';
  filter();
  order();
}

function write() {
  const kept = new URLSearchParams([...fields.map(f => [f.id, f.value]), ['sort', sort]].filter(([, v]) => v));
  history.replaceState(null, '', `${kept}` ? `#${kept}` : location.pathname + location.search);
  filter();
  order();
}

fields.forEach(f => f.addEventListener('input', write));
one('#clear').addEventListener('click', () => { fields.forEach(f => f.value = ''); write() });
all('th[data-sort]').forEach(th => {
  const button = document.createElement('button');
  button.textContent = th.textContent;
  button.addEventListener('click', () => { sort = (th.getAttribute('aria-sort') === 'ascending' ? '-' : '') + th.dataset.sort; write() });
  th.replaceChildren(button);
});
all('[data-go]').forEach(a => {
  a.href = '#' + a.dataset.go;
  a.addEventListener('click', () => one('#filters').scrollIntoView());
});
addEventListener('hashchange', read);

// the table's head sticks beneath the filters, which are open where there is room
const bar = one('#filters'), panel = one('#filters details');
const below = () => document.documentElement.style.setProperty('--top', narrow.matches ? '0px' : `${bar.offsetHeight}px`);
const room = () => panel.open = !narrow.matches;
bar.hidden = false;
narrow.addEventListener('change', room);
new ResizeObserver(below).observe(bar);
room();
read();
