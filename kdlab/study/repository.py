"""Where this checkout is published. No file of it can know: a fork has another name, and a checkout of one's own has none.

The repository is that of the CI's run, else the checkout's own remote, else ``[project.urls]`` of pyproject.toml, else none.
"""

import os
import re
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

#: The extras that chapters import from; ``book`` has what builds the pages, which a reader's notebook does not need.
EXTRAS = ("theory", "study", "data", "figures", "language", "hf")

_SET_UP = Template("""\
# Where kdlab is not installed, as on Colab: fetch it as it was when this page was made, with the book's records, and what it
# needs. PyTorch stays as it is there. After a restart, this finds what it fetched before.
import importlib.metadata, importlib.util, os, pathlib, shutil, subprocess, sys

if importlib.util.find_spec("kdlab") is None:
    home = pathlib.Path.home() / "kdlab-$short"
    if not home.exists():
        part = home.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run(["git", "init", "--quiet", part], check=True)
        subprocess.run(["git", "-C", part, "fetch", "--quiet", "--depth", "1", "$url", "$commit"], check=True)
        subprocess.run(["git", "-C", part, "checkout", "--quiet", "FETCH_HEAD"], check=True)
        part.rename(home)
    keep = home / "keep.txt"
    keep.write_text("\\n".join(f"torch=={found.version}" for found in importlib.metadata.distributions(name="torch")))
    needs = $needs
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--constraint", keep, *needs], check=True)
    importlib.invalidate_caches()
    sys.path.insert(0, str(home))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
""")


@dataclass(frozen=True)
class Repository:
    """A public repository, and the version of it that is at hand.

    Attributes:
        url: its address in a browser, ``https://HOST/OWNER/NAME``.
        commit: the version, as its full hash; None where there is no git.
        tag: the release's tag, in a CI run for one.
    """

    url: str
    commit: str | None = None
    tag: str | None = None

    @property
    def name(self) -> str:
        """Its own name, which is that of the folder of a clone."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def on_github(self) -> bool:
        """Whether Colab can open it, and GitHub Pages can show it."""
        return self.url.startswith("https://github.com/")

    @property
    def site(self) -> str | None:
        """The address of its pages at GitHub; None elsewhere, where nobody can know it.

        >>> Repository("https://github.com/Someone/fork").site
        'https://someone.github.io/fork'
        """
        if not self.on_github:
            return None
        owner = self.url.split("/")[-2].lower()
        return f"https://{owner}.github.io" + ("" if self.name.lower() == f"{owner}.github.io" else f"/{self.name}")

    @property
    def notebooks(self) -> str:
        """The branch with the executed notebooks, which launch buttons open; a release has one of its own."""
        return f"notebooks-{self.tag}" if self.tag else "notebooks"

    def buttons(self) -> dict:
        """Options of the book's theme: the buttons that lead to the repository, to Binder and to Colab."""
        launch = {"notebook_interface": "classic", "binderhub_url": "https://mybinder.org"}
        if self.on_github:
            launch["colab_url"] = "https://colab.research.google.com"
        return {
            "repository_url": self.url, "repository_branch": self.notebooks, "path_to_docs": "",
            "use_repository_button": True, "launch_buttons": launch,
        }  # fmt: skip


def repository(root: Path, environment: Mapping[str, str] = os.environ) -> Repository | None:
    """The repository of the checkout at ``root``; None where neither CI, remote nor pyproject.toml names one."""
    root = Path(root)
    url = _of_ci(environment) or address(git(root, "remote", "get-url", "origin") or "") or _of_project(root)
    if url is None:
        return None
    tag = environment.get("GITHUB_REF_NAME") if environment.get("GITHUB_REF_TYPE") == "tag" else None
    return Repository(url, git(root, "rev-parse", "HEAD"), tag)


def address(remote: str) -> str | None:
    """The address in a browser of what git calls a remote, without user or password; None for a folder.

    >>> address("git@github.com:someone/fork.git"), address("ssh://git@gitlab.com/group/fork")
    ('https://github.com/someone/fork', 'https://gitlab.com/group/fork')
    >>> address("https://someone:secret@github.com/someone/fork.git/"), address("/home/someone/kdlab")
    ('https://github.com/someone/fork', None)
    """
    scheme = re.fullmatch(r"(?:https?|ssh|git)://(?:[^@/]+@)?([^/:]+)(?::\d+)?/(.+)", remote)
    short = re.fullmatch(r"(?:[^@/:]+@)([^/:]+):([^/].*)", remote)
    if not (found := scheme or short):
        return None
    host, path = found.groups()
    return f"https://{host}/{path.rstrip('/').removesuffix('.git')}"


def requirements(root: Path, extras: Sequence[str] = EXTRAS) -> list[str]:
    """What kdlab needs with these extras, each once, as pip takes it."""
    project = tomllib.loads((Path(root) / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]
    return list(dict.fromkeys(found))


def set_up(where: Repository | None, needs: Sequence[str]) -> str | None:
    """The first cell of a notebook that is opened without kdlab; None where there is no place to fetch it from.

    It fetches the pages' own commit into the home folder and puts that on Python's path, so that notebooks of different
    versions can live beside each other; ``needs`` are installed, with an installed torch held as it is.
    """
    if where is None or where.commit is None:
        return None
    listed = "[\n" + "".join(f'        "{need}",\n' for need in needs) + "    ]"
    return _SET_UP.substitute(url=where.url, commit=where.commit, short=where.commit[:10], needs=listed)


def install(where: Repository | None, *extras: str) -> str:
    """The command that installs kdlab: from its repository, or from a checkout.

    >>> install(None), install(None, "data", "study")
    ('pip install .', 'pip install ".[data,study]"')
    >>> install(Repository("https://github.com/someone/fork"), "hf")
    'pip install "kdlab[hf] @ git+https://github.com/someone/fork"'
    """
    chosen = f"[{','.join(extras)}]" if extras else ""
    if where is not None:
        return f'pip install "kdlab{chosen} @ git+{where.url}"'
    return f'pip install ".{chosen}"' if extras else "pip install ."


def _of_ci(environment: Mapping[str, str]) -> str | None:
    server, name = environment.get("GITHUB_SERVER_URL"), environment.get("GITHUB_REPOSITORY")
    return f"{server}/{name}" if server and name else None


def _of_project(root: Path) -> str | None:
    try:
        stated = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return address(stated.get("project", {}).get("urls", {}).get("Repository", ""))


def git(root: Path, *arguments: str) -> str | None:
    """What git says in the checkout whose top is ``root``; None in no checkout, or within another's."""
    try:
        said = [
            subprocess.run(
                ["git", "-C", root, *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (("rev-parse", "--show-toplevel"), arguments)
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return said[1] if Path(said[0]).resolve() == root.resolve() else None
