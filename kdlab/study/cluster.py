"""A plan over the machines of a Ray cluster: each worker runs one shard and hands its records back.

Ray finds the machines, places the workers and starts one anew that died; kdlab's part is the shard. Ray is not among kdlab's
extras, since it has to be the cluster's own version: ``pip install ray`` as your cluster has it.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

from ..training import Stopped
from .records import RecordError
from .runner import every_spec, plan, run_plan, take


def spread(
    name: str,
    workers: int,
    *,
    book: Path,
    out: Path,
    device: str = "cuda",
    budget: float | None = None,
    address: str | None = None,
) -> list[str]:
    """Run a plan on a Ray cluster and return the names of the records that came back.

    Args:
        name: of the plan.
        workers: into so many shards it is split; each takes one GPU, or one CPU core where ``device`` is ``"cpu"``.
        book: folder with teachers that exist already, readable from every machine.
        out: where records end up here. On each machine the shard works in a folder of its own below the same path, so
            that on a shared file system, or on the same machine, it goes on where it was stopped.
        device, budget: as in :func:`~kdlab.study.runner.run_plan`.
        address: of the cluster; None is the one that this machine belongs to, or a new one on it.

    Raises:
        ImportError: without Ray.
        PlanError: for a plan that cannot be split.
        RecordError: if a record came back damaged.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("spreading a plan needs Ray, in your cluster's version: pip install ray.") from None

    plan(name, f"1/{workers}", [book, Path(out)])  # one that cannot be split is said here, and not by a worker
    needs = {"num_cpus": 1} if device == "cpu" else {"num_gpus": 1}

    @ray.remote(**needs, max_retries=3)
    def worker(shard: str) -> dict[str, bytes]:
        place = Path(out) / f"shard-{shard.replace('/', '-of-')}"
        with suppress(Stopped):  # at the end of the budget: what is done comes back
            run_plan(lambda: plan(name, shard, [book, place]), book=Path(book), out=place, device=device, budget=budget)
        return {
            path.relative_to(place).as_posix(): path.read_bytes()
            for kind in ("records", "checkpoints")
            for path in sorted((place / kind).glob("*"))
        }

    ray.init(address=address, ignore_reinit_error=True)
    names = []
    for files in ray.get([worker.remote(f"{i}/{workers}") for i in range(1, workers + 1)]):
        if not files:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                (Path(folder) / path).parent.mkdir(exist_ok=True)
                (Path(folder) / path).write_bytes(content)
            try:
                names += take(Path(folder), Path(out), every_spec([book, out, folder]))
            except RecordError as error:
                raise RecordError(f"a worker's records are not whole: {error}") from None
    return names
