"""`tensornet prune`: a smaller task, or the accuracy of all tasks of a run against the threshold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands.places import Csv, a_figure
from analysis.kinds import LABELS, Kind
from tensornet.commands.backbone import Backbone, Options, Weights, named_backbone
from tensornet.commands.output import Json, print_json, print_table, say

if TYPE_CHECKING:
    from torch import nn


def prune(
    task: Annotated[Path | None, typer.Argument(help="A task folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="The smaller task; with --sweep, a figure.")] = None,
    threshold: Annotated[
        list[float], typer.Option(help="Remove deltas whose norm is below it. With --sweep: repeat, or leave out.")
    ] = [],  # noqa: B006
    keep: Annotated[int | None, typer.Option(help="Keep the deltas of so many layers, those of the largest norm.")] = None,
    budget: Annotated[str | None, typer.Option(help="Keep so many parameters in deltas: 20000 or 50%.")] = None,
    energy: Annotated[float | None, typer.Option(help="Round every delta to the rank that keeps this share of it.")] = None,
    kind: Annotated[Kind, typer.Option(help="Which norm.")] = "delta",
    norms: Annotated[
        float | None, typer.Option(help="Norm layers that changed less become the backbone's again; 0.05 is 5 %.")
    ] = None,
    sweep: Annotated[Path | None, typer.Option(help="Test all tasks of this run at many thresholds.")] = None,
    only: Annotated[list[str], typer.Option("--task", help="With --sweep: only this task. May be repeated.")] = [],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="With --sweep: only this variant. May be repeated.")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="With --sweep: only this seed. May be repeated.")] = [],  # noqa: B006
    reestimate: Annotated[
        bool, typer.Option("--reestimate", help="With --sweep: also with batch-norm statistics estimated anew.")
    ] = False,
    data: Annotated[Path, typer.Option(help="Folder from which paths of data and backbones begin.")] = Path(),
    backbone: Backbone = None,
    weights: Weights = None,
    option: Options = [],  # noqa: B006
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Remove or round deltas that matter little; a pruned layer computes exactly what the backbone computes."""
    from tensornet.errors import ConfigError
    from tensornet.files import read_task

    if (task is None) == (sweep is None):
        raise ConfigError("give a task folder to prune, or --sweep with the folder of a run")
    if norms is None and (backbone is not None or weights is not None or option):
        raise ConfigError("--backbone, --weights and --option are of the backbone, which only --norms looks at")
    if sweep is not None:
        extra = {"--keep": keep, "--budget": budget, "--energy": energy, "--norms": norms}
        given = [name for name, value in extra.items() if value is not None]
        if given:
            raise ConfigError(f"a sweep is over thresholds; leave out {', '.join(given)}")
        _sweep(sweep, out, threshold, kind, only, variant, seed, reestimate, data, csv, json)
        return
    assert task is not None
    if only or variant or seed or reestimate:
        raise ConfigError("--task, --variant, --seed and --reestimate are for --sweep")
    if out is None:
        raise ConfigError("--out says where the smaller task goes")
    if len(threshold) > 1:
        raise ConfigError(f"one task has one threshold; got {threshold}")
    network = None
    if norms is not None:
        network = named_backbone(backbone or read_task(task).record.backbone.name, data, weights, option)
    _prune(task, out, next(iter(threshold), None), keep, budget, energy, kind, norms, network, csv, json)


def _prune(
    task: Path,
    out: Path,
    threshold: float | None,
    keep: int | None,
    budget: str | None,
    energy: float | None,
    kind: Kind,
    norms: float | None,
    backbone: nn.Module | None,
    csv: Path | None,
    json: bool,
) -> None:
    from analysis.commands.amounts import amount
    from analysis.pruning import prune as shrink
    from analysis.tables import shown_rank
    from tensornet.atomic import write_file

    pruned = shrink(
        task,
        out,
        threshold=threshold,
        keep=keep,
        budget=None if budget is None else amount(budget),
        energy=energy,
        kind=kind,
        norms=norms,
        backbone=backbone,
    )
    if csv is not None:
        write_file(csv, pruned.table.to_csv())
    before, after = int(pruned.table["parameters_before"].sum()), int(pruned.table["parameters"].sum())
    summary = {
        "task": pruned.file.name,
        "removed": pruned.removed,
        "norms_returned": dict(pruned.returned),
        "parameters_before": before,
        "parameters": after,
        "out": str(out),
    }
    layers: list[dict[Any, Any]] = pruned.table.reset_index().to_dict("records")
    if json:
        print_json(summary | {"layers": layers})
        return
    lines = [
        [
            str(row["layer"]),
            f"{row['norm']:.4g}",
            "yes" if row["kept"] else "no",
            shown_rank(row["rank_before"]),
            shown_rank(row["rank"]),
            f"{row['parameters']:,}",
        ]
        for row in layers
    ]
    title = f"{pruned.file.name}: {before:,} parameters in deltas, {after:,} now; {len(pruned.removed)} layers removed"
    print_table(title, ["layer", LABELS[kind], "kept", "rank before", "rank", "parameters"], lines)
    if norms is not None:
        said = f"{len(pruned.returned)} norm layers returned, {len(pruned.file.norms)} stay the task's own"
        say(said)


def _sweep(
    run: Path,
    out: Path | None,
    thresholds: list[float],
    kind: Kind,
    task: list[str],
    variant: list[str],
    seed: list[int],
    reestimate: bool,
    data: Path,
    csv: Path | None,
    json: bool,
) -> None:
    from analysis.figures import save_figure, sweep_lines
    from analysis.sweep import sweep
    from tensornet.atomic import write_file
    from tensornet.errors import ConfigError
    from tensornet.training.grid import Grid
    from tensornet.training.recorded import recorded_recipes, trained_tasks

    a_figure(out)
    recorded = recorded_recipes(run)
    adapted = [name for name, recipe in recorded.items() if recipe.train.method == "adapt"]
    whole = [name for name in variant if name in recorded and name not in adapted]
    if whole:
        raise ConfigError(f"variant {whole[0]!r} trained whole networks, which have no deltas to remove")
    variant = variant or adapted
    grid = Grid(recorded, data, run, trained_tasks(recorded, run, task, variant, seed), variant, seed)
    table = sweep(grid, thresholds or None, kind, reestimate=reestimate, before=say)
    if csv is not None:
        write_file(csv, table.to_csv(index=False))
    if out is not None:
        several = len(set(table["variant"])) > 1
        labels = [", ".join(filter(None, pair)) for pair in zip(table["variant"], table["task"], strict=True)]
        shown = table.assign(task=labels) if several else table
        title = "Accuracy as deltas below a threshold are removed"
        save_figure(sweep_lines(shown, title, f"threshold of the {LABELS[kind]}"), out)
    points: list[dict[Any, Any]] = table.to_dict("records")
    if json:
        print_json(points)
        return
    lines = [
        [
            " ".join(part for part in (p["variant"], p["task"], f"seed {p['seed']}") if part),
            f"{p['threshold']:.3g}",
            f"{p['removed']} of {p['layers']}",
            f"{p['parameters']:,}",
            f"{100 * p['accuracy']:.1f}",
            "" if p["reestimated"] is None or p["reestimated"] != p["reestimated"] else f"{100 * p['reestimated']:.1f}",
        ]
        for p in points
    ]
    header = ["task", "threshold", "layers removed", "parameters", "accuracy", "statistics re-estimated"]
    print_table("Accuracy on what the run was scored on, percent", header, lines)
