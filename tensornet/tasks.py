"""The tasks of a network, kept in an `nn.ModuleDict` whose keys are their names as `to_key` writes them."""

from __future__ import annotations

from torch import nn

from tensornet.errors import NameTakenError, UnknownNameError
from tensornet.names import check_task_name, from_key, to_key
from tensornet.slots import NO_CONTENTS, Contents
from tensornet.task import Task


def task_names(tasks: nn.ModuleDict) -> tuple[str, ...]:
    """The names, in the order in which the tasks were added."""
    return tuple(from_key(key) for key in list(tasks))  # at once: another thread may be adding one


def task_named(tasks: nn.ModuleDict, name: str) -> Task:
    """The task called ``name``.

    Raises:
        UnknownNameError: there is none; the sentence lists those that there are.
    """
    key = to_key(name) if isinstance(name, str) else None
    if key is None or key not in tasks:
        raise UnknownNameError("task", name, task_names(tasks))
    task = tasks[key]
    assert isinstance(task, Task)
    return task


def task_contents(tasks: nn.ModuleDict, name: str | None) -> Contents:
    """What a task puts into the slots; None is the untouched backbone.

    Raises:
        UnknownNameError: as `task_named`.
    """
    return NO_CONTENTS if name is None else task_named(tasks, name).contents()


def is_current(tasks: nn.ModuleDict, name: str | None, contents: Contents) -> bool:
    """Whether a task, as its modules are now, puts just these contents into the slots."""
    try:
        return contents is task_contents(tasks, name)
    except UnknownNameError:  # another thread is removing it
        return False


def task_sizes(tasks: nn.ModuleDict) -> dict[str, int]:
    """How many parameters each task has."""
    every = [(from_key(key), task) for key, task in list(tasks.items())]  # at once, as above
    return {name: task.parameter_counts()["total"] for name, task in every if isinstance(task, Task)}


def check_new(tasks: nn.ModuleDict, name: str) -> None:
    """A new task needs a name of its own.

    Raises:
        NameTakenError: the name is taken, or cannot be a name.
    """
    if to_key(check_task_name(name)) in tasks:
        raise NameTakenError(f"there is a task {name!r} already; remove it first, or choose another name")


def listed(tasks: nn.ModuleDict, backbone: nn.Module, remark: str) -> str:
    """The parameters of a backbone with a remark, and those of each task and their share, a line each."""
    base = sum(p.numel() for p in backbone.parameters())
    lines = [f"  {name}: {n:,} parameters ({n / max(base, 1):.1%})" for name, n in task_sizes(tasks).items()]
    return "\n".join([f"{base:,} parameters; {remark}", *(lines or ["  no task yet"])])
