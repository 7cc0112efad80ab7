"""The stem of a CPU's workers and loaders: torch and transformers, imported once for all.

    python -m worker.stem DESCRIPTOR

where the descriptor is of a socket that listens. Starts no thread pool: a fork of a
process that has one could not compute.
"""

import gc
import importlib
import socket
import sys

from engine.openmp import share_pool
from mesh.stem import serve

MODULES = "worker.app", "engine.eager", "engine.checkpoint"


def main(descriptor: int) -> None:
    share_pool()
    gc.disable()  # it would take a sixth of the time, and find next to nothing
    for module in MODULES:
        importlib.import_module(module)
    gc.enable()
    serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
