"""`tensornet choose`: decomposition and rank per layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands.places import Csv, Figure, in_a_folder
from analysis.kinds import Cost
from tensornet.commands.output import Json, print_json, print_table, say

if TYPE_CHECKING:
    import pandas as pd

    from analysis.selection import Plan


def choose(
    budget: Annotated[str, typer.Option(help="For all layers together: 20000, or a share of the weights: 5%.")],
    base: Annotated[Path | None, typer.Option(help="A safetensors file: the network before it was tuned.")] = None,
    tuned: Annotated[Path | None, typer.Option(help="A safetensors file or a task folder: what it became.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan as TOML.", callback=in_a_folder)] = None,
    unit: Annotated[Cost, typer.Option(help="What the budget is in.")] = "parameters",
    decompositions: Annotated[str, typer.Option(help="Names with commas between; all that are registered by default.")] = "",
    recipe: Annotated[str, typer.Option(help="A recipe whose backbone and images to use instead of --base.")] = "",
    variant: Annotated[str, typer.Option(help="Of the recipe.")] = "",
    task: Annotated[str, typer.Option(help="Of the recipe: whose images calibrate; without --tuned, give gradients.")] = "",
    images: Annotated[int | None, typer.Option(help="How many training images to look at; 512 by default.")] = None,
    head: Annotated[str | None, typer.Option(help="Path of the head, which is no target.")] = None,
    data: Annotated[Path, typer.Option(help="Folder from which the recipe's paths begin.")] = Path(),
    extract: Annotated[Path | None, typer.Option(help="Also write the decomposed task; needs --recipe.")] = None,
    reestimate: Annotated[
        bool, typer.Option("--reestimate", help="Estimate the batch-norm statistics of that task anew.")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="Also test what the plan, the best single choice and truncated SVD extract.")
    ] = False,
    figure: Figure = None,
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Choose the decomposition and the rank of every layer: least error within a budget, with a proof."""
    from analysis.commands.amounts import amount
    from analysis.selection import choose as select
    from tensornet.atomic import write_file
    from tensornet.decompositions import decomposition
    from tensornet.errors import ConfigError

    if reestimate and extract is None:
        raise ConfigError("--reestimate is for the task that --extract writes: give --extract too")
    if not recipe and (task or variant or images is not None):
        raise ConfigError("--task, --variant and --images are of a recipe: give --recipe too, or leave them out")
    if extract is not None and (not recipe or tuned is None):
        raise ConfigError("--extract writes the deltas of --tuned for the backbone of --recipe: give both")
    if test and (not recipe or tuned is None or tuned.is_dir()):
        raise ConfigError("--test extracts from the checkpoint --tuned on the data of --recipe: give both")
    if recipe and tuned is None and unit == "multiply_adds":
        raise ConfigError("multiply-adds are counted on the inputs of a fine-tuned network: give --tuned")
    limit = amount(budget)
    names = [name.strip() for name in decompositions.split(",") if name.strip()] or None
    for name in names or []:
        decomposition(name)  # an unknown one is refused before anything is trained or looked at
    setting, own = None, dict[str, Any]()
    if recipe:
        from analysis.selection.setting import Setting

        if base is not None or not task:
            raise ConfigError(
                "with --recipe, the recipe has the base: leave out --base, and name one of its tasks with --task"
            )
        setting = Setting(recipe, variant, task, data, 512 if images is None else images)
        own = {"unit": unit, "head": head or setting.head}
        if tuned is None:
            plan = select(None, setting.gradients(), limit, names, **own)
        else:
            plan = select(setting.base(), setting.tuned(tuned), limit, names, setting.inputs(), **own)
    elif tuned is None:
        raise ConfigError("give --tuned with a checkpoint or a task folder, or --recipe and --task for gradients")
    else:
        plan = select(base, tuned, limit, names, unit=unit, head=head)
    if extract is not None:
        assert setting is not None
        assert tuned is not None
        from tensornet.extraction import extract_task

        net = setting.network()
        made = extract_task(net, task, setting.tuned(tuned), plan.config(net.default_config), plan.decompositions)
        made.classes = setting.classes
        if reestimate:
            from tensornet.training.statistics import reestimate as estimate

            estimate(net, made.name, setting.training_inputs())
        net.save_task(made.name, extract)
    proof = None
    if test:
        assert setting is not None
        assert tuned is not None
        from analysis.selection.proof import extraction_accuracy

        svd = select(setting.base(), setting.tuned(tuned), limit, ["low_rank"], setting.inputs(), **own)
        plans = {"the plan": plan, "SVD, best ranks per layer": svd}
        for label, best in (("best single", plan.uniform), ("SVD", svd.uniform)):
            if best is not None:
                plans[f"{label}: {best.name}"] = best
        proof = extraction_accuracy(setting, tuned, plans)
    if out is not None:
        plan.save(out)
    if csv is not None:
        write_file(csv, plan.table.to_csv())
    if figure is not None:
        from analysis.figures import plan_figure, save_figure

        save_figure(plan_figure(plan), figure)
    if json:
        tests = {} if proof is None else {"test": proof.astype(object).where(proof.notna(), None).to_dict("index")}
        print_json(_summary(plan) | tests)
        return
    _print(plan)
    if proof is not None:
        _print_test(proof)


def _print_test(proof: pd.DataFrame) -> None:
    cells = proof.astype(object).where(proof.notna(), None).reset_index().to_dict("records")
    lines = [
        [
            str(row["index"]),
            "" if row["parameters"] is None else f"{row['parameters']:,.0f}",
            f"{row['error']:.4f}",
            *("" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("accuracy", "reestimated")),
        ]
        for row in cells
    ]
    header = ["extracted, not trained", "parameters", "relative error", "accuracy", "statistics re-estimated"]
    print_table("Accuracy on what the run was scored on, percent", header, lines)


def _summary(plan: Plan) -> dict[str, Any]:
    uniform = plan.uniform
    return {
        "budget": plan.budget,
        "unit": plan.unit,
        "cost": plan.cost,
        "whole": plan.whole,
        "parameters": plan.parameters,
        "error": plan.error,
        "bound": plan.bound,
        "gap": plan.gap,
        "uniform": None if uniform is None else {"name": uniform.name, "cost": uniform.cost, "error": uniform.error},
        "layers": plan.table.reset_index().to_dict("records"),
    }


def _print(plan: Plan) -> None:
    from analysis.tables import shown_rank

    lines = [
        [
            str(row["layer"]),
            row["decomposition"],
            shown_rank(row["rank"]),
            f"{row['parameters']:,}",
            f"{row['cost']:,}",
            f"{row['relative']:.4f}",
            row["note"],
        ]
        for row in _summary(plan)["layers"]
    ]
    header = ["layer", "decomposition", "rank", "parameters", f"cost in {plan.unit}", "relative error", "note"]
    print_table("The plan", header, lines, left=2)
    spent = f"{plan.cost:,} of {plan.budget:,} {plan.unit} ({plan.cost / plan.whole:.2%} of the weights')"
    said = [
        f"relative error {plan.error:.6f} with {spent}",
        f"no choice of these is below {plan.bound:.6f}: gap {plan.gap:.1e}",
    ]
    if plan.uniform is not None:
        best = plan.uniform
        said.append(f"best single choice: {best.name}, relative error {best.error:.6f} with {best.cost:,} {plan.unit}")
    if plan.error < 1e-6:
        said.append("the budget buys every delta whole: a smaller one would do")
    say("\n".join(said))
