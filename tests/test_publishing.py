"""Where the book is published: by whoever has it, and nowhere if nobody does."""

import ast
import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from kdlab.study.repository import EXTRAS, Repository, install, repository, requirements, set_up

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FORK = Repository("https://github.com/someone/fork", COMMIT)
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")
}


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one commit and no remote."""
    folder = tmp_path / "kdlab"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "kdlab"\n')
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "a")
    return folder


def test_the_repository_is_that_of_ci_else_of_the_remote_else_of_the_project_else_none(checkout):
    assert repository(checkout, {}) is None
    (checkout / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/first/one"\n')
    assert repository(checkout, {}).url == "https://github.com/first/one"
    git(checkout, "remote", "add", "origin", "git@github.com:someone/fork.git")
    assert repository(checkout, {}).url == "https://github.com/someone/fork"
    ci = {"GITHUB_SERVER_URL": "https://git.example", "GITHUB_REPOSITORY": "a/b"}
    assert repository(checkout, ci).url == "https://git.example/a/b"
    assert (
        repository(checkout, ci).commit == git(checkout, "rev-parse", "HEAD") and repository(checkout, ci).tag is None
    )
    assert (
        repository(checkout, ci | {"GITHUB_REF_TYPE": "tag", "GITHUB_REF_NAME": "v0.2"}).notebooks == "notebooks-v0.2"
    )


def test_a_remote_that_is_a_folder_and_a_checkout_within_another_are_no_repository(checkout):
    git(checkout, "remote", "add", "origin", "/home/someone/kdlab")
    assert repository(checkout, {}) is None
    git(checkout, "remote", "set-url", "origin", "https://github.com/someone/other.git")
    inside = checkout / "unpacked"
    inside.mkdir()
    (inside / "pyproject.toml").write_text('[project]\nname = "kdlab"\n')
    assert repository(inside, {}) is None


def test_no_file_names_a_repository_that_is_not_there():
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    for name in ("README.md", "book/using.md", "CITATION.cff", "_config.yml", "book/programs/build.py"):
        named = set(re.findall(r"https://github\.com/[\w.-]+/kdlab\b", (ROOT / name).read_text(encoding="utf-8")))
        assert named <= set(urls.values()), name


def test_a_fork_has_its_own_buttons_and_an_unpublished_checkout_has_none(book_build):
    options = book_build.settings(FORK)["sphinx"]["config"]["html_theme_options"]
    assert options["repository_url"] == FORK.url and options["repository_branch"] == "notebooks"
    assert set(options["launch_buttons"]) == {"notebook_interface", "binderhub_url", "colab_url"}
    assert "colab_url" not in Repository("https://gitlab.com/a/b").buttons()["launch_buttons"]
    assert not {"launch_buttons", "repository_url"} & set(
        book_build.settings(None)["sphinx"]["config"]["html_theme_options"]
    )
    assert install(None) == "pip install ." and install(FORK) == f'pip install "kdlab @ git+{FORK.url}"'
    assert "%" not in "".join(book_build.using(FORK).values()) and "git" not in "".join(book_build.using(None).values())


@pytest.fixture(scope="module")
def book_build():
    spec = importlib.util.spec_from_file_location("book_build", ROOT / "book" / "programs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The first cell of a notebook that is opened without kdlab


def run_set_up(cell, tmp_path, monkeypatch, torch="2.9.1+cu126"):
    """The commands of the cell where neither kdlab is found nor git or pip do anything, and the constraint that pip is given."""
    commands, kept = [], []

    def record(command, check):
        assert check
        commands.append([str(part) for part in command])
        if command[:2] == ["git", "init"]:
            Path(command[-1]).mkdir()
        if "--constraint" in command:
            kept.append(Path(command[command.index("--constraint") + 1]).read_text())

    found = [importlib.metadata.Distribution.at(tmp_path / "torch.dist-info")] if torch else []
    (tmp_path / "torch.dist-info").mkdir(exist_ok=True)
    (tmp_path / "torch.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {torch}\n")
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", record)
        patch.setattr("importlib.util.find_spec", lambda name: None)
        patch.setattr("importlib.metadata.distributions", lambda name: found)
        patch.setattr("pathlib.Path.home", lambda: tmp_path)
        patch.setattr("sys.path", list(sys.path))
        patch.setenv("PYTHONPATH", "/elsewhere")
        exec(cell, {})
        return commands, kept, sys.path[0], os.environ["PYTHONPATH"]


def test_the_set_up_cell_fetches_the_pages_commit_and_leaves_torch_as_it_is(tmp_path, monkeypatch):
    cell = set_up(FORK, ["torch>=2.6", "sympy>=1.13"])
    commands, kept, first, path = run_set_up(cell, tmp_path, monkeypatch)
    home, part = str(tmp_path / "kdlab-0123456789"), str(tmp_path / "kdlab-0123456789.part")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        f"{home}/keep.txt",
        "torch>=2.6",
        "sympy>=1.13",
    ]
    assert commands == [
        ["git", "init", "--quiet", part],
        ["git", "-C", part, "fetch", "--quiet", "--depth", "1", FORK.url, COMMIT],
        ["git", "-C", part, "checkout", "--quiet", "FETCH_HEAD"],
        install,
    ]
    assert kept == ["torch==2.9.1+cu126"] and first == home and path == os.pathsep.join([home, "/elsewhere"])
    # After a restart: what was fetched is found. Half a clone is begun anew.
    assert run_set_up(cell, tmp_path, monkeypatch)[0] == [install]
    Path(home).rename(part)
    assert len(run_set_up(cell, tmp_path, monkeypatch)[0]) == 4
    assert run_set_up(cell, tmp_path, monkeypatch, torch=None)[1] == [""]


def test_the_set_up_cell_does_nothing_where_kdlab_is_installed(monkeypatch):
    monkeypatch.setattr("subprocess.run", None)
    before = list(sys.path)
    exec(set_up(FORK, requirements(ROOT)), {})
    assert sys.path == before


def test_without_a_repository_or_a_commit_there_is_no_set_up_cell():
    assert set_up(None, ["torch"]) is None and set_up(Repository("https://github.com/someone/fork"), ["torch"]) is None


def test_the_set_up_cell_fetches_a_commit_from_a_repository(checkout, tmp_path, monkeypatch):
    """Really, from the checkout itself; only pip does nothing."""
    first = git(checkout, "rev-parse", "HEAD")
    (checkout / "later.txt").write_text("later")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "later")
    run = subprocess.run
    with monkeypatch.context() as patch:
        patch.setattr(
            "subprocess.run", lambda command, check: run(command, check=check) if command[0] == "git" else None
        )
        patch.setattr("importlib.util.find_spec", lambda name: None)
        patch.setattr("pathlib.Path.home", lambda: tmp_path)
        patch.setattr("sys.path", list(sys.path))
        patch.setenv("PYTHONPATH", "")
        exec(set_up(Repository(str(checkout), first), []), {})
    there = tmp_path / f"kdlab-{first[:10]}"
    assert git(there, "rev-parse", "HEAD") == first
    assert (there / "pyproject.toml").exists() and not (there / "later.txt").exists()


@functools.cache
def third_party(file):
    """Packages that a file imports, besides the standard library and kdlab."""
    return set(_third_party(ast.parse(file.read_text(encoding="utf-8"))))


def _third_party(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            continue
        yield from {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"kdlab"}


packages_distributions = functools.cache(importlib.metadata.packages_distributions)


@pytest.mark.parametrize("chapter", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda c: c.stem)
def test_all_that_a_chapter_imports_is_in_the_set_ups_extras(chapter, book_build):
    given = {re.match(r"[\w.-]+", need).group().lower().replace("_", "-") for need in requirements(ROOT)}
    given |= {"ipython"}  # of the notebook itself
    of_package = packages_distributions()
    files = [chapter, *(f for f in book_build.depends_on(chapter) if f.suffix == ".py")]
    for file in files:
        for package in third_party(file) - OPTIONAL:
            assert given & {name.lower().replace("_", "-") for name in of_package[package]}, (file.name, package)


#: What modules of kdlab import where it is installed, and chapters do not ask of them.
OPTIONAL = {
    "jaxtyping",
    "ray",
    "liger_kernel",
    "jupytext",
    "nbformat",
    "papermill",
    "jupyter_client",
    "jupyter_core",
    "yaml",
}


def test_the_extras_of_the_set_up_are_those_that_pages_need():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"kdlab[{','.join(EXTRAS)}]" in extras["book"]
    assert len(requirements(ROOT)) == len(set(requirements(ROOT))) and "torch>=2.6" in requirements(ROOT)


# Workflows


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_makes_what_the_makefile_has_and_pins_its_actions(name):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for step in steps(WORKFLOWS[name]):
        assert ("uses" in step) != ("run" in step)
        assert re.search(r"@(release/)?v\d+$", step.get("uses", "@v1")), step
        assert set(re.findall(r"\bmake ([a-z]+)", step.get("run", ""))) <= targets, step
    for job in WORKFLOWS[name]["jobs"].values():
        assert "timeout-minutes" in job
        assert set(job.get("needs", [])) <= {*WORKFLOWS[name]["jobs"]} or job["needs"] in WORKFLOWS[name]["jobs"]
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}


def test_pages_are_deployed_from_main_alone_after_check_and_tests_and_no_build_needs_the_links():
    jobs = WORKFLOWS["book.yml"]["jobs"]
    assert {"check", "test", "book"} <= set(jobs["pages"]["needs"]) and "refs/heads/main" in jobs["pages"]["if"]
    used = [step["uses"].split("@")[0] for step in jobs["pages"]["steps"] if "uses" in step]
    assert ["actions/configure-pages", "actions/upload-pages-artifact", "actions/deploy-pages"] == [
        u for u in used if "pages" in u
    ]
    assert all("links" not in str(job.get("needs")) for job in jobs.values()) and "schedule" in jobs["links"]["if"]
    made = [step.get("run") for name in ("check", "test", "book") for step in jobs[name]["steps"]]
    assert {"make check", "make test", "make book"} <= set(made)


def test_a_tag_alone_makes_a_release_and_packages_are_published_without_a_password():
    release = WORKFLOWS["release.yml"]
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads "on" as true
    pypi = release["jobs"]["pypi"]
    assert pypi["permissions"] == {"id-token": "write"} and "secrets." not in str(release)


# What a release consists of


@pytest.fixture
def release():
    spec = importlib.util.spec_from_file_location("book_release", ROOT / "book" / "programs" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tag_that_is_not_the_version_makes_no_release(release):
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert release.version(None) == release.version(f"v{stated}") == stated
    with pytest.raises(release.ReleaseError, match=f"the tag is v9, the version of pyproject.toml {stated}"):
        release.version("v9")


def test_a_release_says_where_it_is_published_and_cites_itself(release, tmp_path):
    for name in ("pyproject.toml", "CITATION.cff"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    release.named(tmp_path, FORK, "2026-01-02")
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]["urls"]
    assert urls == {"Homepage": "https://someone.github.io/fork", "Repository": FORK.url}
    cited = yaml.safe_load((tmp_path / "CITATION.cff").read_text())
    assert cited["repository-code"] == FORK.url and str(cited["date-released"]) == "2026-01-02"


def test_the_whole_book_is_one_page_whose_links_stay_in_it(release, tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    page = '<html><head><!-- a remark --><script>document.documentElement.dataset.theme = ""</script><script src="../mathjax/mathjax.js"></script><link href="../_static/a.css" rel="stylesheet"></head><body><nav></nav><article class="bd-article">{}</article></body></html>'
    (tmp_path / "book/a.html").write_text(
        page.format('<h1 id="x">A</h1><a href="../notebooks/b.html#y">b</a><a href="#x">x</a><script>1</script>')
    )
    (tmp_path / "notebooks/b.html").write_text(
        page.format(
            '<h1 id="y">B</h1><a href="../book/a.html">a</a><img src="../_images/p.png"><a href="https://e.org#z">e</a><details></details>'
        )
    )
    text = release.whole(tmp_path, ["book/a", "notebooks/b"])
    ids, inner = set(re.findall(r'id="([^"]+)"', text)), re.findall(r'href="#([^"]+)"', text)
    assert len(inner) == 3 and set(inner) <= ids
    assert 'href="_static/a.css"' in text and 'src="_images/p.png"' in text and 'href="https://e.org#z"' in text
    assert "<script>1" not in text and "<nav" not in text and "<details>" in text
    assert "<!-- a remark -->" in text and "dataset" not in text and "mathjax.js" in text


def test_checksums_are_as_sha256sum_reads_them(release, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    release.checksums(tmp_path)
    assert (
        tmp_path / "SHA256SUMS"
    ).read_text() == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a.txt\n"
