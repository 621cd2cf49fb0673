"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tensornet.errors import WriteError

_TRIES, _WAIT = 20, 0.01  # seconds


def write_file(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` beside ``path``, then rename it into place.

    Raises:
        WriteError: it cannot be written (no such folder, no permission, a full disk); what was there is still there.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, where they are not there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {error.strerror or error}") from error


def write_folder(path: str | Path, files: Mapping[str, bytes | str], mark: str) -> None:
    """Write a folder of ``files`` beside ``path``, then rename it into place; what else is in the folder stays there.

    Args:
        path: the folder; its parents are made.
        files: contents by file name.
        mark: the name of a file that tells such a folder: only a folder that has it, or is empty, is written to.

    Raises:
        WriteError: it cannot be written, or something else is at ``path``; what was there is still there.
    """
    try:
        path = Path(os.path.realpath(path))  # a link to a folder stays a link
        occupied = path.is_dir() and any(path.iterdir()) and not (path / mark).is_file()
        is_file = path.exists() and not path.is_dir()
    except (OSError, ValueError) as error:
        raise WriteError(f"cannot write {path}: {error}") from error
    if occupied:
        raise WriteError(f"{path} is a folder that holds other things (no {mark}); choose another place")
    if is_file:
        raise WriteError(f"{path} is a file; choose another place")
    temporary, old = None, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        temporary.chmod(0o777 & ~_umask())
        for name, data in files.items():
            write_file(temporary / name, data)
        if path.exists():
            old = temporary.with_name(temporary.name + ".old")
            path.rename(old)
        temporary.rename(path)
        for other in [] if old is None else [entry for entry in old.iterdir() if entry.name not in files]:
            other.rename(path / other.name)
    except (OSError, ValueError) as error:
        raise WriteError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if old is not None and old.exists() and not path.exists():
            old.rename(path)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if old is not None:
            with suppress(OSError):  # where something could not be moved, it is still there
                for name in files:
                    (old / name).unlink(missing_ok=True)
                old.rmdir()


def read_folder(path: Path, names: Sequence[str]) -> list[bytes]:
    """The files of one version of a folder that `write_folder` may be writing anew; the first of them tells versions apart.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    for _ in range(_TRIES):
        try:
            found = [(path / name).read_bytes() for name in names]
            if (path / names[0]).read_bytes() == found[0]:
                return found
        except FileNotFoundError:
            if not _being_written(path):
                raise
        time.sleep(_WAIT)
    return [(path / name).read_bytes() for name in names]


def _being_written(path: Path) -> bool:
    """Whether a folder that is to become ``path`` stands beside it."""
    path = Path(os.path.realpath(path))
    return path.parent.is_dir() and any(entry.name.startswith(f".{path.name}.") for entry in path.parent.iterdir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
