"""One frozen backbone, many tasks: low-rank tensor deltas, own normalisation layers and heads."""

from importlib.metadata import version as _version

from tensornet.backbones import load_backbone as load_backbone
from tensornet.config import AdaptConfig as AdaptConfig
from tensornet.config import Choice as Choice
from tensornet.decompositions import Decomposition as Decomposition
from tensornet.decompositions import decomposition as decomposition
from tensornet.decompositions import decompositions as decompositions
from tensornet.decompositions import register as register
from tensornet.errors import TensornetError as TensornetError
from tensornet.export import export_task as export_task
from tensornet.extraction import extract_task as extract_task
from tensornet.files import TaskFile as TaskFile
from tensornet.files import read_task as read_task
from tensornet.network import AdaptedNetwork as AdaptedNetwork
from tensornet.network import adapt as adapt
from tensornet.plan import plan as plan
from tensornet.task import Task as Task

__version__ = _version("tensornet")
