"""Memory that a process frees and asks for again."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, psutil, torch
from tensornet.heap import give_freed_memory_back, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        tensors = [torch.ones(10_000_000) for _ in range(2)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
kept = keep_freed_memory()
faults()
after = faults()
held = psutil.Process().memory_info().rss
give_freed_memory_back()
print(int(kept), before, after, held - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_until_it_is_given_back():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, before, after, given_back = map(int, done.stdout.split())
    if not kept:
        pytest.skip("this C library is not glibc")
    assert after < before / 100
    assert given_back > 2 * 40_000_000 * 0.9  # the two tensors
