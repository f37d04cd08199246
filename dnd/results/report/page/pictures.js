"use strict";
// Images with what the unit looked at: attention boxes and the activation map, laid over the source image.

{
  const image = (copy, alt) => {
    if (!copy) return dnd.el("span", { class: "gone", role: "img", "aria-label": `${alt} (image missing)` }, "image missing");
    const [name, width, height] = copy;
    const text = dnd.inside(`images/${name}.jpg`);
    return dnd.el("img", { src: text ? `data:image/jpeg;base64,${text}` : `images/${name}.jpg`, width, height, alt, loading: "lazy", decoding: "async" });
  };

  const boxes = (all, own) => {
    const rectangle = ([left, top, right, bottom], name) => dnd.svg("rect", {
      x: left * 100, y: top * 100, width: (right - left) * 100, height: (bottom - top) * 100, class: name });
    const same = (box) => own && box.every((edge, place) => Math.abs(edge - own[place]) < 0.001);
    return dnd.svg("svg", { class: "boxes", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
      all.filter((box) => !same(box)).map((box) => rectangle(box, "other")), own ? rectangle(own, "own") : null);
  };

  // Dark where the unit is quiet, clear where it is active.
  const map = ({ shape: [height, width], frame: [left, top, right, bottom], cells }) => {
    const canvas = dnd.el("canvas", { class: "map", width, height, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    const values = atob(cells);
    for (let cell = 0; cell < width * height; cell++) {
      const value = (values.charCodeAt(cell) || 0) / 255;
      pixels.data.set([12, 8, 48, 225 * (1 - value)], cell * 4);
    }
    context.putImageData(pixels, 0, 0);
    const percent = (share) => `${share * 100}%`;
    Object.assign(canvas.style, {
      left: percent(Math.min(left, right)), top: percent(Math.min(top, bottom)),
      width: percent(Math.abs(right - left)), height: percent(Math.abs(bottom - top)),
      transform: `scale(${right < left ? -1 : 1}, ${bottom < top ? -1 : 1})`,
    });
    return canvas;
  };

  const frame = (copy, alt, name, ...over) => {
    const node = dnd.el("span", { class: `frame ${name}` }, image(copy, alt), copy ? over : null);
    if (copy) {
      node.style.aspectRatio = `${copy[1]} / ${copy[2]}`;
      node.style.width = `${Math.min(1, copy[1] / copy[2]) * 100}%`;
    }
    return node;
  };

  // The whole source with its overlays, and the crop itself where the exemplar is one.
  const layers = (exemplar, alt) => {
    const isCrop = Boolean(exemplar.box && exemplar.view);
    const over = exemplar.box && !exemplar.view ? []
      : [exemplar.map ? map(exemplar.map) : null, exemplar.boxes.length || exemplar.box ? boxes(exemplar.boxes, exemplar.box) : null];
    const whole = frame(isCrop ? exemplar.view : exemplar.image, alt, isCrop ? "whole" : "only", ...over);
    return isCrop ? [whole, frame(exemplar.image, `${alt} (crop)`, "crop")] : [whole];
  };

  const enlarge = (title, ...content) => {
    const dialog = document.getElementById("large");
    dialog.replaceChildren(dnd.el("form", { method: "dialog" }, dnd.el("h2", null, title), dnd.el("button", { autofocus: true }, "Close")), ...content);
    dialog.showModal();
  };

  const large = (copy) => copy && (copy[3] && !dnd.inside(`images/${copy[0]}.jpg`) ? [`${copy[0]}-large`, copy[1], copy[2]] : copy);

  const enlargeExemplar = (exemplar, number, section) => {
    const shown = { ...exemplar, image: large(exemplar.image), view: large(exemplar.view) };
    const facts = [["activation", dnd.measure(exemplar.activation)], ["image", exemplar.source],
      ["crop: left, top, right, bottom", exemplar.box && exemplar.box.map((edge) => edge.toFixed(2)).join(", ")], ["digest", exemplar.digest]];
    enlarge(`Exemplar ${number}`,
      dnd.el("div", { class: `both ${section.className}` }, layers(shown, exemplar.caption || `Exemplar ${number}`)),
      dnd.el("p", { class: "caption" }, exemplar.caption),
      dnd.el("dl", { class: "facts" }, facts.filter((fact) => fact[1]).map(([name, value]) =>
        dnd.el("div", null, dnd.el("dt", null, name), dnd.el("dd", null, value)))));
  };

  // A button that shows an exemplar enlarged; `section` says which overlays are on.
  dnd.exemplar = (exemplar, number, section) => {
    const alt = exemplar.caption || `Exemplar ${number}`;
    const button = dnd.el("button", { type: "button", class: "picture", onclick: () => enlargeExemplar(exemplar, number, section) }, layers(exemplar, alt));
    return dnd.el("figure", null, button,
      dnd.el("figcaption", null, dnd.el("small", null, dnd.measure(exemplar.activation), exemplar.box ? " crop" : null)));
  };

  // An image with a line under it, enlarged by a click.
  const picture = (copy, alt, title, about, ...line) => dnd.el("figure", null,
    dnd.el("button", { type: "button", class: "picture", onclick: () => enlarge(title, dnd.el("div", { class: "both" }, frame(large(copy), alt, "only")), dnd.el("p", null, about)) }, frame(copy, alt, "only")),
    dnd.el("figcaption", null, dnd.el("small", null, line)));

  // One of the random sample: [copy, activation, share of the sample on which the unit is weaker].
  dnd.sampled = ([copy, activation, quantile]) => {
    const where = `${Math.round(quantile * 100)} %`;
    return picture(copy, `Random image at ${where}`, `Random image at ${where}`, `Activation ${dnd.measure(activation)}; the unit is weaker on ${where} of the random sample.`,
      dnd.measure(activation), " at ", where);
  };

  // A synthetic image with its activation, and how many seeds gave it.
  dnd.synthetic = ({ copy, activation, rank, times }, concept) => {
    const alt = `${concept}, image from the generator, rank ${rank}`;
    return picture(copy, alt, concept, `From the generator, for this candidate. Activation ${dnd.measure(activation)}, rank ${rank} of its images.`,
      dnd.measure(activation), times > 1 ? ` (${times}×)` : null);
  };

  dnd.thumbnail = (copy) => dnd.el("span", { class: "thumbnail" }, image(copy, ""));
}
