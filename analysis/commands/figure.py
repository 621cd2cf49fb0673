"""Where a figure goes: looked at before any work is done for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.kinds import FIGURES


def writable(path: Path | None) -> Path | None:
    """The path itself.

    Raises:
        typer.BadParameter: a figure cannot be written there.
    """
    if path is not None and path.suffix not in FIGURES:
        raise typer.BadParameter(f"{path}: a figure is written as .png, .svg or .pdf")
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"{path}: there is no folder {path.parent}")
    return path


Figure = Annotated[Path | None, typer.Option(help="Write a figure: .png, .svg or .pdf.", callback=writable)]
