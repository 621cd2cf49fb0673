"""Training and testing of one model, on Lightning."""

from __future__ import annotations

import logging
import time
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensornet.data.augment import centre_crop, normalised, random_crop, random_flip
from tensornet.data.images import Images, ordered_loader, shuffled_loader
from tensornet.errors import MissingExtraError, NonFiniteError, WriteError
from tensornet.training.recipe import Input, Train

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
    """

    def __init__(self, network: nn.Module, trained: nn.Module, settings: Train, image: Input, seed: int) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.image = image
        self.seed = seed
        self._trained = [trained]  # in a list: registered once, inside the network
        self.strict_loading = False
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self._begun = time.perf_counter()
        self.register_buffer("mean", torch.tensor(image.mean), persistent=False)
        self.register_buffer("std", torch.tensor(image.std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(normalised(images, self.mean, self.std))  # type: ignore[arg-type]
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        generator = torch.Generator().manual_seed((self.seed * 100_003 + self.current_epoch) * 1_000_003 + index)
        loss: Tensor = self.loss(self(augmented(images, self.settings, self.image, generator)), labels)
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        logits = self(centre_crop(images, self.image.size))
        accuracy = multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro")
        self.log("accuracy", accuracy, on_epoch=True, batch_size=len(labels))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.settings
        parameters = [p for p in self._trained[0].parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "adamw":
            optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        else:
            decay, momentum = settings.weight_decay, settings.momentum
            optimizer = torch.optim.SGD(
                parameters, settings.lr, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
            )
        steps = int(self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": _schedule(optimizer, settings, steps), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self._trained[0].state_dict()
        checkpoint["seconds"] = self.seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._trained[0].load_state_dict(checkpoint["state_dict"])
        checkpoint["state_dict"] = {}
        self._begun -= checkpoint["seconds"]

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
    checkpoints: Path | None = None,
    progress: bool = True,
) -> Fitted:
    """Train ``trained`` inside ``network``, and test it after the last epoch.

    Args:
        network, trained: see `Classifier`.
        train, test: the two splits.
        settings, image: of the recipe.
        seed: of the order of the images and of their augmentation.
        checkpoints: a folder for the state after every epoch; a run that was killed goes on from there.
        progress: show a progress bar.

    Raises:
        NonFiniteError: the training diverged to NaN or infinity.
        WriteError: a checkpoint cannot be written.
    """
    module = Classifier(network, trained, settings, image, seed).train()
    last = checkpoints / "last.ckpt" if checkpoints is not None else None
    callbacks: list[L.Callback] = []
    if checkpoints is not None:
        callbacks.append(ModelCheckpoint(checkpoints, filename="last", every_n_epochs=1, enable_version_counter=False))
    if progress:
        callbacks.append(RichProgressBar(leave=False))
    with _quiet():
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
        except OSError as error:
            raise WriteError(f"the state of the training cannot be kept in {checkpoints}: {error}") from error
        seconds = module.seconds()
        loss = float(trainer.callback_metrics.get("loss", torch.tensor(float("nan"))))
        if any(not torch.isfinite(p).all() for p in trained.parameters()):
            raise NonFiniteError(f"the training diverged (loss {loss}); lower train.lr={settings.lr} or set train.clip")
        accuracy = score(trainer, module, test, settings.batch_size)
    return Fitted(accuracy, seconds, loss)


def _intact(checkpoint: Path) -> bool:
    """Whether a checkpoint can be read; one that a full disk or a crash has damaged is as good as none."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def augmented(images: Tensor, settings: Train, image: Input, generator: torch.Generator) -> Tensor:
    """Images as training sees them, but for the normalisation."""
    if settings.flip:
        images = random_flip(images, generator)
    if settings.pad or image.stored > image.size:
        images = random_crop(images, image.size, settings.pad, generator)
    return images


def evaluate(network: nn.Module, test: Images, image: Input, batch_size: int = 256, *, progress: bool = False) -> float:
    """The accuracy in [0, 1] of a network that maps normalised images to logits."""
    settings = Train.model_validate({"epochs": 1, "lr": 1.0})
    with _quiet():
        trainer = L.Trainer(
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=progress, devices=1
        )
        return score(trainer, Classifier(network, network, settings, image, 0), test, batch_size)


def score(trainer: L.Trainer, module: Classifier, test: Images, batch_size: int) -> float:
    """The accuracy of a module on a test split."""
    (metrics,) = trainer.test(module, ordered_loader(test, batch_size), verbose=False)
    return float(metrics["accuracy"])


def _schedule(optimizer: torch.optim.Optimizer, settings: Train, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    if settings.schedule == "onecycle":
        return schedulers.OneCycleLR(optimizer, settings.lr, total_steps=max(steps, 2))
    if settings.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, max(steps, 1))
    if settings.schedule == "step":
        return schedulers.MultiStepLR(optimizer, [int(steps * m) for m in settings.milestones], gamma=0.1)
    return schedulers.ConstantLR(optimizer, factor=1.0)


class _quiet(warnings.catch_warnings):
    """Without what Lightning says about its surroundings: workers, loggers, hardware."""

    def __enter__(self) -> None:
        super().__enter__()
        for message in _CHATTER:
            warnings.filterwarnings("ignore", message=message)
        for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)


_CHATTER: Iterable[str] = (
    r".*does not have many workers.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*GPU available but not used.*",
    r".*The number of training batches .*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*You're resuming from a checkpoint that ended before.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
