"use strict";
// All units on a map on which like ones lie close, and the units nearest to one.

{
  const PICTURES = 400; // units up to which each is drawn by its strongest image; more by the colour of their label's last word
  const NAMES = { label: "by the words of labels and captions", activation: "by activation on the random sample" };

  const point = (place, [column, row], [columns, rows], words) => {
    const unit = dnd.data.units[place];
    const [run] = unit.runs;
    const title = `${dnd.meaning(run)} (${dnd.unitName(unit)})`;
    const node = dnd.el("a", { href: dnd.link(unit), title, "aria-label": title, "data-status": run.status, class: words && run.status === "labelled" ? dnd.part(dnd.headWord(run), words) : null },
      words ? null : run.thumbnails.slice(0, 1).map(dnd.thumbnail));
    Object.assign(node.style, { left: `${column * 100 / columns}%`, top: `${row * 100 / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
    return node;
  };

  const map = ({ cells }, words) => {
    const size = [0, 1].map((axis) => Math.max(...cells.map((cell) => cell[axis])) + 1);
    const node = dnd.el("div", { class: "map-of-units" }, cells.map((cell, place) => point(place, cell, size, words)));
    node.style.aspectRatio = size.join(" / ");
    return node;
  };

  dnd.atlas = () => {
    const words = dnd.data.units.length > PICTURES ? dnd.commonWords(0) : null;
    return [
      dnd.el("h1", { tabindex: -1 }, "Atlas"),
      dnd.el("p", { class: "note" }, `Every unit has one cell; units that are alike lie near each other. Only neighbourhood counts, distances do not. ${words ? "Colours: the last word of the label. Strong grey: another word; faint" : "Grey"}: no label.`),
      words?.length ? dnd.wordLegend(words) : null,
      dnd.el("div", { class: "atlases" }, dnd.data.atlas.map((one) => dnd.el("section", { class: "card" }, dnd.el("h2", { class: "title" }, NAMES[one.name]), map(one, words)))),
    ];
  };

  // The units nearest to the one in a place of the index.
  dnd.nearest = (place, level) => {
    const found = dnd.data.atlas.filter((one) => one.near[place].length);
    return found.length ? dnd.el("section", { class: "nearest" }, dnd.el(level, { class: "title" }, "Nearest units"), found.map((one) => [
      dnd.el("p", { class: "note" }, `Nearest ${NAMES[one.name]}, with the ${one.name === "label" ? "cosine" : "correlation"}`),
      dnd.el("div", { class: "chips" }, one.near[place].map(([other, likeness]) => dnd.el("a", { href: dnd.link(dnd.data.units[other]), title: dnd.unitName(dnd.data.units[other]) },
        dnd.data.units[other].runs[0].thumbnails.slice(0, 1).map(dnd.thumbnail), dnd.answer(dnd.data.units[other].runs[0]), " ", dnd.el("small", null, dnd.measure(likeness))))),
    ])) : null;
  };
}
