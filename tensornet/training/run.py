"""One run of a recipe: a task with one variant and one seed, and where it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensornet.errors import near
from tensornet.training.recipe import Distill, Recipe, TaskEntry

_REVISION = 2
"""To be raised when a default of any table changes: a result of the old one would pass for one of the new."""


@dataclass(frozen=True)
class Run:
    """One training: a task with one recipe and one seed."""

    recipe: Recipe
    variant: str
    task: TaskEntry
    seed: int
    teachers: tuple[Run, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        return " ".join(part for part in (self.variant, self.task.name, f"seed {self.seed}") if part)

    @property
    def place(self) -> Path:
        """For files: a folder for each name, so that no two runs share one."""
        return Path(self.variant, self.task.name, f"seed-{self.seed}")

    @property
    def digest(self) -> str:
        """Of all settings the result depends on, but those at their defaults: a new key of a table changes nothing."""
        settings = self.recipe.model_dump(mode="json", exclude={"tasks", "variants"}, exclude_defaults=True)
        settings["train"].pop("seeds", None)
        parts = [_REVISION, settings, self.task.model_dump(mode="json"), self.seed]
        text = json.dumps([*parts, *(teacher.digest for teacher in self.teachers)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def record(self, out: Path) -> Path:
        """Where the result is written."""
        return (out / "runs" / self.place).with_suffix(".json")

    def folder(self, out: Path) -> Path:
        """Where the task is written: `tasks/` under the variant, under the seed where there are several."""
        seeds = self.recipe.train.seeds
        return out / self.variant / (f"seed-{self.seed}" if self.seed != seeds[0] else "") / "tasks" / self.task.name

    def network(self, out: Path) -> Path:
        """Where the network is written: the folder of a task, or a file of one that is no task of this project."""
        folder = self.folder(out)
        if self.recipe.train.method == "adapt":
            return folder
        return folder.parent.parent / "models" / f"{self.task.name}.safetensors"


def every_run(recipes: Mapping[str, Recipe]) -> Iterator[Run]:
    """Every run of recipes, one recipe per variant."""
    for variant, recipe in recipes.items():
        for seed in recipe.train.seeds:
            for task in recipe.tasks:
                yield Run(recipe, variant, task, seed, _teachers(recipes, recipe.train.distill, task, seed))


def unknown(recipes: Mapping[str, Recipe], tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """What is wrong with names and seeds that were picked: those that no recipe has."""
    known = {task.name for recipe in recipes.values() for task in recipe.tasks}
    drawn = sorted({seed for recipe in recipes.values() for seed in recipe.train.seeds})
    return [
        *(f"there is no task {name!r}; there is {', '.join(sorted(known))}" for name in tasks if name not in known),
        *(f"there is no variant {name!r}. {near(name, recipes)}" for name in variants if name not in recipes),
        *(f"there is no seed {seed}; train.seeds has {drawn}" for seed in seeds if seed not in drawn),
    ]


def picked(runs: Iterable[Run], tasks: Sequence[str], variants: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Those of some runs that were asked for; of what nothing is said of, all."""
    return [
        run
        for run in runs
        if (not tasks or run.task.name in tasks)
        and (not variants or run.variant in variants)
        and (not seeds or run.seed in seeds)
    ]


def _teachers(recipes: Mapping[str, Recipe], how: Distill | None, task: TaskEntry, seed: int) -> tuple[Run, ...]:
    if how is None or how.teacher not in recipes:
        return ()
    return tuple(Run(recipes[how.teacher], how.teacher, task, own) for own in how.taught_by(seed))
