// Tokens per call and speed-up against draft length, with sliders. Fills every figure on the page that has the data for it, once.
(() => {
  const make = (tag, attributes = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  };
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const fill = (off) => {
    const figure = off.parentElement, given = JSON.parse(figure.dataset.given);
    const longest = 16, W = 440, H = 250, left = 34, bottom = 36;
    const state = { ...given.start };
    let shown = 0;
    const tokens = (gamma) => { let sum = 0; for (let k = 0; k <= gamma; k++) sum += state.alpha ** k; return sum; };
    const speed = (gamma) => tokens(gamma) / (1 + gamma * (state.c + state.w));
    const picture = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", style: "width:100%;max-width:42rem" });
    const output = make("output");
    const choose = make("div", { className: "kd-choose" });

    const turn = () => {
      const points = given.sets[shown].points, all = [...Array(longest)].map((_, i) => i + 1);
      const top = Math.ceil(Math.max(2, ...all.map(tokens), ...points.flatMap((p) => p.slice(1))));
      const x = (g) => left + ((W - left - 8) * (g - 0.5)) / longest, y = (s) => H - bottom - ((H - bottom - 10) * s) / top;
      const line = (f, colour, dashes) => draw("polyline", { points: all.map((g) => `${x(g)},${y(f(g))}`).join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": dashes });
      picture.replaceChildren();
      for (let s = 0; s <= top; s += top > 8 ? 2 : 1) {
        picture.append(draw("line", { x1: left, x2: W - 8, y1: y(s), y2: y(s), stroke: "currentColor", "stroke-opacity": s === 1 ? 0.6 : 0.15 }));
        picture.append(draw("text", { x: left - 6, y: y(s) + 4, "text-anchor": "end", "font-size": 12, fill: "currentColor" }, s));
      }
      for (const g of all) if (g === 1 || g % 2 === 0) picture.append(draw("text", { x: x(g), y: H - bottom + 15, "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, g));
      picture.append(draw("text", { x: (W + left) / 2, y: H - 4, "text-anchor": "middle", "font-size": 12, fill: "currentColor" }, "draft length γ"));
      picture.append(draw("line", { x1: x(state.gamma), x2: x(state.gamma), y1: y(0), y2: y(top), stroke: "currentColor", "stroke-opacity": 0.5, "stroke-dasharray": "2 3" }));
      picture.append(line(tokens, given.blue, "6 3"), line(speed, given.red, "none"));
      for (const [g, t, s] of points) {
        picture.append(draw("circle", { cx: x(g), cy: y(t), r: 4.5, fill: given.blue }));
        picture.append(draw("path", { d: `M${x(g)} ${y(s) - 6}l6 6l-6 6l-6 -6z`, fill: given.red }));
      }
      const best = all.reduce((a, b) => (speed(b) > speed(a) ? b : a));
      const told = speed(best) > 1 ? `best at γ = ${best}: ${speed(best).toFixed(2)} times` : "no draft length helps";
      output.textContent = `tokens per call ${tokens(state.gamma).toFixed(2)}   speed-up ${speed(state.gamma).toFixed(2)}   ${told}`;
      picture.setAttribute("aria-label", `Tokens per call and speed-up against draft length. ${output.textContent}.`);
    };

    const controls = make("div", { className: "kd-controls" });
    const sliders = {};
    for (const [key, label, min, max, step, digits] of [["alpha", "acceptance α", 0, 0.99, 0.01, 2], ["gamma", "draft length γ", 1, longest, 1, 0], ["c", "cost of the draft c", 0, 1, 0.01, 2], ["w", "cost of a further token w", 0, 1, 0.01, 2]]) {
      const slider = make("input", { type: "range", min, max, step, value: state[key], id: `${figure.id}-${key}` });
      const reading = make("span", { className: "kd-number" });
      const read = () => { reading.textContent = Number(state[key]).toFixed(digits); slider.setAttribute("aria-valuetext", reading.textContent); };
      slider.addEventListener("input", () => { state[key] = Number(slider.value); read(); turn(); });
      sliders[key] = { slider, read };
      slider.style.flex = "1 1 5rem"; slider.style.minWidth = "4rem"; reading.style.flex = "0 0 2.4rem";
      const name = make("label", { htmlFor: slider.id, textContent: label });
      name.style.flex = "0 0 11rem";
      const row = make("div", {}, name, slider, reading);
      row.style.cssText = "display:flex;gap:0.6rem;align-items:center;flex:1 1 18rem;min-width:0";
      controls.append(row);
      read();
    }
    given.sets.forEach((set, i) => choose.append(make("button", { type: "button", textContent: set.name, onclick: () => {
      shown = i;
      state.alpha = set.alpha;
      sliders.alpha.slider.value = set.alpha;
      sliders.alpha.read();
      mark();
    } })));
    const mark = () => { [...choose.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === shown))); turn(); };
    off.replaceWith(choose, picture, controls, output);
    output.style.cssText = "display:block;margin-top:0.5rem;white-space:pre-wrap;font-size:0.9rem";
    mark();
  };
  document.querySelectorAll(".kd-dial[data-given] > .kd-dial-off").forEach(fill);
})();
