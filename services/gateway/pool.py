"""What the gateway knows of one pool: its limits, who is alive, and what died. No I/O.

A pool that hands over to another one, which decodes for it, is one with that: a place to
send requests to.
"""

import time
from collections.abc import Mapping, Sequence

from gateway.errors import Unavailable
from protocol.messages import Phase, PoolStatus, WorkerStatus

# A store that died is back within this time, and its requests wait for it.
GRACE_SECONDS = 30.0


class PoolView:
    """A pool as its members last described themselves."""

    def __init__(self, name: str, lease_seconds: float) -> None:
        self.name = name
        self._lease_seconds = lease_seconds
        self._statuses: dict[str, PoolStatus] = {}  # of it and its handoff pool
        self._seen_at = 0.0
        self._missing = ""
        self._missing_since = 0.0
        self.members: list[WorkerStatus] = []  # who lives, in both
        self.is_ready = False  # a request would be answered

    @property
    def handoff_pool(self) -> str:
        """Who decodes for this pool; empty: it does so itself."""
        status = self._statuses.get(self.name)
        return status.handoff_pool if status else ""

    @property
    def names(self) -> list[str]:
        """Of the one or two pools that this is."""
        return [self.name, self.handoff_pool] if self.handoff_pool else [self.name]

    @property
    def is_divided(self) -> bool:
        """Its phases have shares: it decodes itself, by other workers than prefill's."""
        has_sides = any(member.phases == ("prefill",) for member in self.members)
        return has_sides and not self.handoff_pool

    @property
    def statuses(self) -> list[PoolStatus]:
        """Of its store and of the one it hands over to, as last seen."""
        return [self._statuses[name] for name in self.names if name in self._statuses]

    @property
    def max_tokens(self) -> int:
        """Of one request, prompt and output together."""
        return min(
            min(status.max_model_len, status.total * status.block_size)
            for status in self.statuses
        )

    @property
    def gone(self) -> str:
        """The pool whose store was not heard of for a lease, while others were."""
        silent_seconds = time.monotonic() - self._missing_since
        return self._missing if silent_seconds > self._lease_seconds else ""

    def check(self) -> None:
        """Unavailable while nobody knows what fits into it."""
        if len(self.statuses) < len(self.names):
            raise Unavailable("The model is still being loaded.")
        if time.monotonic() - self._seen_at > GRACE_SECONDS:
            raise Unavailable("The model's pool is gone.")

    def see(
        self, pools: Mapping[str, PoolStatus], members: Sequence[WorkerStatus]
    ) -> list[str]:
        """Take in who lives; returns the pools whose store is another one than before."""
        before = dict(self._statuses)
        if self.name in pools:  # first: it says whom it hands over to
            self._statuses[self.name] = pools[self.name]
        if self.handoff_pool in pools:
            self._statuses[self.handoff_pool] = pools[self.handoff_pool]
        self.members = [member for member in members if member.pool in self.names]
        self._note_missing([name for name in self.names if name not in pools])
        self.is_ready = (
            not self._missing
            and self._has(self.names[0], "prefill")
            and self._has(self.names[-1], "decode")
        )
        return [
            name
            for name, status in before.items()
            if self._statuses[name].store != status.store
        ]

    def lose_sight(self) -> None:
        """Nobody can be heard: who is silent need not be gone."""
        self.is_ready = False
        self._missing = ""

    def _note_missing(self, missing: list[str]) -> None:
        if not missing:
            self._seen_at = time.monotonic()
        elif not self._missing:
            self._missing_since = time.monotonic()
        self._missing = missing[-1] if missing else ""

    def _has(self, pool: str, phase: Phase) -> bool:
        return any(
            member.pool == pool and member.ready and phase in member.phases
            for member in self.members
        )
