"""The adapted network: one frozen backbone and its tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tensornet.attention import SlowAttention
from tensornet.config import AdaptConfig, check_config
from tensornet.errors import ConfigError, StateError
from tensornet.files import TaskFile, read_task, write_task
from tensornet.fingerprint import Identity
from tensornet.fitting import check_backbone, check_fit, check_head, fitted_task, new_task, wanted_plans
from tensornet.merge import merged_copy
from tensornet.mixed import MixedBatch
from tensornet.names import inputs_and_names, row_names, to_key
from tensornet.norms import find_norms, task_norms
from tensornet.paths.branch import Way
from tensornet.plan import plan
from tensornet.prefix import Prefix
from tensornet.slots import Contents, Slots
from tensornet.targets import find_head
from tensornet.task import Task
from tensornet.tasks import check_new, is_current, listed, task_contents, task_named, task_names, task_sizes
from tensornet.turns import Turns
from tensornet.versions import versions_counted


def adapt(backbone: nn.Module, config: AdaptConfig | None = None, *, name: str | None = None) -> AdaptedNetwork:
    """Freeze ``backbone`` and make it ready to carry tasks; its layers keep their places, names and types.

    Args:
        backbone: any module, its weights loaded. It is changed in place only in that its parameters no longer require
            gradients and that its layers look at the task that is set.
        config: what tasks are made from by default; `AdaptConfig()` where it is None.
        name: of the backbone, for task files; its class name by default.

    Raises:
        StateError: the backbone is adapted already.
        TargetError, RankError: the config does not suit it.
        NonFiniteError: an adapted weight holds NaN or infinity.
    """
    return AdaptedNetwork(backbone, config or AdaptConfig(), name or type(backbone).__name__)


class AdaptedNetwork(nn.Module):
    """A frozen backbone with tasks; made by `adapt`.

    Attributes:
        backbone: the module that was given; its parameters and buffers never change.
        backbone_name: what task files call it.
        default_config: what tasks are made from, where `add_task` is given no other.
        head_path: where the head is; None where the backbone has none.
        plans: the tensors of a task of the default config.
    """

    def __init__(self, backbone: nn.Module, config: AdaptConfig, name: str) -> None:
        super().__init__()
        check_backbone(backbone)
        check_config(config)
        self.default_config = config
        self.backbone_name = name
        self.head_path = find_head(backbone, config.head)
        self.plans = plan(backbone, config, self.head_path)
        self._norms = find_norms(backbone, self.head_path)
        task_norms(config, self._norms)
        self.training = backbone.training  # now: a root that owns buffers is in eval mode once it is attached
        self._slots = Slots(backbone, self._norms, self.head_path, self.plans)
        self.backbone = backbone.requires_grad_(False)
        self._tasks = nn.ModuleDict()
        self._active: str | None = None
        self._path: Way = "auto"
        self._identity = Identity(backbone, self.head_path)
        self._mixed = MixedBatch(backbone, self._slots, self._tasks)
        self._attention = SlowAttention(backbone)
        self._turns = Turns()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return task_names(self._tasks)

    @property
    def active(self) -> str | None:
        """The name of the task that is set; None for the untouched backbone."""
        return self._active

    def __getitem__(self, name: str) -> Task:
        """The task called ``name``.

        Raises:
            UnknownNameError: there is none; the sentence lists those that there are.
        """
        return task_named(self._tasks, name)

    def __contains__(self, name: object) -> bool:
        return name in self.tasks

    def add_task(self, name: str, head: nn.Module | None = None, config: AdaptConfig | None = None) -> Task:
        """A new task, whose deltas are exactly zero.

        Args:
            name: letters, digits, `_`, `-`, `+`, spaces and inner dots.
            head: takes the place of the backbone's head; None keeps the backbone's own output.
            config: the network's by default.

        Raises:
            NameTakenError: the name is taken, or cannot be a name.
            ShapeError, StateError: the head's input width is not the backbone's; it is someone else's already.
            ConfigError, TargetError, RankError: the config does not suit the backbone.
        """
        with self._turns.taken(), versions_counted():  # what is copied must not be at work for another thread
            check_new(self._tasks, name)
            plans, config = self.plans, config or self.default_config
            check_config(config)
            check_head(head, self.backbone, self.head_path, [self[other].head for other in self.tasks])
            if config != self.default_config:
                if find_head(self.backbone, config.head) != self.head_path:
                    raise ConfigError(f"the network's head is {self.head_path!r}; its tasks cannot have {config.head!r}")
                plans = plan(self.backbone, config, self.head_path)
            plans = wanted_plans(plans, head, self.head_path)
            self._slots.admit(plans)
            return self._adopt(new_task(name, config, plans, self.backbone, self._norms, head, self.head_path))

    def remove_task(self, name: str) -> None:
        """Forget a task; where it is set, the untouched backbone is set instead.

        Raises:
            UnknownNameError: there is none of that name.
        """
        with self._turns.taken():
            self[name]
            if self._active == name:
                self.set_task(None)
            del self._tasks[to_key(name)]
            self._slots.forget_kept()

    def set_task(self, name: str | None) -> None:
        """Make ``name`` the task that `forward` computes; None is the untouched backbone.

        Raises:
            UnknownNameError: there is none of that name.
            StateError: a layer of the backbone was replaced since it was adapted.
        """
        with self._turns.taken():
            contents = self._contents(name)
            self._slots.check_places()
            with self._turns.changing():
                self._slots.fill(contents, self._path)
                self._active = name
                self._attention.require(name is not None)

    @contextmanager
    def task(self, name: str | None) -> Iterator[Task | None]:
        """Inside, ``name`` is set, and other threads that set a task wait; after it, what was set before."""
        with self._turns.taken():
            before = self._active
            self.set_task(name)
            try:
                yield None if name is None else self[name]
            finally:
                self.set_task(before if before in self.tasks else None)

    @property
    def path(self) -> Way:
        """Where deltas meet their layers; the outputs are equal to rounding.

        "auto", the default: in train mode for each layer what is cheapest (see `tensornet.paths.rule`), in eval mode on the
        weight, on the activations for the rows of a mixed batch. "weight": outputs and gradients of inputs come from W + ΔW.
        "activations": into the rank and out of it, beside the layer, where layer and decomposition have such a form.
        """
        return self._path

    @path.setter
    def path(self, path: Way) -> None:
        if path not in ("auto", "weight", "activations"):
            raise ConfigError(f"path must be 'auto', 'weight' or 'activations'; got {path!r}")
        with self._turns.taken():
            self._slots.check_places()
            self._path = path
            self.set_task(self._active)

    def forward(self, *args: Any, tasks: Sequence[str | None] | None = None, **kwargs: Any) -> Any:
        """The backbone with the task that is set, or with one task per row.

        Args:
            *args: the backbone's own.
            **kwargs: the backbone's own.
            tasks: for a mixed batch, the name of every row's task; None for the untouched backbone.

        Returns:
            The backbone's output; for a mixed batch a list with one output per row.

        Raises:
            ShapeError: there is not one name per row.
            UnknownNameError: a name is not a task.
            StateError: a layer of the backbone was replaced since it was adapted; or another thread computes a mixed batch.
        """
        eager = not torch.compiler.is_dynamo_compiling()
        if eager:
            self._slots.check_places()
        if tasks is not None:
            if torch.compiler.is_exporting():
                raise StateError("a mixed batch cannot be exported; export net.merged(name), or the network with a task set")
            rows = self._rows if eager else torch.compiler.disable(self._rows)  # a graph would be of one list of names
            return rows(tasks, args, kwargs)
        if eager and not is_current(self._tasks, self._active, self._slots.contents):
            with self._turns.taken():  # another thread may be setting a task
                self.set_task(self._active)  # a head, a norm or a delta of it was replaced since
        with self._turns.call(), self._attention.path(), self._slots.sums_made():
            return self.backbone(*args, **kwargs)

    def forward_tasks(self, *args: Any, tasks: Sequence[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Every task on every row; what comes before the first layer in which they differ is computed once.

        Args:
            *args: the backbone's own, and last the names of the tasks, unless ``tasks`` has them.
            **kwargs: the backbone's own.

        Returns:
            The output of each task by name.

        Raises:
            ShapeError, UnknownNameError: there are no names; a name is not a task.
        """
        args, names = inputs_and_names(args, tasks)
        with self._turns.taken(), versions_counted():
            prefix = Prefix(self.backbone, self._slots.touched([self._contents(name) for name in names]))
            outputs = prefix.each(names, self.task, self, args, kwargs)
            if torch.is_grad_enabled():
                self._slots.remember_several_tasks()
        return outputs

    def _rows(self, tasks: Sequence[str | None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        with self._turns.taken(), self._turns.refusing():
            before = self._active
            self._attention.require(True)
            try:
                with self._attention.path():
                    return self._mixed.run(row_names(tasks), args, kwargs, self._path)
            finally:
                self.set_task(before)
                if torch.is_grad_enabled():
                    self._slots.remember_several_tasks()

    def merged(self, name: str | None) -> nn.Module:
        """An ordinary copy of the backbone that computes one task, nothing of this package in it.

        Raises:
            UnknownNameError: there is no task of that name.
        """
        with self._turns.taken():  # what is copied must not be at work for another thread
            return merged_copy(self.backbone, self._contents(name))

    def save_task(self, name: str, path: str | Path) -> None:
        """Write a task as a folder, whole or not at all; a task that is there already is replaced.

        Raises:
            UnknownNameError: there is no task of that name.
            NonFiniteError: it holds NaN or infinity.
            StateError, WriteError: see `write_task`.

        Warns:
            UserWarning: the backbone has changed since it was adapted.
        """
        write_task(path, self[name], self.backbone, self.backbone_name, self._identity.for_saving(name))

    def load_task(
        self, path: str | Path | TaskFile, name: str | None = None, head: nn.Module | None = None, *, replace: bool = False
    ) -> Task:
        """Read a task that `save_task` wrote and add it.

        Args:
            path: the folder, or what `read_task` or `analysis.prune` made of one.
            name: another name for it than its own.
            head: a module for the head's tensors, where the file holds a head of a kind that it cannot describe.
            replace: a task of that name may be there; it is replaced once the file is found to be whole and to fit.

        Raises:
            TaskFileError: the folder is not a task, was changed, or is of a newer format.
            MismatchError: it belongs to another backbone; every mismatch is listed.
            NameTakenError, StateError: the name is taken; ``head`` belongs to the backbone or to another task.
        """
        file = path.copied() if isinstance(path, TaskFile) else read_task(path)
        name = file.name if name is None else name
        with self._turns.taken(), versions_counted():  # what is copied must not be at work for another thread
            if not replace or name not in self:
                check_new(self._tasks, name)
            check_fit(file, self.backbone, self.head_path, self._norms, self._identity.quick())
            heads = [self[other].head for other in self.tasks]
            task = fitted_task(file, name, self.backbone, self.head_path, head, self.plans, heads)
            self._slots.admit(list(task.plans.values()))
            return self._adopt(task)

    def train(self, mode: bool = True) -> AdaptedNetwork:
        super().train(mode)
        self._slots.keep_scripted_in_eval()
        return self

    def identity(self) -> dict[str, str]:
        """The fingerprint of the backbone; computed afresh only where one of its tensors changed."""
        return self._identity.hashes()

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters the backbone has, under "backbone", and each task; one of that name is left out."""
        base = {"backbone": sum(p.numel() for p in self.backbone.parameters())}
        return base | task_sizes(self._tasks) | base

    def __repr__(self) -> str:
        active = "the untouched backbone" if self._active is None else f"task {self._active!r}"
        return f"AdaptedNetwork({self.backbone_name}: {listed(self._tasks, self.backbone, f'{active} is set')})"

    def _contents(self, name: str | None) -> Contents:
        return task_contents(self._tasks, name)

    def _adopt(self, task: Task) -> Task:
        self._tasks[to_key(task.name)] = task.train(self.training)
        if self._active == task.name:  # it was replaced
            self.set_task(task.name)
        return task
