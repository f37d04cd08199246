"use strict";
// What every part of the page uses. Text from models and file names only ever becomes text nodes and attributes.

const dnd = { data: null };

{
  const waiting = new Map(); // number of a group of units -> {promise, resolve}
  const policy = window.trustedTypes?.createPolicy("dnd", {
    createScriptURL(url) {
      if (!/^units\/\d+\.js$/.test(url)) throw new TypeError(`not a file of this report: ${url}`);
      return url;
    },
  });

  // data.js calls this with the overview and a row per unit.
  dnd.index = (data) => { dnd.data = data; };

  // units/N.js calls this with the evidence of its units.
  dnd.evidence = (group, units) => waiting.get(group)?.resolve(units);

  // The text of a file that lies inside the page, if the report is one file.
  dnd.inside = (name) => document.getElementById(name)?.textContent;

  // The evidence of the unit in a place of the index: an array with one entry per run.
  dnd.load = (place) => {
    const group = Math.floor(place / dnd.data.together);
    if (!waiting.has(group)) {
      const entry = {};
      entry.promise = new Promise((resolve, reject) => {
        entry.resolve = resolve;
        const text = dnd.inside(`units/${group}.js`); // dnd.evidence(0,[...]);
        if (text) { resolve(JSON.parse(text.slice(text.indexOf(",") + 1, text.lastIndexOf(")")))); return; }
        const script = document.createElement("script");
        const url = `units/${group}.js`;
        script.src = policy ? policy.createScriptURL(url) : url;
        script.onerror = () => { waiting.delete(group); reject(new Error(`${url} cannot be read`)); };
        document.head.append(script);
      });
      waiting.set(group, entry);
    }
    return waiting.get(group).promise.then((units) => units[place % dnd.data.together]);
  };

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name.startsWith("aria-") && typeof value === "boolean") node.setAttribute(name, String(value));
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined && child !== false) node.append(child instanceof Node ? child : String(child));
    }
    return node;
  };

  dnd.el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  dnd.svg = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// A count as it is, all else as a measure.
dnd.number = (value) => Number.isInteger(value) && Math.abs(value) < 1e6 ? value.toLocaleString("en") : dnd.measure(value);

// An activation or a score: 9.00 beside 8.86.
dnd.measure = (value) => {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size >= 1e6) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 0.01) return value.toFixed(2);
  if (size < 1e-12) return "0";
  return size < 1e-4 ? value.toExponential(1) : value.toPrecision(2);
};

// A setting of a run.
dnd.setting = (run, table, name) => run.settings.find(([one]) => one === table)?.[1].find(([one]) => one === name)?.[1];

dnd.link = (row) => `#${encodeURIComponent(row.layer)}/${row.unit}`;
dnd.unitName = (row) => `${row.layer} / ${row.unit}`;
// What a run says of a unit, in a few words.
dnd.answer = (run) => {
  if (!run) return "not in this run";
  return run.status === "labelled" && run.labels.length ? run.labels[0][0] : run.status;
};
// The same, with all that a refined unit means: "red | heart".
dnd.meaning = (run) => run?.status === "labelled" && run.meaning || dnd.answer(run);
// Whether the runs agree on a unit.
dnd.agreement = (row) => row.differs ? "different" : row.runs.every(Boolean) ? "same" : "partial";
dnd.badge = (status) => dnd.el("span", { class: "badge", "data-status": status }, status);
dnd.letter = (place) => dnd.el("b", { class: "letter", "data-run": place % 4 }, String.fromCharCode(65 + (place % 26)));
dnd.several = (n, word) => `${dnd.number(n)} ${word}${n === 1 ? "" : "s"}`;

// A table whose columns sort by a click on their heads. A cell is a number, a text or a node; the last cell of a short row
// reaches to the end.
{
  const value = (cell) => Number.parseFloat((cell.dataset.sort ?? cell.textContent).replaceAll(",", ""));
  const collator = new Intl.Collator("en", { numeric: true });

  // By number, the greatest first, where all that has a letter or a digit is one; what says nothing ("", "–", "?") comes last.
  const order = (event) => {
    const head = event.currentTarget.closest("th");
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, cell: row.cells[head.cellIndex] }));
    const [known, rest] = [true, false].map((is) => rows.filter(({ cell }) => /[\p{L}\d]/u.test(cell?.colSpan === 1 ? cell.textContent : "") === is));
    const isNumber = known.every(({ cell }) => !Number.isNaN(value(cell)));
    const isDown = head.ariaSort ? head.ariaSort === "ascending" : isNumber;
    known.sort((a, b) => (isNumber ? value(a.cell) - value(b.cell) : collator.compare(a.cell.textContent, b.cell.textContent)) * (isDown ? -1 : 1));
    body.append(...[...known, ...rest].map(({ row }) => row));
    for (const other of head.parentElement.cells) other.ariaSort = null;
    head.ariaSort = isDown ? "descending" : "ascending";
  };

  const cell = (content, column, row, head) => dnd.el(column ? "td" : "th", {
    scope: column ? null : "row", class: typeof content === "number" ? "number" : null, "data-sort": typeof content === "number" ? content : content?.dataset?.sort,
    colspan: column === row.length - 1 && row.length < head.length ? head.length - column : null }, typeof content === "number" ? dnd.number(content) : content);

  dnd.table = (head, rows, caption) => dnd.el("div", { class: "scroller", tabindex: 0, role: "group", "aria-label": caption },
    dnd.el("table", null,
      dnd.el("caption", { class: "hidden" }, caption),
      dnd.el("thead", null, dnd.el("tr", null, head.map((name) => dnd.el("th", { scope: "col" },
        rows.length > 1 ? dnd.el("button", { type: "button", class: "plain", title: "Sort", onclick: order }, name) : name)))),
      dnd.el("tbody", null, rows.map((row) => dnd.el("tr", null, row.map((content, column) => cell(content, column, row, head)))))));
}

// Light or dark, as the reader last chose.
dnd.theme = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("dnd-theme", root.dataset.theme); } catch { /* a page from disk may have no storage */ }
};
try { document.documentElement.dataset.theme = localStorage.getItem("dnd-theme") ?? ""; } catch { /* as above */ }
document.getElementById("theme").addEventListener("click", dnd.theme);
