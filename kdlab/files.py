"""Files that are either whole or not there, and a trace of what was read."""

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path):
    """Yield a temporary path beside ``path``; move it there only if the block succeeds.

    A reader sees the old file or the new one, never a part. If the block fails (killed, disk full), the
    old file stays and the temporary one is removed.

    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(target) as part:
    ...     _ = part.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    part = Path(part)
    try:
        yield part
        with part.open("rb") as f:
            os.fsync(f.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path):
    """Yield an empty folder beside ``path``; move it there only if the block succeeds.

    If another process has made ``path`` meanwhile, its folder stays and this one is dropped.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        (part := scratch / path.name).mkdir()  # the scratch folder is its owner's alone, and this one is not
        yield part
        try:
            part.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def writable(folder):
    """Make ``folder``, if it is not there, and see that files can be made in it.

    Raises:
        OSError: if not.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


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
