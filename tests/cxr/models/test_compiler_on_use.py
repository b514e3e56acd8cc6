"""torch's compiler is left out where nothing is compiled, and there when it is needed."""

import subprocess
import sys

from tests.support.project import PROJECT

TORCHVISION = """
import sys
from cxr.models.torchvision_networks import models
assert models.resnet50
assert "torch._dynamo" not in sys.modules
supported = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
assert supported == is_compile_supported("cpu")
"""
OPTIMIZER = """
import sys
import torch
from cxr.models.compiler_on_use import leave_out_of_optimizers
leave_out_of_optimizers()
network = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(network.parameters(), fused=True)
for step in range(2):
    before = network.weight.clone()
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert not torch.equal(before, network.weight)
optimizer.load_state_dict(optimizer.state_dict())
assert not hasattr(sys.modules["torch._dynamo"], "__file__")  # as inspect.getmodule asks every module
assert not any(name.startswith("torch._dynamo.") for name in sys.modules)
calls = []
def backend(graph, inputs):
    calls.append(graph)
    return graph.forward
assert torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1)) == 2
assert len(calls) == 1
import torch._dynamo.utils
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torchvision_is_imported_without_it() -> None:
    run(TORCHVISION)


def test_an_optimizer_works_without_it_and_what_is_compiled_afterwards_is() -> None:
    run(OPTIMIZER)
