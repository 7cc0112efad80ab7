"""Torch's threads and numba's are one pool in tests, as they are in a worker.

Imported before either: two pools would spin against each other, and both against the
meshes that share the cores with them.
"""

from engine.openmp import share_pool

share_pool()
