// Paper is white: what is printed from a dark page is the light one.
addEventListener("beforeprint", () => {
  const { dataset } = document.documentElement, shown = dataset.theme;
  dataset.theme = "light";
  addEventListener("afterprint", () => { dataset.theme = shown; }, { once: true });
});
