"""A chapter from its source to an executed notebook, by papermill, in a kernel of this interpreter with one thread."""

import os
import re
import signal
import sys
from pathlib import Path

from .parameters import declared_in, given_to

try:
    import jupytext
    import nbformat
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import ensure_event_loop
except ImportError as error:
    raise ImportError(f"chapters are executed with {error.name}: pip install 'kdlab[book]'.") from None

#: One thread a kernel: two that wait for each other are slower, and sums come out in one order.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class ChapterError(RuntimeError):
    """Which cell of a chapter broke, and how, in a sentence."""


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter that asks for it, whatever kernel is named ``python3`` elsewhere on Jupyter's path."""

    environment: dict = {}
    running: set = set()

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=self.environment)

    async def _async_start_kernel(self, **options):
        await super()._async_start_kernel(**options)
        self.running.add(self.provisioner.pid)

    start_kernel = _async_start_kernel

    async def _async_cleanup_resources(self, restart=False):
        self.running.discard(getattr(self.provisioner, "pid", None))
        await super()._async_cleanup_resources(restart=restart)

    cleanup_resources = _async_cleanup_resources


def stop_kernels() -> None:
    """Kill every kernel that this process runs, so that the threads that wait for them end."""
    for pid in list(OwnKernel.running):
        try:
            os.killpg(pid, signal.SIGKILL)  # a kernel leads its own group, with whatever it started
        except ProcessLookupError:
            pass


def read_chapter(path: Path) -> nbformat.NotebookNode:
    """The source of a chapter (py:percent) as a notebook without outputs."""
    notebook = jupytext.read(path)
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def failure(notebook) -> str | None:
    """Cell and error of a notebook that did not run to its end, else None."""
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or "papermill-error-cell-tag" in cell.metadata.get("tags", []):
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                first = cell.source.strip().splitlines()[0] if cell.source.strip() else ""
                message = " ".join(output.evalue.split())[:500]
                return f"cell {number} (“{first}”) raised {output.ename}: {message}"
    if notebook.metadata.get("papermill", {}).get("exception"):
        return "papermill stopped before its end"
    return None


def execute(
    chapter: Path, result: Path, parameters: dict, *, environment: dict | None = None, progress: bool = False
) -> nbformat.NotebookNode:
    """Execute a chapter in its own folder and return the notebook; what there is of it stands in ``result`` as it runs.

    Args:
        chapter: its source.
        result: a notebook to write while it runs.
        parameters: values by name, for those in the cell tagged ``parameters``.
        environment: variables for its kernel, besides one thread.
        progress: whether to show a bar.

    Raises:
        ParameterError: for a parameter that the chapter does not have, or a value that it cannot take.
        ChapterError: if a cell raises, or the kernel dies.
    """
    parameters = given_to(declared_in(chapter), parameters)
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]  # this kdlab, and no other
    variables = ONE_THREAD | {"PYTHONPATH": os.pathsep.join(paths)} | (environment or {})
    kernel = type("Kernel", (OwnKernel,), {"environment": variables})
    source = result.with_suffix(".source.ipynb")
    nbformat.write(read_chapter(chapter), source)
    try:
        papermill.execute_notebook(
            source, result, parameters=parameters, kernel_name="python3", kernel_manager_class=kernel,
            # Not papermill's own cwd, which moves the whole process: chapters run side by side.
            resources={"metadata": {"path": str(chapter.parent)}},
            extra_arguments=["--IPKernelApp.log_level=40"],
            progress_bar={"desc": "      cells", "leave": False} if progress else False,
        )  # fmt: skip
    except papermill.PapermillExecutionError:
        pass  # told below, from the notebook itself
    except Exception as error:  # a kernel that died, say
        raise ChapterError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    finally:
        source.unlink(missing_ok=True)
        if not (loop := ensure_event_loop()).is_running():
            loop.close()  # this thread's; its sockets would stay open
    executed = nbformat.read(result, 4)
    if broken := failure(executed):
        raise ChapterError(broken)
    for cell in executed.cells:
        cell.metadata.pop("papermill", None)
    return executed
