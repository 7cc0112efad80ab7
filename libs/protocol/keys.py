"""Every Redis key, spelled once.

The braces are part of a pool's keys: a hash tag, so that one transaction may touch
several of them on a Redis cluster.
"""

DEAD_LETTERS = "tandem:dead-letters"
MAX_CONTROL_ENTRIES = 10_000  # that a pool's control stream keeps
GROUP_OF_PREFILL = "prefill"
GROUP_OF_DECODE = "decode"
GROUP_OF_TRANSFERS = "store"
ALL_WORKERS = "tandem:worker:*"
ALL_POOLS = "tandem:pool:*"


def prefill(pool: str) -> str:
    return f"tandem:{{{pool}}}:prefill"


def decode(pool: str) -> str:
    return f"tandem:{{{pool}}}:decode"


def transfers(pool: str) -> str:
    return f"tandem:{{{pool}}}:transfers"


def control(pool: str) -> str:
    return f"tandem:{{{pool}}}:control"


def shares(pool: str) -> str:
    """Where the pool's present shares are kept, for a store that starts anew."""
    return f"tandem:{{{pool}}}:shares"


def latencies(pool: str) -> str:
    """What gateways measure, for the one among them that steers."""
    return f"tandem:{{{pool}}}:latencies"


def decisions(pool: str) -> str:
    """What became of the pool's shares, and why."""
    return f"tandem:{{{pool}}}:decisions"


def steering(pool: str) -> str:
    """Which gateway steers the pool's shares; expiring."""
    return f"tandem:{{{pool}}}:steering"


def replies(gateway: str) -> str:
    return f"tandem:replies:{gateway}"


def worker(worker_id: str) -> str:
    return f"tandem:worker:{worker_id}"


def pool(name: str) -> str:
    return f"tandem:pool:{name}"
