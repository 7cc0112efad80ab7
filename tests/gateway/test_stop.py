"""Stop strings in text that arrives in pieces."""

import random

import pytest

from gateway.stop import StopStrings


def shown(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """All that is shown of the pieces, and the stop string that ended them."""
    strings = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += strings.push(piece)
        if strings.matched is not None:
            return text, strings.matched
    return text + strings.flush(), None


def test_text_without_stop_strings_passes_at_once() -> None:
    """With nothing to look for nothing is held back."""
    strings = StopStrings([])

    assert strings.push("abc") == "abc"


def test_only_a_possible_beginning_is_held_back() -> None:
    """What can no longer become a stop string is shown at once."""
    strings = StopStrings(["STOP"])

    texts = [strings.push(piece) for piece in ("a S", "TO", "x", "ST")]

    assert texts == ["a ", "", "STOx", ""]
    assert strings.flush() == "ST"


def test_the_earliest_stop_string_wins() -> None:
    """Of several in one piece the one that begins first ends the text."""
    assert shown(["late", "early"], ["some early or late"]) == ("some ", "early")


def test_overlapping_beginnings_are_all_remembered() -> None:
    """A beginning inside another beginning is not lost."""
    assert shown(["aab"], ["a", "a", "a", "b", "c"]) == ("a", "aab")


@pytest.mark.parametrize("seed", range(20))
def test_pieces_do_not_matter(seed: int) -> None:
    """However a text is cut, up to its only stop string it is shown the same."""
    draw = random.Random(seed)
    text = "".join(draw.choices("ab", k=40))
    stops = ["".join(draw.choices("ab", k=6))]
    cuts = sorted(draw.choices(range(41), k=draw.randrange(40)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert shown(stops, pieces) == shown(stops, [text])
