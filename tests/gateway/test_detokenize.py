"""Incremental detokenisation against decoding all tokens at once."""

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers

from gateway.detokenize import MAX_TOKENS_HELD, Detokenizer
from gateway.model import Model
from gateway.tokenizer import Tokenizer

TEXTS = [
    "Once upon a time, there was a little girl.",
    "  two spaces,\n\na new line and\ttabs ",
    "é ü 中文字符 日本語 😀😀👍🏽 ok",
    "\n\n\n",
    "",
]
FIRST_BYTE = 3  # of the tokens that stand for single bytes


@pytest.fixture
def tokenizer(model: Model) -> Tokenizer:
    """The small model's: sentencepiece pieces, unknown characters as bytes."""
    assert model.tokenizer is not None
    return model.tokenizer


def pushed(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    """The text of each token, and at last what was held back."""
    return [*map(detokenizer.push, token_ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_up_to_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    """Whatever the text, its pieces make what decoding all its tokens makes."""
    token_ids = tokenizer.encode_text(text, False)

    pieces = pushed(tokenizer.detokenizer(), token_ids)

    assert "".join(pieces) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_pieces_join_up_too(text: str) -> None:
    """A tokenizer whose tokens are bytes, as GPT-2's, splits every character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: number for number, byte in enumerate(alphabet)}
    bytewise = RustTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    token_ids = bytewise.encode(text).ids

    pieces = pushed(Detokenizer(bytewise.decode, ()), token_ids)

    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_incomplete_character_is_held_back(tokenizer: Tokenizer) -> None:
    """Nothing is shown of a character before its last byte."""
    token_ids = [FIRST_BYTE + byte for byte in "😀".encode()]

    pieces = pushed(tokenizer.detokenizer(), token_ids)

    assert pieces == ["", "", "", "😀", ""]


def test_bytes_that_are_no_character_are_not_held_for_ever(
    tokenizer: Tokenizer,
) -> None:
    """After a few tokens that complete nothing, they are shown as they are."""
    token_ids = [FIRST_BYTE + 0x80] * MAX_TOKENS_HELD

    pieces = pushed(tokenizer.detokenizer(), token_ids)

    assert pieces == [""] * (MAX_TOKENS_HELD - 1) + ["\ufffd" * MAX_TOKENS_HELD, ""]


def test_an_end_within_a_character_is_shown(tokenizer: Tokenizer) -> None:
    """An answer that ends within a character ends in a replacement character."""
    token_ids = [*tokenizer.encode_text("ok ", False), FIRST_BYTE + 0xF0]

    pieces = pushed(tokenizer.detokenizer(), token_ids)

    assert pieces[-2:] == ["", "\ufffd"]


def test_special_tokens_leave_no_trace(tokenizer: Tokenizer) -> None:
    """Special tokens have no text and do not disturb the spaces round them."""
    before, after = (tokenizer.encode_text(text, False) for text in ("a cat", "sat"))

    pieces = pushed(tokenizer.detokenizer(), [1, *before, 2, 1, *after])

    assert "".join(pieces) == tokenizer.decode(before + after) == "a cat sat"
