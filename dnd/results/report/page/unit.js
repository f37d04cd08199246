"use strict";
// One unit with all that led to its label; in a comparison, one column per run.

{
  const toggles = [["maps", "Activation map", (e) => e.map], ["boxes", "Attention boxes", (e) => e.boxes.length || (e.box && e.view)], ["crops", "Crops", (e) => e.box && e.view]];
  const on = new Set(["boxes"]);

  const metric = (name, value, share) => value === null || value === undefined ? null
    : dnd.el("div", { class: "metric" }, dnd.el("span", null, name), dnd.el("strong", null, dnd.measure(value)), share === undefined ? null : dnd.bar(share));

  // Switch an overlay of all exemplars on the page.
  dnd.toggle = (name) => {
    if (on.has(name)) on.delete(name); else on.add(name);
    for (const section of document.querySelectorAll(".exemplars")) section.classList.toggle(name, on.has(name));
    for (const button of document.querySelectorAll(`[data-toggle=${name}]`)) button.setAttribute("aria-pressed", on.has(name));
  };

  // What the figures, the plot and the overlays of the exemplars mean, as far as there are any.
  const legend = ({ exemplars, sample }) => [
    "Figures and dots: the unit's activation on these images.",
    sample && "Grey: on random probing images (heights by the square root of their number), 95 % of which lie left of the dashed line.",
    exemplars.some((one) => one.boxes.length) && "Boxes: where the unit's map is high.",
    exemplars.some((one) => one.box && one.view) && "Pink box: this crop is the exemplar.",
    exemplars.some((one) => one.map) && "Activation map: dark where the unit is quiet.",
  ].filter(Boolean).join(" ");

  const exemplars = (evidence, level) => {
    if (!evidence.exemplars.length) return null;
    const section = dnd.el("section", { class: ["exemplars", ...on].join(" ") });
    const offered = toggles.filter(([, , has]) => evidence.exemplars.some(has));
    section.append(
      dnd.el("div", { class: "heading" }, dnd.el(level, { class: "title" }, "What activates it most"),
        dnd.el("div", { class: "buttons" }, offered.map(([name, text]) =>
          dnd.el("button", { type: "button", "data-toggle": name, "aria-pressed": on.has(name), onclick: () => dnd.toggle(name) }, text)))),
      dnd.el("div", { class: "grid" }, evidence.exemplars.map((exemplar, place) => dnd.exemplar(exemplar, place + 1, section))),
      dnd.strip(evidence.exemplars.map((exemplar) => exemplar.activation), evidence.sample, dnd.span(evidence), "Exemplars") ?? "",
      dnd.el("p", { class: "note" }, legend(evidence)));
    return section;
  };

  // A generator that looks images up may give the same one for several seeds: it is shown once.
  const distinct = (images) => {
    const found = new Map();
    images.forEach(([copy, activation], place) => {
      const key = copy ? `${copy[0]} ${activation}` : place;
      const times = (found.get(key)?.times ?? 0) + 1;
      found.set(key, { copy, activation, rank: found.get(key)?.rank ?? place + 1, times });
    });
    return [...found.values()];
  };

  const candidate = (one, evidence, isLabel, level) => dnd.el("li", { class: isLabel ? "candidate chosen" : "candidate" },
    dnd.el("div", { class: "heading" },
      dnd.el(level, { class: "concept" }, one.concept, isLabel ? " " : null, isLabel ? dnd.el("span", { class: "badge", "data-status": "labelled" }, "label") : null),
      dnd.el("div", { class: "metrics" }, metric("score", one.score), metric("AUC", one.auc, one.auc ?? 0))),
    dnd.el("div", { class: "tested" },
      dnd.strip(one.images.map((image) => image[1]), evidence.sample, dnd.span(evidence), one.concept),
      one.images.length ? dnd.el("div", { class: "grid small" }, distinct(one.images).map((image) => dnd.synthetic(image, one.concept)))
        : dnd.el("p", { class: "note" }, "No images of it were tested.")));

  const candidates = (run, about, evidence, level) => {
    if (!evidence.candidates.length) return null;
    const label = run.status === "labelled" ? run.labels[0]?.[0] : null;
    const drawn = evidence.candidates.some((one) => one.images.length);
    return dnd.el("section", { class: "candidates" }, dnd.el(level, { class: "title" }, "Candidates"),
      drawn ? dnd.el("p", { class: "note" }, `Each with the images of it from the generator${by(about, "generator")}, strongest first; figures and dots are the unit's activation on them.`) : null,
      dnd.el("ol", null, evidence.candidates.map((one) => candidate(one, evidence, one.concept === label, level === "h2" ? "h3" : "h4"))),
      evidence.dropped.length ? dnd.el("details", null, dnd.el("summary", null, `${dnd.several(evidence.dropped.length, "candidate")} could not be judged`),
        dnd.el("ul", null, evidence.dropped.map(([concept, reason]) => dnd.el("li", null, dnd.el("b", null, concept), ": ", reason)))) : null);
  };

  const alternatives = (run, evidence, level) => run.labels.length > (run.status === "labelled" ? 1 : 0) ? dnd.el("section", null,
    dnd.el(level, { class: "title" }, run.status === "labelled" ? "Label and alternatives" : "What came closest"),
    dnd.table(["concept", "score", ...(evidence.confidences.some((one) => one !== null) ? ["confidence"] : [])],
      run.labels.map(([concept, score], place) => [concept, dnd.measure(score), ...(evidence.confidences.some((one) => one !== null) ? [dnd.measure(evidence.confidences[place])] : [])]), "Labels with their scores")) : null;

  const by = (about, kind) => { const name = dnd.setting(about, kind, "backend"); return name ? ` (${name})` : ""; };

  // What the figures of a verdict mean, as far as there are any.
  const meaning = (run, about, evidence) => {
    const method = dnd.setting(about, "method", "name");
    const said = [
      run.labels.length && `Score: how well the concept fits the unit, by the ${method && method !== "dnd" ? `method (${method})` : `scorer${by(about, "scorer")}`}; higher is better.`,
      run.auc !== null && "AUC: the chance that an image of the concept activates the unit more than a random probing image; 0.5 is chance.",
      evidence.confidences.some((one) => one !== null) && "Confidence: the chance that the concept is right, by the run's calibration.",
    ].filter(Boolean);
    return said.length ? dnd.el("p", { class: "note" }, said.join(" ")) : null;
  };

  const provenance = (about, evidence, row) => {
    const planted = about.wrong.find(([name]) => name === `${row.layer}/${row.unit}`);
    const facts = [["run", about.folder], ["unit", `${row.layer}/${row.unit}`], ...about.facts.filter(([name]) => name === "fingerprint of the target"),
      ...about.stages.map(([name, key]) => [`${name} key`, key]),
      ...(evidence.sample ? [["random sample", `${dnd.several(evidence.sample.n, "image")}: median ${dnd.number(evidence.sample.median)}, 95 % below ${dnd.number(evidence.sample.p95)}, greatest ${dnd.number(evidence.sample.high)}`]] : [])];
    return [
      planted ? dnd.el("p", { class: "warning" }, "The target's own truth: ", dnd.el("b", null, planted[1]), ". This answer counts as wrong.") : null,
      dnd.el("details", { class: "provenance" }, dnd.el("summary", null, "Provenance"),
        dnd.el("dl", { class: "facts" }, facts.map(([name, value]) => dnd.el("div", null, dnd.el("dt", null, name), dnd.el("dd", null, value)))),
        evidence.exemplars.length ? dnd.table(["exemplar", "image", "sha256"], evidence.exemplars.map((e, place) => [String(place + 1), e.source, dnd.el("code", null, e.digest)]), "Exemplars with their digests") : null),
    ];
  };

  const verdict = (run) => dnd.el("div", { class: "verdict" }, dnd.badge(run.status),
    run.status === "labelled" ? dnd.el("div", { class: "metrics" }, metric("score", run.labels[0]?.[1]), metric("AUC", run.auc, run.auc ?? 0), metric("confidence", run.confidence)) : null,
    run.reason ? dnd.el("p", { class: "reason" }, run.reason) : null);

  const column = (row, place, evidence, several) => {
    const [run, about] = [row.runs[place], dnd.data.runs[place]];
    const head = several ? dnd.el("h2", null, dnd.letter(place), " ", !run ? about.name : run.status === "labelled" ? dnd.answer(run) : "No label") : null;
    if (!run) return dnd.el("section", { class: "column" }, head, dnd.el("p", { class: "note" }, "This run does not have the unit."));
    const level = several ? "h3" : "h2";
    const [warning, details] = provenance(about, evidence, row);
    return dnd.el("section", { class: "column" }, head, several ? dnd.el("p", { class: "note" }, about.name) : null,
      verdict(run), warning, alternatives(run, evidence, level), meaning(run, about, evidence), exemplars(evidence, level), candidates(run, about, evidence, level), details);
  };

  const steps = () => dnd.el("nav", { class: "steps", "aria-label": "Units before and after" }, [[-1, "‹ Previous"], [1, "Next ›"]].map(([step, text]) => {
    const row = dnd.list.neighbour(step);
    return row ? dnd.el("a", { href: dnd.link(row) }, text) : dnd.el("span", { class: "off" }, text);
  }));

  // The view of the unit in one place of the index.
  dnd.unit = async (place) => {
    const row = dnd.data.units[place];
    const several = row.runs.length > 1;
    const evidence = await dnd.load(place);
    const title = several ? dnd.unitName(row) : row.runs[0].status === "labelled" ? dnd.answer(row.runs[0]) : "No label";
    return [
      dnd.el("div", { class: "heading" }, dnd.el("p", { class: "note" }, several ? { different: "different labels", same: "the same label", partial: "not in every run" }[dnd.agreement(row)] : dnd.unitName(row)), steps()),
      dnd.el("h1", { tabindex: -1 }, title),
      dnd.el("div", { class: several ? "columns" : null }, row.runs.map((_, run) => column(row, run, evidence[run], several))),
    ];
  };
}
