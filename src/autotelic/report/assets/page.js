"use strict";
/* Draws the page from the JSON in #data. Text of a model or of a log enters the page through textContent only. */
(() => {
  const root = document.documentElement;
  const fail = (message) => { root.dataset.errors = (root.dataset.errors ? root.dataset.errors + " | " : "") + message; };
  window.addEventListener("error", (event) => fail(String(event.message)));
  window.addEventListener("unhandledrejection", (event) => fail(String(event.reason)));

  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const groups = new Map(data.groups.map((g) => [g.key, g]));
  const hidden = new Set();
  let wanted = "";
  const off = (key) => hidden.has(key) || (wanted !== "" && groups.has(key) && !searched(groups.get(key)).includes(wanted));
  const searched = (g) => [g.label, g.key, ...g.runs, ...data.differences.map((d) => d.name + "=" + (d.values[data.groups.indexOf(g)] ?? ""))].join("\n").toLowerCase();
  const charts = [];

  const store = {
    get(key) { try { return sessionStorage.getItem("autotelic-" + key); } catch { return null; } },
    set(key, value) { try { sessionStorage.setItem("autotelic-" + key, value); } catch { /* a browser without storage */ } },
  };

  /* Elements. Children that are strings become text nodes; attributes never hold model text except through setAttribute. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(node.style, value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
    return node;
  }
  const number = (v, digits = 3) => {
    if (v === null || v === undefined || Number.isNaN(v)) return "–";
    if (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5)) return v.toExponential(2);
    return v.toFixed(Math.abs(v) >= 100 ? 1 : digits);
  };
  const signed = (v) => (v >= 0 ? "+" : "−") + number(Math.abs(v));
  const plural = (n, word) => n + " " + word + (n === 1 ? "" : "s");
  const label = (key) => (groups.has(key) ? groups.get(key).label : key);
  const seeds = (n) => "n = " + n + (n === 1 ? " seed" : " seeds");
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const rgba = (hex, alpha) => "rgba(" + [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",") + "," + alpha + ")";

  /* Theme: what the system asks for, until the reader chooses. */
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  function applyTheme() {
    const chosen = store.get("theme");
    root.dataset.theme = chosen || (system.matches ? "dark" : "light");
    document.getElementById("theme").textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
    return Promise.all(charts.map((chart) => chart.draw()));
  }
  document.getElementById("theme").addEventListener("click", () => {
    store.set("theme", root.dataset.theme === "dark" ? "light" : "dark");
    applyTheme();
    if (viewer) viewer.paint();
  });
  system.addEventListener("change", applyTheme);
  window.addEventListener("beforeprint", () => { root.dataset.theme = "light"; for (const c of charts) c.draw(); });
  window.addEventListener("afterprint", applyTheme);

  /* Charts. `make` returns {traces, layout}; a trace with `method` follows the shared legend. */
  function layout(extra) {
    const axis = { gridcolor: css("--grid"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true, tickfont: { size: 12 } };
    const titled = (own) => ({ ...axis, ...own, title: { standoff: 6, font: { size: 12, color: css("--muted") }, ...(own || {}).title } });
    const { xaxis, yaxis, ...rest } = extra;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: css("--fg") },
      margin: { l: 52, r: 14, t: extra.showlegend ? 64 : 26, b: 42 }, showlegend: false, hovermode: "x unified", dragmode: window.innerWidth < 640 ? false : "zoom",
      hoverlabel: { bgcolor: css("--bg"), bordercolor: css("--line"), font: { color: css("--fg"), size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent") },
      xaxis: titled(xaxis), yaxis: titled(yaxis), ...rest,
    };
  }
  const legendAbove = { showlegend: true, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 11 } } };
  const config = { displaylogo: false, responsive: true, displayModeBar: window.innerWidth < 640 ? false : "hover", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };
  const fileName = (text) => text.toLowerCase().replace(/[^a-z0-9@]+/g, "-").replace(/^-|-$/g, "") || "figure";
  const sizes = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      if (target.dataset.drawn && contentRect.width && Math.abs(contentRect.width - target._fullLayout.width) > 1) Plotly.Plots.resize(target);
    }
  });
  function addChart(parent, { title, help, make, tall, table, description }) {
    const plot = el("div", { class: "chart" + (tall ? " tall" : ""), role: "group", "aria-label": title + ". " + (description || help || "") });
    const caption = el("figcaption", {}, el("h3", {}, title), help ? el("span", { class: "small muted" }, help) : null);
    const figure = el("figure", { class: "card" }, caption, plot);
    if (table) figure.append(el("details", {}, el("summary", {}, "The numbers"), el("div", { class: "scroll" }, table)));
    parent.append(figure);
    const chart = {
      figure, plot,
      draw() {
        const { traces, layout: extra } = make();
        for (const t of traces) if (t.method !== undefined) { t.visible = !off(t.method); delete t.method; }
        return Plotly.react(plot, traces, layout(extra), { ...config, toImageButtonOptions: { format: "svg", filename: fileName(title) } }).then(() => { plot.dataset.drawn = "true"; });
      },
    };
    charts.push(chart);
    sizes.observe(plot);
    return chart;
  }
  function lineTraces(series, key, options = {}) {
    const g = groups.get(key) || series;
    const color = series.color || g.color;
    const dash = series.dash || g.dash;
    const name = series.name || label(key);
    const traces = [];
    if (series.low && series.low.some((v) => v !== null)) {
      const common = { x: series.x, mode: "lines", line: { width: 0, color }, hoverinfo: "skip", method: key };
      traces.push({ ...common, y: series.low }, { ...common, y: series.high, fill: "tonexty", fillcolor: rgba(color, 0.18) });
    }
    const custom = series.low ? series.low.map((low, i) => [number(low), number(series.high[i])]) : null;
    const range = custom ? " (%{customdata[0]} to %{customdata[1]})" : "";
    const window_ = options.window || 1;
    const y = smooth(series.y, window_);
    if (window_ > 1) traces.push({ x: series.x, y: series.y, mode: "lines", line: { color, width: 1 }, opacity: 0.25, hoverinfo: "skip", method: key });
    traces.push({
      x: series.x, y, name: name + (series.n ? " (n = " + series.n + ")" : ""), mode: series.x.length < 30 ? "lines+markers" : "lines", marker: { size: 6, color },
      line: { color, dash, width: 2.4 }, customdata: custom, hovertemplate: "%{y:.4g}" + range, method: key,
    });
    return traces;
  }
  function smooth(values, window_) {
    if (window_ <= 1) return values;
    return values.map((_, i) => {
      const part = values.slice(Math.max(0, i - window_ + 1), i + 1).filter((v) => v !== null);
      return part.length ? part.reduce((a, b) => a + b, 0) / part.length : null;
    });
  }
  function table(head, rows, className = "compact") {
    return el("table", { class: className },
      el("thead", {}, el("tr", {}, head.map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))));
  }
  function section(id, title, lead) {
    const node = el("section", { id, "aria-labelledby": id + "-title" }, el("h2", { id: id + "-title" }, title), lead ? el("p", { class: "muted" }, lead) : null);
    main.append(node);
    document.getElementById("nav").append(el("a", { href: "#" + id }, title));
    return node;
  }
  function select(text, options, value, onchange) {
    const node = el("select", { onchange: () => onchange(node.value) }, options.map(([v, t]) => el("option", { value: v, selected: v === value }, t)));
    return el("label", {}, text, node);
  }

  /* Every table can be saved: quoted as RFC 4180 asks, the parts of a cell with a space between them. */
  function csv(node) {
    const cell = (c) => { const parts = document.createTreeWalker(c, NodeFilter.SHOW_TEXT); const found = []; while (parts.nextNode()) found.push(parts.currentNode.data.trim()); return '"' + found.filter(Boolean).join(" ").replaceAll('"', '""') + '"'; };
    return [...node.rows].map((row) => [...row.cells].map(cell).join(",")).join("\r\n") + "\r\n";
  }
  function offerTables() {
    for (const node of document.querySelectorAll("main table")) {
      const title = (node.closest("figure, section").querySelector("h3, h2") || node).textContent;
      const save = () => { const link = el("a", { href: URL.createObjectURL(new Blob([csv(node)], { type: "text/csv" })), download: fileName(title) + ".csv" }); link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000); };
      node.after(el("button", { type: "button", class: "save", "aria-label": "Save as CSV: " + title, onclick: save }, "CSV"));
    }
  }

  /* Header. */
  const versions = Object.entries(data.versions).map(([k, v]) => k + " " + v).join(", ");
  const what = data.groups.map((g) => g.label + " (" + seeds(g.n) + (g.steps ? ", " + plural(g.steps, "step") : "") + ")").join(" · ");
  document.getElementById("what").append(el("span", {}, what), el("br"), el("span", { class: "small" }, "Written " + data.generated.replace("T", " ").replace("+00:00", " UTC") + (versions ? " · " + versions : "")));

  /* Legend: one for every figure. */
  const legend = document.getElementById("legend");
  for (const g of data.groups) {
    const swatch = el("span", { class: "swatch", style: { borderTopColor: g.color, borderTopStyle: g.dash === "solid" ? "solid" : g.dash.startsWith("dot") ? "dotted" : "dashed" } });
    const button = el("button", { type: "button", class: "key", "aria-pressed": "true", "data-method": g.key, title: "Show or hide in every figure: " + g.runs.join(", "), onclick: () => {
      if (hidden.has(g.key)) hidden.delete(g.key); else hidden.add(g.key);
      button.setAttribute("aria-pressed", String(!hidden.has(g.key)));
      for (const chart of charts) chart.draw();
    } }, swatch, g.label + " (n = " + g.n + ")");
    legend.append(button);
  }
  if (data.groups.length > 3) {
    const filter = el("input", { type: "search", placeholder: "Filter", "aria-label": "Show in the figures only what has this text in its name, its runs or its settings", oninput: () => {
      wanted = filter.value.trim().toLowerCase().replace(/\s*=\s*/g, "=");
      for (const button of legend.querySelectorAll(".key")) button.hidden = off(button.dataset.method) && !hidden.has(button.dataset.method);
      for (const chart of charts) chart.draw();
    } });
    legend.prepend(filter);
  }
  document.getElementById("legend-bar").hidden = data.groups.length < 2;

  /* The table. */
  function percentLike(columns, name) { return /^(mean|pass|maj|greedy|parsed|eval)/.test(name); }
  function resultsTable(t, columns, name = "Table of results") {
    const bounds = {};
    for (const name of columns) {
      const values = t.rows.flatMap((r) => (r.cells[name] ? [r.cells[name].value, r.cells[name].low, r.cells[name].high] : [])).filter((v) => v !== null && v !== undefined);
      bounds[name] = percentLike(columns, name) ? [0, 1] : [0, Math.max(...values, 1e-9) * 1.05];
    }
    const base = t.rows.find((r) => r.method === "base");
    const rows = t.rows.map((row) => {
      const style = groups.get(row.method) || { color: "#767676" };
      const head = el("th", { scope: "row" }, row.label, row.n ? el("div", { class: "interval" }, seeds(row.n)) : null);
      return el("tr", {}, head, columns.map((name) => {
        const cell = row.cells[name];
        if (!cell || cell.value === null) return el("td", {}, "–");
        const [from, to] = bounds[name];
        const place = (v) => Math.max(0, Math.min(100, (100 * (v - from)) / (to - from))) + "%";
        const bar = el("div", { class: "whisker", "aria-hidden": "true" });
        const known = cell.low !== null && cell.low !== undefined;
        if (known) bar.append(el("span", { style: { left: place(cell.low), width: "calc(" + place(cell.high) + " - " + place(cell.low) + ")", background: style.color } }));
        if (base && base.cells[name] && base.cells[name].value !== null) bar.append(el("b", { style: { left: place(base.cells[name].value) } }));
        bar.append(el("i", { style: { left: place(cell.value), background: style.color } }));
        const change = base && row !== base && base.cells[name] ? el("span", { class: "interval" }, " " + signed(cell.value - base.cells[name].value)) : null;
        const interval = known ? el("div", { class: "interval" }, "[" + number(cell.low) + ", " + number(cell.high) + "]") : null;
        return el("td", {}, el("span", { class: "value" }, number(cell.value)), change, interval, bar);
      }));
    });
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, el("table", { class: "results" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "method"), columns.map((c) => el("th", { scope: "col" }, c + (c === "entropy" ? " (nats per token)" : ""))))), el("tbody", {}, rows)));
  }
  if (data.table) {
    const t = data.table;
    const base = t.rows.some((r) => r.method === "base");
    const node = section("results", "Results", "Brackets: " + t.interval + "." + (base ? " The upright mark is the base model; signed numbers are the change from it." : " First and last validation of every method."));
    const ks = t.columns.filter((c) => c.startsWith("pass@")).map((c) => Number(c.slice(5)));
    const best = "pass@" + Math.max(...ks);
    const wanted = (c) => /^(mean|greedy|maj|entropy)/.test(c) || c === best || c === "pass@k";
    const first = t.columns.filter(wanted);
    const rest = t.columns.filter((c) => !wanted(c));
    node.append(resultsTable(t, first.length ? first : t.columns));
    if (first.length && rest.length) node.append(el("details", {}, el("summary", {}, "Further figures: " + rest.join(", ")), resultsTable(t, rest, "Further figures")));
  }

  if (data.differences.length) {
    const node = section("differences", "What differs between these runs", "The settings in run.json that are not the same everywhere, but for seeds and folders. –: not set.");
    const rows = data.differences.map((d) => [d.name, ...d.values.map((v) => v ?? "–")]);
    const shown = table(["setting", ...data.groups.map((g) => g.label)], rows);
    node.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Settings that differ" }, shown));
    const rest = [...shown.tBodies[0].rows].slice(12);
    if (rest.length) {
      const fold = () => {
        const open = more.getAttribute("aria-expanded") === "false";
        for (const row of rest) row.hidden = !open;
        more.setAttribute("aria-expanded", String(open));
        more.textContent = open ? "Show the first 12 only" : "Show " + plural(rest.length, "further setting");
      };
      const more = el("button", { type: "button", class: "more", "aria-expanded": "true", onclick: fold });
      node.append(more);
      fold();
    }
  }
  if (data.absent.length) {
    main.append(el("details", { class: "absent" }, el("summary", {}, "Not on this page: " + plural(data.absent.length, "part") + ", and how to add " + (data.absent.length === 1 ? "it" : "them")), el("ul", { class: "small muted" }, data.absent.map((t) => el("li", {}, t)))));
  }

  /* Curves over steps, tokens or time: tokens and time are known per group at some steps, and are linear between them. */
  const units = { step: "optimizer step", tokens: "tokens seen", seconds: "wall time of the updates" };
  function onAxis(key, steps, kind) {
    const known = kind === "step" ? null : (groups.get(key) || { axes: {} }).axes[kind];
    if (kind === "step") return steps;
    if (!known) return null;
    const [at, values] = [[0, ...known.step], [0, ...known.value]];
    return steps.map((x) => {
      const next = at.findIndex((s) => s >= x);
      if (next < 0) return null;
      if (next === 0 || at[next] === at[next - 1]) return values[next];
      return values[next - 1] + ((x - at[next - 1]) / (at[next] - at[next - 1])) * (values[next] - values[next - 1]);
    });
  }
  function clock(list) {
    const longest = Math.max(0, ...list.flatMap((s) => { const a = groups.get(s.method); return a && a.axes.seconds ? a.axes.seconds.value : []; }));
    return longest > 7200 ? [3600, "hours"] : longest > 120 ? [60, "minutes"] : [1, "seconds"];
  }
  function curves(id, title, lead, list, axis = "optimizer step") {
    if (!list.length) return;
    const node = section(id, title, lead);
    const longest = Math.max(...list.flatMap((c) => c.series.map((s) => s.x.length)));
    let window_ = longest >= 60 ? 5 : 1;
    const text = el("span", {}, "");
    const describe = () => { text.textContent = window_ === 1 ? "Smoothing: none" : "Smoothing: mean of the last " + window_ + " points (thin line: as logged)"; };
    describe();
    const grid = el("div", { class: "grid" });
    const own = [];
    const range = el("input", { type: "range", min: "1", max: "40", value: String(window_), "aria-label": "Smoothing window in points", oninput: () => { window_ = Number(range.value); describe(); for (const c of own) c.draw(); } });
    let kind = "step";
    const kinds = ["step", ...["tokens", "seconds"].filter((k) => axis === units.step && list.some((c) => c.series.some((s) => groups.get(s.method).axes[k])))];
    const [scale, unit] = clock(list.flatMap((c) => c.series));
    const along = kinds.length > 1 ? select("Horizontal axis", kinds.map((k) => [k, units[k]]), kind, (v) => { kind = v; for (const c of own) c.draw(); }) : null;
    node.append(el("div", { class: "controls" }, along, el("label", {}, text, range)), grid);
    const placed = (s) => { const x = onAxis(s.method, s.x, kind); return x && kind === "seconds" ? x.map((v) => (v === null ? null : v / scale)) : x; };
    for (const chart of list) {
      const rows = chart.series.map((s) => {
        const values = s.y.filter((v) => v !== null);
        return [label(s.method), String(s.n), number(values[0]), number(values[values.length - 1]), number(Math.min(...values)), number(Math.max(...values))];
      });
      own.push(addChart(grid, {
        title: chart.title, help: chart.unit === "1" ? "" : chart.unit, description: chart.help,
        table: el("div", {}, el("p", { class: "small muted" }, chart.metric + (chart.help ? ": " + chart.help : "") + (chart.absent.length ? ". Not logged by: " + chart.absent.join(", ") : "")), table(["method", "n", "first", "last", "lowest", "highest"], rows)),
        make: () => {
          const measured = /^(eval|probe)\/|heldout/.test(chart.metric);
          const traces = chart.series.flatMap((s) => { const x = placed(s); return x ? lineTraces({ ...s, x }, s.method, { window: measured || s.x.length < 30 ? 1 : window_ }) : []; });
          const name = kind === "step" ? axis : units[kind] + (kind === "seconds" ? " (" + unit + ")" : "");
          return { traces, layout: { xaxis: { title: { text: name } }, yaxis: chart.series.every((s) => s.y.every((v) => !v)) ? { range: [0, 1] } : { rangemode: chart.unit === "share" ? "tozero" : "normal" } } };
        },
      }));
    }
  }
  const bands = "Lines are means over seeds, bands run from the lowest to the highest seed; a line without a band is one seed. Drag to zoom, double-click to reset.";
  curves("curves", "Over training", bands, data.charts);
  curves("preferences", "Preference learning", "How well a policy's own score predicts preferences (held-out: on pairs that no update sees), and what its episodes reach. The band of a single seed is its interval over episodes. " + bands, data.preferences);
  curves("online", "Preferences asked while learning", "What a policy reaches for the comparisons that were answered so far, whoever learns from them, and how many steps it took in the environment for that. " + bands, data.online, "comparisons answered");
  if (data.frames.length) {
    const node = section("frames", "Rollouts on film", "Frames of one episode of the final policy, in order of time.");
    node.append(...data.frames.map((f) => el("figure", {}, el("img", { src: "data:image/png;base64," + f.png, alt: "Frames of an episode of " + f.run, style: { maxWidth: "100%" } }), el("figcaption", { class: "small muted" }, f.run))));
  }
  curves("probes", "Probes without labels", "Fixed prompts, asked again and again without a label: what the stop rules look at. " + bands, data.probes);

  /* Seeds, one by one: first, best and last validation of each. */
  if (data.seeds) {
    const node = section("seeds", "Seed by seed", "Every run is three points: its first, its best and its last validation, joined by a thin line. The best of several validations is too high by chance: compare it with other bests only.");
    const rows = data.seeds.rows;
    addChart(node, {
      title: "First, best, last: " + data.seeds.title, help: "accuracy", tall: true, description: data.seeds.metric,
      table: table(["method", "n", "first, mean", "best, mean", "best at step", "last, mean"], rows.map((r) => { const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length; return [label(r.method), String(r.first.length), number(mean(r.first)), number(mean(r.best)), Math.min(...r.best_step) + " to " + Math.max(...r.best_step), number(mean(r.last))]; })),
      make: () => {
        const shown = rows.filter((r) => !off(r.method));
        const traces = shown.flatMap((r, i) => {
          const { color } = groups.get(r.method);
          const at = (column) => i * 4 + column;
          const jitter = (k, n) => (n > 1 ? (k / (n - 1) - 0.5) * 0.5 : 0);
          const lines = r.first.flatMap((_, k) => [[at(0) + jitter(k, r.first.length), r.first[k]], [at(1) + jitter(k, r.first.length), r.best[k]], [at(2) + jitter(k, r.first.length), r.last[k]], [null, null]]);
          const points = r.first.flatMap((_, k) => [[at(0), r.first[k], "first"], [at(1), r.best[k], "best, step " + r.best_step[k]], [at(2), r.last[k], "last"]].map(([x, y, what]) => [x + jitter(k, r.first.length), y, r.runs[k] + ", " + what]));
          return [
            { x: lines.map((p) => p[0]), y: lines.map((p) => p[1]), mode: "lines", line: { color, width: 1 }, opacity: 0.35, hoverinfo: "skip", method: r.method },
            { x: points.map((p) => p[0]), y: points.map((p) => p[1]), text: points.map((p) => p[2]), mode: "markers", name: label(r.method), marker: { size: 9, color, opacity: 0.85, symbol: points.map((_, k) => ["circle-open", "star", "circle"][k % 3]), line: { width: 1.5, color } }, hovertemplate: "%{text}<br>%{y:.3f}<extra></extra>", method: r.method },
          ];
        });
        const ticks = shown.flatMap((r, i) => ["first", "best", "last"].map((what, k) => [i * 4 + k, what]));
        const names = shown.map((r, i) => ({ x: i * 4 + 1, xref: "x", yref: "paper", y: 1, yanchor: "bottom", text: label(r.method), showarrow: false, font: { size: 12 } }));
        return { traces, layout: { hovermode: "closest", annotations: names, xaxis: { tickvals: ticks.map((t) => t[0]), ticktext: ticks.map((t) => t[1]), zeroline: false }, yaxis: { title: { text: data.seeds.title } } } };
      },
    });
  }

  /* Entropy minimisation: accuracy against the objective. */
  if (data.decoupling.length) {
    const node = section("decoupling", "Loss and accuracy", "Each line is one method over training. It starts at the square; the star is its most accurate point. A lower loss is further left. Entropy minimisation lowers its loss to the end, while accuracy may fall again.");
    addChart(node, {
      title: "Accuracy against the EM loss", help: "mean@k against nats", tall: true,
      table: table(["method", "step", "EM loss", "mean@k"], data.decoupling.flatMap((d) => d.step.map((s, i) => [label(d.method), String(s), number(d.loss[i]), number(d.accuracy[i])]))),
      make: () => ({
        traces: data.decoupling.map((d) => {
          const { color, dash } = groups.get(d.method);
          const best = d.accuracy.indexOf(Math.max(...d.accuracy));
          return { x: d.loss, y: d.accuracy, text: d.step.map((s) => "step " + s), mode: "lines+markers", name: label(d.method), line: { color, dash, width: 2 }, marker: { color, size: d.step.map((_, i) => (i === 0 || i === best ? 13 : 7)), symbol: d.step.map((_, i) => (i === best ? "star" : i === 0 ? "square" : "circle")) }, hovertemplate: "%{text}<br>loss %{x:.3f}, accuracy %{y:.3f}<extra></extra>", method: d.method };
        }),
        layout: { hovermode: "closest", xaxis: { title: { text: "entropy objective (nats)" } }, yaxis: { title: { text: "mean@k" } } },
      }),
    });
  }

  /* Temperature heat maps. Numbers in the cells are black or white, whichever stands out more. */
  const cividis = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
  function inkOn(share) {
    const at = Math.max(0, Math.min(1, share)) * (cividis.length - 1);
    const [from, to] = [Math.floor(at), Math.ceil(at)].map((i) => [1, 3, 5].map((k) => parseInt(cividis[i].slice(k, k + 2), 16)));
    const linear = from.map((v, i) => (v + (at % 1) * (to[i] - v)) / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
  }
  if (data.heat.length) {
    const node = section("heat", "Temperature", "Rows: the temperature that a run was trained at. Columns: the temperature that it is evaluated at, or the training step. Every cell is a mean over seeds; a blank one was not measured.");
    const kinds = [...new Set(data.heat.flatMap((h) => h.metrics))];
    const own = [];
    let metric = kinds.find((k) => k.startsWith("mean@")) || kinds[0];
    const grid = el("div", { class: "grid" });
    const pick = (h) => (h.metrics.includes(metric) ? metric : h.metrics.find((m) => m.split("@")[0] === metric.split("@")[0]) || h.metrics[0]);
    node.append(el("div", { class: "controls" }, select("Measure", kinds.map((k) => [k, k]), metric, (v) => { metric = v; for (const c of own) c.draw(); })), grid);
    const narrow = window.innerWidth < 640;
    for (const h of data.heat) {
      own.push(addChart(grid, {
        title: "Training temperature × " + h.axis, help: "accuracy", tall: h.rows.length > 4,
        table: table([h.metrics[0] + ", " + h.axis, ...h.columns.map(String)], h.rows.map((r, i) => [r.label, ...h.values[h.metrics[0]][i].map((v) => number(v))])),
        make: () => {
          const chosen = pick(h);
          const kept = h.rows.map((r, i) => [r, h.values[chosen][i]]).filter(([r]) => !off(r.method));
          const z = kept.map(([, values]) => values);
          const few = h.columns.length <= (narrow ? 6 : 10);
          const all = z.flat().filter((v) => v !== null);
          const [zmin, zmax] = all.length ? [Math.min(...all), Math.max(...all, Math.min(...all) + 1e-6)] : [0, 1];
          const numbers = few ? kept.flatMap(([, values], i) => values.map((v, j) => (v === null ? null : { x: j, y: i, text: v.toFixed(2), showarrow: false, font: { size: 12, color: inkOn((v - zmin) / (zmax - zmin)) } })).filter(Boolean)) : [];
          const trace = { type: "heatmap", x: h.columns.map((c) => (few ? String(c) : c)), y: kept.map(([r]) => r.label), z, zmin, zmax, colorscale: cividis.map((c, i) => [i / (cividis.length - 1), c]), xgap: 1, ygap: 1, hoverongaps: false, hovertemplate: "%{y}<br>" + h.axis + " %{x}<br>" + chosen + " %{z:.3f}<extra></extra>", colorbar: { thickness: 10, title: { text: chosen, side: "top", font: { size: 11 } }, tickfont: { size: 11 }, outlinewidth: 0 } };
          if (narrow) trace.showscale = false;
          return { traces: [trace], layout: { hovermode: "closest", dragmode: false, annotations: numbers, xaxis: { title: { text: h.axis }, type: few ? "category" : "linear", showgrid: false, zeroline: false }, yaxis: { autorange: "reversed", showgrid: false, tickfont: { size: narrow ? 10 : 12 } } } };
        },
      }));
    }
  }

  /* The law. */
  const fits = data.law.filter((l) => l.fit);
  if (data.law.length) {
    const node = section("law", "The entropy law", "R = −a exp(H) + b: accuracy R against entropy H, fitted by least squares. The band is the 95 % interval of the line. The diamond at H = 0 is the ceiling b − a: what the law predicts once no entropy is left. A faint line has a warning in the table: it has no band, and it may leave the frame. All seeds of a method are fitted together.");
    addChart(node, {
      title: "Reward against entropy", tall: true, help: data.law[0].reward_metric + " against " + data.law[0].entropy_metric,
      make: () => {
        const traces = [];
        for (const l of data.law) {
          const g = groups.get(l.method);
          const color = g.color;
          if (l.fit) {
            const common = { x: l.fit.h, mode: "lines", line: { width: 0, color }, hoverinfo: "skip", method: l.method };
            if (!l.warnings.length) traces.push({ ...common, y: l.fit.low }, { ...common, y: l.fit.high, fill: "tonexty", fillcolor: rgba(color, 0.15) });
            traces.push({ x: l.fit.h, y: l.fit.r, mode: "lines", line: { color, dash: g.dash, width: 2 }, opacity: l.warnings.length ? 0.55 : 1, name: g.label + " fit", hoverinfo: "skip", method: l.method });
            const [low, high] = l.fit.ceiling_interval;
            traces.push({ x: [0], y: [l.fit.ceiling], mode: "markers", marker: { symbol: "diamond", size: 11, color, line: { color: css("--bg"), width: 1 } }, error_y: { type: "data", symmetric: false, array: [high - l.fit.ceiling], arrayminus: [l.fit.ceiling - low], color, thickness: 1.5 }, name: g.label + " ceiling", hovertemplate: "%{y:.3f}", method: l.method });
          }
          traces.push({ x: l.h, y: l.r, text: l.step.map((s) => "step " + s), mode: "markers", marker: { size: 7, color, opacity: 0.8, line: { color: css("--bg"), width: 0.5 } }, name: g.label, hovertemplate: "%{text}<br>H = %{x:.3f}, R = %{y:.3f}", method: l.method });
        }
        const all = data.law.filter((l) => !off(l.method)).flatMap((l) => l.r.concat(l.fit && !l.warnings.length ? l.fit.r : [])).filter((v) => v !== null);
        const [low, high] = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
        const pad = 0.12 * (high - low || 0.1);
        const widest = 1.05 * Math.max(...data.law.flatMap((l) => l.h), 0.01);
        return { traces, layout: { hovermode: "closest", xaxis: { title: { text: "entropy H (nats per token)" }, range: [-0.02 * widest, widest] }, yaxis: { title: { text: "reward R" }, range: [low - pad, high + pad] } } };
      },
    });
    const interval = (v, i) => number(v) + " [" + number(i[0]) + ", " + number(i[1]) + "]";
    const rows = data.law.map((l) => [label(l.method) + " (n = " + l.n + ")", ...(l.fit ? [interval(l.fit.a, l.fit.a_interval), interval(l.fit.b, l.fit.b_interval), interval(l.fit.ceiling, l.fit.ceiling_interval), number(l.fit.r_squared), String(l.fit.num_points)] : ["–", "–", "–", "–", String(l.h.length)]), l.warnings.length ? el("span", {}, l.warnings.map((w) => el("div", {}, "⚠ " + w))) : "none found"]);
    node.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Fits of the law" }, table(["method", "a", "b", "ceiling b − a", "R²", "points", "why it may not hold"], rows)));
  }

  /* Covariance. */
  if (data.covariance.length) {
    const node = section("covariance", "Covariance", "The covariance of log-probability and advantage, token by token: where it is large, the update lowers the entropy. First figure: its mean over the tokens with the largest values. Last figure: the tokens that the control selected, by the sign of their advantage and by their probability (likely: above the median).");
    let current = (data.covariance.find((c) => c.quadrants.length) || data.covariance[0]).method;
    const grid = el("div", { class: "grid" });
    const palette = ["#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#767676"];
    const own = [];
    node.append(el("div", { class: "controls" }, select("Method", data.covariance.map((c) => [c.method, label(c.method)]), current, (v) => { current = v; for (const c of own) c.draw(); })), grid);
    const entry = () => data.covariance.find((c) => c.method === current);
    const lines = (series) => series.flatMap((s, i) => lineTraces({ ...s, color: palette[i % palette.length], dash: "solid" }, current)).map((t) => { delete t.method; return t; });
    
    const note = (text) => ({ annotations: [{ text, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }], xaxis: { visible: false }, yaxis: { visible: false } });
    if (data.covariance.some((c) => c.ranks.length)) own.push(addChart(grid, { title: "Covariance by rank", help: "nats × advantage", make: () => {
      const s = entry().ranks;
      return s.length ? { traces: lines(s).map((t) => ({ ...t, showlegend: Boolean(t.name) })), layout: { ...legendAbove, xaxis: { title: { text: "optimizer step" } } } } : { traces: [], layout: note("not logged by " + label(current)) };
    } }));
    if (data.covariance.some((c) => c.accuracies.length)) own.push(addChart(grid, { title: "Covariance by the prompt's accuracy", help: "nats × advantage", make: () => {
      const s = entry().accuracies;
      return s.length ? { traces: lines(s).map((t) => ({ ...t, showlegend: Boolean(t.name) })), layout: { ...legendAbove, xaxis: { title: { text: "optimizer step" } } } } : { traces: [], layout: note("not logged by " + label(current)) };
    } }));
    if (data.covariance.some((c) => c.quadrants.length)) own.push(addChart(grid, { title: "Selected tokens by quadrant", help: "share of the selected tokens", make: () => {
      const s = entry().quadrants;
      const colors = ["#0072B2", "#56B4E9", "#E69F00", "#D55E00"];
      const shapes = ["", "/", ".", "x"];
      return s.length ? {
        traces: s.map((q, i) => ({ x: q.x, y: q.y, name: q.name, stackgroup: "q", mode: "lines", line: { width: 0.5, color: colors[i] }, fillcolor: rgba(colors[i], 0.75), fillpattern: { shape: shapes[i], bgcolor: rgba(colors[i], 0.75), fgcolor: css("--bg"), fgopacity: 0.6, size: 8 }, hovertemplate: "%{y:.2f}" })),
        layout: { ...legendAbove, xaxis: { title: { text: "optimizer step" } }, yaxis: { range: [0, 1] } },
      } : { traces: [], layout: note("no selection by " + label(current)) };
    } }));
  }

  /* Semantic entropy. */
  if (data.semantic.length) {
    const node = section("semantic", "Semantic entropy", "How much the responses to one prompt disagree in meaning; the bars count the recorded prompts. 0: all agree. Dashed: EMPO trains on the prompts between the two thresholds only.");
    let current = (data.semantic.find((s) => s.thresholds) || data.semantic[0]).method;
    const entry = () => data.semantic.find((s) => s.method === current);
    let chart = null;
    node.append(el("div", { class: "controls" }, select("Method", data.semantic.map((s) => [s.method, label(s.method)]), current, (v) => { current = v; chart.draw(); })));
    chart = addChart(node, { title: "Prompts by semantic entropy", help: "nats", make: () => {
      const s = entry();
      const color = (groups.get(current) || {}).color || "#0072B2";
      const size = s.max / 12 || 0.2;
      const shapes = s.thresholds ? s.thresholds.map((x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { dash: "dash", width: 2, color: css("--fg") } })) : [];
      const annotations = s.thresholds ? s.thresholds.map((x, i) => ({ x, yref: "paper", y: 1, text: (i ? "high " : "low ") + number(x), showarrow: false, xanchor: "left", yanchor: "top", bgcolor: css("--panel"), font: { size: 11 } })) : [];
      return {
        traces: s.windows.map((w, i) => ({ type: "histogram", x: w.values, name: w.name + ": step" + (w.first === w.last ? " " + w.first : "s " + w.first + " to " + w.last) + ", " + plural(w.values.length, "group"), histnorm: "probability", xbins: { start: -size / 2, end: s.max + size, size }, marker: { color: i ? color : rgba(color, 0.35), line: { color, width: 1.2 } }, hovertemplate: "%{y:.2f}" })),
        layout: { barmode: "group", bargap: 0.12, shapes, annotations, ...legendAbove, xaxis: { title: { text: "semantic entropy (nats)" }, range: [-size, s.max + size] }, yaxis: { title: { text: "share of prompts" } } },
      };
    } });
  }

  /* Logits. */
  if (data.logits) {
    const { models } = data.logits;
    const text = data.logits.form === "official" ? "The published plot: the 50 largest scores of each position, divided by 0.6, every model on its own text." : "Raw logits over the whole vocabulary and every position, on the same text for all models.";
    const node = section("logits", "Logits", text + " " + plural(models[0].sequences, "sequence") + (data.logits.prompts ? ", prompts of " + data.logits.prompts : "") + ".");
    const grid = el("div", { class: "grid" });
    node.append(grid);
    const draw = (points) => models.map((m) => ({ ...points(m), mode: "lines", name: m.label, line: { color: m.color, dash: m.dash, width: 2 }, ...(groups.has(m.method) ? { method: m.method } : {}), showlegend: true }));
    const names = (list) => (window.innerWidth < 640 && list.length > 3 ? {} : legendAbove);
    addChart(grid, { title: "Histogram of the logits", help: "density", make: () => ({ traces: draw((m) => ({ x: m.x, y: m.density, hovertemplate: "%{y:.4f}" })).map((t) => ({ ...t, line: { ...t.line, shape: "hvh" } })), layout: { ...names(models), xaxis: { title: { text: "logit" } } } }) });
    addChart(grid, { title: "Mean logit per rank", help: "1 is the likeliest token", make: () => ({ traces: draw((m) => ({ x: m.ranks.rank, y: m.ranks.mean, hovertemplate: "%{y:.3f}" })), layout: { ...names(models), xaxis: { type: "log", title: { text: "rank" } } } }) });
    const cell = (e) => (e ? number(e[0]) + (e[1] === null ? "" : " [" + number(e[1]) + ", " + number(e[2]) + "]") : "–");
    node.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Moments of the logits" }, table(["model", "mean", "standard deviation", "skewness", "skewness against the base"], models.map((m) => [m.label, cell(m.moments.mean), cell(m.moments.std), cell(m.moments.skewness), cell(m.shift.skewness)]))), el("p", { class: "small muted" }, "Brackets: 95 % bootstrap over sequences, differences paired with the base."));
  }

  /* pass@k. */
  if (data.pass.length) {
    const node = section("passk", "pass@k, before and after", "At least one of k samples is right. Training that only sharpens lifts the left end; curves that cross below the base model have lost answers. Bands: 95 % bootstrap over prompts.");
    addChart(node, { title: "pass@k", tall: true, help: "accuracy", table: table(["method", ...data.pass[0].k.map((k) => "k = " + k)], data.pass.map((p) => [p.label, ...p.y.map((v) => number(v))])), make: () => {
      const traces = data.pass.flatMap((p) => lineTraces({ x: p.k, y: p.y, low: p.low, high: p.high, color: p.color, dash: p.dash, name: p.label }, p.method)).map((t) => ({ ...t, showlegend: Boolean(t.name) }));
      return { traces, layout: { xaxis: { type: "log", title: { text: "k" }, tickvals: data.pass[0].k }, yaxis: { title: { text: "pass@k" } }, ...legendAbove } };
    } });
  }

  /* Rollout viewer. */
  const tip = document.getElementById("tip");
  let viewer = null;
  const modes = [["h", "entropy", "nats"], ["s", "surprisal", "nats"], ["c", "covariance", "nats × advantage"], ["x", "selected", ""]];
  function buildViewer() {
    const vocabulary = data.rollouts.vocabulary;
    const runs = data.rollouts.runs;
    const node = section("viewer", "Rollouts", "One prompt, its responses grouped by meaning. The slider walks through training: a followed prompt is the same at every step. Move over a token, or focus a response and use the arrow keys, for its numbers.");
    const state = { run: 0, prompt: 0, step: -1, mode: "h", other: -1 };
    try { Object.assign(state, JSON.parse(store.get("viewer") || "{}")); } catch { /* an old state */ }
    const body = el("div", { id: "rollout-body", "aria-live": "off" });
    const promptBox = el("div", { class: "prompt", tabindex: "0", role: "region", "aria-label": "Text of the prompt" });
    const named = runs.map((r, i) => [String(i), label(r.method) + (r.seed === null ? "" : ", seed " + r.seed) + " (" + r.run + ")"]);
    const otherSelect = select("Beside it", [["-1", "no second run"], ...named], String(state.other), (v) => { state.other = Number(v); refresh(); });
    const runSelect = select("Run", named, String(state.run), (v) => { state.run = Number(v); state.prompt = 0; state.step = -1; refresh(); });
    const promptLabel = el("label", {}, "Prompt");
    const promptSelect = el("select", { id: "prompt-select", onchange: () => { state.prompt = Number(promptSelect.value); refresh(); } });
    promptLabel.append(promptSelect);
    const slider = el("input", { type: "range", id: "step-slider", min: "0", step: "1", "aria-label": "Training step", oninput: () => step(Number(slider.value) - place(), null) });
    const stepText = el("span", {});
    const radios = el("div", { class: "radios" });
    const scale = el("div", { class: "scale" });
    for (const [key, name] of modes) {
      radios.append(el("label", {}, el("input", { type: "radio", name: "mode", value: key, onchange: () => { state.mode = key; refresh(); } }), el("span", {}, name)));
    }
    node.append(
      el("div", { class: "controls" }, runSelect, runs.length > 1 ? otherSelect : null, promptLabel, el("label", { class: "stepper" }, stepText, slider), el("fieldset", {}, el("legend", {}, "Colour tokens by"), radios)),
      scale, promptBox, body,
      el("p", { class: "small muted" }, "Keys, while the focus is on a response: ", el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " token, ", el("kbd", {}, "↑"), " ", el("kbd", {}, "↓"), " response, ", el("kbd", {}, "["), " ", el("kbd", {}, "]"), " training step, ", el("kbd", {}, "n"), " ", el("kbd", {}, "p"), " prompt."));

    const ranges = new Map();
    function rangeOf(run, key) {
      const id = run + key;
      if (!ranges.has(id)) {
        const values = [];
        for (const p of runs[run].prompts) for (const s of p.steps) for (const r of s.responses) if (r[key]) for (const v of r[key]) if (v !== null) values.push(Math.abs(v));
        values.sort((a, b) => a - b);
        ranges.set(id, values.length ? Math.max(values[Math.floor(0.99 * (values.length - 1))], 1e-6) : null);
      }
      return ranges.get(id);
    }
    const has = (run, key) => (key === "x" ? runs[run].prompts.some((p) => p.steps.some((s) => s.responses.some((r) => r.x))) : rangeOf(run, key) !== null);
    function colorOf(key, value, top) {
      if (value === null || value === undefined) return "";
      const strength = Math.min(1, Math.abs(value) / top) * Number(css("--heat-max"));
      return "rgba(" + css(value < 0 ? "--cool" : "--heat") + ", " + strength.toFixed(3) + ")";
    }
    function hide() { tip.hidden = true; for (const n of body.querySelectorAll(".current")) n.classList.remove("current"); }
    function show(span, response, i) {
      for (const n of body.querySelectorAll(".current")) n.classList.remove("current");
      span.classList.add("current");
      const lines = ["“" + vocabulary[response.t[i]] + "” · token " + (i + 1) + " of " + response.t.length];
      if (response.h) lines.push("entropy " + number(response.h[i]) + " nats");
      if (response.s) lines.push("surprisal " + number(response.s[i]) + " nats (p = " + number(response.s[i] === null ? null : Math.exp(-response.s[i])) + ")");
      if (response.c) lines.push("covariance " + number(response.c[i]));
      if (response.x) lines.push(response.x.includes(i) ? "selected by the control" : "not selected");
      tip.textContent = lines.join("\n");
      tip.hidden = false;
      const box = span.getBoundingClientRect();
      const width = tip.offsetWidth;
      tip.style.left = Math.max(8, Math.min(window.scrollX + box.left, window.scrollX + root.clientWidth - width - 8)) + "px";
      const above = box.top - tip.offsetHeight - 8;
      tip.style.top = window.scrollY + (above > 60 ? above : box.bottom + 8) + "px";
    }
    const shownRuns = () => [state.run, ...(state.other >= 0 && state.other !== state.run ? [state.other] : [])];
    const topOf = () => { const found = shownRuns().map((r) => rangeOf(r, state.mode)).filter((v) => v !== null); return found.length ? Math.max(...found) : null; };
    function tokens(response, index) {
      const top = state.mode === "x" ? null : topOf();
      const chosen = new Set(response.x || []);
      const spans = response.t.map((id, i) => {
        const text = vocabulary[id];
        const span = el("span", {}, text === "" ? "∅" : text.replace(/\n/g, "↵\n"));
        if (/^<[^>]*>$|^<\|.*\|>$/.test(text)) span.classList.add("special");
        if (state.mode === "x") { if (chosen.has(i)) { span.classList.add("chosen"); span.style.background = "rgba(" + css("--heat") + ", " + css("--heat-max") + ")"; } }
        else if (response[state.mode]) span.style.background = colorOf(state.mode, response[state.mode][i], top);
        span.dataset.i = i;
        return span;
      });
      let at = -1;
      const box = el("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": "Response " + (index + 1) + ": " + response.t.map((id) => vocabulary[id]).join("").slice(0, 300), "aria-describedby": "tip",
        onmouseover: (event) => { const i = event.target.dataset && event.target.dataset.i; if (i !== undefined) show(spans[i], response, Number(i)); },
        onmouseleave: hide,
        onclick: (event) => { const i = event.target.dataset && event.target.dataset.i; if (i !== undefined) { at = Number(i); show(spans[i], response, at); } },
        onblur: hide,
        onkeydown: (event) => {
          if (event.ctrlKey || event.metaKey || event.altKey) return;
          const boxes = [...body.querySelectorAll(".tokens")];
          const me = boxes.indexOf(box);
          const move = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
          if (move !== undefined) { at = Math.max(0, Math.min(spans.length - 1, move)); show(spans[at], response, at); spans[at].scrollIntoView({ block: "nearest" }); }
          else if (event.key === "ArrowDown" && boxes[me + 1]) boxes[me + 1].focus();
          else if (event.key === "ArrowUp" && boxes[me - 1]) boxes[me - 1].focus();
          else if (event.key === "Escape") hide();
          else if (event.key === "]" || event.key === "[") step(event.key === "]" ? 1 : -1, me);
          else if (event.key === "n" || event.key === "p") prompt(event.key === "n" ? 1 : -1, me);
          else return;
          event.preventDefault();
        } }, spans);
      return box;
    }
    const refocus = (i) => { const boxes = body.querySelectorAll(".tokens"); if (boxes.length) boxes[Math.min(i, boxes.length - 1)].focus(); };
    /* Where this prompt was recorded more than once, the slider walks its steps; else it walks the run's, and the prompt changes. */
    function stops() {
      const { prompts } = runs[state.run];
      const own = prompts[state.prompt];
      if (own.followed || own.steps.length > 1) return own.steps.map((s, i) => ({ step: s.step, prompt: state.prompt, index: i }));
      const first = new Map();
      prompts.forEach((p, j) => p.followed || p.steps.forEach((s, i) => { if (!first.has(s.step) || j === state.prompt) first.set(s.step, { step: s.step, prompt: j, index: i }); }));
      return [...first.values()].sort((a, b) => a.step - b.step);
    }
    const place = () => stops().findIndex((s) => s.prompt === state.prompt && s.index === state.step);
    function step(by, i) {
      const all = stops();
      const to = all[Math.max(0, Math.min(all.length - 1, place() + by))];
      state.prompt = to.prompt;
      state.step = to.index;
      refresh();
      if (i !== null) refocus(i);
    }
    function prompt(by, i) { const n = runs[state.run].prompts.length; state.prompt = (state.prompt + by + n) % n; refresh(); refocus(i); }

    function refresh() {
      hide();
      state.run = Math.min(Math.max(0, state.run | 0), runs.length - 1);
      state.other = Math.min(Math.max(-1, state.other | 0), runs.length - 1);
      const run = runs[state.run];
      state.prompt = Math.min(Math.max(0, state.prompt | 0), run.prompts.length - 1);
      const current = run.prompts[state.prompt];
      if (state.step < 0 || state.step >= current.steps.length) state.step = current.steps.length - 1;
      const kinds = [[true, "Followed through training"], [false, "Drawn in training"]];
      const option = (p, i) => el("option", { value: String(i), selected: i === state.prompt }, (p.prompt || p.id).slice(0, 70).replace(/\s+/g, " ") + (p.steps.length > 1 ? " (" + plural(p.steps.length, "step") + ")" : " (step " + p.steps[0].step + ")"));
      promptSelect.replaceChildren(...kinds.map(([kind, name]) => [name, run.prompts.map((p, i) => [p, i]).filter(([p]) => p.followed === kind)]).filter(([, list]) => list.length).map(([name, list]) => el("optgroup", { label: name }, list.map(([p, i]) => option(p, i)))));
      if (!has(state.run, state.mode)) state.mode = (modes.find(([key]) => has(state.run, key)) || ["h"])[0];
      for (const input of radios.querySelectorAll("input")) {
        input.disabled = !has(state.run, input.value);
        input.checked = input.value === state.mode;
        input.nextSibling.textContent = modes.find(([key]) => key === input.value)[1] + (input.disabled ? " (not recorded)" : "");
      }
      const now = current.steps[state.step];
      const all = stops();
      slider.max = String(all.length - 1);
      slider.value = String(place());
      slider.setAttribute("aria-valuetext", "step " + now.step);
      slider.disabled = all.length < 2;
      stepText.textContent = "Training step " + now.step + " (" + (place() + 1) + " of " + all.length + (current.followed || current.steps.length > 1 ? " with this prompt)" : "; each step has other prompts)");
      promptBox.textContent = current.prompt;
      paintScale();
      body.replaceChildren(...(shownRuns().length === 1 ? answers(now) : [el("div", { class: "columns" }, column(state.run, now), besides(current, now.step))]));
      store.set("viewer", JSON.stringify(state));
    }
    /* The second run, at its look at the same prompt that is nearest in step. */
    function besides(prompt, at) {
      const found = runs[state.other].prompts.find((p) => p.followed === prompt.followed && p.prompt === prompt.prompt) || runs[state.other].prompts.find((p) => p.prompt === prompt.prompt);
      if (!found) return el("div", { class: "column" }, el("p", { class: "small" }, named[state.other][1]), el("p", { class: "muted" }, "This run's page has no response to this prompt. Prompts that runs share: --follow_prompts 4."));
      return column(state.other, found.steps.reduce((a, b) => (Math.abs(b.step - at) < Math.abs(a.step - at) ? b : a)));
    }
    function column(run, now) {
      return el("div", { class: "column", role: "group", "aria-label": named[run][1] }, el("p", {}, el("strong", {}, named[run][1]), el("span", { class: "small muted" }, ", step " + now.step)), answers(now));
    }
    const verdict = (right) => (right === undefined ? null : el("span", { class: right ? "right" : "wrong" }, right ? "✓ right" : "✗ wrong"));
    function answers(now) {
      const clusters = new Map();
      now.responses.forEach((r, i) => { const key = r.g < 0 ? -1 : r.g; if (!clusters.has(key)) clusters.set(key, []); clusters.get(key).push([r, i]); });
      const ordered = [...clusters.entries()].sort((a, b) => (a[0] < 0) - (b[0] < 0) || b[1].length - a[1].length);
      const judged = now.responses.filter((r) => r.k !== undefined);
      const total = judged.length ? el("p", { class: "small" }, judged.filter((r) => r.k).length + " of " + plural(judged.length, "response") + " right") : null;
      return [total, ...ordered.map(([key, members], place) => {
        const rewards = members.map(([r]) => r.r).filter((v) => v !== undefined && v !== null);
        const mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
        const title = key < 0 ? "No answer could be read" : "Answer " + (place + 1) + (now.answers[key] ? ": " + now.answers[key] : "");
        const share = el("span", { class: "share", "aria-hidden": "true" }, el("i", { style: { width: (100 * members.length) / now.responses.length + "%" } }));
        return el("article", { class: "cluster" },
          el("header", {}, el("h3", {}, title), share, el("span", { class: "small" }, members.length + " of " + plural(now.responses.length, "response")), mean === null ? null : el("span", { class: "small muted" }, "mean reward " + number(mean))),
          members.map(([r, i]) => el("div", { class: "response" },
            el("div", { class: "facts" }, el("span", {}, "#" + (i + 1)), verdict(r.k), r.r === undefined ? null : el("span", {}, "reward " + number(r.r)), r.a === undefined ? null : el("span", {}, "advantage " + (r.a === null ? "–" : signed(r.a))), el("span", {}, plural(r.t.length, "token")), r.x ? el("span", {}, r.x.length + " selected") : null),
            tokens(r, i))));
      })].filter((node) => node !== null);
    }
    function paintScale() {
      const [, name, unit] = modes.find(([key]) => key === state.mode);
      if (state.mode === "x") { scale.replaceChildren(el("span", { class: "tokens" }, el("span", { class: "chosen", style: { background: "rgba(" + css("--heat") + ", " + css("--heat-max") + ")" } }, "token")), el("span", {}, "selected by the control in this update")); return; }
      const top = topOf();
      if (top === null) { scale.replaceChildren(el("span", {}, "no token statistics recorded in this run")); return; }
      const heat = "rgba(" + css("--heat") + ", " + css("--heat-max") + ")";
      const cool = "rgba(" + css("--cool") + ", " + css("--heat-max") + ")";
      const both = state.mode === "c";
      scale.replaceChildren(el("span", {}, name + (unit ? " (" + unit + ")" : "")), el("span", {}, both ? number(-top, 2) : "0"), el("i", { "aria-hidden": "true", style: { background: "linear-gradient(90deg, " + (both ? cool + ", transparent, " : "transparent, ") + heat + ")" } }), el("span", {}, number(top, 2) + " and above"));
    }
    refresh();
    viewer = { paint: refresh };
  }
  if (data.rollouts.runs.length) buildViewer();

  /* The foot: settings, and what was left out. */
  {
    const node = section("about", "About these runs", null);
    if (data.cuts.length) node.append(el("div", { class: "notice" }, el("ul", {}, data.cuts.map((t) => el("li", {}, t)))));
    for (const c of data.configs) {
      if (c.text) node.append(el("details", {}, el("summary", {}, c.run + (c.started ? ", started " + c.started : "")), el("pre", { tabindex: "0" }, c.text)));
    }
  }

  offerTables();
  applyTheme().then(() => { root.dataset.ready = "true"; });
})();
