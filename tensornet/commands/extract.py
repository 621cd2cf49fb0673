"""`tensornet extract`: a task from a network that was fine-tuned as a whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tensornet.commands.backbone import Data, Options, Weights, read_options
from tensornet.commands.output import Json, print_json, print_table


def extract(
    tuned: Annotated[Path, typer.Argument(help="A safetensors file: the state dict of the fine-tuned network.")],
    out: Annotated[Path, typer.Option(help="Folder for the task.")],
    backbone: Annotated[str, typer.Option(help="What it began from: hub:DIR:ENTRY, timm:NAME, …")],
    plan: Annotated[Path | None, typer.Option(help="A plan of `tensornet choose`.")] = None,
    decomposition: Annotated[str | None, typer.Option(help="Without a plan: for every layer; cp by default.")] = None,
    rank: Annotated[int | None, typer.Option(help="Without a plan: of every layer.")] = None,
    head: Annotated[str | None, typer.Option(help="Path of the head; by default the last linear layer.")] = None,
    name: Annotated[str, typer.Option(help="Of the task; the file's by default.")] = "",
    data: Data = Path(),
    weights: Weights = None,
    option: Options = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Decompose what fine-tuning changed into a task folder: deltas, the tuned norms and the tuned head."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from tensornet.backbones import load_backbone
    from tensornet.config import NONE, AdaptConfig
    from tensornet.errors import ConfigError, TaskFileError
    from tensornet.extraction import extract_task
    from tensornet.network import adapt

    if plan is not None and (rank is not None or decomposition is not None):
        raise ConfigError("a plan says decompositions and ranks; give --plan, or --decomposition and --rank, not both")
    try:
        state = load_file(tuned)
    except (OSError, SafetensorError) as error:
        raise TaskFileError(f"{tuned} cannot be read as a safetensors file: {error}") from None
    how = AdaptConfig(decomposition or "cp", rank) if plan is None else AdaptConfig(NONE, layers=plan)
    config = replace(how, head=head)
    net = adapt(load_backbone(backbone, root=data, weights=weights, options=read_options(option)), config, name=backbone)
    task = extract_task(net, name or tuned.stem, state)
    net.save_task(task.name, out)
    counts = task.parameter_counts()
    if json:
        print_json({"task": task.name, "out": str(out), "parameters": counts})
        return
    print_table(f"{task.name}, in {out}", ["part", "parameters"], [[part, f"{count:,}"] for part, count in counts.items()])
