"""What can go wrong between processes.

* MeshError
  + ConfigurationError    a setting is wrong: the process says which and exits with 2
  + Unreachable           a peer is gone or silent: the process ends, to start anew
"""


class MeshError(Exception):
    """Root of what the mesh raises by itself."""


class ConfigurationError(MeshError):
    """A setting is wrong; the text is one line for the person who made it."""


class Unreachable(MeshError):
    """A peer is gone or silent, and this process is of no use without it."""
