"""How this package's kernels are compiled by numba."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile on first call, and keep the machine code on disk where that is possible.

    Sums may be reordered, which vectorises them. The flags that assume away infinities
    and NaN are left out: a broken value must stay visible, in its own row only. Division
    by zero gives what IEEE 754 says, and no error, whose check would not vectorise.
    """
    options |= {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:  # no writable folder anywhere: compile in each process
            kernel = njit(**options)(function)
        return kernel  # type: ignore[no-any-return]

    return decorate
