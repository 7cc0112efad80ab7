"""Stop strings in a text that arrives in pieces. Knows nothing of tokens."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string.

    Only the longest end of the text that may still become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str) -> str:
        """What may be shown now. After a match `matched` is set and nothing follows."""
        if not self._stops or not piece:
            return piece
        text = self._held + piece
        found = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            end, self.matched = min(found, key=lambda match: match[0])
            self._held = ""
            return text[:end]
        end = len(text) - max(_num_begun(text, stop) for stop in self._stops)
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """What was held back: the text ended before it became a stop string."""
        held, self._held = self._held, ""
        return held


def _num_begun(text: str, stop: str) -> int:
    """How many characters at the text's end are the beginning of the stop string."""
    place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while place != -1:
        if stop.startswith(text[place:]):
            return len(text) - place
        place = text.find(stop[0], place + 1)
    return 0
