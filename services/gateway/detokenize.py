"""Token ids become text, one token at a time. Knows neither stop strings nor clients."""

from collections.abc import Callable, Collection

Decode = Callable[[list[int]], str]

INCOMPLETE = "\ufffd"  # what decoding shows for bytes that are not yet a character

# A character has at most four bytes, so bytes still incomplete after this many tokens
# are no character.
MAX_TOKENS_HELD = 8
MAX_WINDOW_TOKENS = 12


class Detokenizer:
    """Joins up to what `decode` gives for all tokens at once, special ones left out.

    A token's text depends on its neighbours (a leading space, a character split over
    several tokens), so each is decoded after a few earlier ones:

        window = [ context, already shown | shown since the cut | held back ]

    The window starts where decoding was complete, never inside a character.
    """

    def __init__(self, decode: Decode, special_ids: Collection[int]) -> None:
        self._decode = decode
        self._special_ids = special_ids
        self._window: list[int] = []
        self._num_shown = 0  # characters of the window's text
        self._last_complete = 0  # tokens of the window, when last nothing was held
        self._num_held = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if token_id in self._special_ids:
            return ""
        self._window.append(token_id)
        self._num_held += 1
        text = self._decode(self._window)
        if self._num_held >= MAX_TOKENS_HELD:
            return self._show(text, len(text))
        if text.endswith(INCOMPLETE):
            return self._show_some(text)
        return self._show(text, len(text))

    def flush(self) -> str:
        """What was held back: at the end it is shown as it is."""
        text = self._decode(self._window) if self._window else ""
        return self._show(text, len(text))

    def _show_some(self, text: str) -> str:
        """Everything before the incomplete end, which stays held back."""
        num_complete = len(text.rstrip(INCOMPLETE))
        if num_complete <= self._num_shown:
            return ""
        shown = text[self._num_shown : num_complete]
        self._num_shown = num_complete
        return shown

    def _show(self, text: str, num_complete: int) -> str:
        shown = text[self._num_shown : num_complete]
        self._num_shown = max(self._num_shown, num_complete)
        self._num_held = 0
        if len(self._window) > MAX_WINDOW_TOKENS:
            self._window = self._window[self._last_complete :]
            self._num_shown = len(self._decode(self._window))
        self._last_complete = len(self._window)
        return shown
