"use strict";
// Which view is shown, keys, light and dark.

{
  const main = document.getElementById("main");
  const byName = new Map(); // "layer/unit" -> place in the index
  let latest = 0; // of several views asked for, the last one wins
  let started = false;

  const place = (hash) => {
    const cut = hash.lastIndexOf("/");
    if (cut < 0) return undefined;
    try {
      return byName.get(`${decodeURIComponent(hash.slice(1, cut))}/${hash.slice(cut + 1)}`);
    } catch {
      return undefined; // not a link of ours
    }
  };

  const views = { "": "gallery", "#": "gallery", "#atlas": "atlas", "#summary": "summary" };
  // What a view shows beside the units; the gallery shows nothing but them.
  const content = { unit: (unit) => dnd.unit(unit), atlas: () => dnd.atlas(), gallery: () => [],
    summary: () => dnd.data.runs.length > 1 ? dnd.compareSummary() : dnd.summary() };
  const scroller = () => document.body.dataset.view === "gallery" ? document.getElementById("units") : main;

  const show = async () => {
    const hash = location.hash;
    const turn = ++latest;
    const unit = place(hash);
    const view = unit !== undefined ? "unit" : views[hash] ?? "gallery";
    const changed = document.body.dataset.view !== view;
    document.body.dataset.view = view;
    if (changed) dnd.list.redraw();
    dnd.list.mark(unit ?? -1);
    for (const link of document.querySelectorAll("header nav a")) {
      if (link.dataset.view === view) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    const nodes = await Promise.resolve(unit).then(content[view]).catch((error) => [dnd.el("h1", { tabindex: -1 }, "This unit cannot be shown"), dnd.el("p", { class: "warning" }, error.message)]);
    if (turn !== latest) return;
    document.getElementById("head").replaceChildren(...(view === "gallery" ? dnd.head(hash in views).filter(Boolean) : []));
    main.replaceChildren(dnd.el("div", { class: "page" }, nodes.flat(Infinity).filter(Boolean)));
    main.scrollTop = 0;
    scrollTo(0, 0);
    const heading = document.querySelector("#head h1, #main h1");
    const title = [unit !== undefined && dnd.unitName(dnd.data.units[unit]), heading.textContent, unit === undefined && "dnd report"];
    document.title = [...new Set(title.filter(Boolean))].join(" · ");
    if (started && view === "unit" && !document.getElementById("units").contains(document.activeElement)) heading.focus({ preventScroll: true });
    started = true;
  };

  const step = (by) => {
    const row = dnd.list.neighbour(by);
    if (row) location.hash = dnd.link(row);
  };

  const mark = (what) => {
    const unit = place(location.hash);
    if (unit !== undefined && dnd.data.runs.length === 1) dnd.marks.toggle(dnd.data.units[unit], what);
  };

  const keys = {
    j: () => step(1), k: () => step(-1), m: () => dnd.toggle("maps"), b: () => dnd.toggle("boxes"), c: () => dnd.toggle("crops"),
    o: () => { location.hash = "#"; }, t: dnd.theme, r: () => mark("right"), w: () => mark("wrong"), "?": () => document.getElementById("help").showModal(),
    "/": () => {
      if (matchMedia("(max-width: 860px)").matches) location.hash = "#";
      document.getElementById("search").focus();
    },
  };

  // The evidence or the gallery scrolls by these keys, wherever the focus was left by opening a unit.
  const scrolls = {
    PageDown: (pane) => pane.scrollTop + pane.clientHeight * 0.9, PageUp: (pane) => pane.scrollTop - pane.clientHeight * 0.9,
    Home: () => 0, End: (pane) => pane.scrollHeight,
  };
  const scrollMain = (event) => {
    const key = event.key === " " ? (event.shiftKey ? "PageUp" : "PageDown") : event.key;
    const left = event.target === document.body || event.target.closest("#list a[aria-current], #main h1");
    if (!left || !Object.hasOwn(scrolls, key)) return;
    event.preventDefault();
    scroller().scrollTo({ top: scrolls[key](scroller()) });
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    scrollMain(event);
    if (Object.hasOwn(keys, event.key)) { event.preventDefault(); keys[event.key](); }
  });

  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
  document.getElementById("help-button").addEventListener("click", () => document.getElementById("help").showModal());

  if (dnd.data) {
    dnd.data.units.forEach((row, unit) => byName.set(`${row.layer}/${row.unit}`, unit));
    document.getElementById("run-name").textContent = [...new Set(dnd.data.runs.map((run) => run.title))].join(" | ");
    document.querySelector("[data-view=atlas]").hidden = !dnd.data.atlas.length;
    dnd.marks.start();
    dnd.list.start();
    addEventListener("hashchange", show);
    show();
  } else {
    main.append(dnd.el("div", { class: "page" }, dnd.el("p", { class: "warning" }, "data.js, which lies beside this page, cannot be read. Build the report again.")));
  }
}
