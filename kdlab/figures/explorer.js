// All runs by plan, arm and measure: every seed a dot that leads to its record, means with intervals, differences paired by seed.
(() => {
  const make = (tag, attributes = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  };
  const draw = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    node.append(...children);
    return node;
  };
  const short = (x) => (Math.abs(x) >= 1000 ? x.toFixed(0) : Number(x.toPrecision(4)).toString()).replace("-", "−");
  const ticks = (low, high) => {
    const raw = (high - low) / 6, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(Number((k * step).toPrecision(6)));
    return found;
  };

  const fill = (figure) => {
    if (figure.dataset.ready) return;
    figure.dataset.ready = "yes";
    const data = JSON.parse(figure.querySelector("template").content.textContent);
    const name = figure.id;
    const chooser = (what) => {
      const select = make("select", { id: `${name}-${what.toLowerCase().replaceAll(" ", "-")}` });
      return [make("label", { htmlFor: select.id, textContent: what }), select];
    };
    const choices = { plan: chooser("Plan"), measure: chooser("Measure"), length: chooser("Trained for"), minus: chooser("Minus") };
    const { plan, measure, length, minus } = Object.fromEntries(Object.entries(choices).map(([k, v]) => [k, v[1]]));
    const words = make("input", { type: "search", id: `${name}-arms`, autocomplete: "off" });
    const controls = make("div", { className: "kd-filter", role: "search" },
      ...Object.values(choices).map((pair) => make("span", {}, ...pair)),
      make("span", {}, make("label", { htmlFor: words.id, textContent: "Arms with" }), words));
    const said = make("output", { className: "kd-badge" });
    said.setAttribute("aria-live", "polite");
    const place = make("div", { className: "kd-scroll", tabIndex: 0 });

    const options = (select, values, first = null) => {
      const before = select.value;
      select.replaceChildren(...(first ? [new Option(first, "")] : []), ...values.map((v) => new Option(v.replaceAll("_", " "), v)));
      if (values.includes(before)) select.value = before;
    };
    const distinct = (values) => [...new Set(values)];
    const summary = (values) => {
      const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
      if (n < 2) return { n, mean, half: null };
      const s = Math.sqrt(values.reduce((a, v) => a + (v - mean) ** 2, 0) / (n - 1));
      return { n, mean, half: (data.t[Math.min(n - 2, data.t.length - 1)] * s) / Math.sqrt(n) };
    };

    const changePlan = () => {
      const { measures, runs } = data.plans[plan.value];
      options(measure, measures);
      options(length, distinct(runs.map((r) => r[2])), "any time");
      options(minus, distinct(runs.map((r) => r[0])), "nothing");
      show();
    };
    const show = () => {
      const { measures, runs } = data.plans[plan.value], m = measures.indexOf(measure.value);
      const kept = runs.filter((r) => r[4][m] !== null && (!length.value || r[2] === length.value));
      const against = new Map(kept.filter((r) => r[0] === minus.value).map((r) => [`${r[1]} ${r[2]}`, r[4][m]]));
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const lengths = distinct(kept.map((r) => r[2]));
      const groups = new Map();
      for (const [arm, seed, long, file, values] of kept) {
        if (!wanted.every((w) => arm.toLowerCase().includes(w)) || (minus.value && (arm === minus.value || !against.has(`${seed} ${long}`)))) continue;
        const key = lengths.length > 1 ? `${arm}, ${long}` : arm;
        const value = minus.value ? values[m] - against.get(`${seed} ${long}`) : values[m];
        groups.set(key, [...(groups.get(key) || []), { seed, file, value }]);
      }
      const rows = [...groups].map(([arm, dots]) => ({ arm, dots, ...summary(dots.map((d) => d.value)) })).sort((a, b) => b.mean - a.mean);
      const count = rows.reduce((a, r) => a + r.n, 0);
      said.textContent = `Plan ${plan.value}: ${rows.length} arms, ${count} runs of ${runs.length}. ${measure.value[0].toUpperCase()}${measure.value.slice(1).replaceAll("_", " ")}` +
        (minus.value ? `, minus ${minus.value} at the same seed: mean and 95 % interval of the differences.` : ": mean and 95 % interval.");
      if (!rows.length) return place.replaceChildren(make("p", { textContent: "No run fits." }));
      picture(rows);
    };
    const picture = (rows) => {
      const letters = Math.min(36, Math.max(...rows.map((r) => r.arm.length))), left = 20 + 6.5 * letters, right = 700, row = 22, height = 30 + row * rows.length;
      const ends = rows.flatMap((r) => [...r.dots.map((d) => d.value), ...(r.half === null ? [] : [r.mean - r.half, r.mean + r.half])]);
      if (minus.value) ends.push(0);
      let low = Math.min(...ends), high = Math.max(...ends);
      const room = (high - low || Math.abs(high) || 1) * 0.04;
      low -= room; high += room;
      const x = (v) => (left + ((v - low) / (high - low)) * (right - left)).toFixed(1);
      const colour = minus.value ? data.difference : data.value;
      const svg = draw("svg", { viewBox: `0 0 720 ${height}`, role: "group", "aria-label": said.textContent });
      svg.style.cssText = "width: 100%; max-width: 760px; font-size: 12px";
      for (const tick of ticks(low, high)) {
        svg.append(draw("line", { x1: x(tick), x2: x(tick), y1: 4, y2: height - 22, stroke: "currentColor", "stroke-opacity": tick === 0 && minus.value ? 0.7 : 0.13 }),
          draw("text", { x: x(tick), y: height - 6, "text-anchor": "middle", fill: "currentColor" }, short(tick)));
      }
      rows.forEach((r, k) => {
        const y = 14 + row * k;
        const number = `${short(r.mean)}${r.half === null ? "" : ` [${short(r.mean - r.half)}, ${short(r.mean + r.half)}]`}, n = ${r.n}`;
        const label = draw("text", { x: left - 10, y: y + 4, "text-anchor": "end", fill: "currentColor" }, r.arm.length > 36 ? `${r.arm.slice(0, 35)}…` : r.arm);
        label.append(draw("title", {}, `${r.arm}: ${number}`));
        svg.append(label);
        if (r.half !== null) svg.append(draw("line", { x1: x(r.mean - r.half), x2: x(r.mean + r.half), y1: y, y2: y, stroke: colour, "stroke-width": 2 }));
        svg.append(draw("line", { x1: x(r.mean), x2: x(r.mean), y1: y - 7, y2: y + 7, stroke: colour, "stroke-width": 2.5 }));
        for (const dot of r.dots) {
          const text = `${r.arm}, seed ${dot.seed}: ${short(dot.value)}`;
          svg.append(draw("a", { href: data.folder + dot.file, "aria-label": `${text}, record` },
            draw("circle", { cx: x(dot.value), cy: y, r: 4, fill: colour, "fill-opacity": 0.7 }, draw("title", {}, text))));
        }
      });
      place.replaceChildren(svg);
    };

    options(plan, Object.keys(data.plans));
    plan.addEventListener("change", changePlan);
    [measure, length, minus].forEach((select) => select.addEventListener("change", show));
    words.addEventListener("input", show);
    figure.querySelector(".kd-dial-off").replaceWith(controls, said, place);
    changePlan();
  };
  document.querySelectorAll(".kd-explorer").forEach(fill);
})();
