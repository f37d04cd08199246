"use strict";
// What the reader thinks of the labels: right, wrong, better words, a note. Kept by the browser; saved as CSV.

dnd.marks = {};
{
  let marks = {}; // "layer/unit" -> {label, mark, text, note}
  const key = () => `dnd-marks ${dnd.data.runs[0].folder}`;
  const name = (row) => `${row.layer}/${row.unit}`;
  const empty = ({ mark, text, note }) => !mark && !text && !note;

  dnd.marks.start = () => {
    try {
      const found = JSON.parse(localStorage.getItem(key()));
      if (found && typeof found === "object") marks = found;
    } catch { /* a page from disk may have no storage */ }
  };

  // Of the label that the unit has now: a mark of another one does not count.
  dnd.marks.of = (row) => {
    const found = dnd.data.runs.length === 1 && Object.hasOwn(marks, name(row)) ? marks[name(row)] : null;
    return found && found.label === dnd.answer(row.runs[0]) ? found : null;
  };

  dnd.marks.count = () => dnd.data.units.filter(dnd.marks.of).length;

  const change = (row, values) => {
    const found = { mark: "", text: "", note: "", ...dnd.marks.of(row), ...values, label: dnd.answer(row.runs[0]) };
    if (empty(found)) delete marks[name(row)]; else marks[name(row)] = found;
    try { localStorage.setItem(key(), JSON.stringify(marks)); } catch { /* as above: kept until the page is closed */ }
    for (const button of document.querySelectorAll("[data-set-mark]")) button.setAttribute("aria-pressed", button.dataset.setMark === found.mark);
    dnd.list.redraw();
  };

  dnd.marks.toggle = (row, mark) => change(row, { mark: dnd.marks.of(row)?.mark === mark ? "" : mark });

  // The form for one unit.
  dnd.marks.form = (row) => {
    const found = dnd.marks.of(row) ?? {};
    const button = (mark, text) => dnd.el("button", { type: "button", "data-set-mark": mark, "aria-pressed": found.mark === mark,
      onclick: () => dnd.marks.toggle(row, mark) }, text);
    const field = (what, words) => dnd.el("input", { type: "text", value: found[what] ?? "", placeholder: words, "aria-label": words, maxlength: 1000,
      onchange: (event) => change(row, { [what]: event.target.value.trim() }) });
    return dnd.el("div", { class: "marks" }, dnd.el("div", { class: "buttons" }, button("right", "✓ Right"), button("wrong", "✗ Wrong")),
      field("text", "In your words"), field("note", "Note"));
  };

  // What a spreadsheet would compute has an apostrophe before it, which `dnd eval` takes off: spreadsheet_lines of dnd/text.py.
  const guarded = (text) => /^'*([\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])/.test(text) ? `'${text}` : text;
  const cell = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll("\"", "\"\"")}"` : text;

  // layer,unit,label,mark,text,note: `dnd eval --truth` takes `text` for what the unit means.
  dnd.marks.csv = () => [["layer", "unit", "label", "mark", "text", "note"], ...dnd.data.units.filter(dnd.marks.of).map((row) => {
    const { label, mark, text, note } = dnd.marks.of(row);
    const isLabel = row.runs[0].status === "labelled";
    return [row.layer, String(row.unit), isLabel ? label : "", mark, text || (mark === "right" && isLabel ? label : ""), note];
  })].map((cells) => `${cells.map(guarded).map(cell).join(",")}\n`).join("");

  dnd.marks.save = () => {
    const url = URL.createObjectURL(new Blob([dnd.marks.csv()], { type: "text/csv" }));
    dnd.el("a", { href: url, download: "marks.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
}
