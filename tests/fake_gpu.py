"""The driver of tests/fake_cuda, for this process and for others."""

import importlib.util
import os
from functools import cache
from pathlib import Path
from types import ModuleType

FAKE_CUDA = Path(__file__).parent / "fake_cuda"


@cache
def fake_bindings() -> ModuleType:
    """In place of `cuda.bindings.driver`, in this process."""
    path = FAKE_CUDA / "cuda" / "bindings" / "driver.py"
    spec = importlib.util.spec_from_file_location("fake_driver", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def path_with_fake() -> str:
    """A PYTHONPATH that puts it in place for a process."""
    return os.pathsep.join([str(FAKE_CUDA), os.environ.get("PYTHONPATH", "")])
