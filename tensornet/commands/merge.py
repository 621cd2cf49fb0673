"""`tensornet merge`: one task as ordinary weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tensornet.commands.backbone import Backbone, Data, Options, Weights, on_its_backbone
from tensornet.commands.output import say


def merge(
    task: Annotated[Path, typer.Argument(help="A task folder.")],
    out: Annotated[Path, typer.Option(help="A safetensors file to write.")],
    backbone: Backbone = None,
    data: Data = Path(),
    weights: Weights = None,
    option: Options = [],  # noqa: B006
) -> None:
    """Write the weights of an ordinary network that computes one task: W + ΔW, its norms, its head."""
    from safetensors.torch import save

    from tensornet.atomic import write_file
    from tensornet.files import read_task
    from tensornet.heads import is_described, stand_in
    from tensornet.states import packed

    file = read_task(task)
    head = None if is_described(file.record.head) else stand_in(file.head)
    net, name = on_its_backbone(file, backbone, data, weights, option, head)
    state = packed(net.merged(name).state_dict())
    write_file(out, save(state, {"format": "pt"}))
    say(f"{out}: {len(state)} tensors of {name!r} on {net.backbone_name}")
