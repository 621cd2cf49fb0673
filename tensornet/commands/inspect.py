"""`tensornet inspect`: what is in a task folder, or what tasks would weigh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tensornet.commands.backbone import Data, Options, read_options
from tensornet.commands.output import Json, print_json, print_table, some


def inspect(
    task: Annotated[Path | None, typer.Argument(help="A task folder.")] = None,
    count: Annotated[str | None, typer.Option(help="Count the tasks of a backbone instead: hub:DIR:ENTRY, …")] = None,
    data: Data = Path(),
    option: Options = [],  # noqa: B006
    decomposition: Annotated[str | None, typer.Option(help="With --count: cp by default.")] = None,
    rank: Annotated[int | None, typer.Option(help="With --count.")] = None,
    budget: Annotated[float | None, typer.Option(help="With --count: a share of the dense parameters, not a rank.")] = None,
    folding: Annotated[str | None, typer.Option(help="With --count: layer by default.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="With --count: how many, 1 by default.")] = None,
    json: Json = False,
) -> None:
    """Print the tensors of a task folder, or what tasks of a backbone would weigh, no factor built."""
    if (task is None) == (count is None):
        raise typer.BadParameter("give a task folder, or --count BACKBONE")
    wanted = {"decomposition": decomposition, "rank": rank, "budget": budget, "folding": folding}
    settings = {name: value for name, value in wanted.items() if value is not None}
    if count is not None:
        _count(count, data, read_options(option), settings, tasks or 1, json)
    elif task is not None:
        others = [*settings, *(["tasks"] if tasks else []), *(["option"] if option else [])]
        if others:
            raise typer.BadParameter(f"{', '.join(f'--{name}' for name in others)}: only with --count; a task says its own")
        _task(task, json)


def _task(path: Path, json: bool) -> None:
    from tensornet.files import read_task

    file = read_task(path)
    counts = file.parameter_counts()
    shares: dict[str, int] = {}  # of a tensor that several layers are slices of; together they are all of it
    for plan, _ in file.tensors:
        members = len(plan.fold.members)
        shares |= {m.target.name: (plan.parameters + i) // members for i, m in enumerate(plan.fold.members)}
    tensors: list[dict[str, Any]] = []
    for plan, delta, record in file.deltas():
        norm = delta.norm().item()
        tensors.append(
            {
                "layer": delta.target.name,
                "shape": list(delta.target.shape),
                "decomposition": plan.decomposition,
                "rank": plan.rank,
                "parameters": shares[delta.target.name],
                "norm": norm,
                "relative_norm": norm / record.norm if record.norm else None,
            }
        )
    backbone = file.record.backbone
    if json:
        known: dict[str, Any] = {"name": file.name, "backbone": backbone.name, "backbone_hash": backbone.hash}
        known |= {"parameters": counts, "config": file.config.to_dict(), "tensors": tensors}
        print_json(known | {"norms": dict(file.record.norms), "classes": file.record.classes})
        return
    lines = [
        [
            t["layer"],
            "×".join(map(str, t["shape"])),
            t["decomposition"],
            str(t["rank"]),
            f"{t['parameters']:,}",
            f"{t['norm']:.4g}",
            "" if t["relative_norm"] is None else f"{t['relative_norm']:.3f}",
        ]
        for t in tensors
    ]
    header = ["layer", "weight", "decomposition", "rank", "parameters", "‖ΔW‖", "‖ΔW‖ / ‖W‖"]
    title = f"{file.name}, a task for {backbone.name} ({backbone.hash[:12]}…): " + ", ".join(
        f"{name} {n:,}" for name, n in counts.items()
    )
    classes = file.record.classes or []
    if classes:
        title += f"\n{len(classes)} classes: {some(classes, 12)}"
    print_table(title, header, lines, left=3)


def _count(source: str, data: Path, options: dict[str, Any], settings: dict[str, Any], tasks: int, json: bool) -> None:
    import torch

    from tensornet.backbones import load_backbone
    from tensornet.config import AdaptConfig
    from tensornet.counting import count_tasks
    from tensornet.errors import BackboneError

    try:
        with torch.device("meta"):
            backbone = load_backbone(source, root=data, pretrained=False, options=options)
    except BackboneError:  # not every constructor runs without memory
        backbone = load_backbone(source, root=data, pretrained=False, options=options)
    counted = count_tasks(backbone, AdaptConfig(**settings), tasks)
    kinds: dict[tuple[str, str], list[int]] = {}
    for plan in counted.plans:
        kinds.setdefault((plan.decomposition, str(plan.rank)), []).append(plan.parameters)
    if json:
        print_json(
            {
                "backbone": source,
                "base": counted.base,
                "deltas_per_task": counted.deltas,
                "norms_per_task": counted.norms,
                "tasks": tasks,
                "total": counted.total,
                "ratio": counted.ratio,
                "tensors": len(counted.plans),
            }
        )
        return
    lines = [[name, rank, str(len(own)), f"{sum(own):,}"] for (name, rank), own in kinds.items()]
    lines.append(["norm layers", "", "", f"{counted.norms:,}"])
    title = (
        f"{source}: {counted.base:,} parameters; {tasks} task{'s' if tasks > 1 else ''} of "
        f"{counted.deltas + counted.norms:,}: {counted.total:,} in all, {counted.ratio:.4f}×"
    )
    print_table(title, ["of one task", "rank", "tensors", "parameters"], lines)
