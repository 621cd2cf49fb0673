"""Modules of a user's own, which a command finds in the working directory as `python -m` does."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from tensornet.errors import ConfigError


@contextmanager
def modules_from_here() -> Iterator[None]:
    """Inside, imports look into the working directory first."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def import_module(name: str) -> None:
    """Import a module for what it registers.

    Raises:
        ConfigError: it cannot be imported, fails, or ends the program, as a script may.
    """
    if name.endswith(".py"):
        raise ConfigError(f"--import takes the name of a module, as an import statement does: {Path(name).stem}; got {name}")
    try:
        with modules_from_here(), redirect_stdout(sys.stderr):  # what it prints is no part of a table or of JSON
            importlib.import_module(name)
    except (Exception, SystemExit) as error:  # code of others: whatever it raises is the reason
        raise ConfigError(f"the module {name} cannot be imported: {type(error).__name__}: {error}") from error
