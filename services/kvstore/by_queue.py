"""Shares that follow the queue, where nobody has set any. Pure: a queue in, shares out.

With halves both phases go on side by side, and streams wait for no prompt. But prompts have
half of the machine then. When they pile up, few sequences decode, and a step for four takes
nearly as long as one for sixteen. So while prompts pile up both phases may have everything,
and whole steps take turns: prompts twice as fast, streams a step for each of theirs.
"""

from collections.abc import Collection

from protocol.messages import Shares

HALVES = Shares(prefill=50, decode=50)
WHOLE = Shares(prefill=100, decode=100)  # for both: they compete

MANY, MANY_TOKENS = 3, 3072  # prompts and tokens of theirs: both, and they pile up
FEW = 1  # prompts, with which the queue counts as drained


class ByQueue:
    """Between many and few it keeps on, so a queue that wavers changes nothing."""

    def __init__(self) -> None:
        self._is_piled_up = False

    @property
    def shares(self) -> Shares:
        return WHOLE if self._is_piled_up else HALVES

    def see(self, missing: Collection[int]) -> None:
        """Of each prompt that waits or is computed, the tokens that it still needs."""
        if len(missing) <= FEW:
            self._is_piled_up = False
        elif len(missing) >= MANY and sum(missing) >= MANY_TOKENS:
            self._is_piled_up = True
