"""Which prefix is being computed right now, and by whom.

A prompt that begins like one in the making waits for it: it *follows* that sequence
until their common blocks are computed, and then shares them. Computing them twice would
waste both the time and the blocks.
"""

from collections.abc import Collection

from kvstore.records import SequenceRecord
from protocol.block_hash import BlockHash


class Prefixes:
    """Hashes of blocks in the making, and of whole prompts, with their makers."""

    def __init__(self) -> None:
        self._makers: dict[BlockHash, SequenceRecord] = {}

    def __contains__(self, hash: BlockHash | None) -> bool:
        return hash in self._makers

    def find(
        self, record: SequenceRecord, num_known: int
    ) -> tuple[SequenceRecord, BlockHash] | None:
        """Whom to follow, and until which hash is made; `num_known` blocks are cached.

        Of an equal prompt everything is shared, the last block's begin too.
        """
        if maker := self._makers.get(record.prompt_hash):
            return maker, record.prompt_hash
        awaited = None
        for hash in record.shareable_hashes[num_known:]:
            if hash not in self._makers:
                break
            awaited = hash
        return (self._makers[awaited], awaited) if awaited else None

    def begin(self, record: SequenceRecord) -> None:
        """The record's owner will compute what it has not yet."""
        for hash in record.hashes[record.num_full_blocks :]:
            self._makers.setdefault(hash, record)
        self._makers.setdefault(record.prompt_hash, record)

    def end(self, record: SequenceRecord) -> None:
        """What it has computed by now is not in the making any more."""
        if not record.is_prompt_computed:
            made = record.hashes[: record.num_full_blocks]
        else:
            made = [*record.hashes, record.prompt_hash]
        self._drop(record, made)

    def abandon(self, record: SequenceRecord) -> None:
        """The record computes nothing any more."""
        self._drop(record, [*record.hashes, record.prompt_hash])

    def check(self, records: Collection[SequenceRecord]) -> None:
        """Everything in the making has a maker that has not made it yet."""
        for hash, maker in self._makers.items():
            assert maker in records, "the maker is gone"
            assert not maker.is_prompt_computed, "the maker is done"
            assert hash not in maker.hashes[: maker.num_full_blocks], "it is made"

    def _drop(self, record: SequenceRecord, hashes: list[BlockHash]) -> None:
        for hash in hashes:
            if self._makers.get(hash) is record:
                del self._makers[hash]
