// Run inside the page by test_page.py: looks at what was drawn and writes it to `out`.
const $ = (s) => document.querySelector(s), all = (s) => [...document.querySelectorAll(s)];
out.errors = document.documentElement.dataset.errors || '';
out.title = document.title;
out.drawn = all('.chart').map((c) => [c.dataset.drawn, c.querySelectorAll('.scatterlayer .trace, .barlayer .trace, .heatmaplayer .hm').length]);
out.sections = all('section').map((s) => s.id);
out.images = [...document.images].filter((i) => !i.closest('.chart')).length;
out.unlabelled = all('input, select, button').filter((n) => !(n.labels && n.labels.length) && !n.getAttribute('aria-label') && !n.textContent.trim()).length
  + all('.chart').filter((n) => !n.getAttribute('aria-label')).length + all('th').filter((n) => !n.scope).length;
const list = (a) => Array.from(a, (v) => (v && v.length !== undefined && typeof v !== 'string' ? list(v) : v));
out.heat = all('#heat .chart').map((c) => ({ x: list(c.data[0].x).map(String), y: list(c.data[0].y), z: list(c.data[0].z), inks: c.layout.annotations.map((a) => [a.text, a.font.color]) }));
out.misplaced = all('#heat .chart').flatMap((c) => { // numbers that are not in the middle of their cell
  const { l, t } = c._fullLayout._size, { x, y } = c.getBoundingClientRect();
  const { xaxis, yaxis } = c._fullLayout, shown = [...c.querySelectorAll('.annotation-text')];
  return shown.filter((n, i) => {
    const box = n.getBoundingClientRect(), a = c.layout.annotations[i];
    const [row, column] = [c.data[0].y.indexOf(c.data[0].y[a.y]), a.x];
    const at = [x + l + (xaxis._length * (column + 0.5)) / c.data[0].x.length, y + t + (yaxis._length * (row + 0.5)) / c.data[0].y.length];
    const value = c.data[0].z[a.y][a.x];
    return Math.hypot(box.x + box.width / 2 - at[0], box.y + box.height / 2 - at[1]) > 4 || a.text !== value.toFixed(2);
  }).map((n) => n.textContent);
});
out.logits = $('#logits .chart').data.map((t) => t.name);
out.seeds = $('#seeds .chart').data.map((t) => (t.text || []).join(' ')).join(' ');
const runs = $('#viewer select');
runs.value = [...runs.options].find((o) => o.text.includes('grpo-0')).value;
runs.dispatchEvent(new Event('change'));
out.hostile = $('.tokens span').textContent;
