"""Runs of a recipe: every variant, task and seed, each a small file as soon as it ends."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightning as L
from torch import nn

from tensornet.atomic import make_folder, write_file
from tensornet.backbones import load_backbone
from tensornet.errors import DataError, NonFiniteError, RecipeError, TensornetError
from tensornet.network import AdaptedNetwork, adapt
from tensornet.training.adapting import Row, result, save_network, saved_network, train_task
from tensornet.training.checks import nowhere, try_image, why_not_taught
from tensornet.training.recipe import Recipe
from tensornet.training.recorded import read_row, together
from tensornet.training.run import Run, every_run, picked, unknown
from tensornet.training.table import markdown, scored_on, table
from tensornet.training.task_data import TaskData


class Grid:
    """The runs of a recipe with one data folder and one output folder.

    Args:
        recipes: one per variant, as `load_recipe` returns them.
        data: the folder from which the recipe's paths begin.
        out: the folder for results.
        only: names of tasks to run; all where it is empty.
        variants: names of variants to run; all where it is empty.
        seeds: to run; all where it is empty.

    Attributes:
        data: of the tasks of ``runs``.
        runs: that were asked for.

    Raises:
        RecipeError: the backbone, the config or a task's data cannot be used: every problem is listed.
    """

    def __init__(
        self,
        recipes: dict[str, Recipe],
        data: Path,
        out: Path,
        only: Sequence[str] = (),
        variants: Sequence[str] = (),
        seeds: Sequence[int] = (),
    ) -> None:
        self.recipes = recipes
        self.data = TaskData(data)
        self.out = out
        self._weights: dict[str, str] = {}
        self.runs = picked(every_run(recipes), only, variants, seeds)
        self._check(only, variants, seeds)

    def _check(self, only: Sequence[str], variants: Sequence[str], seeds: Sequence[int]) -> None:
        """Everything that can be known before the first training."""
        problems = [*unknown(self.recipes, only, variants, seeds), *nowhere(self.out)]
        for variant, recipe in {run.variant: run.recipe for run in self.runs}.items():
            try:
                try_image(self.network(recipe), recipe)
            except TensornetError as error:
                problems.append(f"{f'variant {variant}: ' if variant else ''}{error}")
            problems += [why] if (why := why_not_taught(variant, self.recipes)) is not None else []
        for entry in dict.fromkeys(run.task for run in self.runs):
            problems += self.data.read(entry, (run.recipe.train.holdout for run in self.runs if run.task == entry))
        if problems:
            raise RecipeError("this recipe with this data", list(dict.fromkeys(problems)))

    def _backbone(self, recipe: Recipe) -> nn.Module:
        chosen = recipe.backbone
        L.seed_everything(0, verbose=False)  # what a backbone lacks in weights is the same in every run
        root, weights = self.data.folder, chosen.weights
        return load_backbone(chosen.source, root=root, pretrained=chosen.pretrained, options=chosen.options, weights=weights)

    def network(self, recipe: Recipe) -> AdaptedNetwork:
        """The backbone of a recipe, adapted, with no task yet."""
        return adapt(self._backbone(recipe), recipe.config, name=recipe.backbone.source)

    def finished(self, run: Run) -> Row | None:
        """The result of a run that is done already; None where it is not.

        Raises:
            RecipeError: the folder holds a result of other settings, weights or data under this name.
        """
        row = read_row(run.record(self.out))
        if row is not None:
            found = {"settings": ("digest", run.digest), **self._made_of(run)}
            other = [what for what, (key, value) in found.items() if row.get(key, value) != value]
            if other:
                advice = "choose another --out, or delete that file to run it again"
                raise RecipeError(str(self.out), [f"{run.record(self.out)} was made with other {other[0]}: {advice}"])
        return row

    def _made_of(self, run: Run) -> dict[str, tuple[str, str]]:
        """What a run is made of beside its settings: the key of its row and the hash, by a word for people."""
        backbone = json.dumps([run.recipe.backbone.model_dump(mode="json"), run.recipe.adapt.get("head")])
        if backbone not in self._weights:
            self._weights[backbone] = self.network(run.recipe).identity()["stored"]
        return {
            "weights": ("backbone_hash", self._weights[backbone]),
            "data": ("data_hash", self.data.fingerprint(run.task)),
        }

    def done(self) -> int:
        """How many of the runs are done already.

        Raises:
            RecipeError: the output folder holds results of other settings, weights or data, or begins with another seed.
        """
        self._recorded()
        return sum(self.finished(run) is not None for run in self.runs)

    def execute(self, run: Run, progress: bool = True, before: Callable[[str], None] | None = None) -> Row:
        """Train one run, write its task and its result, and return the result.

        A run that was killed goes on from its last epoch.

        Args:
            run: one of `runs`, or a teacher of one.
            progress: show a progress bar.
            before: is told of a teacher that has to be trained first, in a line.
        """
        recipe = run.recipe
        train, test = self.data.images(run)
        net = self.network(recipe)
        checkpoints = self.checkpoints(run)
        name, settings = run.task.name, recipe.train
        adapted = train_task(
            net,
            name,
            train,
            test,
            settings,
            recipe.input,
            run.seed,
            teachers=[self._teacher(other, progress, before) for other in run.teachers],
            checkpoints=checkpoints,
            progress=progress,
        )
        if settings.method == "adapt":
            net.save_task(name, run.network(self.out))
        else:
            save_network(adapted.model, run.network(self.out))
        row = result(run.variant, net, name, settings, run.seed, adapted)
        row |= {"classes": list(train.split.classes), "data_hash": self.data.fingerprint(run.task), "digest": run.digest}
        make_folder(run.record(self.out).parent)
        write_file(run.record(self.out), json.dumps(row, indent=1) + "\n")
        shutil.rmtree(checkpoints.parent, ignore_errors=True)
        return row

    def _teacher(self, run: Run, progress: bool, before: Callable[[str], None] | None) -> nn.Module:
        """The finished network of a run to learn from; it is trained now where it is not done, or was not kept."""
        if not self._can_teach(run):
            if before is not None:
                before(f"  first a teacher: {run.label}, once")
            self.execute(run, progress)
        return self.trained(run)

    def _can_teach(self, run: Run) -> bool:
        return self.finished(run) is not None and run.network(self.out).exists()

    def teachers_to_train(self) -> list[Run]:
        """Those beyond `runs` that have to be trained first, because runs that are not done learn from them.

        Raises:
            RecipeError: as `finished`.
        """
        teachers = {one.place: one for run in self.runs if self.finished(run) is None for one in run.teachers}
        own = {run.place for run in self.runs}
        return [one for place, one in teachers.items() if place not in own and not self._can_teach(one)]

    def trained(self, run: Run) -> nn.Module:
        """The network that a run wrote.

        Raises:
            BackboneError, TaskFileError, MismatchError, RecipeError, MissingExtraError: as `saved_network`.
        """
        classes = len(self.data.classes(run.task))
        return saved_network(self.network(run.recipe), run.network(self.out), classes, run.recipe.train)

    def checkpoints(self, run: Run) -> Path:
        """The folder for the state of an unfinished run."""
        made_of = "".join([run.digest, *(value for _, value in self._made_of(run).values())])
        return self.out / "checkpoints" / run.place / hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def recorded(self, run: Run) -> Row | None:
        """The result of a run with the same settings, whatever it was made of; None where there is none."""
        row = read_row(run.record(self.out))
        return row if row is not None and row["digest"] == run.digest else None

    def check_classes(self, run: Run) -> None:
        """The data has to have the classes that a run was trained on, in their order.

        Raises:
            DataError: it has others.
        """
        classes = list(self.data.classes(run.task))
        trained = (self.recorded(run) or {}).get("classes", classes)
        if trained != classes:
            raise DataError(
                f"{run.label}: it was trained on the classes {', '.join(trained[:20])}, in this order; the data has "
                f"{', '.join(classes[:20])}"
            )

    def results(self) -> list[Row]:
        """The results of all finished runs in the folder; also written to `results.json`, and as a table to `results.md`."""
        rows = [row for run in every_run(self._kept_recipes()) if (row := self.recorded(run)) is not None]
        write_file(self.out / "results.json", json.dumps({"format": "tensornet-results", "runs": rows}, indent=1) + "\n")
        said = f"Accuracy on {scored_on(rows)}, percent.\n\n" if rows else ""
        write_file(self.out / "results.md", said + markdown(table(rows)))
        return rows

    def all(self, progress: bool = True, before: Callable[[str], None] | None = None) -> Iterator[Row]:
        """Every result in turn, those that are missing made now; `results.json` is written after each of these.

        Args:
            progress: show progress bars.
            before: is told of every run, and of a teacher that has to be trained first, before it begins, in a line.

        Raises:
            RecipeError: as `done`.
            NonFiniteError: runs diverged; all are named, after the others.
        """
        diverged: list[str] = []
        self.done()
        self._kept_recipes()
        for i, run in enumerate(self.runs, 1):
            row = self.finished(run)
            if row is None:
                if before is not None:
                    before(f"[{i}/{len(self.runs)}] {run.label}")
                try:
                    row = self.execute(run, progress, before)
                except NonFiniteError as error:
                    diverged.append(f"{run.label}: {error}")
                    continue
                self.results()
            yield row
        if diverged:
            raise NonFiniteError("\n".join(diverged))

    def _recorded(self) -> dict[str, Recipe]:
        """The recipes of all runs in the folder, and these."""
        return together(self.out, self.recipes, {one.variant for run in self.runs for one in (run, *run.teachers)})

    def _kept_recipes(self) -> dict[str, Recipe]:
        """The same, written to `recipe.json`, which tells a folder of results."""
        recipes = self._recorded()
        make_folder(self.out)
        dumped = {name: recipe.model_dump(mode="json") for name, recipe in recipes.items()}
        write_file(self.out / "recipe.json", json.dumps(dumped, indent=1) + "\n")
        return recipes
