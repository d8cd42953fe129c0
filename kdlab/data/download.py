"""Where data live, and how they get there: checksummed, whole or not at all."""

import os
import shutil
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

from ..files import note_read


class DataError(RuntimeError):
    """Data that are missing, damaged or not what their name says."""


def folder() -> Path:
    """The data folder: ``KDLAB_DATA`` if it is set, else ``kdlab`` in the user's cache folder."""
    if named := os.environ.get("KDLAB_DATA"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdlab"


def fetch_archive(url: str, known_hash: str, name: str, *, download: bool = True) -> Path:
    """The folder ``name`` of the data folder; if it is not there, downloaded from ``url`` and unpacked.

    The archive is checked against ``known_hash`` before it is opened, and unpacked beside its place, then moved
    there in one step: a download that fails leaves nothing behind.

    Raises:
        DataError: if the folder is missing and cannot be downloaded, and why.
    """
    target = note_read(folder() / name)
    if target.is_dir():
        return target
    if not download or os.environ.get("KDLAB_OFFLINE"):
        raise DataError(
            f"{target} does not exist, and downloading is turned off; set KDLAB_DATA to the folder that holds {name}."
        )
    try:
        with warnings.catch_warnings():  # in a notebook, its progress bar complains of missing widgets
            warnings.simplefilter("ignore")
            import pooch
    except ImportError:
        raise DataError("downloading data needs pooch: pip install 'kdlab[data]'.") from None
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{name}."))
        pooch.get_logger().setLevel("WARNING")
        downloader = pooch.HTTPDownloader(timeout=10, progressbar=sys.stderr.isatty())
        archive = pooch.retrieve(url, known_hash, fname="archive", path=scratch, downloader=downloader)
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (scratch / name).rename(target)
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{name} could not be downloaded from {url}: {reason}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target
