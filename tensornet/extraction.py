"""A task from a network that was fine-tuned as a whole: its deltas decomposed, its norms and its head taken over."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tensornet.attach import plain_copy
from tensornet.config import NONE, AdaptConfig
from tensornet.decompositions import Decomposition
from tensornet.delta import gathered, weight_change
from tensornet.errors import ConfigError, MismatchError, NonFiniteError
from tensornet.heads import build, describe
from tensornet.network import AdaptedNetwork
from tensornet.plan import TensorPlan
from tensornet.states import behind_prefix, differences, tensors
from tensornet.targets import candidates, key_of, matches
from tensornet.task import Task


def extract_task(
    net: AdaptedNetwork,
    name: str,
    tuned: nn.Module | Mapping[str, Tensor],
    config: AdaptConfig | None = None,
    decompositions: Mapping[str, Decomposition] | None = None,
    *,
    seed: int = 0,
) -> Task:
    """Add the task whose deltas are the decomposed differences W_tuned − W_backbone.

    Args:
        net: the adapted backbone that ``tuned`` began from.
        name: of the task.
        tuned: the fine-tuned network or its state dict; its head may have other classes.
        config: which layers get which decomposition and rank, such as `Plan.config()`; the network's by default.
        decompositions: deltas that are decomposed already, by the name of their tensor, such as `Plan.decompositions`.
        seed: of the decompositions.

    Raises:
        MismatchError: names or shapes differ from the backbone's; all that do are listed. Of a head that is one linear layer
            or one convolution, the number of outputs may differ.
        ConfigError: a tensor that is decomposed already is not of the decomposition, shape and rank that the config says.
        NonFiniteError: a tensor of ``tuned`` holds NaN or infinity.

    Warns:
        UserWarning: something changed that this task does not hold, such as biases, embeddings without a delta, or norms
            that the config shares, or weights of which a plan says nothing. Those to which the config gives no delta are
            left to it.
    """
    state = tensors(tuned.state_dict() if isinstance(tuned, nn.Module) else tuned)
    own = tensors(net.backbone.state_dict())
    inside = f"{net.head_path}." if net.head_path is not None else None
    outside = [key for key in own if inside is None or not key.startswith(inside)]
    theirs = {key: tensor for key, tensor in state.items() if inside is None or not key.startswith(inside)}
    problems = differences({key: own[key] for key in outside}, theirs)
    if problems:
        raise MismatchError("the tuned network is not of the backbone's architecture", problems, behind_prefix(own, state))
    for key in state:
        if state[key].is_floating_point() and not torch.isfinite(state[key]).all():
            raise NonFiniteError(f"{key} of the tuned network holds NaN or infinity; did its training diverge?")
    task = net.add_task(name, _head(net, state), config)
    try:
        carried = _norms_taken(net, task, state)
        for plan, module in task.tensors():
            known = (decompositions or {}).get(plan.fold.name)
            if known is not None and (type(known), known.shape, known.rank) != (plan.cls, plan.shape, plan.rank):
                raise ConfigError(f"{plan.fold.name}: {plan.decomposition} of rank {plan.rank} is configured; got {known!r}")
            made = known if known is not None else _decomposed(plan, own, state, seed)
            with torch.no_grad():
                for factor, value in made.factors().items():
                    shrunk = known is not None and factor == plan.cls.zero
                    module.get_parameter(factor).copy_(value / plan.scale if shrunk else value)
        carried |= {key_of(path, parameter) for path, parameter in _left_to_the_config(net, task)} - _untied(task, state)
        lost = [key for key in outside if key not in carried and not torch.equal(own[key].cpu(), state[key].cpu())]
        if lost:
            warnings.warn(
                f"{len(lost)} tensors changed that this task does not hold, and stay the backbone's: {', '.join(lost[:8])}",
                stacklevel=2,
            )
    except BaseException:
        net.remove_task(name)
        raise
    return task


def _untied(task: Task, state: Mapping[str, Tensor]) -> set[str]:
    """Weights that are one in the backbone, so that one delta serves them, and no longer are in a state dict."""
    targets = [member.target for plan, _ in task.tensors() for member in plan.fold.members]
    first = {key_of(path, name): t.key for t in targets for path, name in t.places}
    return {key for key, other in first.items() if not torch.equal(state[key], state[other])}


def _left_to_the_config(net: AdaptedNetwork, task: Task) -> set[tuple[str, str]]:
    """Weights that have a delta, and those that the config gives none; embeddings have one only where it asks for it.

    A plan, which is a config without a decomposition of its own, says so of each.
    """
    own = {place for plan, _ in task.tensors() for member in plan.fold.members for place in member.target.places}
    plan_alone = task.config.per_layer if task.config.decomposition == NONE else {}
    told = [
        target
        for target in candidates(net.backbone)
        if not plan_alone or any(matches(pattern, name) for pattern in plan_alone for name in target.names)
    ]
    every = {place for target in told for place in target.places}
    return own | {place for place in every if not isinstance(net.backbone.get_submodule(place[0]), nn.Embedding)}


def _decomposed(plan: TensorPlan, before: Mapping[str, Tensor], after: Mapping[str, Tensor], seed: int) -> Decomposition:
    deltas = {}
    for member in plan.fold.members:
        key = member.target.key
        deltas[member.target.name] = weight_change(before[key], after[key].cpu()) / plan.scale
    return plan.cls.from_tensor(gathered(deltas, plan.fold, plan.cls.chain), plan.rank, seed=seed)


def _norms_taken(net: AdaptedNetwork, task: Task, state: Mapping[str, Tensor]) -> set[str]:
    """Fill the task's norms from a state dict; the keys that were taken, under every path that a norm has."""
    taken: set[str] = set()
    every = list(net.backbone.named_modules(remove_duplicate=False))
    for path, norm in task.own_norms().items():
        shared = net.backbone.get_submodule(path)
        names = list(norm.state_dict())
        norm.load_state_dict({name: state[key_of(path, name)] for name in names})
        for other in [place for place, module in every if module is shared]:
            taken |= {
                key_of(other, name) for name in names if torch.equal(state[key_of(other, name)], state[key_of(path, name)])
            }
    return taken


def _head(net: AdaptedNetwork, state: Mapping[str, Tensor]) -> nn.Module | None:
    if net.head_path is None:
        return None
    own = net.backbone.get_submodule(net.head_path)
    given = {k.removeprefix(f"{net.head_path}."): v for k, v in state.items() if k.startswith(f"{net.head_path}.")}
    copied = plain_copy(own)
    head = _of_other_classes(copied, given) or copied
    problems = differences(tensors(head.state_dict()), given, f"{net.head_path}.")
    if problems:
        raise MismatchError("the tuned head is not of the kind of the backbone's", problems)
    head.load_state_dict(given, strict=False)
    return head


def _of_other_classes(own: nn.Module, given: Mapping[str, Tensor]) -> nn.Module | None:
    """A head like ``own``, an ordinary linear layer or convolution, with as many outputs as ``given``; None for others."""
    if "weight" not in given or not given.keys() <= {"weight", "bias"}:
        return None
    weight, bias = given["weight"], "bias" in given
    if isinstance(own, nn.Linear):
        return nn.Linear(weight.shape[1], weight.shape[0], bias, device=own.weight.device, dtype=own.weight.dtype)
    spec = describe(own)
    if spec["type"] != "Conv2d":
        return None
    made = build(spec | {"out_channels": len(weight), "bias": bias})
    like = next(own.parameters())
    return made.to_empty(device=like.device).to(like.dtype)
