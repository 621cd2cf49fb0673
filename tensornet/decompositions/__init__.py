"""Decompositions: each file holds one, and registers it."""

from tensornet.decompositions.backend import on_pytorch as on_pytorch
from tensornet.decompositions.base import Decomposition as Decomposition
from tensornet.decompositions.base import Factors as Factors
from tensornet.decompositions.base import Rung as Rung
from tensornet.decompositions.bottleneck import Bottleneck as Bottleneck
from tensornet.decompositions.cp import CP as CP
from tensornet.decompositions.dense import Dense as Dense
from tensornet.decompositions.kronecker import Kronecker as Kronecker
from tensornet.decompositions.low_rank import LowRank as LowRank
from tensornet.decompositions.named import decomposition as decomposition
from tensornet.decompositions.named import decompositions as decompositions
from tensornet.decompositions.named import name_of as name_of
from tensornet.decompositions.named import register as register
from tensornet.decompositions.spectrum import Spectrum as Spectrum
from tensornet.decompositions.tt import TT as TT
from tensornet.decompositions.tucker import Tucker as Tucker
