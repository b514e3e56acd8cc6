"""A process that computes with torch on a CPU keeps the memory that it frees."""

import platform
import subprocess
import sys

import pytest

TEN_TIMES_40_MIB = """
import resource
import sys
import torch
from cxr.models.forward import choose_device

if sys.argv[1] == "chosen":
    choose_device("cpu")
for _ in range(20):  # in which the heap finds its form
    torch.ones(10 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_large_block_is_not_asked_for_again_once_the_cpu_was_chosen() -> None:
    assert _mib_handed_out("not chosen") > 300
    assert _mib_handed_out("chosen") < 40


def _mib_handed_out(device: str) -> float:
    command = [sys.executable, "-c", TEN_TIMES_40_MIB, device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
