"""Recipes: a backbone, what to adapt, how to train, and a list of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from tensornet.backbones import HEADLESS, class_and_checkpoint
from tensornet.config import AdaptConfig
from tensornet.names import check_task_name


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("every seed once")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(_each_once)]


class Backbone(_Table):
    """`[backbone]`: see `load_backbone`."""

    source: str
    pretrained: bool = True
    options: dict[str, Any] = {}
    weights: str | None = None

    @field_validator("source")
    @classmethod
    def _with_a_head(cls, source: str) -> str:
        library, _, rest = source.partition(":")
        kind, name = class_and_checkpoint(rest)
        if library == "transformers" and kind == HEADLESS:
            raise ValueError(
                f"the network of {source!r} has no head; write transformers:AutoModelForImageClassification:{name}"
            )
        return source


class Input(_Table):
    """`[input]`: images are resized to `resize`, cropped to `size` pixels, and normalised after division by 255."""

    size: PositiveInt
    resize: PositiveInt | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)

    @property
    def stored(self) -> int:
        """The size at which images are kept."""
        return self.resize or self.size

    @model_validator(mode="after")
    def _large_enough(self) -> Input:
        if self.stored < self.size:
            raise ValueError(f"resize must be at least size; got {self.resize} < {self.size}")
        return self


class Rates(_Table):
    """`[train.rates]`: multiples of `lr` for the factors that start at zero, the other factors, the norms and the head."""

    zero: PositiveFloat = 1.0
    factors: PositiveFloat = 1.0
    norms: PositiveFloat = 1.0
    head: PositiveFloat = 1.0


class Distill(_Table):
    """`[train.distill]`: learn from the finished training of another variant on the same task (Hinton et al., 2015).

    The loss is (1 − weight) · cross-entropy + weight · T² · KL(teacher ‖ student), both at the temperature T. The teacher is
    the training with the same seed, or those with `seeds`, whose logits are averaged.
    """

    teacher: str
    seeds: Seeds = ()
    weight: float = Field(0.9, ge=0, le=1)
    temperature: PositiveFloat = 2.0

    def taught_by(self, seed: int) -> list[int]:
        """The seeds of the trainings that one with this ``seed`` learns from; its own first, where it is one of them."""
        return sorted(self.seeds or (seed,), key=lambda own: own != seed)


FULL = "full"
"""The teacher where a recipe names none; without a variant of that name, `Recipe.full_fine_tuning`."""
SOFTLY = {"teacher": FULL, "weight": 1.0, "temperature": 4.0}
"""`[train.distill]` where a recipe says no more than `start = "teacher"`: see docs/results.md."""
BY_THREE = SOFTLY | {"seeds": (0, 1, 2)}
"""`[train.distill]` where a recipe says no more than `start = "teachers"`."""

Start = Literal["random", "backbone", "gradients", "teacher", "teachers"]
START = get_args(Start)
TAUGHT = ("teacher", "teachers")
"""Values of `start` that say where factors come from: what the first teacher learnt, or the mean of what all did."""


class Train(_Table):
    """`[train]`: how each task is trained.

    `method` is "adapt" (what `[adapt]` says), "full" (a copy of the whole network, the reference) or a peer's adapter at
    the rank of `[adapt]`, told what `[train.peer]` says. With `holdout`, that share of the training images is kept back,
    and the run is scored on it instead of on the test split: for choosing settings.
    """

    method: Literal["adapt", "full", "peft-lora", "peft-lokr", "peft-loha", "lycoris-locon"] = "adapt"
    epochs: PositiveInt
    batch_size: PositiveInt = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: PositiveFloat
    rates: Rates = Rates()
    head: Literal["random", "probe"] = "random"
    start: Start = "random"
    weight_decay: NonNegativeFloat = 0.0
    delta_decay: NonNegativeFloat = 0.0
    momentum: float = Field(0.9, ge=0, lt=1)
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "onecycle"
    milestones: tuple[float, ...] = (0.5, 0.75)
    statistics: Literal["running", "anew"] = "running"
    average: float = Field(0.0, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: NonNegativeFloat = 0.0
    clip: PositiveFloat | None = None
    flip: bool = True
    pad: NonNegativeInt = 0
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    seeds: Seeds = Field((0,), min_length=1)
    workers: NonNegativeInt = 0
    holdout: float = Field(0.0, ge=0, lt=1)
    distill: Distill | None = None
    peer: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _names_the_teacher_it_starts_from(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if given.get("method") == "full" and given.get("start") in START:  # a setting reaches every variant
            return {key: value for key, value in given.items() if key != "start"}
        if given.get("start") not in TAUGHT:
            return given
        softly = SOFTLY if given["start"] == "teacher" else BY_THREE
        distill = given.get("distill") or {}
        if not isinstance(distill, Mapping) or "teacher" in distill:
            return given
        return {**given, "distill": {**softly, **distill}}

    @field_validator("milestones")
    @classmethod
    def _are_shares(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < m < 1 for m in milestones) or list(milestones) != sorted(milestones):
            raise ValueError("milestones are ascending shares of all steps, between 0 and 1, such as [0.5, 0.75]")
        return milestones

    @model_validator(mode="after")
    def _can_start_from_a_teacher(self) -> Train:
        if self.start != "random" and self.method != "adapt":
            raise ValueError(f'start = "{self.start}" needs the method "adapt"')
        if self.start == "teachers" and len(self.distill.seeds if self.distill else ()) < 2:
            raise ValueError('start = "teachers" needs several: distill = { teacher = "full", seeds = [0, 1, 2] }')
        return self


class TaskEntry(_Table):
    """One of `[[tasks]]`: a name and its data; `train` and `test` are lists of files under `data`."""

    name: str
    data: str
    train: str | None = None
    test: str | None = None

    @field_validator("name")
    @classmethod
    def _can_be_a_name(cls, name: str) -> str:
        return check_task_name(name)

    @model_validator(mode="after")
    def _both_lists(self) -> TaskEntry:
        if (self.train is None) != (self.test is None):
            raise ValueError("give both lists, train and test, or neither")
        return self


class Recipe(_Table):
    """All of a recipe file. `load_recipe` makes one of each of its `variants`, in which that table is empty."""

    backbone: Backbone
    input: Input
    adapt: dict[str, Any] = {}
    train: Train
    tasks: tuple[TaskEntry, ...] = Field(min_length=1)
    variants: dict[str, dict[str, Any]] = {}

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: tuple[TaskEntry, ...]) -> tuple[TaskEntry, ...]:
        names = [task.name for task in tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks are called {twice[0]!r}")
        return tasks

    @field_validator("adapt")
    @classmethod
    def _is_a_config(cls, adapt: dict[str, Any]) -> dict[str, Any]:
        if wrong := AdaptConfig.mistakes(adapt):
            raise ValueError(wrong[0][1])
        return adapt

    @property
    def config(self) -> AdaptConfig:
        """`[adapt]` as a config."""
        return AdaptConfig.from_dict(self.adapt)

    def full_fine_tuning(self, seeds: Iterable[int]) -> Recipe:
        """The same training of a copy of the whole network, with these ``seeds`` after its own, to learn from.

        It has three tenths of the learning rate, and no mixed pairs: networks that learnt from those teach worse
        (docs/results.md).
        """
        plain = {"start": "random", "distill": None, "rates": Rates(), "delta_decay": 0.0, "mixup": 0.0}
        own = {"method": "full", "lr": 0.3 * self.train.lr, "seeds": tuple(dict.fromkeys((*self.train.seeds, *seeds)))}
        return self.model_copy(update={"train": self.train.model_copy(update=plain | own)})
