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

  // What the figures and the overlays of the exemplars mean, as far as there are any.
  const legend = ({ exemplars }) => [
    "Figures: the unit's activation on these images.",
    exemplars.some((one) => one.boxes.length) && "Boxes: where the unit's map is high.",
    exemplars.some((one) => one.box && one.view) && "Pink box: this crop is the exemplar.",
    exemplars.some((one) => one.map) && "Activation map: dark where the unit is quiet.",
  ].filter(Boolean).join(" ");

  const exemplars = (about, evidence, level) => {
    if (!evidence.exemplars.length) return null;
    const [n, k] = [evidence.exemplars.length, Number(dnd.setting(about, "exemplars", "k"))];
    const section = dnd.el("section", { class: ["exemplars", ...on].join(" ") });
    const offered = toggles.filter(([, , has]) => evidence.exemplars.some(has));
    section.append(
      dnd.el("div", { class: "heading" }, dnd.el(level, { class: "title" }, "What activates it most"),
        dnd.el("div", { class: "buttons" }, offered.map(([name, text]) =>
          dnd.el("button", { type: "button", "data-toggle": name, "aria-pressed": on.has(name), onclick: () => dnd.toggle(name) }, text)))),
      dnd.el("div", { class: "grid small" }, evidence.exemplars.map((exemplar, place) => dnd.exemplar(exemplar, place + 1, section))),
      n < k ? dnd.el("p", { class: "note" }, `${n} of ${k}: no other probing image activates it.`) : "");
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

  const grid = (one) => dnd.el("div", { class: "grid small" }, distinct(one.images).map((image) => dnd.synthetic(image, one.concept)));
  const activations = (one) => one.images.map((image) => image[1]);
  const by = (about, kind) => { const name = dnd.setting(about, kind, "backend"); return name ? ` (${name})` : ""; };

  // The candidate that came first, if there are images of it.
  const first = (run, evidence) => evidence.candidates.find((one) => one.concept === run.labels[0]?.[0] && one.images.length);

  const synthetic = (run, about, evidence, level) => {
    const one = first(run, evidence);
    return one ? dnd.el("section", { class: "synthetic" },
      dnd.el(level, { class: "title" }, run.status === "labelled" ? "Images of the label" : `Images of “${one.concept}”, which came closest`),
      grid(one), dnd.el("p", { class: "note" }, `From the generator${by(about, "generator")}, strongest first.`)) : null;
  };

  const plot = (run, evidence) => {
    const one = first(run, evidence);
    const rows = [["exemplars", evidence.exemplars.map((exemplar) => exemplar.activation), "exemplar"], one && [run.status === "labelled" ? "images of the label" : "images of the closest", activations(one), "of-label"]];
    return evidence.exemplars.length || one ? dnd.evidencePlot(rows.filter(Boolean), evidence.sample, dnd.span(evidence), dnd.data.runs.length > 1 || matchMedia("(max-width: 860px)").matches) : null;
  };

  const candidate = (one, evidence, confidence, level) => dnd.el("li", { class: "candidate" },
    dnd.el("div", { class: "heading" }, dnd.el(level, { class: "concept" }, one.concept),
      dnd.el("div", { class: "metrics" }, metric("score", one.score), metric("score at best", one.bound), metric("AUC", one.auc, one.auc ?? 0), metric("confidence", confidence))),
    one.images.length ? dnd.el("div", { class: "tested" }, dnd.strip(activations(one), evidence.sample, dnd.span(evidence), one.concept), grid(one)) : null);

  // The candidates beside the one shown above, and labels that were none; those with a score of 0 folded away.
  const alternatives = (run, evidence, level) => {
    const above = first(run, evidence) ?? (run.status === "labelled" ? { concept: run.labels[0]?.[0] } : null);
    const others = evidence.candidates.filter((one) => one !== above && one.concept !== above?.concept);
    const named = new Set(evidence.candidates.map((one) => one.concept));
    const rest = run.labels.filter(([concept]) => !named.has(concept) && concept !== above?.concept).map(([concept, score]) => ({ concept, score, auc: null, images: [] }));
    const all = [...others, ...rest];
    const sure = (one) => evidence.confidences[run.labels.findIndex(([concept]) => concept === one.concept)];
    const list = (some) => dnd.el("ol", null, some.map((one) => candidate(one, evidence, sure(one), level === "h2" ? "h3" : "h4")));
    const stopped = all.filter((one) => typeof one.bound === "number");
    const [good, none] = [all.filter((one) => one.score !== 0 && !stopped.includes(one)), all.filter((one) => one.score === 0)];
    if (!all.length && !evidence.dropped.length) return null;
    return dnd.el("section", { class: "candidates" }, dnd.el(level, { class: "title" }, run.status === "labelled" ? "Alternatives" : "What else was considered"),
      good.length ? list(good) : dnd.el("p", { class: "note" }, "None with a score above 0."),
      none.length ? dnd.el("details", null, dnd.el("summary", null, `${dnd.several(none.length, "candidate")} with a score of 0`), list(none)) : null,
      stopped.length ? dnd.el("details", null, dnd.el("summary", null, `${dnd.several(stopped.length, "candidate")} that could no longer become a label`),
        dnd.el("p", { class: "note" }, "No more images of them were made once it was sure."), list(stopped)) : null,
      evidence.dropped.length ? dnd.el("details", null, dnd.el("summary", null, `${dnd.several(evidence.dropped.length, "candidate")} could not be judged`),
        dnd.el("ul", null, evidence.dropped.map(([concept, reason]) => dnd.el("li", null, dnd.el("b", null, concept), ": ", reason)))) : null);
  };

  const captions = (evidence, level) => evidence.exemplars.some((one) => one.caption) ? dnd.el("section", { class: "captions" },
    dnd.el(level, { class: "title" }, "Captions of the exemplars"),
    dnd.el("ol", null, evidence.exemplars.map((one) => dnd.el("li", null, one.caption || "–", " ", dnd.el("small", null, dnd.el("bdi", null, one.source)))))) : null;

  // Images of the random sample from the weakest to the strongest: what does not activate the unit, too.
  const range = (evidence, level) => evidence.sample?.images.length ? dnd.el("section", { class: "range" },
    dnd.el(level, { class: "title" }, "From weak to strong"),
    dnd.el("p", { class: "note" }, "Random probing images by the share of such images on which the unit is weaker."),
    dnd.el("div", { class: "grid small" }, evidence.sample.images.map((one) => dnd.sampled(one)))) : null;

  // What the figures of a verdict mean, as far as there are any.
  const meaning = (run, about, evidence) => {
    const method = dnd.setting(about, "method", "name");
    const said = [
      run.labels.length && `Score: how well the concept fits the unit, by the ${method && !["dnd", "refine"].includes(method) ? `method (${method})` : `scorer${by(about, "scorer")}`}; higher is better.`,
      run.auc !== null && "AUC: the chance that an image of the concept activates the unit more than a random probing image; 0.5 is chance.",
      evidence.density !== null && `Density: the latent fires on ${dnd.number(100 * evidence.density)} % of the probing images.`,
      evidence.exemplars.length && legend(evidence),
      evidence.confidences.some((one) => one !== null) && "Confidence: the chance that the concept is right, by the run's calibration.",
    ].filter(Boolean);
    return said.length ? dnd.el("p", { class: "note" }, said.join(" ")) : null;
  };

  const provenance = (about, evidence, row) => {
    const facts = [["run", about.folder], ["unit", `${row.layer}/${row.unit}`], ...about.facts.filter(([name]) => name === "fingerprint of the target"),
      ...about.stages.map(([name, key]) => [`${name} key`, key]),
      ...(evidence.sample ? [["random sample", `${dnd.several(evidence.sample.n, "image")}: median ${dnd.number(evidence.sample.median)}, 95 % below ${dnd.number(evidence.sample.p95)}, greatest ${dnd.number(evidence.sample.high)}`]] : [])];
    return dnd.el("details", { class: "provenance" }, dnd.el("summary", null, "Provenance"),
      dnd.el("dl", { class: "facts" }, facts.map(([name, value]) => dnd.el("div", null, dnd.el("dt", null, name), dnd.el("dd", null, value)))),
      evidence.exemplars.length ? dnd.table(["exemplar", "image", "sha256"], evidence.exemplars.map((e, place) => [String(place + 1), e.source, dnd.el("code", null, e.digest)]), "Exemplars with their digests") : null);
  };

  // What the target itself knows of the unit.
  const truth = (run) => !run.truth ? null : run.truth.right ? dnd.el("p", { class: "note" }, `Right, by the target's own truth${run.truth.kind ? ` (${run.truth.kind})` : ""}.`)
    : dnd.el("p", { class: "warning" }, "The target's own truth: ", dnd.el("b", null, run.truth.meant), run.truth.kind ? ` (${run.truth.kind})` : "", ". This answer counts as wrong.");

  // What explained the exemplars before each round of refinement, and after the last.
  const rounds = ({ rounds }, level) => !rounds.length ? null : dnd.el("section", { class: "rounds" },
    dnd.el(level, { class: "title" }, "Explained by ", dnd.el("b", null, rounds.at(-1))),
    rounds.length > 1 ? dnd.el("p", { class: "note" }, `Round by round: ${rounds.join(" → ")}`) : null);

  // What new images say of the label (`dnd verify`), with the names that were tested beside it.
  const tested = (run, { verdict }, level) => !verdict ? null : dnd.el("section", { class: "tested-names" },
    dnd.el(level, { class: "title" }, "Verdict on new images: ", dnd.el("span", { class: "tested-as", "data-verdict": run.verdict }, run.verdict), verdict.because ? ` (${verdict.because})` : null),
    dnd.el("div", { class: "metrics" }, verdict.figures.map(([name, value]) => metric(name, value))),
    verdict.tested.length ? dnd.table(["name tested beside it", "it is", "AUC", "strength", "needed"], verdict.tested, "Names tested beside the label") : null,
    dnd.el("p", { class: "note" }, "AUC: of new images of the name, against images of other units' labels. Strength: the activation on the median of them, above that on the median random image. Needed: the share of what activates the unit most on which the name is seen."));

  const verdict = (run, heading, ...more) => dnd.el("div", { class: "verdict" }, heading, dnd.el("div", null, dnd.badge(run.status)),
    run.status === "labelled" ? dnd.el("div", { class: "metrics" }, metric("score", run.labels[0]?.[1]), metric("AUC", run.auc, run.auc ?? 0), metric("confidence", run.confidence)) : null,
    run.reason ? dnd.el("p", { class: "reason" }, run.reason) : null, truth(run), more);

  const answer = (run) => run.status === "labelled" ? dnd.meaning(run) : "No label";

  const below = (run, about, evidence, level, isShared) => [meaning(run, about, evidence), rounds(evidence, level), tested(run, evidence, level), alternatives(run, evidence, level), isShared ? null : [captions(evidence, level), range(evidence, level)]];

  // Exemplars | label | images of the label, with one plot under them.
  const alone = (row, place, evidence) => {
    const [run, about] = [row.runs[0], dnd.data.runs[0]];
    return [
      dnd.el("div", { class: "why card" },
        dnd.el("div", { class: "row" }, exemplars(about, evidence, "h2"),
          verdict(run, dnd.el("h1", { tabindex: -1 }, answer(run)), dnd.marks.form(row)), synthetic(run, about, evidence, "h2")),
        plot(run, evidence)),
      below(run, about, evidence, "h2"), dnd.nearest(place, "h2"), provenance(about, evidence, row),
    ];
  };

  const column = (row, place, evidence, isShared) => {
    const [run, about] = [row.runs[place], dnd.data.runs[place]];
    if (!run) return dnd.el("section", { class: "column" }, dnd.el("h2", null, dnd.letter(place), " ", about.name), dnd.el("p", { class: "note" }, "This run does not have the unit."));
    return dnd.el("section", { class: "column" }, verdict(run, dnd.el("h2", null, dnd.letter(place), " ", answer(run))), dnd.el("p", { class: "note" }, about.name),
      isShared ? null : exemplars(about, evidence, "h3"), synthetic(run, about, evidence, "h3"), plot(run, evidence),
      below(run, about, evidence, "h3", isShared), provenance(about, evidence, row));
  };

  // Several runs: the exemplars once where all have the same.
  const together = (row, evidence) => {
    const known = evidence.filter(Boolean);
    const key = (one) => JSON.stringify(one.exemplars.map((exemplar) => [exemplar.digest, exemplar.box]));
    const isShared = known.length > 1 && known.every((one) => key(one) === key(known[0]));
    return [
      dnd.el("h1", { tabindex: -1 }, dnd.unitName(row)),
      isShared ? exemplars(dnd.data.runs[evidence.indexOf(known[0])], known[0], "h2") : null,
      dnd.el("div", { class: "columns" }, row.runs.map((_, place) => column(row, place, evidence[place], isShared))),
      isShared ? captions(known[0], "h2") : null,
    ];
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
    return [
      dnd.el("div", { class: "heading" }, dnd.el("p", { class: "note" }, several ? { different: "different labels", same: "the same label", partial: "not in every run" }[dnd.agreement(row)] : dnd.unitName(row)), steps()),
      several ? together(row, evidence) : alone(row, place, evidence[0]),
    ];
  };
}
