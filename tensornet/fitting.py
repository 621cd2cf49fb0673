"""Whether a task fits a backbone, and the task made to fit it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tensornet.attach import Attached
from tensornet.config import AdaptConfig
from tensornet.decompositions import Decomposition
from tensornet.errors import BackboneError, MismatchError, ShapeError, StateError, TaskFileError
from tensornet.files import TaskFile
from tensornet.fingerprint import head_fingerprint, same_values
from tensornet.heads import build, input_width
from tensornet.norms import own_copy, task_norms
from tensornet.plan import TensorPlan
from tensornet.targets import in_head, is_transposed
from tensornet.task import Task


def check_backbone(backbone: object) -> None:
    """A backbone has to be a module that is not adapted.

    Raises:
        BackboneError: it is no module.
        StateError: it is adapted already.
    """
    if not isinstance(backbone, nn.Module):
        raise BackboneError(f"a backbone is an nn.Module with its weights loaded; got {backbone!r}")
    if any(isinstance(module, Attached) for module in backbone.modules()):
        raise StateError("the backbone is adapted already: add a task to that network, or adapt a fresh backbone")


def check_head(
    head: nn.Module | None, backbone: nn.Module, head_path: str | None, others: Sequence[nn.Module | None] = ()
) -> None:
    """A head has to be a module of its own that takes what the backbone's head takes.

    Raises:
        ShapeError: it is no module, takes something else, or the backbone has no head to replace.
        StateError: it shares parameters or adapted layers with the backbone, or parameters with one of ``others``, the
            heads of other tasks.
    """
    if head is None:
        return
    _check_own(head, backbone, others)
    if head_path is None:
        why = "it has no linear layer, or the config says head='none'"
        raise ShapeError(f"this backbone has no head to replace: {why}; say which layer it is: AdaptConfig(head='…')")
    if any(is_lazy(parameter) for parameter in head.parameters()):
        raise ShapeError("the head is lazy: it has no shapes yet; give it its sizes, such as nn.Linear(features, classes)")
    own = backbone.get_submodule(head_path)
    convolution = (nn.Conv2d, nn.ConvTranspose2d)
    if any(isinstance(one, nn.Linear) and isinstance(other, convolution) for one, other in ((own, head), (head, own))):
        raise ShapeError(
            f"{head!r} cannot take the place of the backbone's {head_path!r}, a {type(own).__name__}: say which layer "
            "this head is for: AdaptConfig(head='…')"
        )
    width, theirs = input_width(own), input_width(head)
    if width is not None and theirs is not None and width != theirs:
        advice = f"make it nn.{'Conv2d' if isinstance(own, nn.Conv2d) else 'Linear'}({width}, …)"
        raise ShapeError(f"the head takes {theirs} features, the backbone's {head_path!r} takes {width}: {advice}")
    kinds = (nn.Linear, *convolution)
    if isinstance(head, kinds) and isinstance(own, kinds) and head.weight.dtype != own.weight.dtype:
        raise ShapeError(
            f"the head is {head.weight.dtype}, the backbone's {own.weight.dtype}: pass head.to({own.weight.dtype})"
        )


def _check_own(head: nn.Module, backbone: nn.Module, others: Sequence[nn.Module | None]) -> None:
    """A head has to be a module, and no one else's."""
    if not isinstance(head, nn.Module):
        raise ShapeError(f"a head is an nn.Module, such as nn.Linear(…, classes); got {head!r}")
    mine = {id(parameter) for parameter in head.parameters()}
    shared = any(
        id(parameter) in mine for module in (backbone, *others) if module is not None for parameter in module.parameters()
    )
    attached = {id(module) for module in head.modules() if isinstance(module, Attached)}
    if shared or (attached and any(id(module) in attached for module in backbone.modules())):
        raise StateError("this head belongs to the backbone or to another task already; pass a copy: copy.deepcopy(head)")


def check_fit(
    file: TaskFile, backbone: nn.Module, head_path: str | None, norms: Sequence[str], identity: dict[str, str]
) -> None:
    """A task has to belong to this backbone.

    Raises:
        MismatchError: it does not; every mismatch is listed.

    Warns:
        UserWarning: the backbone has the same values in another dtype.
    """
    record = file.record.backbone
    mismatches: list[str] = []
    if record.hash != identity["stored"]:
        if same_values(record.hash, record.hash_as, identity):
            warnings.warn(f"task {file.name!r} was made on this backbone in another dtype", stacklevel=3)
        else:
            mismatches.append(
                f"backbone {record.name!r} with hash {record.hash[:12]}… expected; this one's is {identity['stored'][:12]}…"
            )
    same_dtype = record.hash == identity["stored"]
    if record.head_hash is not None and same_dtype and record.head_hash != head_fingerprint(backbone, head_path):
        mismatches.append("the task uses the backbone's own head, which has other values here")
    if record.head != head_path:
        wanted_head = "no head (head='none')" if record.head is None else f"head {record.head!r}"
        mismatches.append(f"{wanted_head} expected; this network's is {head_path!r}")
    modules = dict(backbone.named_modules())
    for plan, _ in file.tensors:
        for member in plan.fold.members:
            target = member.target
            for path, parameter in target.places:
                weight = modules[path]._parameters.get(parameter) if path in modules else None
                if weight is None:
                    mismatches.append(f"{path}: '{parameter}' of shape {target.shape} expected; there is none")
                elif is_transposed(modules[path]) != target.transposed:
                    mismatches.append(f"{path}: the file and the network do not agree on whether it is transposed")
                elif tuple(weight.shape) != target.shape:
                    mismatches.append(f"{path}: '{parameter}' of shape {target.shape} expected; got {tuple(weight.shape)}")
    for path, tensors in file.norms.items():
        if path not in norms:
            mismatches.append(f"{path}: a normalisation layer expected; there is none")
            continue
        found = {name: tuple(t.shape) for name, t in modules[path].state_dict().items()}
        wanted = {name: tuple(t.shape) for name, t in tensors.items()}
        if found != wanted:
            mismatches.append(f"{path}: a normalisation layer with {wanted} expected; got {found}")
    if mismatches:
        advice = "Load the task on the backbone, with the weights, that it was trained on."
        raise MismatchError(f"task {file.name!r} does not belong to this backbone", mismatches, advice)


def fitted_task(
    file: TaskFile,
    name: str,
    backbone: nn.Module,
    head_path: str | None,
    head: nn.Module | None,
    known: Sequence[TensorPlan] = (),
    others: Sequence[nn.Module | None] = (),
) -> Task:
    """The task of a file that fits, on the device and in the dtype of the backbone's weights.

    Where a plan of the file equals one that is ``known``, the task holds that one: many tasks of one config share them.
    ``others`` are the heads of other tasks.

    Raises:
        TaskFileError: the head's tensors do not fit the head, or there is no description of it and ``head`` is None.
        ShapeError, StateError: as `check_head`; a head that is someone else's is as it was.
    """
    if head is not None:
        _check_own(head, backbone, others)  # before anything is loaded into it
    decompositions: list[Decomposition] = []
    for plan, module in file.tensors:
        weight = plan.fold.members[0].target.weight_in(backbone)
        own = next(module.parameters())
        fits = own.device == weight.device and own.dtype == weight.dtype
        decompositions.append(module if fits else module.to(weight.device, weight.dtype))
    norms = {}
    for path, tensors in file.norms.items():
        norms[path] = own_copy(backbone.get_submodule(path))
        held: dict[str, Tensor] = dict((*norms[path].named_parameters(), *norms[path].named_buffers()))
        if not tensors.keys() <= held.keys():  # a layer that saves its tensors under names of its own
            held = norms[path].state_dict()
        for key, tensor in tensors.items():
            held[key].detach().copy_(tensor)
    own_head = _head(file, head, backbone, head_path)
    check_head(own_head, backbone, head_path)
    same = {plan.fold.name: plan for plan in known}
    plans = [same[p.fold.name] if same.get(p.fold.name) == p else p for p, _ in file.tensors]
    task = Task(name, file.config, plans, decompositions, norms, own_head, head_path)
    task.classes = None if file.record.classes is None else tuple(file.record.classes)
    return task


def wanted_plans(plans: list[TensorPlan], head: nn.Module | None, head_path: str | None) -> list[TensorPlan]:
    """Without those of the backbone's head where another takes its place: nothing would read their deltas."""
    if head is None:
        return plans
    return [plan for plan in plans if not all(in_head(member.target, head_path) for member in plan.fold.members)]


def new_task(
    name: str,
    config: AdaptConfig,
    plans: Sequence[TensorPlan],
    backbone: nn.Module,
    norms: list[str],
    head: nn.Module | None,
    head_path: str | None,
) -> Task:
    """A task whose deltas are zero and whose norms are copies of the backbone's, of which ``norms`` are the paths.

    Warns:
        UserWarning: no parameter of the head is trainable.
    """
    decompositions = [new_decomposition(plan, backbone) for plan in plans]
    own = {path: own_copy(backbone.get_submodule(path)) for path in task_norms(config, norms)}
    task = Task(name, config, plans, decompositions, own, head, head_path)
    trainable = [] if task.head is None else [parameter.requires_grad for parameter in task.head.parameters()]
    if trainable and not any(trainable):
        warnings.warn(
            f"task {name!r}: nothing in its head is trainable: head.requires_grad_(True) makes it so", stacklevel=3
        )
    return task


def new_decomposition(plan: TensorPlan, backbone: nn.Module) -> Decomposition:
    """Factors of a zero tensor, on the device and in the dtype of the weights that it changes."""
    weight = plan.fold.members[0].target.weight_in(backbone)
    return plan.cls(plan.shape, plan.rank, device=weight.device, dtype=weight.dtype)


def _head(file: TaskFile, head: nn.Module | None, backbone: nn.Module, head_path: str | None) -> nn.Module | None:
    if file.record.head is None:
        return head
    made = build(file.record.head) if head is None else head
    wanted = {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in made.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.is_floating_point()) for name, tensor in file.head.items()}
    if wanted != found:
        raise TaskFileError(f"task {file.name!r}: its head should have the tensors {wanted}; the file holds {found}")
    made.load_state_dict({name: tensor.clone() for name, tensor in file.head.items()}, assign=True)
    made.requires_grad_(True)
    like = next(backbone.get_submodule(head_path or "").parameters(), None)
    dtype = next((t.dtype for t in file.head.values() if t.is_floating_point()), torch.float32)
    if like is None or (like.device.type == "cpu" and like.dtype == dtype):
        return made
    return made.to(like.device, like.dtype)
