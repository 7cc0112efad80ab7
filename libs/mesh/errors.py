"""What can go wrong between processes.

* MeshError
  + ConfigurationError    a setting is wrong: the process says which and exits with 2
  + Unreachable           a peer did not answer within its time
"""


class MeshError(Exception):
    """Root of what the mesh raises by itself."""


class ConfigurationError(MeshError):
    """A setting is wrong; the text is one line for the person who made it."""


class Unreachable(MeshError):
    """A peer did not answer within its time."""
