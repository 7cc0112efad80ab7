"""How this package's kernels are compiled by numba, and where their machine code is kept."""

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import config, njit
from numba.core.registry import cpu_target

_SOURCES = Path(__file__).parent


def machine_code_folder(sources: Path) -> Path:
    """Where the machine code of a package belongs, exactly as its sources are.

    numba notices changes of a kernel's own file, not of those that it calls; the digest
    of all of them does.
    """
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(config.CACHE_DIR or Path(home) / "tandem" / "kernels")
    return folder / digest.hexdigest()[:16]


MACHINE_CODE = machine_code_folder(_SOURCES)
config.CACHE_DIR = str(MACHINE_CODE)


@cache
def marker() -> Path:
    """The file that is there when all kernels are, for the processor at hand.

    numba compiles anew for other processors, versions, and places of the sources.
    """
    processor = cpu_target.target_context.codegen().magic_tuple()
    version = sys.implementation.cache_tag, numba.__version__
    what = repr((_SOURCES, version, processor))
    return MACHINE_CODE / f"all-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def are_compiled() -> bool:
    """Whether no kernel has to be compiled before it is used."""
    return marker().exists()


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
            save_alone(kernel._cache._cache_file)
        except RuntimeError:  # no writable folder anywhere: compile in each process
            kernel = njit(**options)(function)
        return kernel  # type: ignore[no-any-return]

    return decorate


# What is passed on, an array for instance, may take longer than what is done with it.
inlined = compiled(forceinline=True)


def save_alone(file: Any) -> None:
    """Let one process at a time add to what is kept of a function.

    numba looks up which names are taken, and writes under the next one, without a lock: two
    that compile a function for other types would take the same.
    """
    save = file.save

    def locked(key: Any, data: Any) -> None:
        with (MACHINE_CODE / "saving").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            save(key, data)

    file.save = locked
