"""What importing torchvision's networks leaves out, and that it is there when it is needed."""

import subprocess
import sys

from tests.support.project import PROJECT

PROGRAM = """
import sys
from cxr.models.torchvision_networks import models
assert models.resnet50
assert "torch._dynamo" not in sys.modules
supported = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
assert supported == is_compile_supported("cpu")
"""


def test_the_compiler_is_imported_when_it_is_asked_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
