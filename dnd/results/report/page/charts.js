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
    // Their words stand on one side of both, those whose line begins higher further out: no line crosses words.
    const lines = [sample && [sample.p95, "95 % of random images"], Number.isFinite(weakest) && [weakest, "weakest exemplar"]].filter(Boolean);
    const isRight = lines.length > 0 && place(Math.max(...lines.map(([value]) => value))) > wide * 0.55;
    lines.sort(([a], [b]) => isRight ? b - a : a - b);
    const words = [sample && `random images: median ${dnd.number(sample.median)}, 95 % below ${dnd.number(sample.p95)}`,
      ...known.map(([name, values]) => values.length ? `${name}: ${values.length} activations from ${dnd.number(Math.min(...values))} to ${dnd.number(Math.max(...values))}` : null)].filter(Boolean).join("; ");
    const label = (text, y) => dnd.svg("text", { x: left - 6, y, "text-anchor": "end", class: "row-name" }, text);
    return dnd.svg("svg", { viewBox: `0 0 ${wide} ${bottom + 32}`, class: isNarrow ? "evidence-plot narrow" : "evidence-plot", role: "img", "aria-label": words },
      dnd.svg("title", null, words),
      sample ? [label("random images", tall - 8), dnd.svg("g", { transform: `translate(${left + 8} 16) scale(${scale} 1)` }, bars(sample, low, high, tall - 16, "bar sample"))] : null,
      dnd.svg("line", { x1: left, x2: wide, y1: tall, y2: tall, class: "axis" }),
      known.map(([name, values, kind], row) => [label(name, tall + 16 + gap * row + 4),
        values.map((value) => dnd.svg("circle", { cx: place(value), cy: tall + 16 + gap * row, r: 5.5, class: `dot ${kind}` }))]),
      lines.map(([value, text], row) => [
        dnd.svg("line", { x1: place(value), x2: place(value), y1: 12 + row * 13, y2: bottom, class: "p95" }),
        dnd.svg("text", { x: place(value) + (isRight ? -4 : 4), y: 10 + row * 13, "text-anchor": isRight ? "end" : "start" }, `${text}: ${dnd.measure(value)}`)]),
      dnd.svg("line", { x1: left, x2: wide, y1: bottom, y2: bottom, class: "axis" }),
      [[low, "start"], [high, "end"]].map(([value, anchor]) => dnd.svg("text", { x: place(value), y: bottom + 14, "text-anchor": anchor }, dnd.measure(value))),
      dnd.svg("text", { x: (left + wide) / 2, y: bottom + 28, "text-anchor": "middle" }, isNarrow ? "activation" : "the unit's activation (heights by the square root of the number of images)"));
  };

  // A figure with its interval, and others as ticks, from `least` to `most` or as far as they reach.
  dnd.interval = (words, [value, low, high], ticks, [least, most] = [0, 1]) => {
    if (typeof value !== "number") return null;
    const known = [least, most, value, low, high, ...ticks].filter((one) => typeof one === "number");
    const [start, end] = [Math.min(...known), Math.max(...known)];
    const place = (one) => 4 + share(one, start, end) * (WIDTH - 8);
    return dnd.svg("svg", { viewBox: `0 0 ${WIDTH} 16`, class: "interval", role: "img", "aria-label": words, "data-sort": value },
      dnd.svg("title", null, words),
      dnd.svg("line", { x1: place(start), x2: place(end), y1: 8, y2: 8, class: "axis" }),
      ticks.map((one) => typeof one === "number" ? dnd.svg("line", { x1: place(one), x2: place(one), y1: 2, y2: 14, class: "control" }) : null),
      typeof low === "number" && typeof high === "number" ? dnd.svg("line", { x1: place(low), x2: place(high), y1: 8, y2: 8, class: "range" }) : null,
      dnd.svg("circle", { cx: place(value), cy: 8, r: 4, class: "dot" }));
  };

  // 1, 2, 5 times powers of ten.
  const ticks = (low, high) => [-9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    .flatMap((power) => [1, 2, 5].map((step) => step * 10 ** power)).filter((tick) => tick >= low && tick <= high);

  // Each of `points` {number, name, x, y: [value, low, high], part, isFront} as a numbered dot; `part` is its colour. The
  // first axis is logarithmic; a line joins the front, whose dots are named, too.
  dnd.scatter = (points, x, y, isNarrow) => {
    const [wide, tall, left, bottom, top] = isNarrow ? [370, 330, 40, 44, 22] : [900, 460, 52, 44, 22];
    const [low, high] = [Math.min(...points.map((one) => one.x)) / 1.3, Math.max(...points.map((one) => one.x)) * 1.3];
    const ends = points.flatMap((one) => one.y);
    const [floor, ceiling] = [Math.min(0, ...ends), Math.max(1, ...ends)];
    const across = (value) => left + share(Math.log(value), Math.log(low), Math.log(high)) * (wide - left - 10);
    const up = (value) => tall - bottom - share(value, floor, ceiling) * (tall - bottom - top);
    const front = points.filter((one) => one.isFront).sort((a, b) => a.x - b.x);
    const taken = points.map((one) => [across(one.x) - 6, up(one.y[0]) - 6, 12, 12]);
    const isFree = ([x, y, w, h]) => x > left && x + w < wide && taken.every(([a, b, c, d]) => x + w < a || a + c < x || y + h < b || b + d < y);
    // A dot's words go where nothing else is: right or left, above or below; a front's name only if there is room.
    const words = (one) => {
      const [cx, cy] = [across(one.x), up(one.y[0])];
      for (const text of one.isFront && !isNarrow ? [`${one.number} ${one.name}`, String(one.number)] : [String(one.number)]) {
        const width = 6.4 * text.length;
        const boxes = [[8, -16], [-8 - width, -16], [8, 5], [-8 - width, 5], [8, -6], [-8 - width, -6]].map(([dx, dy]) => [cx + dx, cy + dy, width, 12]);
        const box = boxes.find(isFree) ?? (text === String(one.number) ? boxes[0] : null);
        if (!box) continue;
        taken.push(box);
        return dnd.svg("text", { x: box[0], y: box[1] + 10 }, text);
      }
      return null;
    };
    const marks = ticks(low, high).filter((_, place, all) => !isNarrow || all.length < 7 || place % 2 === 0);
    const shown = [...points].sort((a, b) => b.y[0] - a.y[0]);
    return dnd.svg("svg", { viewBox: `0 0 ${wide} ${tall}`, class: isNarrow ? "scatter narrow" : "scatter", role: "img", "aria-label": `${y} over ${x} of ${dnd.several(points.length, "combination")}: the table has the numbers` },
      marks.map((tick) => [dnd.svg("line", { x1: across(tick), x2: across(tick), y1: up(floor), y2: up(ceiling), class: "grid-line" }),
        dnd.svg("text", { x: across(tick), y: up(floor) + 15, "text-anchor": "middle" }, dnd.number(tick))]),
      [0, 1, 2, 3, 4, 5].map((step) => floor + (ceiling - floor) * step / 5).map((tick) => [dnd.svg("line", { x1: left, x2: wide - 10, y1: up(tick), y2: up(tick), class: "grid-line" }),
        dnd.svg("text", { x: left - 6, y: up(tick) + 4, "text-anchor": "end" }, Number(tick.toPrecision(2)))]),
      dnd.svg("text", { x: 0, y: 12 }, y), dnd.svg("text", { x: wide - 10, y: tall - 6, "text-anchor": "end" }, `${x}, logarithmic`),
      dnd.svg("polyline", { points: front.map((one) => `${across(one.x)},${up(one.y[0])}`).join(" "), class: "front" }),
      shown.map((one) => dnd.svg("line", { x1: across(one.x), x2: across(one.x), y1: up(one.y[1]), y2: up(one.y[2]), class: "spread" })),
      shown.map((one) => dnd.svg("circle", { cx: across(one.x), cy: up(one.y[0]), r: 5, class: `part part-${one.part}` },
        dnd.svg("title", null, `${one.number} ${one.name}: ${one.y[0].toFixed(3)} [${one.y[1].toFixed(3)}, ${one.y[2].toFixed(3)}], ${dnd.measure(one.x)} s`))),
      shown.map(words));
  };

  // A bar as long as `share`, 0..1.
  dnd.bar = (share) => {
    const fill = dnd.el("i");
    fill.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
    return dnd.el("span", { class: "meter", "aria-hidden": "true" }, fill);
  };
}
