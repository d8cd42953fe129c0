// Paper is white: what is printed from a dark page is the light one.
addEventListener("beforeprint", () => {
  const { dataset } = document.documentElement, shown = dataset.theme;
  dataset.theme = "light";
  addEventListener("afterprint", () => { dataset.theme = shown; }, { once: true });
});
// What a long formula makes scroll, the keyboard reaches.
const reached = new ResizeObserver((changed) => changed.forEach(({ target }) => {
  if (target.scrollWidth > target.clientWidth + 1 && getComputedStyle(target).overflowX === "auto") target.tabIndex = 0;
  else target.removeAttribute("tabindex");
}));
addEventListener("DOMContentLoaded", () =>
  document.querySelectorAll(".bd-article p:has(.math), .kd-verdict:has(.math)").forEach((part) => reached.observe(part)));
