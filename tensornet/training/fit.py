"""Training and testing of one model, on Lightning."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensornet.data.augment import centre_crop, mixed_pairs, normalised
from tensornet.data.images import Images, ordered_loader, shuffled_loader
from tensornet.errors import MissingExtraError, NonFiniteError, WriteError
from tensornet.outputs import logits
from tensornet.task import Task
from tensornet.training.batches import as_trained, augmented
from tensornet.training.optimizer import optimizer, schedule
from tensornet.training.quiet import quiet
from tensornet.training.recipe import Input, Train
from tensornet.training.statistics import batch_norms, estimate

try:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torchmetrics.functional.classification import multiclass_accuracy
except ImportError as error:
    raise MissingExtraError("training", "train", error.name) from error


@dataclass(frozen=True)
class Fitted:
    """What a training ended with: accuracy on the test split in [0, 1], seconds of training, loss of the last epoch."""

    accuracy: float
    seconds: float
    loss: float


class Classifier(L.LightningModule):
    """A network that is trained in one of its parts.

    Args:
        network: maps images of shape (N, 3, size, size) to logits.
        trained: the part whose parameters are trained and whose state a checkpoint holds.
        settings, image: of the recipe.
        seed: of the augmentation.
        teachers: finished networks, which the settings say to learn from.
    """

    def __init__(
        self,
        network: nn.Module,
        trained: nn.Module,
        settings: Train,
        image: Input,
        seed: int,
        teachers: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.image = image
        self.seed = seed
        self._trained = [trained]  # in a list: registered once, inside the network
        self._teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.strict_loading = False
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self._sums: dict[str, Tensor] = {}  # of averaged parameters; a copy of a peer's network would not be one of its own
        self._summed = 0
        self._loss = torch.tensor(float("nan"))
        self._begun = time.perf_counter()
        self.register_buffer("mean", torch.tensor(image.mean), persistent=False)
        self.register_buffer("std", torch.tensor(image.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = logits(self.network(self._seen(images)))
        return found

    def _seen(self, images: Tensor) -> Tensor:
        """Images as a network takes them: normalised, and with the channels last, which convolutions compute faster on."""
        seen = normalised(images, self.mean, self.std)  # type: ignore[arg-type]
        return seen.contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        step = ((self.seed * 100_003 + self.current_epoch) * 1_000_003 + index) % 2**62
        torch.manual_seed(-1 - step)  # of dropout: a resumed run goes on as it would have
        generator = torch.Generator().manual_seed(step)
        seen = self._seen(augmented(images, self.settings, self.image, generator))
        targets = [(1.0, labels)]
        if self.settings.mixup:
            seen, partners, share = mixed_pairs(seen, self.settings.mixup, generator)
            targets = [(share, labels), (1 - share, labels[partners])]
        found: Tensor = logits(self.network(seen))
        loss = sum((share * self.loss(found, own) for share, own in targets), torch.zeros((), device=labels.device))
        if self._teachers:
            loss = self._distilled(loss, found, seen)
        if self.settings.delta_decay and isinstance(self._trained[0], Task):
            loss = loss + self.settings.delta_decay / 2 * self._trained[0].squared_norm()
        self.log("loss", loss.detach(), prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def _distilled(self, loss: Tensor, found: Tensor, seen: Tensor) -> Tensor:
        how = self.settings.distill
        assert how is not None
        with torch.no_grad():
            taught = torch.stack([logits(teacher(seen)).float() for teacher in self._teachers]).mean(0)
        student, taught = (F.log_softmax(own / how.temperature, 1) for own in (found.float(), taught))
        apart = F.kl_div(student, taught, reduction="batchmean", log_target=True)
        return (1 - how.weight) * loss + how.weight * how.temperature**2 * apart

    def on_fit_start(self) -> None:
        for teacher in self._teachers:
            teacher.to(self.device)

    def on_train_batch_end(self, *_: object) -> None:
        share = self.settings.average
        if not share or self.trainer.global_step <= (1 - share) * int(self.trainer.estimated_stepping_batches):
            return
        with torch.no_grad():
            for name, parameter in self._trained[0].named_parameters():
                if parameter.requires_grad:
                    total = self._sums.get(name, torch.zeros_like(parameter))
                    self._sums[name] = total.to(parameter.device) + parameter
        self._summed += 1

    def take_average(self) -> None:
        """Make the averaged parameters the trained ones, where the settings ask for an average."""
        if self._summed:
            with torch.no_grad():
                for name, total in self._sums.items():
                    self._trained[0].get_parameter(name).copy_(total / self._summed)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        found = self(centre_crop(images, self.image.size))
        accuracy = multiclass_accuracy(found, labels, num_classes=found.shape[1], average="micro")
        self.log("accuracy", accuracy, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        chosen = optimizer(self._trained[0], self.settings)
        steps = int(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": chosen,
            "lr_scheduler": {"scheduler": schedule(chosen, self.settings, steps), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self._trained[0].state_dict()
        checkpoint["seconds"] = self.seconds()
        checkpoint["sums"], checkpoint["summed"] = self._sums, self._summed
        checkpoint["loss"] = self.last_loss()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._trained[0].load_state_dict(checkpoint["state_dict"])
        checkpoint["state_dict"] = {}
        self._sums, self._summed = checkpoint["sums"], checkpoint["summed"]
        self._begun -= checkpoint["seconds"]
        self._loss = checkpoint["loss"]

    def last_loss(self) -> Tensor:
        """Of the last epoch, also where that was before the run was resumed."""
        return self.trainer.callback_metrics.get("loss", self._loss)

    def seconds(self) -> float:
        """How long the training has taken, earlier parts of a resumed run included."""
        return time.perf_counter() - self._begun


def fit(
    network: nn.Module,
    trained: nn.Module,
    train: Images,
    test: Images,
    settings: Train,
    image: Input,
    seed: int,
    *,
    teachers: Sequence[nn.Module] = (),
    checkpoints: Path | None = None,
    progress: bool = True,
) -> Fitted:
    """Train ``trained`` inside ``network``, and test it after the last epoch.

    Args:
        network, trained: see `Classifier`.
        train, test: the two splits.
        settings, image: of the recipe.
        seed: of the order of the images and of their augmentation.
        teachers: finished networks that map normalised images to logits, where the settings say to learn from them.
        checkpoints: a folder for the state after every epoch; a run that was killed goes on from there.
        progress: show a progress bar.

    Raises:
        NonFiniteError: the training diverged to NaN or infinity.
        WriteError: a checkpoint cannot be written.
    """
    module = Classifier(network, trained, settings, image, seed, teachers).train()
    last = checkpoints / "last.ckpt" if checkpoints is not None else None
    callbacks: list[L.Callback] = []
    if checkpoints is not None:
        callbacks.append(_Checkpoint(checkpoints, filename="last", every_n_epochs=1, enable_version_counter=False))
    if progress:
        callbacks.append(RichProgressBar(leave=False))
    with quiet():
        trainer = L.Trainer(
            max_epochs=settings.epochs,
            precision=settings.precision,
            gradient_clip_val=settings.clip,
            callbacks=callbacks,
            enable_checkpointing=checkpoints is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            logger=False,
            devices=1,
        )
        resumed = str(last) if last is not None and _intact(last) else None
        loader = shuffled_loader(train, settings.batch_size, seed, settings.workers)
        try:
            trainer.fit(module, loader, ckpt_path=resumed, weights_only=True if resumed else None)
        except SystemExit:  # what Lightning makes of an interrupt
            raise KeyboardInterrupt from None
        seconds = module.seconds()
        module.take_average()  # also where the run was stopped after its last epoch
        loss = float(module.last_loss())
        if any(not torch.isfinite(p).all() for p in trained.parameters()):
            raise NonFiniteError(f"the training diverged (loss {loss}); lower train.lr={settings.lr} or set train.clip")
        if settings.statistics == "anew" or settings.average:  # those that ran along belong to weights that are gone
            device = trainer.strategy.root_device  # which Lightning has taken the network off
            network.to(device)
            estimate(batch_norms(trained), network, as_trained(train, settings, image, seed, device))
        accuracy = score(trainer, module, test, settings.batch_size)
    return Fitted(accuracy, seconds, loss)


class _Checkpoint(ModelCheckpoint):
    """The state of a training after every epoch, in one file."""

    @property
    def state_key(self) -> str:
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            super().on_train_epoch_end(trainer, pl_module)
        except OSError as error:
            raise WriteError(f"the state of the training cannot be kept in {self.dirpath}: {error}") from error


def _intact(checkpoint: Path) -> bool:
    """Whether a checkpoint can be read; one that a full disk or a crash has damaged is as good as none."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def evaluate(network: nn.Module, test: Images, image: Input, batch_size: int = 256) -> float:
    """The accuracy in [0, 1] of a network that maps normalised images to logits."""
    settings = Train.model_validate({"epochs": 1, "lr": 1.0})
    with quiet():
        trainer = L.Trainer(
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, devices=1
        )
        return score(trainer, Classifier(network, network, settings, image, 0), test, batch_size)


def score(trainer: L.Trainer, module: Classifier, test: Images, batch_size: int) -> float:
    """The accuracy of a module on a test split."""
    try:
        (metrics,) = trainer.test(module, ordered_loader(test, batch_size), verbose=False)
    except SystemExit:  # what Lightning makes of an interrupt
        raise KeyboardInterrupt from None
    return float(metrics["accuracy"])
