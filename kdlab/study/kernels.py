"""The kernels of chapters: of this interpreter, with one thread; and a server that has imported what they need, and forks them."""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from ..training.memory import ENVIRONMENT as MEMORY_IS_KEPT

#: One thread a kernel: two that wait for each other are slower, and sums come out in one order.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

#: What a server imports before it forks, of what is there.
IMPORTED = (
    "ipykernel.kernelapp", "kdlab.study.display", "kdlab.theory", "kdlab.language", "scipy.optimize", "transformers.trainer",
    "kdlab.huggingface",
)  # fmt: skip

#: The allocator of pyarrow, which ``transformers`` may bring, would start a thread; a process that forks has one.
NO_THREAD_OF_ITS_OWN = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}


def for_kernels(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a kernel: these, one thread, memory that is kept, and this kdlab before any other."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return ONE_THREAD | MEMORY_IS_KEPT | {"PYTHONPATH": os.pathsep.join(paths)} | dict(environment)


class Forked:
    """A kernel that a server has forked, as much of ``subprocess.Popen`` as Jupyter asks for. Its exit status is the server's to know."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        try:
            return os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.05)
        return 0

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


class KernelServer:
    """A process that has imported what chapters need, and forks a kernel whenever it is asked: each begins some seconds later in its life.

    Used as a context: kernels end with it. It forks on Linux alone; elsewhere libraries are not made for it, and kernels start as ever.
    """

    def __init__(self, environment: Mapping[str, str], imported: Sequence[str] = IMPORTED):
        figures = {
            "MPLBACKEND": "module://matplotlib_inline.backend_inline"
        }  # as kernels have it, before matplotlib looks
        self.environment = os.environ | figures | NO_THREAD_OF_ITS_OWN | for_kernels(environment)
        self.imported = imported
        self.process, self.turn = None, threading.Lock()

    def __enter__(self):
        if sys.platform == "linux":
            command = [sys.executable, "-m", __name__, *self.imported]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment
            )
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()

    def fork(self, arguments: list[str], environment: Mapping[str, str], folder: str) -> Forked:
        """A kernel of these arguments and variables, in this folder."""
        with self.turn:
            order = json.dumps({"arguments": arguments, "environment": environment, "folder": folder})
            self.process.stdin.write(order.encode() + b"\n")
            self.process.stdin.flush()
            if not (number := self.process.stdout.readline()):
                raise RuntimeError("the server of kernels has ended; what it said is above.")
            return Forked(int(number))


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter that asks for it, whatever kernel is named ``python3`` elsewhere on Jupyter's path."""

    environment: ClassVar[dict[str, str]] = {}
    server: ClassVar[KernelServer | None] = None
    running: ClassVar[set[int]] = set()

    def _transport_default(self):
        """Sockets of files: a port that is free when it is chosen may be another's when the kernel binds it. Their names have an end: 107 bytes."""
        return "ipc" if sys.platform == "linux" and len(os.fsencode(_socket())) < 100 else "tcp"

    def _ip_default(self):
        if self.transport == "tcp":
            return super()._ip_default()
        return _socket()  # followed by -1 to -5

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=self.environment)

    async def _async_launch_kernel(self, kernel_cmd, **options):
        if self.server is None or self.server.process is None:
            await super()._async_launch_kernel(kernel_cmd, **options)
            return
        _, _, _, *arguments = kernel_cmd
        provisioner = self.provisioner
        provisioner.process = self.server.fork(arguments, options["env"], options["cwd"])
        provisioner.pid = provisioner.pgid = provisioner.process.pid
        self._reconcile_connection_info(provisioner.connection_info)

    _launch_kernel = _async_launch_kernel

    async def _async_start_kernel(self, **options):
        await super()._async_start_kernel(**options)
        self.running.add(self.provisioner.pid)

    start_kernel = _async_start_kernel

    async def _async_interrupt_kernel(self):
        if not self.shutting_down:  # a kernel that ends has nothing to be interrupted, and would say that it was
            await super()._async_interrupt_kernel()

    async def _async_cleanup_resources(self, restart=False):
        self.running.discard(getattr(self.provisioner, "pid", None))
        await super()._async_cleanup_resources(restart=restart)

    cleanup_resources = _async_cleanup_resources


def _socket() -> str:
    """Where a kernel is reached, in the temporary folder."""
    return str(Path(tempfile.gettempdir()) / f"kernel-{uuid4().hex[:12]}")


def stop_kernels() -> None:
    """Kill every kernel that this process runs, so that the threads that wait for them end."""
    for pid in list(OwnKernel.running):
        try:
            os.killpg(pid, signal.SIGKILL)  # a kernel leads its own group, with whatever it started
        except ProcessLookupError:
            pass


def serve(imported: Sequence[str]) -> None:
    """Fork a kernel for each line of the standard input, and say its number, until there are no more lines."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks for kernels ends them
    for name in imported:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    for line in sys.stdin.buffer:
        if (pid := os.fork()) == 0:
            become_kernel(**json.loads(line))
        os.write(1, b"%d\n" % pid)


def reap() -> None:
    """Take leave of the kernels that have ended; the time that they used is then this process's."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def become_kernel(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What a process that was just forked goes on to be: the kernel that ``python -m ipykernel_launcher`` starts."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # the pipe is the server's
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["ipykernel_launcher", *arguments, f"--IPKernelApp.parent_handle={os.getppid()}"]
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve(sys.argv[1:])
