"""The CUDA driver's calls with errors raised. Knows neither tensors nor sequences.

Through NVIDIA's `cuda-bindings`, so that the store needs no torch:

    DeviceError
    ├── NoDevice      no driver, no GPU, or no bindings are installed
    └── DriverFailed  a call went wrong; it says which, and the driver's reason
"""

from functools import cache
from typing import Any

DEVICE = 0  # of the visible ones; CUDA_VISIBLE_DEVICES says which that is


class DeviceError(Exception):
    """Something about the GPU."""


class NoDevice(DeviceError):
    pass


class DriverFailed(DeviceError):
    pass


class Driver:
    """The seam to the driver: `call` of a function by its name."""

    def __init__(self, bindings: Any) -> None:
        """`bindings` is `cuda.bindings.driver`, or what stands in for it."""
        self.bindings = bindings

    def call(self, function: str, *arguments: Any) -> Any:
        """What the function answers: nothing, one value, or a tuple of them.

        Raises DriverFailed with the driver's name of the error.
        """
        error, *answers = getattr(self.bindings, function)(*arguments)
        if error != self.bindings.CUresult.CUDA_SUCCESS:
            raise DriverFailed(f"{function}: {error.name}")
        if not answers:
            return None
        return answers[0] if len(answers) == 1 else tuple(answers)


@cache
def driver() -> Driver:
    """The driver of this machine, initialised; NoDevice when there is none."""
    try:
        from cuda.bindings import driver as bindings
    except ImportError:
        raise NoDevice(
            "cuda-bindings is not installed: pip install --editable '.[cuda]'"
        ) from None
    try:
        found = Driver(bindings)
        found.call("cuInit", 0)
    except (RuntimeError, DriverFailed) as error:
        raise NoDevice(f"no CUDA driver answers: {error}") from None
    return found
