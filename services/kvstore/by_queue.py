"""Shares that follow the queue, where nobody has set any. Pure: a queue in, shares out.

With halves both phases go on side by side, and streams wait for no prompt. But prompts have
half of the machine then. When they pile up, few sequences decode, and a step for four takes
nearly as long as one for sixteen. So while prompts pile up both phases may have everything,
and whole steps take turns: prompts twice as fast, streams a step for each of theirs.

How many tokens are a pile follows from how many a worker computes in a turn: a large model
on a slow machine has one with a quarter of the tokens.
"""

from collections.abc import Collection

from protocol.messages import Shares

HALVES = Shares(prefill=50, decode=50)
WHOLE = Shares(prefill=100, decode=100)  # for both: they compete

MANY, MANY_TURNS = 3, 6  # prompts, and turns that they need: both, and they pile up
TURN_TOKENS = 512  # until a worker says how many
FEW = 1  # prompts, with which the queue counts as drained


class ByQueue:
    """Between many and few it keeps on, so a queue that wavers changes nothing."""

    def __init__(self) -> None:
        self._is_piled_up = False
        self._turn_tokens = TURN_TOKENS

    @property
    def shares(self) -> Shares:
        return WHOLE if self._is_piled_up else HALVES

    def see(self, missing: Collection[int], turn_tokens: int = 0) -> None:
        """Of each prompt that waits or is computed, the tokens that it still needs.

        `turn_tokens` are computed in a step beside streams; 0: as many as before.
        """
        self._turn_tokens = turn_tokens or self._turn_tokens
        if len(missing) <= FEW:
            self._is_piled_up = False
        elif len(missing) >= MANY and sum(missing) >= MANY_TURNS * self._turn_tokens:
            self._is_piled_up = True
