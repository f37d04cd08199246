"use strict";
// Small drawings, each with its content in words for those who do not see it.

{
  const WIDTH = 300;

  const axis = (low, high, height) => [
    dnd.svg("line", { x1: 0, x2: WIDTH, y1: height, y2: height, class: "axis" }),
    dnd.svg("text", { x: 0, y: height + 12 }, dnd.number(low)),
    dnd.svg("text", { x: WIDTH, y: height + 12, "text-anchor": "end" }, dnd.number(high)),
  ];

  // Where a value lies from `low` to `high`, 0..1. Halves, as the difference of two finite numbers may be no finite one.
  const share = (value, low, high) => high > low ? (value / 2 - low / 2) / (high / 2 - low / 2) : 0;

  // Heights go by the square root of the counts: the few images that move a unit are what one looks for.
  const bars = (histogram, low, high, height, name) => {
    const most = Math.max(...histogram.counts, 1);
    const [start, end] = [histogram.low, histogram.high].map((edge) => share(edge, low, high) * WIDTH);
    const step = (end - start) / histogram.counts.length;
    return histogram.counts.map((count, place) => {
      if (!count) return null;
      const width = Math.max(step, 3);
      const tall = Math.max(Math.sqrt(count / most) * height, 1.5);
      const x = Math.min(start + place * step, WIDTH - width);
      return dnd.svg("rect", { x, y: height - tall, width: Math.max(width - 0.6, 0.8), height: tall, class: name });
    });
  };

  // A histogram {low, high, counts}; `what` says of what.
  dnd.histogram = (histogram, what, name) => {
    const n = histogram.counts.reduce((sum, count) => sum + count, 0);
    const words = `${what}: ${dnd.several(n, "unit")} from ${dnd.number(histogram.low)} to ${dnd.number(histogram.high)}`;
    return dnd.el("figure", { class: "chart" },
      dnd.svg("svg", { viewBox: `0 0 ${WIDTH} 78`, role: "img", "aria-label": words },
        bars(histogram, histogram.low, histogram.high, 62, `bar ${name}`), axis(histogram.low, histogram.high, 62)),
      dnd.el("figcaption", null, what));
  };

  // The axis on which a unit's activations are compared: [low, high].
  dnd.span = (evidence) => {
    const values = [
      ...evidence.exemplars.map((exemplar) => exemplar.activation),
      ...evidence.candidates.flatMap((candidate) => candidate.images.map((image) => image[1])),
      ...(evidence.sample ? [evidence.sample.low, evidence.sample.high] : []),
    ].filter((value) => value !== null && value !== undefined);
    return values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  };

  // Activations as dots above the histogram of the unit's activations on the random sample.
  dnd.strip = (values, sample, [low, high], what) => {
    const known = values.filter((value) => value !== null);
    if (!known.length) return null;
    const place = (value) => Math.min(Math.max(share(value, low, high) * WIDTH, 4), WIDTH - 4);
    const ordinary = sample ? `; random images: median ${dnd.number(sample.median)}, 95 % below ${dnd.number(sample.p95)}` : "";
    const words = `${what}: ${known.length} activations from ${dnd.number(Math.min(...known))} to ${dnd.number(Math.max(...known))}${ordinary}`;
    return dnd.svg("svg", { viewBox: `0 0 ${WIDTH} 54`, class: "strip", role: "img", "aria-label": words },
      dnd.svg("title", null, words),
      sample ? bars(sample, low, high, 26, "bar sample").map((bar) => bar && (bar.setAttribute("transform", "translate(0 14)"), bar)) : null,
      sample ? dnd.svg("line", { x1: place(sample.p95), x2: place(sample.p95), y1: 12, y2: 40, class: "p95" }) : null,
      axis(low, high, 40),
      dnd.svg("text", { x: WIDTH / 2, y: 52, "text-anchor": "middle" }, "activation"),
      known.map((value) => dnd.svg("circle", { cx: place(value), cy: 7, r: 3.6, class: "dot" })));
  };

  // The one plot of a unit: the random sample in grey, below it a row of dots for each [name, values, class]; dashed
  // lines are the sample's 95 % and the weakest exemplar.
  dnd.evidencePlot = (rows, sample, [low, high], isNarrow) => {
    const [wide, left, tall, gap] = isNarrow ? [360, 124, 70, 24] : [760, 150, 70, 24];
    const bottom = tall + 10 + gap * rows.length;
    const place = (value) => left + 8 + share(value, low, high) * (wide - left - 16);
    const scale = (wide - left - 16) / WIDTH;
    const known = rows.map(([name, values, kind]) => [name, values.filter((value) => typeof value === "number"), kind]);
    const weakest = Math.min(...(known.find(([, , kind]) => kind === "exemplar")?.[1] ?? []));
    const lines = [sample && [sample.p95, "95 % of random images"], Number.isFinite(weakest) && [weakest, "weakest exemplar"]].filter(Boolean);
    const words = [sample && `random images: median ${dnd.number(sample.median)}, 95 % below ${dnd.number(sample.p95)}`,
      ...known.map(([name, values]) => values.length ? `${name}: ${values.length} activations from ${dnd.number(Math.min(...values))} to ${dnd.number(Math.max(...values))}` : null)].filter(Boolean).join("; ");
    const label = (text, y) => dnd.svg("text", { x: left - 6, y, "text-anchor": "end", class: "row-name" }, text);
    return dnd.svg("svg", { viewBox: `0 0 ${wide} ${bottom + 32}`, class: "evidence-plot", role: "img", "aria-label": words },
      dnd.svg("title", null, words),
      sample ? [label("random images", tall - 8), dnd.svg("g", { transform: `translate(${left + 8} 16) scale(${scale} 1)` }, bars(sample, low, high, tall - 16, "bar sample"))] : null,
      dnd.svg("line", { x1: left, x2: wide, y1: tall, y2: tall, class: "axis" }),
      known.map(([name, values, kind], row) => [label(name, tall + 16 + gap * row + 4),
        values.map((value) => dnd.svg("circle", { cx: place(value), cy: tall + 16 + gap * row, r: 5.5, class: `dot ${kind}` }))]),
      lines.map(([value, text], row) => [
        dnd.svg("line", { x1: place(value), x2: place(value), y1: 12 + row * 13, y2: bottom, class: "p95" }),
        dnd.svg("text", { x: place(value) + (place(value) > wide * 0.55 ? -4 : 4), y: 10 + row * 13, "text-anchor": place(value) > wide * 0.55 ? "end" : "start" }, `${text}: ${dnd.measure(value)}`)]),
      dnd.svg("line", { x1: left, x2: wide, y1: bottom, y2: bottom, class: "axis" }),
      [[low, "start"], [high, "end"]].map(([value, anchor]) => dnd.svg("text", { x: place(value), y: bottom + 14, "text-anchor": anchor }, dnd.measure(value))),
      dnd.svg("text", { x: (left + wide) / 2, y: bottom + 28, "text-anchor": "middle" }, isNarrow ? "activation" : "the unit's activation (heights by the square root of the number of images)"));
  };

  // A figure with its interval, and its controls as ticks; 0..1 unless a value lies beyond.
  dnd.interval = (what, value, low, high, controls) => {
    const known = [value, low, high, ...controls].filter((one) => typeof one === "number");
    if (typeof value !== "number") return null;
    const [least, most] = [Math.min(0, ...known), Math.max(1, ...known)];
    const place = (one) => 4 + share(one, least, most) * (WIDTH - 8);
    const words = `${what}: ${dnd.number(value)}, 95 % ${dnd.number(low)} to ${dnd.number(high)}; shuffled ${dnd.number(controls[0])}, best constant ${dnd.number(controls[1])}`;
    return dnd.svg("svg", { viewBox: `0 0 ${WIDTH} 16`, class: "interval", role: "img", "aria-label": words },
      dnd.svg("title", null, words),
      dnd.svg("line", { x1: place(least), x2: place(most), y1: 8, y2: 8, class: "axis" }),
      controls.map((one) => typeof one === "number" ? dnd.svg("line", { x1: place(one), x2: place(one), y1: 2, y2: 14, class: "control" }) : null),
      typeof low === "number" && typeof high === "number" ? dnd.svg("line", { x1: place(low), x2: place(high), y1: 8, y2: 8, class: "range" }) : null,
      dnd.svg("circle", { cx: place(value), cy: 8, r: 4, class: "dot" }));
  };

  // A bar as long as `share`, 0..1.
  dnd.bar = (share) => {
    const fill = dnd.el("i");
    fill.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
    return dnd.el("span", { class: "meter", "aria-hidden": "true" }, fill);
  };
}
