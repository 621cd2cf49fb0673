"""Lightning without its remarks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
_CHATTER = (
    r".*does not have many workers.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*GPU available but not used.*",
    r".*The number of training batches .*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*You're resuming from a checkpoint that ended before.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing of what Lightning says about its surroundings: workers, loggers, hardware."""
    levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    with warnings.catch_warnings():
        for message in _CHATTER:
            warnings.filterwarnings("ignore", message=message)
        for logger in levels:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in levels.items():
                logger.setLevel(level)
