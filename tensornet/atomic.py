"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tensornet.errors import WriteError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRIES, _WAIT = 20, 0.01  # seconds
_OLD = ".old"
_TOKEN = 4  # bytes


def write_file(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` beside ``path``, then rename it into place.

    Raises:
        WriteError: it cannot be written (no such folder, no permission, a full disk); what was there is still there.
    """
    path = Path(path)
    temporary = None
    try:
        temporary = _beside(path)
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        raise WriteError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError, ValueError):  # it is not there any more, or never was
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
    temporary = None
    try:
        path = Path(os.path.realpath(path))  # a link to a folder stays a link
        temporary = _beside(path)
        if path.parent.is_dir():
            with _one_at_a_time(path.parent):
                _check_free(path, mark)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, data in files.items():
            write_file(temporary / name, data)
        with _one_at_a_time(path.parent):
            _restore(path, [mark])
            _swap(temporary, path, files)
    except WriteError:
        raise
    except (OSError, ValueError) as error:
        raise WriteError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_free(path: Path, mark: str) -> None:
    if path.is_dir() and any(path.iterdir()) and not (path / mark).is_file():
        raise WriteError(f"{path} is a folder that holds other things (no {mark}); choose another place")
    if path.exists() and not path.is_dir():
        raise WriteError(f"{path} is a file; choose another place")


def _swap(new: Path, path: Path, names: Container[str]) -> None:
    """Rename ``new`` to ``path``; of what is there, all but files of these names comes along."""
    old = new.with_name(new.name + _OLD)
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
        for left in sorted(_moved_aside(path), key=lambda left: left != old):
            for entry in left.iterdir():
                if entry.name not in names and not (path / entry.name).exists():
                    entry.rename(path / entry.name)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in _moved_aside(path):
            with suppress(OSError):  # where something could not be moved, it is still there
                for entry in left.iterdir():
                    if entry.name in names:
                        entry.unlink()
                left.rmdir()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Inside, no other thread or process swaps in this folder; where the system cannot see to that, nothing is ensured."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
    _restore(Path(os.path.realpath(path)), names)
    return [(path / name).read_bytes() for name in names]


def _being_written(path: Path) -> bool:
    """Whether a folder that is to become ``path`` stands beside it."""
    path = Path(os.path.realpath(path))
    return path.parent.is_dir() and any(entry.name.startswith(f".{path.name}.") for entry in path.parent.iterdir())


def _restore(path: Path, names: Sequence[str]) -> None:
    """Put back what a writer moved aside and was killed before it could replace, where it has files of these names."""
    with suppress(OSError):
        whole = [old for old in _moved_aside(path) if all((old / name).is_file() for name in names)]
        if whole and not path.exists():
            max(whole, key=lambda old: old.stat().st_mtime).rename(path)


def _moved_aside(path: Path) -> list[Path]:
    """Versions of a folder that writers moved aside; those of a folder called `flowers.v2` are not those of `flowers`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * _TOKEN}}}{re.escape(_OLD)}")
    return [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)] if path.parent.is_dir() else []


def _beside(path: Path) -> Path:
    """A name that nobody else uses, for what is to become ``path``."""
    return path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN)}")
