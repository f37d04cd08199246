"use strict";
// Several runs side by side.

{
  const same = (values) => values.every((value) => value === values[0]);

  // Settings that are not the same in all runs: [name, value per run]. Of a part that a run does without, only its name;
  // of a model that a run does without, nothing.
  const differences = (runs) => {
    const parts = runs.map((run) => new Set(run.settings.map(([table]) => table)));
    const everywhere = (name) => /\.(backend|name)$/.test(name)
      || (name.startsWith("model ") ? tables.every((table) => table.has(name)) : parts.every((of) => of.has(name.split(".")[0])));
    const tables = runs.map((run) => new Map([
      ...run.settings.flatMap(([table, rows]) => rows.map(([name, value]) => [`${table}.${name}`, String(value)])),
      ...run.models.map(([name, digest]) => [`model ${name}`, digest]),
    ]));
    const names = [...new Set(tables.flatMap((table) => [...table.keys()]))];
    return names.map((name) => [name, ...tables.map((table) => table.get(name) ?? "–")]).filter(([name, ...values]) => !same(values) && everywhere(name));
  };

  const pairwise = (runs) => {
    const rows = [];
    for (let a = 0; a < runs.length; a++) {
      for (let b = a + 1; b < runs.length; b++) {
        const both = dnd.data.units.filter((row) => row.runs[a] && row.runs[b]);
        const agreed = both.filter((row) => dnd.answer(row.runs[a]) === dnd.answer(row.runs[b]));
        const shown = (n, agreement) => n && runs.length === 2 ? dnd.filtered({ agreement }, dnd.number(n)) : n;
        const share = both.length ? `${Math.round(agreed.length * 100 / both.length)} %` : "–";
        rows.push([dnd.el("span", null, dnd.letter(a), " and ", dnd.letter(b)), both.length, shown(agreed.length, "same"), shown(both.length - agreed.length, "different"), share]);
      }
    }
    return dnd.table(["runs", "units of both", "same label", "different", "share that agrees"], rows, "Agreement of each pair of runs");
  };

  dnd.compareSummary = () => {
    const { runs } = dnd.data;
    const targets = new Set(runs.flatMap((run) => run.facts.filter(([name]) => name === "fingerprint of the target").map(([, value]) => value)));
    const different = differences(runs);
    return [
      dnd.el("h1", { tabindex: -1 }, dnd.several(runs.length, "run"), " side by side"),
      targets.size > 1 ? dnd.el("p", { class: "warning" }, "These runs studied different networks: units of the same name need not be the same.") : null,
      dnd.missing(),
      dnd.el("section", { class: "card" }, dnd.el("h2", { class: "title" }, "Agreement"), pairwise(runs)),
      dnd.el("section", { class: "card" }, dnd.el("h2", { class: "title" }, "What differs"),
        different.length ? dnd.table(["setting", ...runs.map((run, place) => dnd.el("span", null, dnd.letter(place), " ", run.name))], different, "Settings that differ")
          : dnd.el("p", { class: "note" }, "Nothing in their settings or models.")),
      dnd.el("div", { class: "columns" }, runs.map((run, place) => dnd.el("section", { class: "column", "aria-label": run.name },
        dnd.el("h2", null, dnd.letter(place), " ", run.name), dnd.el("p", { class: "note" }, dnd.el("bdi", null, run.folder)),
        dnd.statuses(run), dnd.findings(run, place, "h3")))),
      runs.map((run, place) => dnd.el("details", { class: "made" }, dnd.el("summary", null, "How ", dnd.letter(place), " was made"), dnd.making(run))),
    ];
  };
}
