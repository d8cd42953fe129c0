"""What a release consists of, in dist/, after the book was built: python book/programs/release.py [VERSION]

wheel and source distribution of what is committed, the book as an archive of pages and as one PDF, CITATION.cff, SHA256SUMS
"""

import html
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import yaml
from bs4 import BeautifulSoup

from kdlab.files import sha256
from kdlab.study.repository import Repository, repository

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class ReleaseError(RuntimeError):
    """Why there is no release, in a sentence."""


def version(tag: str | None) -> str:
    """The version of pyproject.toml, which the tag must be, with or without its v."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if tag is not None and tag.removeprefix("v") != stated:
        raise ReleaseError(f"the tag is {tag}, the version of pyproject.toml {stated}.")
    return stated


def named(source: Path, where: Repository | None, day: str) -> None:
    """Write into a copy of the sources where it is published, and in CITATION.cff when it was."""
    cite = source / "CITATION.cff"
    lines = [cite.read_text(encoding="utf-8").rstrip(), f"date-released: {day}"]
    if where is not None:
        lines.append(f"repository-code: {where.url}")
        project = source / "pyproject.toml"
        text = project.read_text(encoding="utf-8")
        if "urls" not in tomllib.loads(text)["project"]:
            pages = f'Homepage = "{where.site}"\n' if where.site else ""
            project.write_text(f'{text}\n[project.urls]\n{pages}Repository = "{where.url}"\n', encoding="utf-8")
    cite.write_text("\n".join(lines) + "\n", encoding="utf-8")


def packages(target: Path, where: Repository | None) -> None:
    """Wheel, source distribution and CITATION.cff of what is committed."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kdlab"
        source.mkdir()
        archive = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        named(source, where, f"{datetime.now(UTC):%Y-%m-%d}")
        make = f"from setuptools import build_meta as b; b.build_sdist({str(target)!r}); b.build_wheel({str(target)!r})"
        done = subprocess.run([sys.executable, "-c", make], cwd=source, capture_output=True, text=True)
        if done.returncode:
            raise ReleaseError(f"setuptools made no distribution: {done.stderr.strip()[-300:]}")
        shutil.copy(source / "CITATION.cff", target)


def pages(built: Path, archive: Path) -> None:
    """The built book as an archive of one folder."""
    with tarfile.open(archive, "w:gz") as out:
        out.add(built, arcname=archive.name.removesuffix(".tar.gz"))


def order() -> list[str]:
    """The pages in the order of the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def whole(built: Path, names: list[str]) -> str:
    """All pages as one, to be printed: their articles in order, folds as they are, ids and the links between them made those of one page."""
    soup, articles = None, []
    for name in names:
        page = BeautifulSoup((built / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
        article = page.select_one("article.bd-article")
        for tag in article.select("script, .prev-next-area, .headerlink"):
            tag.decompose()
        for tag in article.find_all(id=True):
            tag["id"] = _one(name, tag["id"])
        for tag in article.find_all(href=True):
            tag["href"] = _href(tag["href"], name, names)
        for tag in article.find_all(src=True):
            tag["src"] = _file(tag["src"], name)
        article["id"] = _one(name, "")
        articles.append(article)
        soup = soup or page
    for tag in [t for t in soup.head.find_all("script") if "mathjax" not in str(t).lower()]:
        tag.decompose()  # what is left in print of the page's own switches would turn its colours off
    for tag in [t for t in soup.head.find_all(["link", "script"]) if t.get("href") or t.get("src")]:
        where = "href" if tag.get("href") else "src"
        tag[where] = _file(tag[where], names[0])
    style = "article.bd-article { break-before: page; } article.bd-article:first-of-type { break-before: auto; } body { padding: 0 !important; }"
    head = soup.head.decode_contents()
    root = "".join(
        f' {key}="{html.escape(str(value))}"' for key, value in {"lang": "en", "data-theme": "light"}.items()
    )
    body = "\n".join(str(article) for article in articles)
    return f"<!DOCTYPE html><html{root}><head>{head}<style>{style}</style></head><body>{body}</body></html>"


def _one(name: str, anchor: str) -> str:
    return f"{name.replace('/', '-')}--{anchor}"


def _file(address: str, name: str) -> str:
    """An address on a page, seen from the root of the book."""
    return (
        address
        if re.match(r"[a-z]+:|#|//", address)
        else os.path.normpath(os.path.join(os.path.dirname(name), address))
    )


def _href(address: str, name: str, names: list[str]) -> str:
    path, _, anchor = address.partition("#")
    goal = name if not path else _file(path, name).removesuffix(".html")
    return f"#{_one(goal, anchor)}" if goal in names else _file(address, name)


def pdf(built: Path, target: Path, names: list[str]) -> None:
    """The whole book as one PDF, by the browser, so that it looks as the pages do."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ReleaseError(f"the PDF takes a browser: one of {', '.join(BROWSERS)}.")
    page = built / "whole-book.html"
    page.write_text(whole(built, names), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={profile}", "--no-pdf-header-footer",
            "--virtual-time-budget=600000", "--timeout=600000", f"--print-to-pdf={target}", page.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    page.unlink()
    if not target.exists():
        raise ReleaseError(f"{Path(browser).name} made no PDF: {done.stderr.strip()[-300:]}")


def checksums(folder: Path) -> None:
    """SHA256SUMS of all that lies in the folder, as ``sha256sum --check`` reads it."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files), encoding="utf-8")


def main() -> int:
    built, target, where = ROOT / "_build" / "html", ROOT / "dist", repository(ROOT)
    try:
        number = version(sys.argv[1] if len(sys.argv) > 1 else where and where.tag)
        if not (built / "index.html").exists():
            raise ReleaseError("the book is not built: make book.")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        packages(target, where)
        pages(built, target / f"kdlab-book-{number}.tar.gz")
        pdf(built, target / f"kdlab-book-{number}.pdf", order())
        checksums(target)
    except ReleaseError as error:
        print(f"There is no release: {error}", file=sys.stderr)
        return 1
    for path in sorted(target.iterdir()):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
