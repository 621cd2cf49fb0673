"""What several verbs ask about a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tensornet.assignments import read_assignment

if TYPE_CHECKING:
    from torch import nn

    from tensornet.files import TaskFile
    from tensornet.network import AdaptedNetwork

Backbone = Annotated[str | None, typer.Option(help="hub:DIR:ENTRY, …; the one that the task names by default.")]
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


def named_backbone(name: str, data: Path, weights: str | None, options: Sequence[str]) -> nn.Module:
    """The backbone of a task, by the name that the task or `--backbone` gives.

    Raises:
        BackboneError: as `load_backbone`.
    """
    from tensornet.backbones import load_backbone
    from tensornet.errors import BackboneError

    try:
        return load_backbone(name, root=data, weights=weights, options=read_options(options))
    except BackboneError as error:
        told = (
            "--backbone names it where the task does not; options of its recipe's [backbone] are --option here, weights "
            "--weights, and paths begin at --data"
        )
        raise BackboneError(f"{error}\n{told}") from error


def on_its_backbone(
    task: TaskFile,
    backbone: str | None,
    data: Path,
    weights: str | None,
    options: Sequence[str],
    head: nn.Module | None = None,
) -> tuple[AdaptedNetwork, str]:
    """The backbone of a task, or another by name, with the task loaded, and the task's name; ``head`` as `load_task`.

    Raises:
        BackboneError, TaskFileError, MismatchError: as `load_backbone` and `AdaptedNetwork.load_task`.
    """
    from tensornet.config import AdaptConfig
    from tensornet.network import adapt

    record = task.record.backbone
    config = AdaptConfig("none", norms="shared", head=record.head or "none")
    net = adapt(named_backbone(backbone or record.name, data, weights, options), config, name=record.name)
    return net, net.load_task(task, head=head).name
