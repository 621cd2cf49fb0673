"""Where files go: looked at before any work is done for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.kinds import FIGURES


def in_a_folder(path: Path | None) -> Path | None:
    """The path itself.

    Raises:
        typer.BadParameter: there is no folder that it could lie in.
    """
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"{path}: there is no folder {path.parent}")
    return path


def a_figure(path: Path | None) -> Path | None:
    """The path itself.

    Raises:
        typer.BadParameter: a figure cannot be written there.
    """
    if path is not None and path.suffix not in FIGURES:
        raise typer.BadParameter(f"{path}: a figure is written as .png, .svg or .pdf")
    return in_a_folder(path)


Figure = Annotated[Path | None, typer.Option(help="Write a figure: .png, .svg or .pdf.", callback=a_figure)]
Csv = Annotated[Path | None, typer.Option(help="Write the table as CSV.", callback=in_a_folder)]
