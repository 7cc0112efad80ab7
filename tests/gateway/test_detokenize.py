"""Incremental detokenisation against decoding all tokens at once."""

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

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
PROMPTS = [*TEXTS, "a", "文字", "It ends in a space ", "日本語、中文字符😀😀👍🏽"]
FIRST_BYTE = 3  # of the tokens that stand for single bytes
BOS, EOS = 1, 2


@pytest.fixture
def tokenizer(model: Model) -> Tokenizer:
    """The small model's: sentencepiece pieces, unknown characters as bytes."""
    assert model.tokenizer is not None
    return model.tokenizer


@pytest.fixture(scope="module", params=["bytes", "merged bytes"])
def byte_level(request: pytest.FixtureRequest) -> RustTokenizer:
    """Tokens are bytes as GPT-2's; some of the merged ones end within a character."""
    trained = RustTokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 if request.param == "bytes" else 300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(PROMPTS, trainer)
    return trained


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
def test_byte_level_pieces_join_up_too(byte_level: RustTokenizer, text: str) -> None:
    """A tokenizer whose tokens are bytes, as GPT-2's, splits every character."""
    token_ids = byte_level.encode(text).ids

    pieces = pushed(Detokenizer(byte_level.decode, ()), token_ids)

    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_continues_the_prompt(
    tokenizer: Tokenizer, prompt: str, text: str
) -> None:
    """Prompt and pieces make what decoding all tokens makes, special ones left out."""
    prompt_ids = tokenizer.encode_text(prompt, False)
    output_ids = tokenizer.encode_text(text, False)

    pieces = pushed(
        tokenizer.detokenizer([BOS, *prompt_ids, EOS, BOS]), [*output_ids, EOS]
    )

    whole = tokenizer.decode(prompt_ids + output_ids)
    assert tokenizer.decode(prompt_ids) + "".join(pieces) == whole


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_text_continues_the_prompt_too(
    byte_level: RustTokenizer, prompt: str, text: str
) -> None:
    """The prompt's last tokens may begin within a character."""
    prompt_ids, output_ids = (byte_level.encode(part).ids for part in (prompt, text))

    pieces = pushed(Detokenizer(byte_level.decode, (), prompt_ids), output_ids)

    assert prompt + "".join(pieces) == prompt + text


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_a_character_that_begins_in_the_prompt_is_the_output_s(
    tokenizer: Tokenizer, num_bytes: int
) -> None:
    """A prompt that ends within a character is completed, none of it shown before."""
    token_ids = [FIRST_BYTE + byte for byte in "日本語文字😀".encode()]
    cut = len(token_ids) - 4 + num_bytes

    pieces = pushed(tokenizer.detokenizer(token_ids[:cut]), token_ids[cut:])

    assert pieces == [""] * (3 - num_bytes) + ["😀", ""]


def test_nothing_of_the_prompt_is_shown_without_output(tokenizer: Tokenizer) -> None:
    """An output that ends at once has no text, whatever the prompt's end."""
    detokenizer = tokenizer.detokenizer([FIRST_BYTE + 0xF0])

    assert pushed(detokenizer, [EOS]) == ["", ""]


def test_text_after_special_tokens_alone_has_no_leading_space(
    tokenizer: Tokenizer,
) -> None:
    """With no prompt to continue, the first word stands at the text's beginning."""
    pieces = pushed(tokenizer.detokenizer([BOS]), [403, 407])

    assert pieces == ["Once", " upon", ""]


def test_few_tokens_are_decoded_at_a_time(tokenizer: Tokenizer) -> None:
    """However long prompt and output are, a token is decoded after one other."""
    token_ids = tokenizer.encode_text("Once upon a time, there was a girl.", False)
    decoded: list[tuple[int, ...]] = []

    def decode(window: tuple[int, ...]) -> str:
        decoded.append(window)
        return tokenizer.decode(window)

    detokenizer = Detokenizer(decode, (), token_ids * 10)
    detokenizer.push(token_ids[0])
    decoded.clear()
    pushed(detokenizer, token_ids[1:])

    assert max(map(len, decoded)) == 2


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
