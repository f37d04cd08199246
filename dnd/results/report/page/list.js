"use strict";
// All units, searched, filtered, sorted, and drawn only where one looks: a gallery, or a list beside the evidence.

dnd.list = {};
{
  const HEIGHT = { list: 68, gallery: 156, more: 24 }; // pixels of a row: of one run, and of each further one
  const TILE = { one: 200, several: 280 }; // pixels that a unit is wide in the gallery, at least
  const NAME = { list: 26, gallery: 15 }; // characters of a unit's name
  const EXTRA = 6; // rows drawn beyond the edges
  const collator = new Intl.Collator("en", { numeric: true });
  const $ = (id) => document.getElementById(id);
  const inputs = ["search", "layer", "status", "verdict", "sort", "agreement", "kind", "truth", "marked", "measure", "least", "most"];
  let words = []; // per unit: all that it is searched by, in lower case
  let only = null; // [what, text]: only units whose label, its last word, or reason to have none, is this
  let shown = []; // places in the index, in the order of the list
  let current = -1;
  let isPrinted = false; // then all are drawn
  const drawn = new Map(); // place -> list item

  const labelled = (run) => run?.status === "labelled" && run.labels.length > 0;
  dnd.headWord = (run) => labelled(run) ? run.labels[0][0].trim().split(/\s+/).at(-1) : null;
  const own = { label: (run) => labelled(run) ? run.labels[0][0] : null, word: dnd.headWord, reason: (run) => run?.why };
  const score = (row) => row.runs.find(labelled)?.labels[0][1] ?? null;
  const first = (row, name) => row.runs.find((run) => run)?.[name] ?? null;
  const isGallery = () => document.body.dataset.view === "gallery";
  const height = () => HEIGHT[isGallery() ? "gallery" : "list"] + HEIGHT.more * (dnd.data.runs.length - 1);
  let across = 1; // units in a row; asking the page for each unit would lay it out each time
  const columns = () => isGallery() ? Math.max(1, Math.floor($("list").clientWidth / TILE[dnd.data.runs.length > 1 ? "several" : "one"])) : 1;
  // Wrong by the target's truth, or by the reader; then what is right; what nobody knows at last.
  const judged = (row) => row.runs.map((run) => run?.truth ? (run.truth.right ? "right" : "wrong") : "").find(Boolean) ?? "";
  const wrongness = (row) => ["wrong", "right", ""].indexOf(dnd.marks.of(row)?.mark || judged(row));

  const kind = (row) => first(row, "truth")?.kind ?? "";

  // The verdicts of `dnd verify`, worst first.
  const VERDICTS = ["not driven", "too broad", "too narrow", "one of several", "not tested", "verified"];
  const tested = (row) => row.runs.map((run) => run?.verdict).filter(Boolean);
  const doubt = (row) => Math.min(VERDICTS.length, ...tested(row).map((word) => VERDICTS.indexOf(word)));

  const MEASURES = { score: (run) => labelled(run) ? run.labels[0][1] : null, confidence: (run) => labelled(run) ? run.confidence : null, AUC: (run) => run.auc };

  const descending = (value) => (a, b) => (value(b) ?? -Infinity) - (value(a) ?? -Infinity) || 0;
  const orders = {
    unit: ["unit", () => 0],
    score: ["highest score", descending(score)],
    low: ["lowest score", (a, b) => (score(a) ?? Infinity) - (score(b) ?? Infinity) || 0],
    auc: ["AUC", descending((row) => first(row, "auc"))],
    confidence: ["highest confidence", descending((row) => first(row, "confidence"))],
    doubt: ["lowest confidence", (a, b) => (first(a, "confidence") ?? Infinity) - (first(b, "confidence") ?? Infinity) || 0],
    label: ["label, A to Z", (a, b) => labelled(b.runs[0]) - labelled(a.runs[0]) || collator.compare(dnd.answer(a.runs[0]), dnd.answer(b.runs[0]))],
    wrong: ["wrong first", (a, b) => wrongness(a) - wrongness(b)],
    verdict: ["verdict, worst first", (a, b) => doubt(a) - doubt(b)],
    kind: ["kind", (a, b) => collator.compare(kind(a), kind(b))],
    differs: ["different first", (a, b) => b.differs - a.differs],
  };

  const option = (value, text) => dnd.el("option", { value }, text);

  dnd.list.start = () => {
    const { units, runs } = dnd.data;
    const layers = [...new Set(units.map((row) => row.layer))];
    $("layer").append(option("", `all ${layers.length > 1 ? layers.length : ""}`), ...layers.map((layer) => option(layer, layer)));
    $("layer").parentElement.hidden = layers.length < 2;
    const statuses = new Set(units.flatMap((row) => row.runs.filter(Boolean).map((run) => run.status)));
    $("status").append(option("", "all"), ...[...statuses].sort().map((status) => option(status, status)));
    const some = (name) => units.some((row) => row.runs.some((run) => run && run[name] !== null));
    const kinds = [...new Set(units.map(kind).filter(Boolean))].sort();
    const verdicts = VERDICTS.filter((word) => units.some((row) => tested(row).includes(word)));
    $("verdict").append(option("", "all"), ...verdicts.map((word) => option(word, word)));
    $("verdict").parentElement.hidden = !verdicts.length;
    $("kind").append(option("", "all"), ...kinds.map((name) => option(name, name)));
    $("kind").parentElement.hidden = !kinds.length;
    $("truth").parentElement.hidden = !units.some(judged);
    $("marked").parentElement.hidden = runs.length > 1;
    const needs = { auc: some("auc"), confidence: some("confidence"), doubt: some("confidence"), verdict: verdicts.length > 0, kind: kinds.length > 1, differs: runs.length > 1,
      wrong: units.some(judged) || runs.length < 2 };
    $("measure").append(...Object.keys(MEASURES).filter((name) => name === "score" || some(name.toLowerCase())).map((name) => option(name, name)));
    const offered = Object.keys(orders).filter((name) => needs[name] ?? true);
    $("sort").append(...offered.map((name) => option(name, orders[name][0])));
    if (runs.length > 1) $("sort").value = "differs";
    $("agreement-label").hidden = runs.length < 2;
    words = units.map((row) => [dnd.unitName(row), ...row.runs.filter(Boolean).flatMap((run) => [run.status, ...run.labels.map((label) => label[0]), run.text])].join("\n").toLowerCase());
    for (const id of inputs) $(id).addEventListener("input", () => dnd.list.update());
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("only").addEventListener("click", () => dnd.list.only(null));
    $("clear").addEventListener("click", () => { dnd.list.filter({}); $("search").focus(); });
    $("scroll").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    $("units").addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
    $("export").addEventListener("click", () => dnd.marks.save());
    for (const [event, value] of [["beforeprint", true], ["afterprint", false]]) {
      addEventListener(event, () => { isPrinted = value; draw(); });
    }
    new ResizeObserver(() => layout()).observe($("scroll"));
    dnd.list.update();
  };

  // Find the units that fit all filters, and show them from the top.
  dnd.list.update = () => {
    const wanted = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [layer, status, verdict, agreement, kindOf, truth, marked] = ["layer", "status", "verdict", "agreement", "kind", "truth", "marked"].map((id) => $(id).value);
    const least = $("least").value === "" ? -Infinity : Number($("least").value);
    const most = $("most").value === "" ? Infinity : Number($("most").value);
    const bounded = least > -Infinity || most < Infinity;
    const measured = MEASURES[$("measure").value];
    const inScore = (run) => run && typeof measured(run) === "number" && measured(run) >= least && measured(run) <= most;
    const fits = (row, place) => (!layer || row.layer === layer)
      && (!status || row.runs.some((run) => run?.status === status))
      && (!verdict || tested(row).includes(verdict))
      && (!kindOf || kind(row) === kindOf)
      && (!truth || judged(row) === truth)
      && (!marked || (dnd.marks.of(row)?.mark || "not yet") === marked)
      && (!agreement || agreement === dnd.agreement(row))
      && (!bounded || row.runs.some(inScore))
      && (only === null || row.runs.some((run) => own[only[0]](run) === only[1]))
      && wanted.every((word) => words[place].includes(word));
    const { units } = dnd.data;
    shown = units.map((row, place) => place).filter((place) => fits(units[place], place));
    const order = orders[$("sort").value][1];
    shown.sort((a, b) => order(units[a], units[b]) || a - b);
    $("count").textContent = shown.length === units.length ? dnd.several(units.length, "unit") : `${dnd.number(shown.length)} of ${dnd.several(units.length, "unit")}`;
    $("clear").hidden = shown.length === units.length;
    $("nothing").hidden = shown.length > 0;
    $("scroll").scrollTop = 0;
    dnd.list.redraw();
  };

  // Draw all anew: the units shown, their marks or the view changed.
  dnd.list.redraw = () => {
    for (const item of drawn.values()) item.remove();
    drawn.clear();
    const n = dnd.marks.count();
    $("export").hidden = !n;
    $("export").textContent = `Save ${dnd.several(n, "mark")} as CSV`;
    layout();
  };

  // Give every drawn unit its place.
  const layout = () => {
    across = columns();
    $("list").style.height = `${Math.ceil(shown.length / across) * height()}px`;
    for (const [place, node] of drawn) put(node, shown.indexOf(place));
    draw();
  };

  const put = (node, position) => {
    Object.assign(node.style, { top: `${Math.floor(position / across) * height()}px`, height: `${height()}px`,
      left: `${(position % across) * 100 / across}%`, width: `${100 / across}%` });
  };

  // Show only the units that have something: ["label", "dots"]; null for all.
  dnd.list.only = (chosen) => {
    only = chosen;
    $("only").hidden = chosen === null;
    $("only").replaceChildren(...(chosen ? [`${chosen[0]}: `, dnd.el("b", null, chosen[1]), " ✕"] : []));
    dnd.list.update();
  };

  dnd.list.filter = (values) => {
    for (const id of inputs) if (!["sort", "measure"].includes(id)) $(id).value = values[id] ?? "";
    dnd.list.only(values.only ?? null);
  };

  // The figure beside a label: what is sorted by, else the score; in the gallery the confidence, where there is one.
  const sorted = () => ({ auc: "auc", confidence: "confidence", doubt: "confidence", score: "score", low: "score" })[$("sort").value];
  const figure = (run) => {
    const name = sorted() ?? (isGallery() && run?.confidence !== null ? "confidence" : "score");
    const value = name === "auc" || (labelled(run) && name === "confidence") ? run?.[name] : labelled(run) ? run.labels[0][1] : undefined;
    return value === undefined || value === null ? null : dnd.el("span", { class: "score", title: name }, dnd.measure(value));
  };

  const answer = (run, place) => dnd.el("span", { class: "answer" },
    dnd.data.runs.length > 1 ? dnd.letter(place) : null,
    dnd.el("span", { class: labelled(run) ? "label" : "none" }, dnd.meaning(run)), isBelow() ? null : figure(run));
  const isBelow = () => isGallery() && dnd.data.runs.length === 1; // where a figure stands beside the unit's name

  // A long layer's end, which tells it from the others, and the unit.
  const shortName = (name) => {
    const most = NAME[isGallery() ? "gallery" : "list"];
    return name.length > most ? `…${name.slice(1 - most)}` : name;
  };

  // What is known of the answer: the reader's mark, else the target's truth; in a comparison whether the runs differ.
  const verdict = (row) => {
    if (row.runs.length > 1) return row.differs ? dnd.el("span", { class: "differs" }, "different") : null;
    const mark = dnd.marks.of(row)?.mark;
    if (mark) return dnd.el("span", { class: "judged", "data-mark": mark, title: `marked ${mark}` }, mark === "right" ? "✓ marked right" : "✗ marked wrong");
    if (judged(row) !== "wrong" && tested(row).length) return dnd.el("span", { class: "tested-as", "data-verdict": tested(row)[0], title: "the verdict of dnd verify" }, tested(row)[0]);
    return judged(row) === "wrong" ? dnd.el("span", { class: "judged", "data-mark": "wrong", title: `the target's own truth: ${row.runs[0].truth.meant}` }, "✗ wrong") : null;
  };

  const item = (place, position) => {
    const row = dnd.data.units[place];
    const pictures = row.runs.find((run) => run?.thumbnails.length)?.thumbnails ?? [];
    const node = dnd.el("li", { "aria-setsize": shown.length, "aria-posinset": position + 1 },
      dnd.el("a", { href: dnd.link(row), class: row.runs.length > 1 ? "several" : null, "aria-current": place === current ? "true" : null },
        dnd.el("span", { class: "thumbnails" }, pictures.map(dnd.thumbnail)),
        dnd.el("span", { class: "answers" }, row.runs.map(answer),
          dnd.el("small", null, dnd.el("bdi", { title: dnd.unitName(row) }, shortName(dnd.unitName(row))), isBelow() && (sorted() || !verdict(row)) ? figure(row.runs[0]) : verdict(row)))));
    put(node, position);
    return node;
  };

  const draw = () => {
    const pane = $(isGallery() ? "units" : "scroll");
    const above = pane.getBoundingClientRect().top - $("list").getBoundingClientRect().top; // pixels of the list out of sight
    const top = isPrinted ? 0 : Math.max(0, (Math.floor(above / height()) - EXTRA) * across);
    const end = isPrinted ? shown.length : Math.min(shown.length, (Math.ceil((above + pane.clientHeight) / height()) + EXTRA) * across);
    const wanted = new Set(shown.slice(top, end));
    for (const [place, node] of drawn) {
      if (!wanted.has(place) && !node.contains(document.activeElement)) { node.remove(); drawn.delete(place); }
    }
    for (let position = top; position < end; position++) {
      const place = shown[position];
      if (drawn.has(place)) continue;
      const node = item(place, position);
      const next = shown.slice(position + 1, end).find((other) => drawn.has(other));
      $("list").insertBefore(node, next === undefined ? null : drawn.get(next));
      drawn.set(place, node);
    }
  };

  // Mark a unit as the one that is looked at, and bring it into view.
  dnd.list.mark = (place) => {
    drawn.get(current)?.firstChild.removeAttribute("aria-current");
    current = place;
    const position = shown.indexOf(place);
    if (position < 0 || isGallery()) return;
    const pane = $("scroll");
    if (position * height() < pane.scrollTop) pane.scrollTop = position * height();
    if ((position + 1) * height() > pane.scrollTop + pane.clientHeight) pane.scrollTop = (position + 1) * height() - pane.clientHeight;
    draw();
    drawn.get(place)?.firstChild.setAttribute("aria-current", "true");
  };

  // The unit so many rows further in the list than the marked one; the first where none is marked.
  dnd.list.neighbour = (step) => {
    const position = shown.indexOf(current);
    const place = position < 0 ? shown[0] : shown[position + step];
    return place === undefined ? null : dnd.data.units[place];
  };
}
