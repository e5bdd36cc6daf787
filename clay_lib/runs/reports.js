// Explores the runs of a sweep: parallel coordinates, learning curves, two runs side by side, and a table. One text
// filter holds for all of them; a run under the mouse or the keyboard's focus is highlighted in all of them.
for (const place of document.querySelectorAll('.explorer')) {
  const data = JSON.parse(place.querySelector('script').textContent);
  const columns = Object.entries(data.columns).map(([name, kind], index) => ({name, kind, index, ...scaleOf(index)}));
  const first = columns.find(c => c.kind === 'min' || c.kind === 'max');
  const axes = columns.filter(c => c.kind !== 'cost' && (c.kind !== 'parameter' || c.levels.length > 1));
  data.runs.forEach((run, rank) => { run.rank = rank / Math.max(1, data.runs.length - 1); });
  let shown = data.runs, order = null, compared = data.runs.slice(0, 2);

  // ---- elements

  const id = `e${[...document.querySelectorAll('.explorer')].indexOf(place)}`;
  place.insertAdjacentHTML('beforeend', `
    <p class=filter><label for=${id}>Filter</label>
      <input id=${id} type=text spellcheck=false placeholder="${example()}">
      <button type=button>clear</button> <span class=count></span></p>
    <h3>Parameters and metrics</h3>
    <p class=hint>A line is a run, colored by ${first ? text(first.name) : 'its place'}: the stronger, the better.
      Better is up. Drag along an axis to filter.</p>
    <svg class="lines parallel" role=img aria-label="Parallel coordinates of all runs"></svg>
    <output class=about aria-live=polite>Point at a line, or focus a row of the table with the Tab key.</output>
    <div class=learning><h3>Learning curves</h3>
    <p class=hint>What the runs reported while they ran; dashed: pruned.</p>
    <svg class="lines curves" role=img aria-label="Learning curves"></svg></div>
    <h3>Two runs side by side</h3>
    <p class=choice><label>left <select></select></label> <label>right <select></select></label></p>
    <div class="wide compare"></div>
    <h3>Table</h3><div class="wide runs"><table class=sweep><thead></thead><tbody></tbody></table></div>`);
  const find = selector => place.querySelector(selector);
  const input = find('input'), body = find('.runs tbody'), about = find('.about'), selects = place.querySelectorAll('select');

  // ---- values

  function text(value) {
    const plain = value === null || value === undefined ? '–' : typeof value === 'number' ? `${+value.toPrecision(4)}`
      : typeof value === 'object' ? JSON.stringify(value) : `${value}`;
    return plain.replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
  }
  function short(value, length = 14) {
    const plain = typeof value === 'number' ? `${+value.toPrecision(3)}` : `${value}`;
    return text(plain.length > length ? `${plain.slice(0, length - 1)}…` : plain);
  }
  function scaleOf(index) {  // levels, and the position of a value from 0 to 1
    const values = data.runs.map(run => run.values[index]).filter(v => v !== null);
    const numeric = values.every(v => typeof v === 'number'), key = v => numeric ? v : text(v);
    const levels = [...new Set(values.map(key))].sort(numeric ? (a, b) => a - b : undefined);
    const low = levels[0], high = levels[levels.length - 1], log = numeric && low > 0 && high > 30 * low;
    const on = v => log ? Math.log(v) : v;
    const at = v => !numeric ? (levels.indexOf(key(v)) + .5) / levels.length : high > low
      ? (on(v) - on(low)) / (on(high) - on(low)) : .5;
    const ends = [0, .25, .5, .75, 1].map(t => log ? low * (high / low) ** t : low + (high - low) * t);
    return {numeric, levels, at, ticks: levels.length <= 6 || !numeric ? levels : ends};
  }
  function describe(run) {
    return columns.map(c => `${text(c.name)} ${text(run.values[c.index])}`).join(', ');
  }
  function label(run) {
    return columns.filter(c => c.kind === 'parameter').map(c => `${c.name} ${short(run.values[c.index])}`).join(', ');
  }
  function example() {
    const c = columns.find(column => column.numeric && column.levels.length > 1) || columns[0];
    return `such as: ${text(c.name)} <= ${text(c.levels[0])}, status = done`;
  }

  // ---- the filter: conditions separated by commas

  function conditions() {
    return input.value.split(',').map(part => part.match(/^\s*(.+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*$/)).filter(Boolean);
  }
  function passes(run, [, name, sign, wanted]) {
    const column = columns.find(c => c.name === name);
    const value = name === 'status' ? run.status : name === 'run' ? run.run : column && run.values[column.index];
    if (value === undefined || value === null) return false;
    const number = typeof value === 'number', a = number ? value : text(value), b = number ? +wanted : text(wanted);
    return {'<=': a <= b, '>=': a >= b, '<': a < b, '>': a > b, '=': a === b, '!=': a !== b}[sign];
  }
  function filter() {
    const all = conditions(), known = all.every(([, name]) => data.columns[name] || ['status', 'run'].includes(name));
    shown = data.runs.filter(run => all.every(condition => passes(run, condition)));
    find('.count').textContent = known ? `${shown.length} of ${data.runs.length} runs` : 'no column of this name';
    drawParallel();
    drawCurves();
    drawTable();
  }

  // ---- lines

  function drawLines(svg, below, above, lines, height) {
    svg.setAttribute('viewBox', `0 0 1100 ${height}`);
    const paths = lines.map(({run, points}) => `<path data-run=${run.run} class=${run.status}
      style="--share: ${Math.round(100 * (1 - run.rank) ** 2)}%"
      d="M${points.map(p => p.map(v => v.toFixed(1)).join(' ')).join('L')}"/>`);
    svg.innerHTML = `${below}${paths.reverse().join('')}<path class=lit />${above}`;  // the best on top
    svg.style.setProperty('--opacity', Math.max(.2, Math.min(.75, 12 / Math.sqrt(lines.length))));
    svg.onmousemove = event => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      let nearest = null, distance = 25;
      for (const {run, points} of lines) {
        const next = points.findIndex(p => p[0] >= at.x), [a, b] = [points[Math.max(0, next - 1)], points[next]];
        if (!b) continue;
        const y = a === b ? a[1] : a[1] + (b[1] - a[1]) * (at.x - a[0]) / (b[0] - a[0]);
        if (Math.abs(y - at.y) < distance) { distance = Math.abs(y - at.y); nearest = run; }
      }
      light(nearest);
    };
    svg.onmouseleave = () => light(null);
    svg.onclick = () => {  // the two last clicked ones
      const lit = shown.find(run => run.run === svg.dataset.lit);
      if (lit && lit !== compared[1]) choose([compared[1], lit]);
    };
  }
  function light(run) {
    for (const svg of place.querySelectorAll('svg.lines')) {
      const path = run && svg.querySelector(`[data-run="${run.run}"]`);
      svg.classList.toggle('dim', Boolean(path));
      svg.dataset.lit = run ? run.run : '';
      svg.querySelector('.lit')?.setAttribute('d', path ? path.getAttribute('d') : '');
    }
    place.querySelectorAll('tr.on').forEach(row => row.classList.remove('on'));
    if (!run) return;
    find(`tr[data-run="${run.run}"]`)?.classList.add('on');
    const last = run.curve[run.curve.length - 1];
    about.innerHTML = `<b>${run.status}</b> ${describe(run)}${run.status === 'pruned' && last
      ? `, pruned at step ${last[0]} with ${text(last[1])}` : ''}`;
  }
  function drawParallel() {
    const top = 46, bottom = 300, gap = axes.length > 1 ? 900 / (axes.length - 1) : 0;
    const y = (c, v) => v === null ? bottom + 26 : c.kind === 'min' ? top + (bottom - top) * c.at(v)
      : bottom - (bottom - top) * c.at(v);
    const x = i => 110 + i * gap;
    const below = axes.map((c, i) => `<line class=axis x1=${x(i)} x2=${x(i)} y1=${top} y2=${bottom} />`).join('');
    const above = axes.map((c, i) => `<text class=name x=${x(i)} y=22>${short(c.name, 22)}</text>
      ${c.ticks.slice(0, 12).map(t => `<text class=tick x=${x(i) - 7} y=${y(c, t) + 4}>${short(t)}</text>`).join('')}
      <rect data-axis=${i} x=${x(i) - 16} y=${top - 8} width=32 height=${bottom - top + 16} />`).join('');
    const lines = shown.filter(run => run.status !== 'unfinished').map(run => ({
      run, points: axes.map((c, i) => [x(i), y(c, run.values[c.index])]).sort((a, b) => a[0] - b[0])}));
    const svg = find('.parallel');
    drawLines(svg, below, above, lines, bottom + 40);
    svg.onpointerdown = event => {
      const axis = event.target.dataset.axis, begun = event.clientY;
      if (axis === undefined) return;
      event.preventDefault();
      window.addEventListener('pointerup', up => {
        if (Math.abs(up.clientY - begun) < 4) return;
        const matrix = svg.getScreenCTM().inverse(), c = axes[axis];
        const [a, b] = [begun, up.clientY].map(v => new DOMPoint(0, v).matrixTransform(matrix).y).sort((p, q) => p - q);
        const inside = [...new Set(data.runs.map(run => run.values[c.index]))].filter(
          v => v !== null && y(c, v) >= a && y(c, v) <= b);
        const others = conditions().filter(([, name]) => name !== c.name).map(([all]) => all.trim());
        const numbers = inside.filter(v => typeof v === 'number');
        if (c.numeric && numbers.length) {
          const ends = [Math.min(...numbers), Math.max(...numbers)];
          others.push(`${c.name} >= ${ends[0]}`, `${c.name} <= ${ends[1]}`);
        } else if (inside.length) {
          others.push(`${c.name} = ${inside[0]}`);
        }
        input.value = others.join(', ');
        filter();
      }, {once: true});
    };
  }
  function drawCurves() {
    const drawn = shown.filter(run => run.curve.length > 1);
    find('.learning').hidden = !data.runs.some(run => run.curve.length > 1);
    const points = drawn.flatMap(run => run.curve);
    const ends = k => points.reduce(([a, b], p) => [Math.min(a, p[k]), Math.max(b, p[k])], [Infinity, -Infinity]);
    if (!points.length) { find('.curves').innerHTML = ''; return; }
    const [x0, x1] = ends(0);
    let [y0, y1] = ends(1);
    const log = y0 > 0 && y1 > 30 * y0, on = v => log ? Math.log(v) : v;
    if (y0 === y1) { y0 -= 1; y1 += 1; }
    const x = v => 110 + 950 * (v - x0) / Math.max(1, x1 - x0);
    const y = v => 290 - 260 * (on(v) - on(y0)) / (on(y1) - on(y0));
    const steps = [0, .25, .5, .75, 1].map(t => Math.round(x0 + (x1 - x0) * t));
    const values = [0, .25, .5, .75, 1].map(t => log ? y0 * (y1 / y0) ** t : y0 + (y1 - y0) * t);
    const below = values.map(v => `<line class=grid x1=110 x2=1060 y1=${y(v)} y2=${y(v)} />`).join('');
    const above = values.map(v => `<text class=tick x=100 y=${y(v) + 4}>${short(v)}</text>`).join('') + steps.map(v => `<text class=step x=${x(v)} y=312>${v}</text>`).join('') + '<text class=step x=585 y=334>step</text>';
    const lines = drawn.map(run => ({run, points: run.curve.map(([s, v]) => [x(s), y(v)])}));
    drawLines(find('.curves'), below, above, lines, 342);
  }

  // ---- two runs, and the table

  function choose(pair) {
    compared = pair;
    selects.forEach((select, side) => { select.value = pair[side]?.run ?? ''; });
    const [a, b] = pair, link = (run, file) => `${data.path}/${run.run}/${encodeURIComponent(file)}`;
    if (!a || !b) return;
    const rows = [['status', a.status, b.status], ...columns.map(c => [c.name, a.values[c.index], b.values[c.index]])];
    const lines = rows.map(([name, ...v]) => `<tr class="${text(v[0]) === text(v[1]) ? '' : 'differs'}">
      <th>${text(name)}</th>${v.map(value => `<td>${text(value)}</td>`).join('')}</tr>`);
    const names = [...new Set([...a.figures, ...b.figures])].sort();
    const figures = names.map(name => `<div class=both>${pair.map(run => run.figures.includes(name)
      ? `<figure><img tabindex=0 role=button loading=lazy alt="${text(name)}" src="${link(run, name)}"><figcaption>${text(name)}</figcaption></figure>`
      : '<figure></figure>').join('')}</div>`);
    const books = pair.map(run => `<td><a href="${link(run, data.notebook)}">notebook</a>
      <a href="${link(run, 'log.txt')}">log</a></td>`);
    find('.compare').innerHTML = `<table class=sweep>${lines.join('')}<tr><th></th>${books.join('')}</tr></table>`
      + figures.join('');
  }
  function drawTable() {
    const sorted = order ? [...shown].sort((a, b) => order.sign * compare(a.values[order.index], b.values[order.index]))
      : shown;
    body.innerHTML = sorted.slice(0, 200).map(run => `<tr tabindex=0 data-run=${run.run}>
      <td>${run.status}</td>${columns.map(c => `<td>${text(run.values[c.index])}</td>`).join('')}
      <td>${text(run.library)}</td><td><a href="${data.path}/${run.run}/${encodeURIComponent(data.notebook)}">notebook</a></td>
      </tr>`).join('') + (sorted.length > 200 ? `<tr><td colspan=9>and ${sorted.length - 200} more: filter them</td></tr>` : '');
  }
  function compare(a, b) {
    return a === null ? 1 : b === null ? -1 : typeof a === 'number' ? a - b : text(a).localeCompare(text(b));
  }

  find('thead').innerHTML = `<tr><th>status</th>${columns.map(c => `<th><button type=button data-index=${c.index}>
    ${text(c.name)}</button></th>`).join('')}<th>clay_lib</th><th></th></tr>`;
  find('thead').onclick = event => {
    const index = event.target.closest('button')?.dataset.index;
    if (index === undefined) return;
    order = {index, sign: order?.index === index ? -order.sign : 1};
    drawTable();
  };
  const runOf = event => data.runs.find(run => run.run === event.target.closest('tr')?.dataset.run);
  body.onmouseover = body.onfocus = event => light(runOf(event));
  body.addEventListener('focusin', event => light(runOf(event)));
  body.onkeydown = event => { if (event.key === 'Enter' && runOf(event)) choose([compared[1], runOf(event)]); };
  body.onclick = event => runOf(event) && choose([compared[1], runOf(event)]);
  input.oninput = filter;
  find('.filter button').onclick = () => { input.value = ''; filter(); };
  selects.forEach((select, side) => {
    select.innerHTML = data.runs.slice(0, 500).map(run => `<option value=${run.run}>${text(label(run))}</option>`).join('');
    select.onchange = () => {
      const pair = [...compared];
      pair[side] = data.runs.find(run => run.run === select.value);
      choose(pair);
    };
  });
  filter();
  choose(data.runs.slice(0, 2));
}
