(() => {
  "use strict";
  const claims = [...document.querySelectorAll(".kd-claim")];
  const place = document.getElementById("kd-filter");
  if (!place || !claims.length) return;
  const kinds = [...new Set(claims.map((claim) => claim.dataset.outcome))];
  place.innerHTML =
    '<label>Search <input type="search" id="kd-words" autocomplete="off"></label>' +
    '<label>Verdict <select id="kd-outcome"><option value="">all</option></select></label>' +
    '<output aria-live="polite"></output>';
  const words = place.querySelector("input"), outcome = place.querySelector("select"), count = place.querySelector("output");
  for (const kind of kinds) {
    const of = claims.filter((claim) => claim.dataset.outcome === kind).length;
    outcome.add(new Option(`${kind} (${of})`, kind));
  }
  const texts = new Map(claims.map((claim) => [claim, claim.textContent.toLowerCase()]));
  const show = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0;
    for (const claim of claims) {
      const fits = (!outcome.value || claim.dataset.outcome === outcome.value) && wanted.every((word) => texts.get(claim).includes(word));
      claim.hidden = !fits;
      seen += fits;
    }
    count.textContent = `${seen} of ${claims.length} claims`;
  };
  words.addEventListener("input", show);
  outcome.addEventListener("change", show);
  const reveal = () => {  // a link to a claim shows it, whatever is chosen
    const goal = claims.find((claim) => "#" + claim.id === location.hash);
    if (goal && goal.hidden) { words.value = ""; outcome.value = ""; show(); goal.scrollIntoView(); }
  };
  window.addEventListener("hashchange", reveal);
  place.hidden = false;
  show();
})();
