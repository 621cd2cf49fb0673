"""`tensornet export`: a task as an adapter of PEFT."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tensornet.commands.backbone import Backbone, Data, Options, Weights, on_its_backbone
from tensornet.commands.output import Json, print_json, print_table


def export(
    task: Annotated[Path, typer.Argument(help="A task folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    backbone: Backbone = None,
    data: Data = Path(),
    weights: Weights = None,
    option: Options = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Write a task as a LoRA adapter that PEFT loads; layers that LoRA cannot say are written whole."""
    from tensornet.export import export_task
    from tensornet.files import read_task

    net, name = on_its_backbone(read_task(task), backbone, data, weights, option)
    layers = export_task(net, name, out)
    if json:
        print_json({"task": name, "out": str(out), "layers": [asdict(layer) for layer in layers]})
        return
    lines = [[one.layer, "whole" if one.rank is None else f"LoRA {one.rank}", f"{one.parameters:,}"] for one in layers]
    print_table(f"{name}, in {out}", ["layer", "written as", "parameters"], lines, left=2)
