const body=document.querySelector('tbody'),rows=[...body.rows],count=document.getElementById('count');
const f=['q','paper','kind','verdict'].map(i=>document.getElementById(i));
function show(){const q=f[0].value.toLowerCase();let n=0;for(const r of rows){const ok=(!q||r.textContent.toLowerCase().includes(q))&&f.slice(1).every(s=>!s.value||(r.dataset[s.id]||'').split('|').includes(s.value));r.hidden=!ok;n+=ok}count.textContent=n+' of '+rows.length+' rows'}
f.forEach(x=>x.addEventListener('input',show));show();
document.querySelectorAll('th button').forEach((b,i)=>b.addEventListener('click',()=>{const th=b.parentElement,up=th.getAttribute('aria-sort')!=='ascending';
document.querySelectorAll('th').forEach(t=>t.removeAttribute('aria-sort'));th.setAttribute('aria-sort',up?'ascending':'descending');
const key=r=>{const c=r.cells[i],v=c.dataset.v;return v===undefined?c.textContent.trim():v===''?(up?Infinity:-Infinity):+v};
rows.sort((a,b)=>{const x=key(a),y=key(b);return(typeof x==='number'?x-y:x.localeCompare(y,undefined,{numeric:true}))*(up?1:-1)}).forEach(r=>body.append(r))}));
