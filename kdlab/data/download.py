"""Where data live, and how they get there: checksummed, whole or not at all."""

import os
import sys
import tarfile
import warnings
from pathlib import Path

from ..files import atomic_folder, atomic_write, note_read


class DataError(RuntimeError):
    """Data that are missing, damaged or not what their name says."""


def folder() -> Path:
    """The data folder: ``KDLAB_DATA`` if it is set, else ``kdlab`` in the user's cache folder."""
    if named := os.environ.get("KDLAB_DATA"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdlab"


def fetch_file(url: str | None, known_sha256: str, name: str, *, download: bool = True) -> Path:
    """The file ``name`` of the data folder; if it is not there, downloaded from ``url``, whole and checked or not at all.

    Raises:
        DataError: if the file is missing and cannot be downloaded, and why.
    """
    target = note_read(folder() / name)
    if target.is_file():
        return target
    if url is None:
        raise DataError(f"{target} does not exist; set KDLAB_DATA to the folder that holds {name}.")
    pooch = _downloader(target, download)
    try:
        with atomic_write(target) as part:
            known = f"sha256:{known_sha256}"
            pooch.retrieve(url, known, fname=part.name, path=part.parent, downloader=_http(pooch))
    except Exception as error:
        raise _could_not(name, url, error) from error
    return target


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
    pooch = _downloader(target, download)
    try:
        with atomic_folder(target) as part:
            archive = pooch.retrieve(url, known_hash, fname="archive", path=part.parent, downloader=_http(pooch))
            with tarfile.open(archive) as tar:
                tar.extractall(part.parent, filter="data")
            if not any(part.iterdir()):
                raise DataError(f"the archive has no folder {name}")
    except Exception as error:
        raise _could_not(name, url, error) from error
    return target


def _downloader(target: Path, download: bool):
    """The pooch package, or why nothing is downloaded."""
    if not download or os.environ.get("KDLAB_OFFLINE"):
        raise DataError(
            f"{target} does not exist, and downloading is turned off; set KDLAB_DATA to the folder that holds {target.name}."
        )
    try:
        with warnings.catch_warnings():  # in a notebook, its progress bar complains of missing widgets
            warnings.simplefilter("ignore")
            import pooch
    except ImportError:
        raise DataError("downloading data needs pooch: pip install 'kdlab[data]'.") from None
    pooch.get_logger().setLevel("WARNING")
    return pooch


def _http(pooch):
    return pooch.HTTPDownloader(timeout=10, progressbar=sys.stderr.isatty())


def _could_not(name, url, error) -> DataError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DataError(f"{name} could not be downloaded from {url}: {reason}")
