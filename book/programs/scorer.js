// What the search shows first: the chapter on a subject (SUBJECTS in build.py), then the glossary, then a name of the package, then pages that mention it.
var Scorer = {
  score: ([docname, title, anchor, descr, score]) => {
    if (docname.startsWith("notebooks/")) return score + 8;
    if (docname.startsWith("book/api") && !descr) return score - 3;
    return score;
  },
  objNameMatch: 90,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
