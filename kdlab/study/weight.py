"""What a page weighs, and what is taken off: icons that no page shows, and files that none loads."""

import gzip
import re
from pathlib import Path

try:
    from fontTools import subset
    from fontTools.ttLib import TTFont
except ImportError as error:
    raise ImportError(f"pages are made lighter with {error.name}: pip install 'kdlab[book]'.") from None

#: Bytes: of a page itself, and of it with all that it loads, as servers send it (gzip).
HEAVIEST_PAGE, HEAVIEST_LOAD = 1_500_000, 1_500_000
FONTS = Path("_static/vendor/fontawesome/webfonts")
STYLES = Path("_static/styles/pydata-sphinx-theme.css")


def lighten(built: Path) -> None:
    """The theme's icons (1.5 MB of script) become a font of those that are shown; maps and translations of its scripts go."""
    styles = built / STYLES
    if (solid := built / FONTS / "fa-solid-900.ttf").exists() and styles.exists():
        text = styles.read_text(encoding="utf-8")
        text, shown = without_icons(text, icons(built))
        subset_font(solid, built / FONTS / "icons.woff", shown)
        sources = r"url\([^)]*fa-solid-900\.woff2\)[^;}]*"
        text, found = re.subn(sources, 'url(../vendor/fontawesome/webfonts/icons.woff) format("woff")', text)
        if found != 1:
            raise ValueError(f"{STYLES} names its icons' font {found} times; kdlab/study/weight.py expects one.")
        styles.write_text(text, encoding="utf-8")
        for path in built.rglob("*.html"):
            page = path.read_text(encoding="utf-8")
            path.write_text(re.sub(r"<script[^>]*fontawesome\.js[^>]*></script>", "", page), encoding="utf-8")
        for path in [*(built / FONTS).glob("fa-*"), *built.glob("_static/scripts/fontawesome.js*")]:
            path.unlink()
    for path in [*built.glob("_static/**/*.map"), *(p for p in built.glob("_static/locales/**/*") if p.is_file())]:
        path.unlink()


def with_mathematics(built: Path) -> None:
    """Pages whose formulae are in outputs alone load MathJax as their neighbours do: Sphinx counts those of the text."""
    loads = r"<script>window\.MathJax.*?</script>|<script[^>]*/mathjax/[^>]*></script>"
    for folder in (path for path in built.iterdir() if path.is_dir()):
        pages = {path: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}
        tags = next((found for text in pages.values() if len(found := re.findall(loads, text)) == 2), None)
        for path, text in pages.items():
            if tags and 'class="math"' in text and not re.search(loads, text):
                path.write_text(text.replace("</head>", "\n".join(tags) + "</head>", 1), encoding="utf-8")


def icons(built: Path) -> set[str]:
    """The names of all icons in pages and scripts: ``fa-bars``."""
    texts = [*built.rglob("*.html"), *(p for p in built.glob("_static/**/*.js") if p.name != "fontawesome.js")]
    return {name for path in texts for name in re.findall(r"\bfa-[a-z0-9-]+", path.read_text(encoding="utf-8"))}


def without_icons(styles: str, names: set[str]) -> tuple[str, set[int]]:
    """Styles without the rules of icons that are not named; and the characters that are left, those of plain rules included.

    >>> without_icons('.fa-a:before,.fa-b:before{content:"\\\\f001"}.fa-c:before{content:"\\\\f002"}p{content:"\\\\f003"}', {"fa-b"})
    ('.fa-a:before,.fa-b:before{content:"\\\\f001"}p{content:"\\\\f003"}', {61441, 61443})
    """

    def kept(rule: re.Match) -> str:
        return rule[0] if names & set(re.findall(r"\.(fa-[a-z0-9-]+)", rule[1])) else ""

    left = re.sub(r'((?:\.fa-[a-z0-9-]+:before,?)+)\{content:"[^"]*"\}', kept, styles)
    escaped = {int(code, 16) for code in re.findall(r'"\\([0-9a-f]{4})"', left)}
    return left, escaped | {ord(letter) for letter in left if "\ue000" <= letter <= "\uf8ff"}


def subset_font(source: Path, target: Path, shown: set[int]) -> None:
    """A font of some characters of another."""
    with TTFont(source) as font:
        cut = subset.Subsetter()
        cut.populate(unicodes=shown)
        cut.subset(font)
        font.flavor = "woff"
        font.save(target)


def loaded(page: Path, built: Path) -> set[Path]:
    """The files that a page loads: its styles and scripts, MathJax's parts, icons and fonts, of each kind all that there are."""
    text = page.read_text(encoding="utf-8")
    head = re.findall(
        r'<link[^>]+rel="(?:stylesheet|preload)"[^>]*>|<link[^>]+href="[^"]+"[^>]+rel="stylesheet"[^>]*>', text
    )
    named = [*re.findall(r'<(?:script|img)\b[^>]*?\bsrc="([^"]+)"', text)]
    named += [found for tag in head for found in re.findall(r'href="([^"]+)"', tag)]
    files = {(page.parent / name.split("?")[0]).resolve() for name in named if not re.match(r"[a-z]+:", name)}
    files |= {file.resolve() for file in built.glob(f"{FONTS.as_posix()}/*.woff")}
    if any("mathjax" in file.parts for file in files):
        files |= {file.resolve() for file in built.glob("mathjax/**/*.*")}
    return {file for file in files if file.is_file()}


def sent(page: Path, built: Path) -> int:
    """Bytes that a page costs with all that it loads: text as servers pack it, fonts as they are."""
    return sum(_packed(file, file.stat().st_mtime_ns) for file in {page.resolve(), *loaded(page, built)})


_known: dict[tuple[Path, int], int] = {}


def _packed(file: Path, changed: int) -> int:
    if (file, changed) not in _known:
        content = file.read_bytes()
        fonts = file.suffix in (".woff", ".woff2", ".png")
        _known[file, changed] = len(content) if fonts else len(gzip.compress(content, 6))
    return _known[file, changed]


def too_heavy(built: Path, pages: list[Path]) -> list[str]:
    """A sentence for each page that is over the limits."""
    wrong = []
    for page in pages:
        name, size = page.relative_to(built), page.stat().st_size
        if size > HEAVIEST_PAGE:
            wrong.append(f"{name} has {size / 1e6:.2f} MB, more than {HEAVIEST_PAGE / 1e6:.1f}")
        if (size := sent(page, built)) > HEAVIEST_LOAD:
            wrong.append(f"{name} loads {size / 1e6:.2f} MB, packed, more than {HEAVIEST_LOAD / 1e6:.1f}")
    return wrong
