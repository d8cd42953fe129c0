// Figures to touch: a curve or bars, sliders, and a sentence that says what they show. Fills every .kd-touch on the page once.
(() => {
  // ---- the mathematics, one function a figure's number
  const softmax = (z, T = 1) => {
    const top = Math.max(...z), e = z.map((v) => Math.exp((v - top) / T)), sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  };
  const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
  const norm = (v) => Math.sqrt(v.reduce((a, b) => a + b * b, 0));
  const sum = (v) => v.reduce((a, b) => a + b, 0);
  const xlog = (p, q) => (p > 0 ? p * Math.log(p / q) : 0);

  // T² times the gradient of KL(p‖q) by the student's logits, over its limit for T → ∞, (z̃ − t̃)/N
  const overLimit = (student, teacher, T) => {
    const q = softmax(student, T), p = softmax(teacher, T), z = mean(student), t = mean(teacher);
    return norm(q.map((v, i) => T * (v - p[i]))) / norm(student.map((v, i) => (v - z - teacher[i] + t) / student.length));
  };
  const bell = (x, mu, sigma) => softmax(x.map((v) => -((v - mu) ** 2) / (2 * sigma * sigma)));
  const divergences = {
    "forward KL": (p, q) => sum(p.map((v, i) => xlog(v, q[i]))),
    "reverse KL": (p, q) => sum(q.map((v, i) => xlog(v, p[i]))),
    "Jensen–Shannon": (p, q) => sum(p.map((v, i) => 0.5 * xlog(v, (v + q[i]) / 2) + 0.5 * xlog(q[i], (v + q[i]) / 2))),
    "total variation": (p, q) => 0.5 * sum(p.map((v, i) => Math.abs(v - q[i]))),
  };
  const slope = (f, at, h = 1e-4) => (f(at + h) - f(at - h)) / (2 * h);
  const phi = (x) => {  // the normal distribution function, by its series or its continued fraction
    if (Math.abs(x) > 6) return x > 0 ? 1 : 0;
    let term = x, total = x;
    for (let k = 1; k < 120; k++) { term *= (x * x) / (2 * k + 1); total += term; }
    return 0.5 + total * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  };
  // Chance that the 95 % interval of n paired differences misses zero on the right side, E over s of Φ(δ√n/σ − t s), s² ~ χ²/df
  const power = (n, difference, deviation, t) => {
    const df = n - 1, centre = (difference * Math.sqrt(n)) / deviation, steps = 400, top = 1 + 8 / Math.sqrt(2 * df);
    let total = 0, mass = 0;
    for (let k = 0; k < steps; k++) {
      const s = ((k + 0.5) * top) / steps, density = Math.exp((df - 1) * Math.log(s) - (df * (s * s - 1)) / 2);
      mass += density;
      total += density * phi(centre - t * s);
    }
    return total / mass;
  };
  const behind = (n, difference, deviation) => phi((-difference * Math.sqrt(n)) / deviation);
  const leashed = (logP, reward, beta) => {
    const q = softmax(logP.map((v, i) => v + reward[i] / beta));
    return { q, reward: sum(q.map((v, i) => v * reward[i])), kl: sum(q.map((v, i) => (v > 0 ? v * (Math.log(v) - logP[i]) : 0))) };
  };
  globalThis.kdTouch = { overLimit, bell, divergences, slope, power, behind, leashed };

  // ---- drawing
  const make = (tag, attributes = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  };
  const draw = (tag, attributes = {}, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const short = (v, digits) => { const text = Math.abs(v).toFixed(digits); return (v < 0 && Number(text) ? "−" : "") + text; };
  const W = document.documentElement?.clientWidth < 600 ? 350 : 560, H = 280, left = 52, right = W - 22, top = 10, bottom = H - 42;
  const axes = (svg, { x, y, xs, ys, xlabel, ylabel }) => {
    for (const [v, s = v] of xs) svg.append(
      draw("line", { x1: x(v), x2: x(v), y1: top, y2: bottom, stroke: "currentColor", "stroke-opacity": 0.12 }),
      draw("text", { x: x(v), y: bottom + 16, "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, s));
    for (const [v, s = v] of ys) svg.append(
      draw("line", { x1: left, x2: right, y1: y(v), y2: y(v), stroke: "currentColor", "stroke-opacity": 0.12 }),
      draw("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end", "font-size": 12, fill: "currentColor" }, s));
    svg.append(draw("text", { x: (left + right) / 2, y: H - 6, "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, xlabel),
      draw("text", { x: -(top + bottom) / 2, y: 13, transform: "rotate(-90)", "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, ylabel));
  };
  const curve = (svg, points, colour, dashes = "none") =>
    svg.append(draw("polyline", { points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dashes }));
  const linear = (low, high, from, to) => (v) => from + ((v - low) / (high - low)) * (to - from);
  const logarithmic = (low, high, from, to) => (v) => from + (Math.log(v / low) / Math.log(high / low)) * (to - from);
  const grid = (low, high, count) => [...Array(count)].map((_, k) => low * (high / low) ** (k / (count - 1)));

  const kinds = {
    // sliders: [key, label, lowest, highest, start, "log" or step, digits]
    "t-squared": (given) => ({
      sliders: [["T", "temperature T", 0.5, 1000, given.start, "log", 1], ["N", "classes N", 2, given.student.length, 100, "log", 0],
        ["s", "spread of the teacher’s logits", 0.3, 20, 3, "log", 1], ["z", "spread of the student’s", 0.3, 20, 2, "log", 1]],
      turn: (svg, { T, N, s, z }) => {
        N = Math.round(N);
        const student = given.student.slice(0, N).map((v) => z * v), teacher = given.teacher.slice(0, N).map((v) => s * v);
        const Ts = grid(0.5, 1000, 70), ratios = Ts.map((t) => overLimit(student, teacher, t));
        const high = Math.max(1.5, Math.min(4, 1.1 * Math.max(...ratios)));
        const x = logarithmic(0.5, 1000, left, right), y = linear(0, high, bottom, top);
        svg.append(draw("rect", { x: left, width: right - left, y: y(1.2), height: y(0.8) - y(1.2), fill: "currentColor", "fill-opacity": 0.08 }));
        axes(svg, { x, y, xs: [1, 4, 10, 100, 1000].map((v) => [v]), ys: [0, 0.5, 1, ...(high > 2 ? [2, 3] : [1.5])].filter((v) => v <= high).map((v) => [v]), xlabel: "temperature T", ylabel: "T² · gradient, over its limit" });
        curve(svg, Ts.map((t, k) => [x(t), y(Math.min(ratios[k], high))]), given.colours[0]);
        const here = overLimit(student, teacher, T), last = ratios.findLastIndex((r) => Math.abs(r - 1) > 0.2);
        svg.append(draw("circle", { cx: x(T), cy: y(Math.min(here, high)), r: 6, fill: given.colours[1] }));
        const from = last < 0 ? "at every T shown" : last === Ts.length - 1 ? "at no T shown" : `from T = ${Ts[last + 1].toPrecision(2)} on`;
        return `At T = ${T.toPrecision(3)}, T² times the gradient is ${here.toFixed(2)} of its limit; it is within 20 % of it ${from}.`;
      },
    }),
    divergences: (given) => ({
      sliders: [["mu", "centre μ", given.x[0], given.x.at(-1), given.start[0], 0.05, 2], ["sigma", "width σ", 0.3, 6, given.start[1], "log", 2]],
      drag: "mu", dragTo: (fraction) => given.x[0] + fraction * (given.x.at(-1) - given.x[0]),
      turn: (svg, { mu, sigma }, side) => {
        const { x: places, teacher } = given, q = bell(places, mu, sigma), high = 1.15 * Math.max(...teacher, ...q);
        const x = linear(places[0], places.at(-1), left, right), y = linear(0, high, bottom, top);
        axes(svg, { x, y, xs: [0, 0.25, 0.5, 0.75, 1].map((f) => [places[Math.round(f * (places.length - 1))]]).map(([v]) => [v, v.toFixed(0)]), ys: [], xlabel: "class, by position x", ylabel: "probability" });
        curve(svg, places.map((v, i) => [x(v), y(teacher[i])]), "currentColor", "5 3");
        curve(svg, places.map((v, i) => [x(v), y(q[i])]), given.colours[0]);
        const rows = Object.entries(divergences).map(([name, D]) => {
          const value = D(teacher, q);
          const pulls = [slope((m) => D(teacher, bell(places, m, sigma)), mu), slope((s) => D(teacher, bell(places, mu, s)), sigma)];
          const way = (g, less, more) => (Math.abs(g) < 5e-4 ? "·" : g > 0 ? less : more);
          return [name, value.toFixed(3), `${way(pulls[0], "←", "→")} ${Math.abs(pulls[0]).toFixed(3)}`, `${way(pulls[1], "narrower", "wider")} ${Math.abs(pulls[1]).toFixed(3)}`];
        });
        side.replaceChildren(make("table", { className: "table" }, make("thead", {}, make("tr", {}, ...["divergence", "value", "pull on μ", "pull on σ"].map((t) => make("th", { textContent: t, scope: "col" })))),
          make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((t) => make("td", { textContent: t })))))));
        return `Student at μ = ${mu.toFixed(2)}, σ = ${sigma.toFixed(2)}: ${rows.map(([n, v]) => `${n} ${v}`).join(", ")}.`;
      },
    }),
    seeds: (given) => ({
      sliders: [["d", "true difference (points)", 0, 3, given.start[0], 0.05, 2], ["s", "deviation of a paired difference (points)", 0.1, 3, given.start[1], 0.05, 2], ["n", "seeds n", 2, given.t.length + 1, given.start[2], 1, 0]],
      turn: (svg, { d, s, n }) => {
        const ns = given.t.map((_, k) => k + 2), t = (m) => given.t[m - 2];
        const x = linear(2, ns.at(-1), left, right), y = linear(0, 1, bottom, top);
        axes(svg, { x, y, xs: ns.filter((m) => m === 3 || m % 5 === 0).map((m) => [m]), ys: [0, 0.25, 0.5, 0.8, 1].map((v) => [v, `${100 * v} %`]), xlabel: "seeds of each method", ylabel: "of studies" });
        curve(svg, ns.map((m) => [x(m), y(power(m, d, s, t(m)))]), given.colours[0]);
        curve(svg, ns.map((m) => [x(m), y(behind(m, d, s))]), given.colours[1], "6 3");
        const seen = power(n, d, s, t(n)), luck = behind(n, d, s), enough = ns.find((m) => power(m, d, s, t(m)) >= 0.8);
        svg.append(draw("circle", { cx: x(n), cy: y(seen), r: 6, fill: given.colours[0] }), draw("circle", { cx: x(n), cy: y(luck), r: 6, fill: given.colours[1] }));
        return `With ${n} seeds, ${(100 * seen).toFixed(0)} % of studies show the difference (line), and in ${(100 * luck).toFixed(0)} % the better method's mean is not the higher (dashed). ` +
          (enough ? `80 % need ${enough} seeds.` : `80 % need more than ${ns.at(-1)} seeds.`);
      },
    }),
    leash: (given) => ({
      sliders: [["beta", "price β of a nat", 0.05, 20, given.start, "log", 2]],
      turn: (svg, { beta }, side) => {
        const all = grid(0.05, 20, 80).map((b) => leashed(given.logP, given.reward, b)), here = leashed(given.logP, given.reward, beta);
        const far = Math.max(...all.map((a) => a.kl)), low = Math.min(...all.map((a) => a.reward)), high = Math.max(...all.map((a) => a.reward));
        const x = linear(0, far, left, right), y = linear(low, high, bottom, top);
        const spread = (a, b) => [0, 0.25, 0.5, 0.75, 1].map((f) => a + f * (b - a)).map((v) => [v, short(v, 1)]);
        axes(svg, { x, y, xs: spread(0, far), ys: spread(low, high), xlabel: "divergence from the reference (nats)", ylabel: "reward" });
        curve(svg, all.map((a) => [x(a.kl), y(a.reward)]), given.colours[0]);
        svg.append(draw("circle", { cx: x(here.kl), cy: y(here.reward), r: 6, fill: given.colours[1] }));
        const order = here.q.map((_, i) => i).sort((a, b) => here.q[b] - here.q[a]).slice(0, 5);
        side.replaceChildren(make("table", { className: "table" }, make("thead", {}, make("tr", {}, ...["text", "reward", "reference", "policy"].map((t) => make("th", { textContent: t, scope: "col" })))),
          make("tbody", {}, ...order.map((i) => make("tr", {}, ...[given.texts[i], given.reward[i].toFixed(2), `${(100 * Math.exp(given.logP[i])).toFixed(1)} %`, `${(100 * here.q[i]).toFixed(1)} %`].map((t) => make("td", { textContent: t })))))));
        return `At β = ${beta.toPrecision(2)} the best policy earns ${here.reward.toFixed(2)} at ${here.kl.toFixed(2)} nats from its reference.`;
      },
    }),
  };

  const fill = (figure) => {
    if (figure.dataset.ready) return;
    figure.dataset.ready = "yes";
    const kind = kinds[figure.dataset.kind](JSON.parse(figure.dataset.given));
    const state = {}, svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", style: "width:100%;max-width:42rem" });
    const side = make("div", { className: "kd-table", tabIndex: 0 }), output = make("output"), controls = make("div", { className: "kd-controls" }), readers = {};
    output.setAttribute("aria-live", "polite");
    const turn = () => {
      svg.replaceChildren();
      output.textContent = kind.turn(svg, state, side);
      svg.setAttribute("aria-label", output.textContent);
    };
    for (const [key, label, low, high, start, step, digits] of kind.sliders) {
      const log = step === "log", to = log ? Math.log : (v) => v, from = log ? Math.exp : (v) => v;
      const slider = make("input", { type: "range", min: to(low), max: to(high), step: log ? "any" : step, value: to(start), id: `${figure.id}-${key}` });
      const reading = make("span", { className: "kd-number" });
      const read = () => { reading.textContent = state[key].toFixed(digits); slider.setAttribute("aria-valuetext", reading.textContent); };
      if (log) slider.step = (to(high) - to(low)) / 200;
      state[key] = start;
      readers[key] = (value) => { slider.value = to(value); state[key] = value; read(); turn(); };
      slider.addEventListener("input", () => { state[key] = from(Number(slider.value)); read(); turn(); });
      controls.append(make("div", { className: "kd-slider" }, make("label", { htmlFor: slider.id, textContent: label }), slider, reading));
      read();
    }
    if (kind.drag) {
      const move = (event) => {
        const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * W;
        readers[kind.drag](kind.dragTo(Math.min(1, Math.max(0, (at - left) / (right - left)))));
      };
      svg.style.cursor = "ew-resize";
      svg.style.touchAction = "pan-y";
      svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); move(event); });
      svg.addEventListener("pointermove", (event) => { if (event.buttons) move(event); });
    }
    figure.querySelector(".kd-dial-off").replaceWith(svg, side, controls, output);
    turn();
    if (!side.children.length) side.remove();
  };
  document.querySelectorAll(".kd-touch").forEach(fill);
})();
