"""What several verbs ask about a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tensornet.assignments import read_assignment

Data = Annotated[Path, typer.Option(help="Folder from which the paths of backbone and weights begin.")]
Weights = Annotated[str | None, typer.Option(help="A safetensors file with the backbone's weights.")]
Options = Annotated[
    list[str],
    typer.Option("--option", help="An argument of the function that builds the backbone: width=2. May be repeated."),
]


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """The arguments that `--option` gives.

    Raises:
        typer.BadParameter: one is no assignment.
    """
    found: dict[str, Any] = {}
    for option in options:
        try:
            found |= read_assignment(option)
        except ValueError:
            raise typer.BadParameter(f"--option {option!r}: expected key=value, such as width=2") from None
    return found
