"use strict";
// What there is to say of a run as a whole.

{
  const section = (level, title, ...content) => content.flat(Infinity).some(Boolean)
    ? dnd.el("section", { class: "card" }, dnd.el(level, { class: "title" }, title), content) : null;
  const MOST = 6; // units shown under a label: each is an image more to open
  const percent = (share) => `${Number((share * 100).toFixed(1))} %`;
  // A button that shows the units that fit a filter.
  dnd.filtered = (values, ...content) => dnd.el("button", { type: "button", class: "plain", onclick: () => {
    dnd.list.filter(values);
    location.hash = "#";
  } }, content);

  // How many units have each status.
  dnd.statuses = (run) => dnd.el("div", { class: "tiles" },
    ["labelled", "uninterpretable", "failed"].filter((status) => run.statuses[status] || status === "labelled").map((status) =>
      dnd.filtered({ status }, dnd.el("span", { class: "tile", "data-status": status },
        dnd.el("strong", null, dnd.number(run.statuses[status] ?? 0)), status))));

  // How many labels have each verdict of `dnd verify`.
  const verdicts = (place) => {
    const found = new Map();
    for (const row of dnd.data.units) if (row.runs[place]?.verdict) found.set(row.runs[place].verdict, (found.get(row.runs[place].verdict) ?? 0) + 1);
    const total = [...found.values()].reduce((sum, n) => sum + n, 0);
    return [...found].sort((a, b) => b[1] - a[1]).map(([word, n]) => dnd.el("tr", null,
      dnd.el("th", { scope: "row" }, dnd.filtered({ verdict: word }, word)), dnd.el("td", null, dnd.bar(n / total)), dnd.el("td", null, dnd.several(n, "unit"))));
  };

  const quality = (run) => {
    const parts = [];
    const rows = verdicts(dnd.data.runs.indexOf(run));
    if (rows.length) {
      parts.push(dnd.el("p", { class: "note" }, "Labels tested on new images (dnd verify)."),
        dnd.el("table", { class: "bars" }, dnd.el("caption", { class: "hidden" }, "Verdicts on labels"), dnd.el("tbody", null, rows)));
    }
    if (run.quality) {
      parts.push(dnd.el("p", { class: "note" }, "Against the known meaning of the target's units."),
        dnd.el("table", { class: "bars" }, dnd.el("caption", { class: "hidden" }, "Right labels by kind of unit"),
          dnd.el("tbody", null, run.quality.grades.map(([kind, right, total]) => dnd.el("tr", null,
            dnd.el("th", { scope: "row" }, kind), dnd.el("td", null, dnd.bar(right / total)), dnd.el("td", null, `${right} of ${total}`))),
          run.quality.controls.map(([name, share]) => dnd.el("tr", { class: "control" },
            dnd.el("th", { scope: "row" }, name), dnd.el("td", null, dnd.bar(share)), dnd.el("td", null, typeof share === "number" ? percent(share) : share))))));
    }
    if (run.figures.length) {
      parts.push(dnd.el("details", { open: run.figures.length < 9 },
        dnd.el("summary", null, `dnd eval: ${dnd.several(run.figures.length, "figure")}, with a 95 % interval and two controls`),
        dnd.el("p", { class: "note" }, "Match: against the truth, word by word. Text, retrieval: by meaning. Images: do images of the label activate the unit? Dot and thick line: the value and its interval. Ticks: what labels shuffled between units and the best constant label reach."),
        dnd.table(["figure", "value and controls", "value", "95 %", "shuffled", "best constant"], run.figures.map(([name, higher, value, low, high, shuffled, constant]) =>
          [higher ? name : `${name} (lower is better)`, dnd.interval(`${name}: ${dnd.number(value)}, 95 % ${dnd.number(low)} to ${dnd.number(high)}; shuffled ${dnd.number(shuffled)}, best constant ${dnd.number(constant)}`, [value, low, high], [shuffled, constant]), value, dnd.el("span", { class: "together" }, `${dnd.number(low)} to ${dnd.number(high)}`), shuffled, constant]), "Figures of dnd eval")));
    }
    return parts;
  };

  const CHARTS = [["exemplar", "strongest exemplar"], ["synthetic", "images of the best candidate (median)"],
    ["sample", "random images (median)"], ["score", "score of the label"], ["auc", "AUC of the best candidate"]];

  const histograms = (run) => [dnd.el("p", { class: "note" }, "How many units lie where; heights go by the square root of their number. Activations share an axis. AUC: the chance that an image of the candidate activates the unit more than a random probing image; 0.5 is chance."), ...run.layers.map(([layer, found], place) => dnd.el("details", { open: place < 4 },
    dnd.el("summary", null, "Layer ", dnd.el("bdi", null, layer)),
    dnd.el("div", { class: "charts" }, CHARTS.filter(([name]) => found[name]).map(([name, what]) => dnd.histogram(found[name], what, name)))))];

  // Labels given to units: [label, rows], most common first.
  const groups = (place) => {
    const found = new Map();
    for (const row of dnd.data.units) {
      const run = row.runs[place];
      if (run?.status === "labelled" && run.labels.length) found.set(run.labels[0][0], [...(found.get(run.labels[0][0]) ?? []), row]);
    }
    return [...found].sort((a, b) => b[1].length - a[1].length || (a[0] < b[0] ? -1 : 1));
  };

  const group = ([label, rows], most, place) => dnd.el("li", null,
    dnd.el("div", { class: "row" }, dnd.filtered({ only: ["label", label] }, label), dnd.bar(rows.length / most), dnd.el("span", { class: "score" }, dnd.several(rows.length, "unit"))),
    dnd.el("div", { class: "chips" }, rows.slice(0, MOST).map((row) => dnd.el("a", { href: dnd.link(row) },
      row.runs[place].thumbnails.slice(0, 1).map(dnd.thumbnail), dnd.unitName(row))),
      rows.length > MOST ? dnd.filtered({ only: ["label", label] }, `and ${dnd.number(rows.length - MOST)} more`) : null));

  const concepts = (place) => {
    const all = groups(place);
    const shared = all.filter(([, rows]) => rows.length > 1);
    const list = (some) => dnd.el("ul", { class: "concepts" }, some.map((one) => group(one, all[0][1].length, place)));
    if (!all.length) return [];
    const rest = all.slice(12);
    return [
      dnd.el("p", { class: "note" }, `${dnd.several(all.length, "label")}, ${shared.length ? dnd.number(shared.length) : "none"} shared by several units.`),
      list(all.slice(0, 12)),
      rest.length ? dnd.el("details", { ontoggle(event) {
        if (event.target.open && event.target.children.length < 2) event.target.append(list(rest.slice(0, 300)));
      } }, dnd.el("summary", null, rest.length > 300 ? `the next 300 of ${dnd.number(rest.length)}` : `${dnd.number(rest.length)} more`)) : null,
    ];
  };

  // The words that end most labels, which have a colour of their own wherever units are coloured: a label's last word
  // names the thing where the words before describe it.
  const COLOURS = 8;
  dnd.commonWords = (place) => {
    const totals = new Map();
    for (const row of dnd.data.units) {
      const word = dnd.headWord(row.runs[place]);
      if (word !== null) totals.set(word, (totals.get(word) ?? 0) + 1);
    }
    return [...totals].filter(([, n]) => n > 1).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, COLOURS).map(([word]) => word);
  };
  dnd.part = (word, words) => `part part-${words.indexOf(word) + 1}`; // 0: all others
  dnd.wordLegend = (words) => dnd.el("div", { class: "legend" }, words.map((word) =>
    dnd.filtered({ only: ["word", word] }, dnd.el("span", { class: dnd.part(word, words), "aria-hidden": "true" }), word)));

  // What each layer's labels are about: shares of its labelled units by the last word of the label.
  const profile = (place) => {
    const layers = new Map();
    for (const row of dnd.data.units) {
      const word = dnd.headWord(row.runs[place]);
      if (word === null) continue;
      const counts = layers.get(row.layer) ?? layers.set(row.layer, new Map()).get(row.layer);
      counts.set(word, (counts.get(word) ?? 0) + 1);
    }
    const shared = dnd.commonWords(place);
    if (!shared.length) return [];
    const bar = ([layer, counts]) => {
      const total = [...counts.values()].reduce((sum, n) => sum + n, 0);
      const parts = shared.filter((word) => counts.has(word)).map((word) => [word, counts.get(word)]);
      const rest = total - parts.reduce((sum, [, n]) => sum + n, 0);
      const span = ([word, n]) => {
        const part = dnd.el("span", { class: dnd.part(word, shared), title: `${word ?? "others"}: ${dnd.several(n, "unit")}, ${percent(n / total)}` });
        part.style.width = `${n * 100 / total}%`;
        return part;
      };
      const words = parts.map(([word, n]) => `${word} ${percent(n / total)}`).join(", ");
      return dnd.el("tr", null, dnd.el("th", { scope: "row" }, dnd.el("bdi", null, layer)),
        dnd.el("td", null, dnd.el("span", { class: "profile", role: "img", "aria-label": words }, [...parts, ...(rest ? [[null, rest]] : [])].map(span))),
        dnd.el("td", null, dnd.several(total, "unit")));
    };
    return [
      dnd.el("p", { class: "note" }, "Each layer's labelled units by the last word of their label; grey are all other words."),
      dnd.wordLegend(shared),
      dnd.el("table", { class: "bars" }, dnd.el("caption", { class: "hidden" }, "Concepts by layer"), dnd.el("tbody", null, [...layers].map(bar))),
    ];
  };

  const abstentions = (run) => run.reasons.length ? dnd.el("ul", { class: "reasons" }, run.reasons.map(([status, reason, n]) =>
    dnd.el("li", null, dnd.filtered({ status, only: ["reason", reason] }, dnd.badge(status), " ", dnd.several(n, "unit")), dnd.el("span", null, reason)))) : null;

  // The network, the images and the backends, in a line.
  const inShort = (run) => {
    const method = dnd.setting(run, "method", "name");
    const used = method && method !== "dnd" ? [method] : ["captioner", "summarizer", "generator", "scorer"].map((kind) => dnd.setting(run, kind, "backend")).filter(Boolean);
    const images = run.facts.find(([name]) => name === "probing images")?.[1];
    return [dnd.setting(run, "target", "name"), images ? dnd.several(images, "probing image") : null, used.join(" → ")].filter(Boolean).join(" · ");
  };

  const pairs = (rows) => dnd.el("dl", { class: "facts" }, rows.map(([name, value]) =>
    dnd.el("div", null, dnd.el("dt", null, name), dnd.el("dd", null, dnd.number(value)))));

  // With what a run was made: backends and settings, models, stages.
  dnd.making = (run) => [
    section("h3", "Backends and settings", dnd.el("div", { class: "settings" }, run.settings.map(([name, rows]) =>
      dnd.el("div", null, dnd.el("h4", null, name), pairs(rows))))),
    section("h3", "Models", run.models.length ? dnd.table(["model", "sha256"], run.models.map(([name, digest]) => [name, dnd.el("code", null, digest)]), "Models with their digests") : null),
    section("h3", "Stages", run.stages.length ? dnd.table(["stage", "items", "computed", "failed", "seconds", "key"],
      run.stages.map(([name, key, items, computed, failed, seconds]) => [name, items, computed, failed, seconds, dnd.el("code", null, key)]), "Stages") : null),
    section("h3", "Facts", pairs([...run.facts, ...run.versions])),
    section("h3", "Images that could not be read", run.unreadable.length ? pairs(run.unreadable) : null),
  ];

  // Everything about the run in one place of the index; `level` is the headings'.
  dnd.findings = (run, place, level) => [
    section(level, "How good the labels are", quality(run)),
    section(level, "Concepts by layer", profile(place)),
    section(level, "Most common labels", concepts(place)),
    section(level, "Without a label", abstentions(run)),
    section(level, "Activations", histograms(run)),
  ];

  // How many labels are right, by the target's own truth.
  const right = (run) => {
    const grades = run.quality?.grades ?? [];
    const [good, all] = [1, 2].map((column) => grades.reduce((sum, grade) => sum + grade[column], 0));
    const tile = (words) => dnd.el("span", { class: "tile" }, dnd.el("strong", null, `${good} of ${all}`), words);
    const known = dnd.data.units.some((row) => row.runs[0]?.truth?.right === false);
    return !all ? null : known ? dnd.filtered({ truth: "wrong" }, tile("right; show the others")) : tile("right");
  };

  // What stands above the gallery.
  dnd.head = (known) => {
    const { runs, units, missing } = dnd.data;
    const [run] = runs;
    const several = runs.length > 1;
    const tiles = several ? null : dnd.statuses(run);
    if (tiles && run.quality) tiles.append(right(run) ?? "");
    return [
      dnd.el("h1", { tabindex: -1 }, several ? `${dnd.several(runs.length, "run")} side by side` : run.title),
      dnd.el("p", { class: "intro" }, several ? runs.map((one, place) => dnd.el("span", null, dnd.letter(place), " ", one.name, " ")) : inShort(run)),
      known ? null : dnd.el("p", { class: "warning" }, "There is no such unit in this report."),
      missing[0] ? dnd.missing() : null,
      tiles,
    ];
  };

  dnd.summary = () => {
    const [run] = dnd.data.runs;
    return [
      dnd.el("div", { class: "intro" }, dnd.el("h1", { tabindex: -1 }, run.title), dnd.el("p", null, inShort(run)),
        dnd.el("p", { class: "note" }, `${dnd.several(dnd.data.units.length, "unit")} · `, dnd.el("bdi", null, run.folder))),
      dnd.missing(),
      dnd.statuses(run),
      dnd.findings(run, 0, "h2"),
      dnd.el("h2", null, "How it was made"),
      dnd.making(run),
    ];
  };

  // A word on images that are not there.
  dnd.missing = () => dnd.data.missing[0] ? dnd.el("p", { class: "warning" },
    `${dnd.several(dnd.data.missing[0], "image")} could not be put into this report. The first: ${dnd.data.missing[1]}`) : null;
}
