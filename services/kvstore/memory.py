"""The pool's two segments: weights that a loader fills, blocks shaped after its model.

Knows no sequence. The loading goes *empty* -> *asked* (a worker was told to run a
loader) -> *filling* (the loader has the segment) -> *ready*; whoever drops out on the
way takes it back to *empty*, and the next worker that attaches is asked.
"""

import os
from dataclasses import dataclass

from kv.errors import NoRoom
from kv.operations import Attached, BeginLoad, Loading, LoadWanted, RefusedReply, Room
from kv.segments import HostSegment, Mapping, Segment, SegmentMaker
from protocol.memory import KVGeometry, Sharing


@dataclass(frozen=True, slots=True)
class _Asked:
    worker: str


@dataclass(frozen=True, slots=True)
class _Filling:
    loader: str
    load: BeginLoad
    weights: Segment


@dataclass(frozen=True, slots=True)
class _Ready:
    load: BeginLoad
    weights: Segment
    blocks: Segment


DEFAULT_NUM_BLOCKS = 2048
# The rest is for the workers: their contexts, graphs and activations.
BLOCKS_FRACTION = 0.85


class PoolMemory:
    """Who may map what. A peer is named by its connection."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        max_model_len: int,
        make_segment: SegmentMaker = HostSegment,
    ) -> None:
        """`num_blocks` 0: what a GPU's free memory holds, else DEFAULT_NUM_BLOCKS.

        `max_model_len` in tokens; 0: what model and blocks allow.
        """
        self._make_segment = make_segment
        self.num_blocks = num_blocks
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._state: _Asked | _Filling | _Ready | None = None
        self._mapping: Mapping | None = None

    @property
    def load(self) -> BeginLoad | None:
        """What was loaded, once it was."""
        return self._state.load if isinstance(self._state, _Ready) else None

    @property
    def sharing(self) -> Sharing:
        """How workers come to it."""
        assert isinstance(self._state, _Ready), "nothing is loaded"
        return self._state.blocks.handle.sharing

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output that one sequence can have."""
        assert self.load, "nothing is loaded"
        room = self.num_blocks * self.load.geometry.block_size
        limit = min(room, self.load.facts.max_position)
        return min(limit, self._max_model_len) if self._max_model_len else limit

    def block(self, index: int) -> memoryview:
        """The bytes of one block in the host's memory, to be moved as they are."""
        assert isinstance(self._state, _Ready), "nothing is loaded"
        if self._mapping is None:
            (descriptor,) = self._state.blocks.descriptors
            self._mapping = Mapping(os.dup(descriptor), writable=True)
        size = self._state.load.geometry.block_bytes
        return self._mapping.view[index * size : (index + 1) * size]

    def difference(self, fingerprint: str, geometry: KVGeometry) -> str:
        """Why a pool of these could make nothing of this one's K/V; empty if it can."""
        assert self.load, "nothing is loaded"
        mine = self.load
        if fingerprint != mine.facts.fingerprint:
            return (
                f"the pools differ in model or dtype: {mine.facts.model} "
                f"({mine.facts.fingerprint}) here, {fingerprint} there"
            )
        if geometry != mine.geometry:
            return (
                f"the pools' KV blocks differ: of {mine.geometry.block_size} tokens and "
                f"{mine.geometry.block_bytes} bytes here, of {geometry.block_size} tokens "
                f"and {geometry.block_bytes} bytes there"
            )
        return ""

    def attach(
        self, peer: str, fingerprint: str
    ) -> Attached | LoadWanted | Loading | RefusedReply:
        if self._state in (None, _Asked(peer)):  # asked again: its loader failed
            self._state = _Asked(peer)
            return LoadWanted(block_size=self._block_size)
        match self._state:
            case _Ready() as ready:
                return self._welcome(ready, fingerprint)
        return Loading()

    def descriptors(self) -> tuple[int, ...]:
        """Of weights and, once there are any, blocks; where sharing them takes one."""
        match self._state:
            case _Filling(weights=weights):
                return weights.descriptors
            case _Ready(weights=weights, blocks=blocks):
                return weights.descriptors + blocks.descriptors
        raise AssertionError("nothing is loaded")

    def begin_load(self, peer: str, load: BeginLoad) -> Room | None:
        """Make the segment to fill; None if somebody else is at it. Raises NoRoom."""
        if isinstance(self._state, _Filling | _Ready):
            return None
        weights = self._make_segment("weights", load.weights_bytes)
        self._state = _Filling(peer, load, weights)
        return Room(weights=weights.handle)

    def commit_load(self, peer: str, free_bytes: int = 0) -> BeginLoad | None:
        """The weights are complete and from now on read-only, and the blocks exist.

        None if this peer did not fill them. Raises NoRoom.
        """
        state = self._state
        if not isinstance(state, _Filling) or state.loader != peer:
            return None
        state.weights.seal_read_only()
        geometry = state.load.geometry
        num_blocks = self.num_blocks or _fitting(free_bytes, geometry.block_bytes)
        blocks = self._make_segment("blocks", geometry.segment_bytes(num_blocks))
        self.num_blocks = num_blocks  # not before: the next loader finds room anew
        self._state = _Ready(state.load, state.weights, blocks)
        return state.load

    def detach(self, peer: str) -> None:
        """The peer is gone; what it had begun is begun anew by another."""
        match self._state:
            case _Asked(worker=worker) if worker == peer:
                self._state = None
            case _Filling(loader=loader, weights=weights) if loader == peer:
                weights.close()
                self._state = None

    def _welcome(self, ready: _Ready, fingerprint: str) -> Attached | RefusedReply:
        load = ready.load
        if fingerprint != load.facts.fingerprint:
            return RefusedReply(
                reason=f"the store holds {load.facts.model} "
                f"({load.facts.fingerprint}), this worker was started with "
                f"another model or dtype ({fingerprint})"
            )
        return Attached(
            facts=load.facts,
            geometry=load.geometry,
            tensors=load.tensors,
            num_blocks=self.num_blocks,
            max_model_len=self.max_model_len,
            weights=ready.weights.handle,
            blocks=ready.blocks.handle,
        )


def _fitting(free_bytes: int, block_bytes: int) -> int:
    """How many blocks to make when nobody said."""
    if not free_bytes:
        return DEFAULT_NUM_BLOCKS
    num_blocks = int(free_bytes * BLOCKS_FRACTION) // block_bytes
    if not num_blocks:
        raise NoRoom(f"{free_bytes} bytes are free, a KV block takes {block_bytes}")
    return num_blocks
