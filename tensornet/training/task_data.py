"""What the runs of a recipe are trained and scored on: the images of each task, below one folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from tensornet.data.images import Images, check_readable
from tensornet.data.sources import Split, held_out, read_domain
from tensornet.errors import TensornetError
from tensornet.training.batches import as_trained
from tensornet.training.recipe import TaskEntry
from tensornet.training.run import Run


class TaskData:
    """The images of tasks, found when they are read and decoded when a run wants them.

    Args:
        folder: from which the paths of tasks begin.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._splits: dict[TaskEntry, tuple[Split, Split]] = {}
        self._fingerprints: dict[TaskEntry, str] = {}
        self._images: tuple[tuple[TaskEntry, int, float], tuple[Images, Images]] | None = None

    def read(self, task: TaskEntry, shares: Iterable[float]) -> list[str]:
        """Find the images of a task, which the other methods then know, and return what is wrong with them.

        Args:
            task: of a recipe.
            shares: of the train split that runs hold out; 0 is none.
        """
        try:
            self._splits[task] = train, test = self._found(task)
            for split in (train, test):
                check_readable(split)
            if len(set(train.labels)) < 2:
                return [f"task {task.name}: there is one class alone, so nothing to tell apart"]
            for share in set(shares) - {0}:
                held_out(train, share)
        except TensornetError as error:
            return [f"task {task.name}: {error}"]
        return []

    def _found(self, task: TaskEntry) -> tuple[Split, Split]:
        folder = self.folder / task.data
        if task.train is not None and task.test is not None:
            return read_domain(folder, folder / task.train, folder / task.test)
        return read_domain(folder)

    def splits(self, task: TaskEntry) -> tuple[Split, Split]:
        """The train and the test split of a task, which have the same classes."""
        return self._splits[task]

    def classes(self, task: TaskEntry) -> tuple[str, ...]:
        """Names of the classes of a task, in label order."""
        return self._splits[task][0].classes

    def fingerprint(self, task: TaskEntry) -> str:
        """What tells the data of a task: see `Split.fingerprint`."""
        if task not in self._fingerprints:
            self._fingerprints[task] = "".join(split.fingerprint()[:32] for split in self._splits[task])
        return self._fingerprints[task]

    def summary(self) -> list[dict[str, Any]]:
        """Of each task: how many images to train on and to test on, and the classes in their order."""
        return [
            {"task": task.name, "train": len(train.labels), "test": len(test.labels), "classes": list(train.classes)}
            for task, (train, test) in self._splits.items()
        ]

    def images(self, run: Run) -> tuple[Images, Images]:
        """What a run is trained and scored on; the images of the last task are kept."""
        share = run.recipe.train.holdout
        key = (run.task, run.recipe.input.stored, share)
        if self._images is None or self._images[0] != key:
            splits = self._splits[run.task]
            train, scored = held_out(splits[0], share) if share else splits
            self._images = (key, (Images(train, key[1]), Images(scored, key[1])))
        return self._images[1]

    def inputs(self, run: Run) -> Iterator[Tensor]:
        """An epoch of the training images of a run as its training saw them before they were mixed, normalised."""
        return as_trained(self.images(run)[0], run.recipe.train, run.recipe.input, run.seed)
