"""One pool: its memory and its sequences behind one question and one answer.

Synchronous: each operation is atomic because nothing else runs meanwhile. A peer is a
connection; it need not tell the truth about its name.
"""

import time

from kv.errors import NoRoom
from kv.operations import (
    Admit,
    Adopt,
    Advance,
    Answer,
    Attach,
    BeginLoad,
    CommitLoad,
    Done,
    Expired,
    Forget,
    Operation,
    Park,
    RefusedReply,
    Release,
    Renew,
    Stats,
)
from kvstore.division import Division
from kvstore.journals import Journals
from kvstore.memory import PoolMemory
from kvstore.store import Store
from protocol.messages import Cancel, PoolStatus, RequestId, Shares

NOTHING_LOADED = RefusedReply(reason="no model is loaded yet: attach first")


class Pool:
    """What one kvstore process owns."""

    def __init__(
        self,
        name: str,
        memory: PoolMemory,
        max_waiting: int,
        handoff_pool: str = "",
        shares: Shares | None = None,
    ) -> None:
        """`handoff_pool` decodes what this one computed; empty: this one itself."""
        self.name = name
        self.handoff_pool = handoff_pool
        self.journals = Journals()
        self.division = Division(shares, self.journals.call)
        self.memory = memory
        self.store: Store | None = None  # exists once a model is loaded
        self._max_waiting = max_waiting
        self._heard: dict[str, float] = {}  # of each peer, when; monotonic seconds
        self._expired: set[str] = set()

    def answer(self, peer: str, operation: Operation) -> Answer:
        if peer in self._expired:
            return Expired()
        self._heard[peer] = time.monotonic()
        match operation:
            case Attach(fingerprint=fingerprint, phases=phases):
                self.division.join(peer, phases)
                return self.memory.attach(peer, fingerprint)
            case BeginLoad() | CommitLoad():
                try:
                    return self._load(peer, operation)
                except NoRoom as error:
                    return RefusedReply(reason=str(error))
        if self.store is None:
            return NOTHING_LOADED
        self._read_journal(self.store, peer)
        return self._on_sequences(self.store, peer, operation)

    def _on_sequences(self, store: Store, peer: str, operation: Operation) -> Answer:
        match operation:
            case Advance(progress=progress, pile_tokens=pile_tokens):
                return store.advance(progress, peer, pile_tokens)
            case Admit(job=job):
                return store.admit(job, peer)
            case Adopt(request_id=request_id, generation=generation):
                return store.adopt(request_id, generation, peer)
            case Park(sequences=sequences):
                store.park(sequences, peer)
            case Release(sequences=sequences):
                store.release(sequences, peer)
            case Forget(sequences=sequences):
                store.forget(sequences, peer)
            case Cancel(request_id=request_id):
                store.cancel(request_id)
            case Stats():
                return self._status(store)
            case Renew():
                pass
        return Done()

    def _read_journal(self, store: Store, peer: str) -> None:
        for steps in self.journals.read(peer):
            store.record(steps, peer)

    def detach(self, peer: str) -> None:
        """The connection is gone: so is its worker."""
        if self.store is not None:
            self._read_journal(self.store, peer)
            self.store.detach(peer)
        self._forget(peer)

    def fence(self, peer: str) -> None:
        """The connection is gone, and its worker may still write, until `detach`."""
        if self.store is not None:
            self._read_journal(self.store, peer)
            self.store.fence(peer)
        self._forget(peer)

    def _forget(self, peer: str) -> None:
        self.journals.close(peer)
        self._heard.pop(peer, None)
        self._expired.discard(peer)
        self.memory.detach(peer)
        self.division.leave(peer)

    def expire(self, lease_seconds: float) -> list[str]:
        """Take from workers that were silent for longer what they hold; who they are."""
        if self.store is None:
            return []
        latest = time.monotonic() - lease_seconds
        silent = [p for p in self.store.owners if self._heard[p] < latest]
        for peer in silent:
            self._expired.add(peer)
            self.journals.call(peer)  # first: it tells nobody of what is not read now
            self._read_journal(self.store, peer)
            self.store.expire(peer)
        return silent

    def forgive(self, seconds: float) -> None:
        """It was this process that did not listen: nobody is to suffer for that."""
        for peer in self._heard:
            self._heard[peer] += seconds

    def cancel(self, request_id: RequestId) -> None:
        """A client is gone or has enough."""
        if self.store is not None:
            self.store.cancel(request_id)

    @property
    def has_announcements(self) -> bool:
        """Something was parked or given up that nobody knows of yet."""
        store = self.store
        return store is not None and bool(store.announcements or store.failures)

    def status(self) -> PoolStatus | None:
        """None while no model is loaded."""
        return self._status(self.store) if self.store else None

    def _load(self, peer: str, operation: BeginLoad | CommitLoad) -> Answer:
        match operation:
            case BeginLoad():
                room = self.memory.begin_load(peer, operation)
                return room or RefusedReply(reason="another loader is at work")
            case CommitLoad(free_bytes=free_bytes):
                return self._commit_load(peer, free_bytes)

    def _commit_load(self, peer: str, free_bytes: int) -> Answer:
        load = self.memory.commit_load(peer, free_bytes)
        if load is None:
            return RefusedReply(reason="nothing to commit: the load was not begun here")
        self.store = Store(
            load.geometry, self.memory.num_blocks, self._max_waiting, self.division
        )
        return Done()

    def _status(self, store: Store) -> PoolStatus:
        assert self.memory.load, "a store without a model"
        blocks = store.blocks
        return PoolStatus(
            pool=self.name,
            sharing=self.memory.sharing,
            handoff_pool=self.handoff_pool,
            model=self.memory.load.facts.model,
            block_size=store.geometry.block_size,
            max_model_len=self.memory.max_model_len,
            vocab_size=self.memory.load.facts.vocab_size,
            num_waiting=store.num_waiting,
            num_parked=store.num_parked,
            total=blocks.num_blocks,
            free=blocks.num_free,
            cached=blocks.num_cached,
            referenced=blocks.num_referenced,
            quarantined=blocks.num_quarantined,
            counts=store.counts.message(),
            shares=self.division.shares,
            shares_by=self.division.shares_by,
        )
