// Softened probabilities with a slider for the temperature. Fills every .kd-dial on the page once.
(() => {
  const soften = (logits, T) => {
    const top = Math.max(...logits);
    const e = logits.map((z) => Math.exp((z - top) / T));
    const sum = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / sum);
  };
  const make = (tag, attributes = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), attributes);
    node.append(...children);
    return node;
  };

  const fill = (figure) => {
    if (figure.dataset.ready) return;
    figure.dataset.ready = "yes";
    const examples = JSON.parse(figure.dataset.examples);
    let shown = 0;
    const name = figure.id || "dial";
    const slider = make("input", { type: "range", min: -1, max: 3, step: 0.01, value: 0, id: `${name}-T` });
    const reading = make("output", { htmlFor: slider.id });
    const picture = make("img", { width: 96, height: 96 });
    const bars = make("div", { className: "kd-bars" });
    const choose = make("div", { className: "kd-choose" });
    examples.forEach((example, i) =>
      choose.append(make("button", { type: "button", textContent: example.name, onclick: () => { shown = i; layout(); } }))
    );
    const rows = [];

    const layout = () => {
      const example = examples[shown];
      [...choose.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === shown)));
      picture.hidden = !example.image;
      if (example.image) Object.assign(picture, { src: example.image, alt: example.alt });
      rows.length = 0;
      bars.replaceChildren(...example.classes.map((label, c) => {
        const bar = make("span", { className: "kd-bar" + (example.highlight[c] ? " kd-kin" : "") });
        const number = make("span", { className: "kd-number" });
        rows.push([bar, number]);
        return make("div", { className: "kd-row" },
          make("span", { className: "kd-label", textContent: label.replaceAll("_", " ") }),
          make("span", { className: "kd-track" }, bar), number);
      }));
      turn();
    };
    const turn = () => {
      const T = 2 ** Number(slider.value);
      const q = soften(examples[shown].logits, T);
      const entropy = -q.reduce((h, v) => h + (v > 0 ? v * Math.log(v) : 0), 0);
      rows.forEach(([bar, number], c) => {
        bar.style.width = `${100 * q[c]}%`;
        number.textContent = q[c] < 0.0005 ? "<0.1 %" : `${(100 * q[c]).toFixed(1)} %`;
      });
      reading.textContent = `T = ${T.toFixed(2)}   entropy ${entropy.toFixed(2)} of ${Math.log(q.length).toFixed(2)} nats`;
      slider.setAttribute("aria-valuetext", reading.textContent);
    };

    slider.addEventListener("input", turn);
    const controls = make("div", { className: "kd-controls" },
      make("label", { htmlFor: slider.id, textContent: "Temperature" }), slider, reading);
    figure.querySelector(".kd-dial-off").replaceWith(
      make("div", { className: "kd-dial-body" }, make("div", { className: "kd-side" }, picture, choose), bars), controls);
    layout();
  };
  document.querySelectorAll(".kd-dial").forEach(fill);
})();
