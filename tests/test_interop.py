"""Factorized tensors of tensorly-torch hold what our decompositions hold."""

import subprocess
import sys

import pytest
import tensorly as tl
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensornet as tn
from tensornet.decompositions import on_pytorch
from tensornet.errors import ShapeError
from tensornet.interop import from_tltorch, to_tltorch
from tensornet.testing import random_instance


@pytest.mark.parametrize("name", ["cp", "tucker", "tt", "dense"])
@given(shape=st.lists(st.integers(2, 5), min_size=2, max_size=4).map(tuple), rank=st.integers(1, 3))
def test_there_and_back(name, shape, rank):
    made = random_instance(tn.decomposition(name), shape, rank)
    theirs = to_tltorch(made)
    torch.testing.assert_close(on_pytorch(theirs.to_tensor)(), made.to_tensor())
    back = from_tltorch(theirs)
    assert type(back) is type(made)
    assert back.rank == made.rank
    torch.testing.assert_close(back.to_tensor(), made.to_tensor())


@pytest.mark.parametrize(("name", "rank"), [("CP", 3), ("Tucker", (2, 3, 2)), ("TT", (1, 2, 3, 1))])
def test_theirs_from_their_own_constructor(name, rank):
    @on_pytorch
    def make():
        import tltorch

        return tltorch.FactorizedTensor.new((4, 5, 6), rank=rank, factorization=name).normal_(0, 1)

    theirs = make()
    torch.testing.assert_close(from_tltorch(theirs).to_tensor(), on_pytorch(theirs.to_tensor)())


def test_classes_without_a_counterpart():
    with pytest.raises(ShapeError, match="no class for Kronecker"):
        to_tltorch(random_instance(tn.decomposition("kronecker"), (4, 4), 1))
    with pytest.raises(ShapeError, match="got list"):
        from_tltorch([1, 2])


def test_the_backend_of_the_process_stays():
    code = """
import tensorly as tl, tensornet as tn
from tensornet.interop import to_tltorch
to_tltorch(tn.decomposition('cp')((3, 4), 2))
assert tl.get_backend() == 'numpy', tl.get_backend()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert tl.get_backend() == "numpy"
