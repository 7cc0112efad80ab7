"""Calls of the CUDA driver, with bindings that only answer."""

import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from device import driver as module
from device.driver import Driver, DriverFailed, NoDevice


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2


def bindings(**functions: Any) -> SimpleNamespace:
    return SimpleNamespace(CUresult=CUresult, **functions)


@pytest.mark.parametrize(
    ("answers", "expected"), [((), None), ((7,), 7), ((7, 8), (7, 8))]
)
def test_a_call_answers_what_the_function_does(
    answers: tuple[int, ...], expected: object
) -> None:
    """
    The error is taken away: nothing is left, one value, or a tuple of them.
    """
    driver = Driver(bindings(cuAsk=lambda: (CUresult.CUDA_SUCCESS, *answers)))

    answer = driver.call("cuAsk")

    assert answer == expected


def test_arguments_reach_the_function() -> None:
    """
    A call passes its arguments on as they are.
    """
    driver = Driver(bindings(cuAdd=lambda a, b: (CUresult.CUDA_SUCCESS, a + b)))

    answer = driver.call("cuAdd", 2, 3)

    assert answer == 5


def test_an_error_has_its_name() -> None:
    """
    What went wrong says which call it was, and the driver's own name of the error.
    """
    failing = bindings(cuAsk=lambda: (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None))

    with pytest.raises(DriverFailed, match="cuAsk: CUDA_ERROR_OUT_OF_MEMORY"):
        Driver(failing).call("cuAsk")


@pytest.mark.parametrize("missing", ["bindings", "driver", "device"])
def test_without_a_gpu_there_is_no_device(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Bindings, a driver and a device are needed; whatever lacks, the answer is typed.
    """

    def init(_: int) -> tuple[CUresult]:
        if missing == "driver":
            raise RuntimeError("Failed to dlopen libcuda.so.1")
        return (CUresult.CUDA_ERROR_OUT_OF_MEMORY,)

    found = None if missing == "bindings" else bindings(cuInit=init)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=found))
    if found is None:
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)

    with pytest.raises(NoDevice):
        module.driver.__wrapped__()
