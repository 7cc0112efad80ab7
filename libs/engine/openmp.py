"""One pool of threads for torch's operations and numba's kernels.

Both run on GNU's OpenMP, but each brings a copy of its own, and two pools on the same
cores wait for each other. Whichever copy is loaded first serves both.
"""

import ctypes
import os
from contextlib import suppress

# Between the parallel parts of a step its threads are wanted again within microseconds;
# after it they must not keep a core from others. In turns of a loop of 10 to 50 ns.
SPIN_COUNT = 5000


def share_pool() -> None:
    """To be called before torch and numba are loaded.

    Where the library is not installed both work, each with threads of its own.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    with suppress(OSError):
        # By the name that numba asks for; torch asks for the name inside the file.
        ctypes.CDLL("libgomp.so.1.0.0", mode=ctypes.RTLD_GLOBAL)
