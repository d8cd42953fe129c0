"""Files that are either whole or not there, and a trace of what was read."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


#: Whatever is older than this, in seconds, and belongs to no process was left by one that was killed.
_LEFT = 60.0


@contextmanager
def _scratch(path: Path):
    """A folder beside ``path``, locked as long as its process lives. Those that killed processes have left are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(path.name)}\.\w{{8}}\.part", left.name):
            with suppress(OSError), _lock(left):  # taken by none: its process is gone
                if time.time() - left.stat().st_mtime > _LEFT:
                    shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    with ExitStack() as held:
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        with suppress(OSError):  # where folders cannot be locked, none is taken for left
            held.enter_context(_lock(scratch))
        yield scratch


@contextmanager
def _lock(folder: Path):
    """Hold the lock of a folder; an OSError where another process has it, or there are no locks."""
    if fcntl is None:
        raise OSError("no locks on this system")
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def atomic_write(path):
    """Yield a temporary path beside ``path``; move it there only if the block succeeds.

    A reader sees the old file or the new one, never a part. If the block fails (disk full), the old file stays and the temporary
    one is removed; if the process is killed, the next that writes ``path`` removes it.

    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(target) as part:
    ...     _ = part.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    with _scratch(path) as scratch:
        (part := scratch / "part").touch()
        yield part
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.chmod(0o644)
        part.replace(path)


@contextmanager
def atomic_folder(path):
    """Yield an empty folder beside ``path``; move it there only if the block succeeds.

    If another process has made ``path`` meanwhile, its folder stays and this one is dropped. What a killed process has left is removed
    by the next.
    """
    path = Path(path)
    with _scratch(path) as scratch:
        (part := scratch / path.name).mkdir()  # the scratch folder is its owner's alone, and this one is not
        yield part
        try:
            part.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def writable(folder):
    """Make ``folder``, if it is not there, and see that files can be made in it.

    Raises:
        OSError: if not.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def remove(path):
    """Remove a file, or a folder with what it holds; nothing where neither is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def note_read(path):
    """Append ``path`` to the file that ``KDLAB_TRACE`` names, if it is set; return ``path``.

    Every loader of kdlab passes the files it looks for through here, found or not, so that the book's
    build knows which chapter depends on which data.
    """
    if trace := os.environ.get("KDLAB_TRACE"):
        with open(trace, "a", encoding="utf-8") as f:
            f.write(f"{os.path.abspath(path)}\n")
    return Path(path)
