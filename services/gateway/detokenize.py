"""Token ids become text, one token at a time. Knows neither stop strings nor clients."""

from collections.abc import Callable, Collection, Sequence

Decode = Callable[[tuple[int, ...]], str]

INCOMPLETE = "\ufffd"  # what decoding shows for bytes that are not yet a character
MAX_CHARACTER_TOKENS = 4  # a character has at most four bytes

# Bytes still incomplete after this many tokens are no character.
MAX_TOKENS_HELD = 2 * MAX_CHARACTER_TOKENS

CONTEXT_TOKENS = 6  # of the prompt, more where that would begin inside a character
MAX_CONTEXT_TOKENS = 16


class Detokenizer:
    """Continues the prompt's text up to what `decode` gives for all tokens at once.

    Special tokens are left out. A token's text depends on its neighbours (a leading
    space, a character split over several tokens), so each is decoded after a few
    earlier ones, the first of the output after the last of the prompt:

        window = [ context, already shown | held back ]

    The window starts where decoding was complete, never inside a character, and is as
    short as that allows: mostly the last token and the new one. A character that begins
    in the prompt and ends in the output is the output's.
    """

    def __init__(
        self,
        decode: Decode,
        special_ids: Collection[int],
        prompt_ids: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._special_ids = special_ids
        self._window = self._tail(prompt_ids)
        self._num_shown = self._num_complete()  # characters of the window's text
        is_complete = len(decode(self._window)) == self._num_shown
        self._num_context = len(self._window) if is_complete else 0
        self._num_held = 0  # tokens of the output

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if token_id in self._special_ids:
            return ""
        self._window += (token_id,)
        self._num_held += 1
        text = self._decode(self._window)
        if text.endswith(INCOMPLETE) and self._num_held < MAX_TOKENS_HELD:
            return self._show_some(text)
        return self._show(text)

    def flush(self) -> str:
        """What was held back: at the end it is shown as it is."""
        return self._show(self._decode(self._window)) if self._num_held else ""

    def _show_some(self, text: str) -> str:
        """Everything before the incomplete end, which stays held back."""
        num_complete = len(text.rstrip(INCOMPLETE))
        if num_complete <= self._num_shown:
            return ""
        shown = text[self._num_shown : num_complete]
        self._num_shown = num_complete
        return shown

    def _show(self, text: str) -> str:
        shown = text[self._num_shown :]
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._num_shown = len(self._decode(self._window))
        self._num_held = 0
        return shown

    def _tail(self, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """The prompt's last tokens that have a text, a few of them."""
        token_ids = tuple(
            token_id
            for token_id in prompt_ids[-MAX_CONTEXT_TOKENS:]
            if token_id not in self._special_ids
        )
        for num_tokens in range(CONTEXT_TOKENS, len(token_ids)):
            if self._begins_a_character(token_ids[-num_tokens:]):
                return token_ids[-num_tokens:]
        return token_ids

    def _num_complete(self) -> int:
        """Characters of the prompt's last tokens that do not go on in the output."""
        # Some decoders show a whole run of bytes as incomplete if only its end is.
        ends = range(len(self._window) - MAX_CHARACTER_TOKENS, len(self._window))
        texts = [self._decode(self._window[: max(end, 0) + 1]) for end in ends]
        return max(len(text.rstrip(INCOMPLETE)) for text in texts)

    def _begins_a_character(self, token_ids: tuple[int, ...]) -> bool:
        return not all(
            self._decode(token_ids[:num_tokens]).startswith(INCOMPLETE)
            for num_tokens in range(1, MAX_CHARACTER_TOKENS + 1)
        )
