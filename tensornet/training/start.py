"""Where a training starts: the head as a linear probe; the factors from the backbone, from first gradients, or a teacher."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensornet.data.images import Images, ordered_loader, shuffled_loader
from tensornet.decompositions import Decomposition
from tensornet.delta import gathered, weight_change
from tensornet.evaluation import evaluated
from tensornet.gradients import weight_gradients
from tensornet.network import AdaptedNetwork
from tensornet.task import Task
from tensornet.training.batches import as_tested
from tensornet.training.recipe import TAUGHT, Input, Train

GRADIENT_BATCHES = 16
"""Batches whose gradients are added up."""
RIDGE = 1e-3
"""Half of this times the squared weights is added to the probe's loss."""


def begin(
    net: AdaptedNetwork,
    name: str,
    train: Images,
    settings: Train,
    image: Input,
    seed: int,
    teachers: Sequence[nn.Module] = (),
) -> None:
    """Bring a new task to where its training starts; its deltas stay exactly zero, unless it starts from a teacher.

    Args:
        net: the task is set in it.
        name: of the task, which has a linear head.
        train: the training split.
        settings: `head` and `start` are read; a teacher's head is taken whatever `head` says.
        image: of the recipe.
        seed: of the order of the images and of the decompositions.
        teachers: where `start` says "teacher" or "teachers", plain copies of the backbone that were trained on the task: the
            first counts, or all.
    """
    task = net[name]
    if settings.start in TAUGHT:
        take_teachers(net, task, teachers if settings.start == "teachers" else teachers[:1], seed)
        return
    if settings.head == "probe":
        assert isinstance(task.head, nn.Linear)
        features, labels = head_inputs(net, task.head, train, image)
        probe(task.head, features, labels)
    if settings.method == "adapt" and settings.start != "random" and task.plans:
        plain = net.merged(name)
        targets = [member.target for plan, _ in task.tensors() for member in plan.fold.members]
        tensors: list[Tensor] = [plain.get_parameter(t.key) for t in targets]
        if settings.start == "gradients":
            loader = itertools.islice(shuffled_loader(train, settings.batch_size, seed), GRADIENT_BATCHES)
            tensors = weight_gradients(plain, tensors, as_tested(loader, image, tensors[0].device))
        take_factors(task, {t.name: tensor.detach() for t, tensor in zip(targets, tensors, strict=True)}, seed)


def head_inputs(net: nn.Module, head: nn.Module, train: Images, image: Input) -> tuple[Tensor, Tensor]:
    """What the head is given for every training image, without augmentation, in eval mode; and the labels."""
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach()))
    try:
        with torch.no_grad(), evaluated(net):
            for x, own in as_tested(ordered_loader(train, 256), image, next(net.parameters()).device):
                net(x)
                labels.append(own)
    finally:
        hook.remove()
    return torch.cat(inputs), torch.cat(labels)


def probe(head: nn.Linear, features: Tensor, labels: Tensor) -> None:
    """Make a linear head the logistic regression of ``labels`` on ``features`` with a little ridge; it starts from zero.

    Fine-tuning that starts from a linear probe distorts features less (Kumar et al., 2022, arXiv 2202.10054).

    Args:
        head: of (classes, width).
        features: shape (N, width).
        labels: shape (N,).
    """
    wide = features.float().flatten(1)
    weight = torch.zeros_like(head.weight, dtype=torch.float32).requires_grad_()
    bias = torch.zeros(len(weight), device=weight.device).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(wide, weight, bias), labels) + RIDGE / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(bias)


def take_factors(task: Task, tensors: Mapping[str, Tensor], seed: int) -> None:
    """Factors from the decompositions of ``tensors``, by weight; the factor that starts at zero stays zero.

    Each factor is scaled to the norm that a random one has, so that learning rates keep their meaning.
    """
    for plan, module in task.tensors():
        found = plan.cls.from_tensor(gathered(tensors, plan.fold, plan.cls.chain), plan.rank, seed=seed)
        with torch.no_grad():
            for name, factor in module.factors().items():
                norm = found.factors()[name].norm()
                if name != module.zero and norm > 0:
                    factor.copy_(found.factors()[name] * (initial_norm(module, name) / norm))


def take_teachers(net: AdaptedNetwork, task: Task, teachers: Sequence[nn.Module], seed: int) -> None:
    """Deltas as close as their ranks allow to the mean of those of ``teachers``; norms and head are means too.

    Networks that were fine-tuned from the same weights can be averaged, and the mean often generalises better than each
    (Wortsman et al., 2022, arXiv 2203.05482).
    """
    deltas = {}
    for plan, _ in task.tensors():
        for target in (member.target for member in plan.fold.members):
            weight = target.weight_in(net.backbone)
            wide = torch.promote_types(weight.dtype, torch.float32)
            tuned = [own.get_parameter(target.key).to(weight.device, wide) for own in teachers]
            deltas[target.name] = weight_change(weight, torch.stack(tuned).mean(0)) / plan.scale
    for plan, module in task.tensors():
        found = plan.cls.from_tensor(gathered(deltas, plan.fold, plan.cls.chain), plan.rank, seed=seed).factors()
        with torch.no_grad():
            for name, factor in module.factors().items():
                norm = found[name].norm()
                if name != module.zero and norm > 0:  # the factor that starts at zero takes up what this one loses
                    ratio = initial_norm(module, name) / norm
                    found[module.zero] = found[module.zero] / ratio
                    factor.copy_(found[name] * ratio)
            module.factors()[module.zero].copy_(found[module.zero])
    for path, norm in task.own_norms().items():
        norm.load_state_dict(_mean_state([teacher.get_submodule(path) for teacher in teachers]))
    if task.head is not None and task.head_path is not None:
        task.head.load_state_dict(_mean_state([teacher.get_submodule(task.head_path) for teacher in teachers]))


def _mean_state(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The mean of state dicts; of what counts, such as the batches that were seen, the first."""
    states = [module.state_dict() for module in modules]
    return {
        key: torch.stack([state[key] for state in states]).mean(0) if first.is_floating_point() else first
        for key, first in states[0].items()
    }


def initial_norm(module: Decomposition, name: str) -> float:
    """The norm that a random factor starts with."""
    return float(module.initial(name, torch.ones(module.factors()[name].shape)).norm())
