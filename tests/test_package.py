import ast
import builtins
import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import kdlab
from kdlab.shapes import with_shapes

PACKAGE = Path(kdlab.__file__).parent
ROOMS = ("objectives", "models", "data", "training", "language", "huggingface", "theory", "study", "benchmarks")
ALLOWED = {  # besides the standard library and the room itself
    "objectives": {"torch", "kdlab.shapes"},
    "models": {"torch", "kdlab.shapes", "kdlab.objectives"},
    "data": {"torch", "numpy", "kdlab.shapes", "kdlab.files", "pooch", "sklearn"},
    "training": {
        "torch",
        "safetensors",
        "kdlab.shapes",
        "kdlab.files",
        "kdlab.objectives",
        "kdlab.models",
        "kdlab.data",
    },
    "language": {
        "torch",
        "numpy",
        "tokenizers",
        "kdlab.shapes",
        "kdlab.files",
        *(f"kdlab.{room}" for room in ("objectives", "models", "data", "training")),
    },
    "huggingface": {
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "kdlab.shapes",
        *(f"kdlab.{room}" for room in ("objectives", "models", "data", "training", "language")),
    },
    "theory": {"sympy", "numpy"},
    "study": {
        "torch",
        "numpy",
        "scipy",
        "ray",
        "jupytext",
        "nbformat",
        "papermill",
        "jupyter_client",
        "IPython",
        "jupyter_core",
        "fontTools",
        "yaml",
        "kdlab",
        "kdlab.shapes",
        "kdlab.files",
        *(f"kdlab.{room}" for room in (*ROOMS[:-1], "figures")),
    },
    "benchmarks": {
        "torch",
        "numpy",
        "liger_kernel",
        "transformers",
        "kdlab.shapes",
        "kdlab.files",
        *(f"kdlab.{room}" for room in ROOMS),
    },
}
LAZY = {
    "data": {"pooch", "sklearn"},
    "training": {"safetensors"},
    "language": {"tokenizers"},
    "huggingface": {"transformers", "tokenizers", "safetensors"},
    "study": {
        "scipy",
        "ray",
        "kdlab.figures",
        "jupytext",
        "nbformat",
        "papermill",
        "jupyter_client",
        "jupyter_core",
        "fontTools",
        "yaml",
    },
    "benchmarks": {"liger_kernel", "transformers"},
}


def parsed(folder):
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def imports(path, tree):
    """What a file imports: top-level packages, and kdlab's rooms by name."""
    here = ("kdlab", *path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "kdlab" else [module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "kdlab":
                inside = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
                yield f"kdlab.{parts[1]}" if inside else "kdlab"
            elif parts[0] not in sys.stdlib_module_names:
                yield parts[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downwards(room):
    for path, tree in parsed(PACKAGE / room).items():
        assert set(imports(path, tree)) <= ALLOWED[room] | {f"kdlab.{room}"}, path.name


def test_the_shared_modules_import_nothing():
    for name, known in {"__init__.py": set(), "files.py": set(), "shapes.py": {"jaxtyping"}}.items():
        assert set(imports(PACKAGE / name, ast.parse((PACKAGE / name).read_text()))) == known


def test_rooms_allowed_something_use_it():
    for room in ROOMS:
        used = {name for path, tree in parsed(PACKAGE / room).items() for name in imports(path, tree)}
        assert LAZY.get(room, set()) - used <= {"kdlab.figures"}


BLOCKED = "scipy safetensors matplotlib pooch sklearn tqdm pandas tokenizers transformers accelerate peft jaxtyping"

CORE = f"""
import importlib.machinery, sys
import numpy, torch

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else super().find_spec(name, path, target)

BLOCKED = set({BLOCKED!r}.split()) - {{name.split(".")[0] for name in sys.modules}}
if "sympy" not in sys.modules:
    BLOCKED.add("sympy")
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
import kdlab
import kdlab.data, kdlab.models, kdlab.objectives, kdlab.training, kdlab.language, kdlab.huggingface, kdlab.study, kdlab.benchmarks
from kdlab.theory import reference
BLOCKED.discard("sympy")  # torch itself looks for it when it makes an optimiser
from kdlab.data import ExactTeacher, KnownPosterior
from kdlab.objectives import CrossEntropy, SoftTargets
from kdlab.training import Recipe, fit
task = KnownPosterior.draw()
history = fit(
    kdlab.models.mlp(16, 20), 0.5 * CrossEntropy() + 0.5 * SoftTargets(temperature=2), train=task.sample(64),
    teacher=ExactTeacher(task), recipe=Recipe(epochs=1, batch_size=16), validation=task.sample(32),
)
assert len(history) == 1
try:
    kdlab.training.save_model("nowhere", torch.nn.Linear(1, 1), {{}})
except ImportError as error:
    assert "pip install 'kdlab[study]'" in str(error), error
else:
    raise AssertionError("safetensors was not blocked")
try:
    kdlab.language.train_tokeniser(["text"], 300)
except ImportError as error:
    assert "pip install 'kdlab[language]'" in str(error), error
else:
    raise AssertionError("tokenizers was not blocked")
print("fine")
"""


def python(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_needs_torch_and_numpy_alone():
    assert python(CORE).endswith("fine\n")


def test_importing_the_package_is_cheap():
    code = "import sys, kdlab; assert not {'torch', 'numpy'} & set(sys.modules); print(kdlab.__version__)"
    assert python(code).strip() == kdlab.__version__


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "theory"])
def test_all_names_exist_in_order(room):
    module = importlib.import_module(f"kdlab.{room}")
    assert sorted(module.__all__) == list(module.__all__) and len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def public():
    for room in ROOMS:
        module = importlib.import_module(f"kdlab.{room}")
        for name in getattr(module, "__all__", ()):
            yield pytest.param(getattr(module, name), id=f"{room}.{name}")
    for name in ("reference", "symbolic", "expansion"):
        module = importlib.import_module(f"kdlab.theory.{name}")
        for key, thing in vars(module).items():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not key.startswith("_"):
                yield pytest.param(thing, id=f"{name}.{key}")


@pytest.mark.parametrize("thing", list(public()))
def test_public_names_have_a_docstring(thing):
    assert thing.__doc__ and thing.__doc__.strip()
    assert not thing.__doc__.startswith(f"{thing.__name__}(")  # what a dataclass writes for itself


def untyped(thing):
    """What a function, or a class in its own public methods, says of no type."""
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if inspect.isfunction(member) and (not name.startswith("_") or name in ("__init__", "__call__")):
                yield from (f"{name}: {what}" for what in untyped(member))
    elif inspect.isfunction(thing):
        signature = inspect.signature(thing)
        yield from (
            p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")
        )
        if signature.return_annotation is signature.empty and thing.__name__ != "__init__":
            yield "return"


def test_data_with_tensors_is_shown_by_their_shapes():
    """A prompt that shows a text, or logits, shows what they are, and not a screen of numbers."""
    kinds = [
        *(param.values[0] for param in public()),
        *vars(importlib.import_module("kdlab.objectives.sparse")).values(),
    ]
    kinds = [kind for kind in kinds if inspect.isclass(kind) and dataclasses.is_dataclass(kind)]
    held = [kind for kind in kinds if re.search(r"Tensor|Inputs", str([f.type for f in dataclasses.fields(kind)]))]
    held.remove(kdlab.study.Run)  # a student, what it says of the test split and its record: not data
    assert len(held) > 9 and not [kind for kind in held if kind.__repr__ is not with_shapes]
    row = torch.zeros(9, dtype=torch.int16)
    assert repr(kdlab.data.Tokens(row, 2, torch.ones(3).long())) == (
        "Tokens(labels=int16 (9,), context=2, token_bytes=int64 (3,), blocks=int64 (4,), stride=2, ahead=0)"
    )
    head = kdlab.objectives.HeadLogits(torch.ones(2, 3, device="meta"), torch.ones(4, 3))
    assert (
        repr(head)
        == "HeadLogits(hidden=float32 (2, 3) on meta, weight=float32 (4, 3), bias=None, softcap=None, chunk=None)"
    )
    pair = kdlab.data.Examples({"a": torch.ones(2, 3), "b": torch.ones(2)}, torch.ones(2))
    assert repr(pair) == "Examples(inputs={'a': float32 (2, 3), 'b': float32 (2,)}, labels=float32 (2,))"
    books = kdlab.data.SentenceData("a", *3 * (kdlab.data.Sentences(pair.inputs, pair.labels),), 3, ("b",) * 99)
    assert "train=Sentences(inputs=" in repr(books)
    split = kdlab.data.Split(
        torch.ones(1, 3, 2, 2, dtype=torch.uint8), torch.ones(1).long(), (0.5, 0.5, 0.5), (1.0,) * 3, views=(0,) * 10
    )
    assert "mean=(0.5, 0.5, 0.5), " in repr(split) and repr(split).endswith("flip=True, views=tuple of 10)")


@pytest.mark.parametrize("thing", list(public()))
def test_public_names_say_their_types(thing):
    assert not list(untyped(thing))


def test_every_module_says_what_it_is():
    for path, tree in parsed(PACKAGE).items():
        assert ast.get_docstring(tree), path


def test_nothing_unpickles():
    for path, tree in parsed(PACKAGE).items():
        assert not {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in [*node.names, ast.alias(getattr(node, "module", None) or "")]
        }, path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            assert "allow_pickle" not in options, path
            if ast.unparse(call.func) == "torch.load":
                assert ast.unparse(options["weights_only"]) == "True", path
            assert ast.unparse(call.func) not in ("eval", "exec", "torch.save"), path


def test_the_version_is_that_of_the_distribution():
    from importlib import metadata

    assert kdlab.__version__ == metadata.version("kdlab")


ROOT = Path(kdlab.__file__).resolve().parents[1]


def test_conda_environment_installs_the_lock():
    environment = (ROOT / "environment.yml").read_text()
    assert "- -r requirements.lock" in environment


def test_lock_pins_every_direct_dependency():
    locked = {
        line.split("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower() for requirement in wanted} - {"kdlab"}
    assert names <= locked


def test_versions_agree():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == kdlab.__version__
    assert f"version: {kdlab.__version__}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("target", ["environment", "book", "test", "check", "wheel", "release", "lock", "clean"])
def test_every_target_of_make_is_made_from_a_fresh_clone(target, tmp_path):
    """Without an environment: each step of the way has its rule."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    steps = subprocess.run(
        ["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert steps.returncode == 0, steps.stderr
    if target not in ("lock", "clean"):
        assert "-m venv" in steps.stdout


# What is public, and what goes

PAGE = (ROOT / "book/api.md").read_text(encoding="utf-8")
#: Of each module on the API page, the members that are shown; none named are all.
SHOWN = {
    module: set(re.findall(r"\w+", members))
    for module, members in re.findall(r"automodule:: (kdlab[\w.]*)\n   :members:(.*)\n", PAGE)
}


def shown(thing) -> bool:
    """Whether a module of the page shows it: its own, all of a room, or one in which it is named."""
    of = {
        module: importlib.import_module(module)
        for module, members in SHOWN.items()
        if thing.__name__ in members or not members
    }
    return any(
        getattr(module, thing.__name__, None) is thing
        and (SHOWN[name] or name == thing.__module__ or hasattr(module, "__all__"))
        for name, module in of.items()
    )


def test_what_the_api_page_names_is_there():
    lacking = [
        f"{module}.{name}"
        for module, members in SHOWN.items()
        for name in members
        if not hasattr(importlib.import_module(module), name)
    ]
    assert not lacking, f"book/api.md names what is not there: {', '.join(lacking)}"


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "theory"])
def test_the_api_page_shows_all_that_is_public(room):
    module = importlib.import_module(f"kdlab.{room}")
    lacking = [
        f"{thing.__module__}.{thing.__name__}"
        for thing in (getattr(module, name) for name in module.__all__)
        if not shown(thing)
    ]
    assert not lacking, f"not in book/api.md: {', '.join(lacking)}"


HIDDEN = set(re.findall(r"\w+", " ".join(re.findall(r":exclude-members:(.*)", PAGE))))


def on_the_page():
    """Of everything that the API page shows: its full name, the module that it is shown of, and its docstring."""
    for name, members in SHOWN.items():
        module = importlib.import_module(name)
        yield name, name, module.__doc__
        for member, thing in vars(module).items():
            own = getattr(thing, "__module__", name) == name and not member.startswith("_")
            if isinstance(thing, ModuleType) or (member not in members and (members or not own)):
                continue
            yield f"{name}.{member}", name, getattr(thing, "__doc__", None)
            for part, inner in vars(thing).items() if isinstance(thing, type) else ():
                if not part.startswith("_") and part not in HIDDEN:
                    yield f"{name}.{member}.{part}", name, getattr(inner, "__doc__", None)


def test_docstrings_refer_to_what_the_api_page_shows():
    """As Sphinx looks for it: by its whole name, or from the module or the class on."""
    page = list(on_the_page())
    names, lacking = {*(name for name, _, _ in page), *re.findall(r"automodule:: ([\w.]+)", PAGE)}, set()
    for name, module, text in page:
        for target in re.findall(r":(?:class|func|meth|attr|mod|data|exc):`~?([\w.]+)`", text or ""):
            outer = name.rpartition(".")[0]
            if not {target, f"{module}.{target}", f"{outer}.{target}", f"{name}.{target}"} & names:
                lacking.add(f"{name} refers to {target}")
    assert not lacking, "not on the API page: " + "; ".join(sorted(lacking))


#: What others are called by convention where kdlab is used.
USUAL = {"F", "data", "dist", "mp", "nn", "np", "optim", "pd", "plt", "torch"}


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "theory"])
def test_all_of_a_room_can_be_imported_beside_what_is_usual(room):
    """``from kdlab.objectives import *`` replaced ``torch.distributed as dist``."""
    names = set(importlib.import_module(f"kdlab.{room}").__all__)
    assert not names & (USUAL | set(dir(builtins)) | sys.stdlib_module_names)


def deprecations():
    """Of each DeprecationWarning in the code: the earlier name, what takes its place, and the version in which it ends."""
    for path, tree in parsed(PACKAGE).items():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and any(
                getattr(part, "id", "") == "DeprecationWarning" for part in call.args
            ):
                said = re.fullmatch(
                    r"([\w.]+) is (\w+) since ([\d.]+), and ends with ([\d.]+)\.", ast.literal_eval(call.args[0])
                )
                assert said, f"{path.name}, line {call.lineno}: “NAME is OTHER since VERSION, and ends with VERSION.”"
                yield said.groups()


def test_the_table_of_deprecations_is_that_of_the_code():
    table = re.findall(r"^\| `([\w.]+)` \| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert sorted(deprecations()) == sorted(table) and table
    for name, instead, _, _ in table:
        where, _, earlier = name.rpartition(".")
        room = pkgutil.resolve_name(where)  # a module, or a class
        public = getattr(room, "__all__", None) or [instead]
        assert hasattr(room, earlier) and hasattr(room, instead) and instead in public and earlier not in public


def test_what_has_ended_is_gone():
    """A name that ends with a version is not in it."""
    version, *ends = (
        [int(part) for part in re.findall(r"\d+", x)]
        for x in (kdlab.__version__, *(until for *_, until in deprecations()))
    )
    assert all(version < end for end in ends)


def test_an_earlier_name_still_works_and_says_so():
    import torch

    from kdlab import objectives

    z, t = torch.randn(2, 3, 4)
    with pytest.warns(DeprecationWarning, match="is dist_loss since"):
        assert torch.equal(objectives.dist(z, t, temperature=2.0), objectives.dist_loss(z, t, temperature=2.0))


def test_the_changelog_has_its_sections():
    """What is to come, then each version with its date, this one first, and in each the kinds of change that there are."""
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased" and heads[1].startswith(f"{kdlab.__version__} – ")
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ – \d{4}-\d\d-\d\d", head) for head in heads[1:])
    kinds = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_no_source_has_a_character_that_is_not_seen():
    """A backslash that was taken for an escape leaves one: a form feed in the place of a fraction's."""
    for folder in ("kdlab", "tests", "notebooks", "book"):
        for path in (ROOT / folder).rglob("*.[pm][yd]"):
            hidden = {c for c in path.read_text(encoding="utf-8") if ord(c) < 32 and c != "\n"}
            assert not hidden, f"{path.relative_to(ROOT)}: {sorted(map(repr, hidden))}"
