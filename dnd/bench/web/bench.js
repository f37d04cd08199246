"use strict";
// The page of `dnd bench`: its tables and plot, from the data that lie in the page, with the report's charts.

{
  const data = JSON.parse(document.getElementById("data").textContent);
  const isNarrow = matchMedia("(max-width: 860px)").matches;

  // What stands between backticks as code.
  const note = (text) => dnd.el("p", { class: "note" }, text.split("`").map((part, place) => place % 2 ? dnd.el("code", null, part) : part));
  const joined = (text) => text.replaceAll(", ", ",\u00a0"); // an interval's ends stay together

  // A cell is a text, or one with a drawing, a number to sort by, or links to runs.
  const cell = (content, span) => {
    if (typeof content === "string") return content.length ? joined(content) : null;
    const { text, value, share, difference, runs } = content;
    if (runs) return dnd.el("span", null, runs.length > 1 ? [text, " ", runs.map((link, place) => dnd.el("a", { href: link, title: `run ${place + 1}`, class: "run" }, place + 1))] : dnd.el("a", { href: runs[0] }, text));
    return dnd.el("span", { "data-sort": value?.[0] ?? share ?? 0 }, joined(text), share === undefined ? null : dnd.bar(share),
      value ? dnd.interval(text, value, difference ? [0] : [], difference ? span : [0, 1]) : null);
  };

  // Differences of a column are drawn on one axis.
  const table = ({ heads, rows }, caption) => {
    const spans = heads.map((_, column) => {
      const known = rows.map((row) => row[column]).filter((one) => one?.difference).flatMap((one) => one.value);
      return [Math.min(0, ...known), Math.max(0, ...known)];
    });
    const found = dnd.table(heads, rows.map((row) => row.map((one, column) => cell(one, spans[column]))), caption);
    found.classList.add("wide");
    return found;
  };

  // The plot, coloured by one axis of the matrix.
  const plot = (axis) => {
    const words = [...new Set(data.points.map((one) => one.variants[axis]).filter(Boolean))];
    const part = (word) => words.includes(word) ? words.indexOf(word) % 8 + 1 : 0;
    const legend = [...words, ...(data.points.some((one) => !one.variants[axis]) && words.length ? ["others"] : [])];
    return [
      dnd.el("div", { class: "legend" }, legend.map((word) => dnd.el("span", null, dnd.el("span", { class: `part part-${part(word)}`, "aria-hidden": "true" }), word)),
        data.points.some((one) => one.isFront) ? dnd.el("span", { class: "of-front" }, "none is both better and cheaper") : null),
      dnd.scatter(data.points.map((one) => ({ ...one, part: part(one.variants[axis]) })), "seconds alone", `${data.metric}, with 95 % intervals; numbers as in the table`, isNarrow),
    ];
  };

  const quality = () => {
    const figure = dnd.el("figure", null, plot(data.axes[0]));
    const choice = dnd.el("select", { onchange: (event) => figure.replaceChildren(...plot(event.target.value)) }, data.axes.map((axis) => dnd.el("option", { value: axis }, axis)));
    return [data.axes.length > 1 ? dnd.el("label", { class: "note" }, "Colours by ", choice) : null, figure];
  };

  const cards = [
    ["Combinations", [table(data.combinations, "Combinations"), dnd.el("details", null, dnd.el("summary", null, "What the columns mean"), data.notes.map(note))]],
    ["Quality and cost", data.points.length ? quality() : null],
    ["Main effects", data.effects.rows.length ? [note(data.effects.note), table(data.effects, "Main effects")] : null],
    ["Stages", [table(data.stages, "Stages")]],
  ].filter(([, content]) => content);
  const anchor = (head) => head.toLowerCase().replaceAll(" ", "-");
  document.querySelector("header nav").append(...cards.map(([head]) => dnd.el("a", { href: `#${anchor(head)}` }, head)));
  document.querySelector("main").append(...cards.map(([head, content]) => dnd.el("section", { class: "card", id: anchor(head) }, dnd.el("h2", null, head), content)));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
