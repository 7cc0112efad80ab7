"""What happened in a pool since its store started: for its heartbeat and Prometheus."""

from dataclasses import asdict, dataclass

from mesh import metrics
from protocol.messages import PoolCounts


@dataclass(slots=True)
class Counts:
    """Only ever grow; `protocol.messages.PoolCounts` says what each one is."""

    queried_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    parks: int = 0
    adoptions: int = 0
    recoveries: int = 0

    def looked_up(self, num_queried: int, num_cached: int) -> None:
        self.queried_tokens += num_queried
        self.cached_tokens += num_cached
        metrics.PREFIX_CACHE_QUERIES.inc(num_queried)
        metrics.PREFIX_CACHE_HITS.inc(num_cached)

    def preempted(self) -> None:
        self.preemptions += 1
        metrics.NUM_PREEMPTIONS.inc()

    def parked(self) -> None:
        self.parks += 1
        metrics.PARKS.inc()

    def adopted(self) -> None:
        self.adoptions += 1
        metrics.ADOPTIONS.inc()

    def recovered(self) -> None:
        self.recoveries += 1
        metrics.RECOVERIES.inc()

    def message(self) -> PoolCounts:
        return PoolCounts(**asdict(self))
