"""Each mistake of ``mutations.py``, planted in a copy of the package, is noticed by the test that it names."""

import ast
import json
import os
import subprocess
import sys

import pytest
from mutations import CONTROLS, MUTATIONS, PACKAGE, TESTS

PLANT = """
import json, sys, mutations
every = [*mutations.MUTATIONS, *mutations.CONTROLS.values()]
chosen = [mutation for mutation in every if mutation.pitfall in json.loads(sys.argv[1])]
print(json.dumps({mutation.pitfall: outcome for mutation, outcome, _ in mutations.outcomes(chosen)}))
"""


@pytest.fixture(scope="module")
def outcome_of(request, tmp_path_factory):
    """What came of each mutation that was asked for: one process for all of them, which has not imported the package.

    Workers of pytest-xdist share it: the first that comes starts it, and it takes all cores; the others wait.
    """
    import fcntl

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with (shared / "mutations.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (said := shared / "mutations.json").exists():
            said.write_text(planted(request), encoding="utf-8")
    return json.loads(said.read_text(encoding="utf-8"))


def planted(request) -> str:
    items = [item for item in request.session.items if item.path == request.path]
    wanted = [item.callspec.params["mutation"].pitfall for item in items if hasattr(item, "callspec")]
    done = subprocess.run(
        [sys.executable, "-c", PLANT, json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@forks
@pytest.mark.parametrize("mutation", [pytest.param(m, id=m.pitfall) for m in MUTATIONS])
def test_the_mistake_is_noticed(mutation, outcome_of):
    assert outcome_of[mutation.pitfall] == "caught"


@forks
@pytest.mark.parametrize(("complaint", "mutation"), CONTROLS.items(), ids=[m.pitfall for m in CONTROLS.values()])
def test_what_is_no_mistake_or_a_mere_crash_does_not_count(complaint, mutation, outcome_of):
    assert outcome_of[mutation.pitfall].startswith(complaint)


def test_every_snippet_stands_once_in_its_file():
    for mutation in MUTATIONS:
        for file, old, new in [(mutation.file, mutation.old, mutation.new), *mutation.also]:
            assert (PACKAGE / file).read_text(encoding="utf-8").count(old) == 1 and old != new, mutation.pitfall


def test_every_pitfall_has_its_mutation():
    source = ast.parse((TESTS / "test_pitfalls.py").read_text(encoding="utf-8"))
    tests = {node.name for node in source.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    assert tests == {mutation.test.partition("[")[0] for mutation in MUTATIONS}
    assert len({mutation.pitfall for mutation in MUTATIONS}) == len(MUTATIONS)
