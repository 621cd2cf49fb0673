"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tensornet.errors import WriteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRIES, _WAIT = 20, 0.01  # seconds
_OLD = ".old"


def write_file(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` beside ``path``, then rename it into place.

    Raises:
        WriteError: it cannot be written (no such folder, no permission, a full disk); what was there is still there.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is not there any more, or never was
            temporary.unlink()


def write_figure(path: Path, figure: Figure, dpi: int) -> None:
    """Write a figure in the format that the suffix of ``path`` names.

    Raises:
        WriteError: as `write_file`.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=dpi)
    write_file(path, drawn.getvalue())


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
        _restore(path)
        temporary = _beside(path)
        temporary.mkdir()
        for name, data in files.items():
            write_file(temporary / name, data)
        if path.exists():
            old = temporary.with_name(temporary.name + _OLD)
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
    """The files of one version of a folder that `write_folder` may be writing anew.

    Args:
        path: the folder; a version that a killed writer left beside it is put back.
        names: of the files; the first has other contents in every version.

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
    _restore(Path(os.path.realpath(path)))
    return [(path / name).read_bytes() for name in names]


def _being_written(path: Path) -> bool:
    """Whether a folder that is to become ``path`` stands beside it."""
    path = Path(os.path.realpath(path))
    return path.parent.is_dir() and any(entry.name.startswith(f".{path.name}.") for entry in path.parent.iterdir())


def _restore(path: Path) -> None:
    """Put back what a writer moved aside and was killed before it could replace."""
    if path.exists() or not path.parent.is_dir():
        return
    left = [entry for entry in path.parent.iterdir() if entry.name.startswith(f".{path.name}.") and entry.suffix == _OLD]
    for old in sorted(left, key=lambda entry: entry.stat().st_mtime)[-1:]:
        old.rename(path)


def _beside(path: Path) -> Path:
    """A name that nobody else uses, for what is to become ``path``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
