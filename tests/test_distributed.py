"""Two processes that train one task together, as `DistributedDataParallel` does it."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tensornet as tn
from tests.toys import ResNet

STEPS = 3


def trained(rank, workers, place, folder):
    """A few steps on this process's share of a batch; what came out is written."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=workers)
    net = tn.adapt(ResNet().eval(), tn.AdaptConfig("cp", rank=2, norms="shared"))
    backbone = {key: value.clone() for key, value in net.backbone.state_dict().items()}
    x, labels = torch.randn(8, 3, 8, 8), torch.randint(0, 3, (8,))
    for name in ("a", "b"):
        net.add_task(name, nn.Linear(8, 3))
    before, other = ({key: value.clone() for key, value in net[name].state_dict().items()} for name in ("a", "b"))
    net.set_task("a")
    both = DistributedDataParallel(net.train(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(net["a"].parameters(), lr=0.1)
    share = slice(rank * 8 // workers, (rank + 1) * 8 // workers)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(both(x[share]), labels[share]).backward()
        optimizer.step()
    assert all(torch.equal(value, backbone[key]) for key, value in net.backbone.state_dict().items())
    assert all(torch.equal(value, other[key]) for key, value in net["b"].state_dict().items())
    assert all(not torch.equal(value, before[key]) for key, value in net["a"].state_dict().items()), "all of it learns"
    torch.save(net["a"].state_dict(), f"{folder}/{workers}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_what_one_does_on_the_whole_batch(tmp_path):
    for workers in (1, 2):
        mp.spawn(trained, (workers, tmp_path / f"store-{workers}", tmp_path), nprocs=workers)
    alone, *both = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for key, value in alone.items():
        assert torch.equal(both[0][key], both[1][key]), key
        torch.testing.assert_close(both[0][key], value, msg=key)
