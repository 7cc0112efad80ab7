"""What the demo model reads: tokens that can be counted, chats as served, packed rows."""

import string
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo_data import training_items
from demo_item import Item, one
from demo_text import (
    ASSISTANT,
    BEGIN,
    END,
    IGNORED,
    USER,
    Batch,
    Encoder,
    pack,
    save_tokenizer,
)

ROWS, LENGTH = 4, 256


@pytest.fixture(scope="module")
def encode(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer)


@pytest.fixture(scope="module")
def batch(encode: Encoder) -> Batch:
    return pack(training_items("batch"), encode, ROWS, LENGTH)


@pytest.fixture
def served(tokenizer: Tokenizer, tmp_path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as a worker or a client loads it."""
    save_tokenizer(tokenizer, tmp_path, max_tokens=LENGTH)
    return AutoTokenizer.from_pretrained(tmp_path)


def said(encode: Encoder, tokenizer: Tokenizer, item: Item) -> str:
    """What the labels of an item want to be said."""
    _, labels = encode(item)
    answers = [label for label in labels if label != IGNORED]
    return tokenizer.decode(answers, skip_special_tokens=False)


def test_a_digit_is_a_token(tokenizer: Tokenizer) -> None:
    """
    No number is a token of its own, wherever it stands.
    """
    text = "What is 1234567890 + 42? port = 8000, x7y, 3.14"

    tokens = tokenizer.encode(text).tokens

    assert [t for t in tokens if any(map(str.isdigit, t))] == [
        c for c in text if c.isdigit()
    ]


@pytest.mark.parametrize("word", ["strawberry", "STRAWBERRY", "xqzj", "the"])
def test_a_quoted_letter_is_a_token(tokenizer: Tokenizer, word: str) -> None:
    """
    A word before a quotation mark is its letters; elsewhere it need not be.
    """
    tokens = tokenizer.encode(f'Reverse "{word}".').tokens

    assert "".join(tokens[-len(word) - 2 :]).endswith(f'{word}".')
    assert [t for t in tokens if t in string.ascii_letters] == list(word)
    assert len(tokenizer.encode("strawberry ").tokens) < len("strawberry") / 2


def test_a_word_is_the_same_token_at_the_start_of_a_line(tokenizer: Tokenizer) -> None:
    """
    What begins an answer can be found in a text, for it has the same tokens there.
    """
    begun = tokenizer.encode("Frank likes chess.").tokens

    within = tokenizer.encode("Anna is here. Frank likes chess. So:").tokens

    first = within.index(begun[0])
    assert within[first : first + 3] == begun[:3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " two  spaces,\ttabs\n\n\nand lines \n",
        "Größe, 東京, Ελλάδα, naïve, 🙂👩‍👩‍👧, ﷽",
        'It\'s "quoted", isn\'t it? "日本"',
        f"{BEGIN}{USER}Hello.{END}{ASSISTANT}Hi.{END}",
        "\x00\x7f\u200b\ufeff",
    ],
)
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    """
    What was encoded is decoded to the same, also what no training text contained.
    """
    ids = tokenizer.encode(text).ids

    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_labels_are_the_answers_and_their_ends(
    encode: Encoder, tokenizer: Tokenizer
) -> None:
    """
    All that the model must say is each answer and that it ends there.
    """
    items = list(islice(training_items("labels"), 300))

    wanted = [said(encode, tokenizer, item) for item in items]

    assert wanted == ["".join(a + END for _, a in item.turns) for item in items]
    assert any(len(item.turns) > 1 for item in items)


def test_a_label_is_the_token_that_comes_next(encode: Encoder) -> None:
    """
    Where a label is given it is the token after, and the last token has none.
    """
    for item in islice(training_items("next"), 300):
        ids, labels = encode(item)

        following = [*ids[1:], IGNORED]
        assert all(
            label in (IGNORED, token)
            for label, token in zip(labels, following, strict=True)
        )


def test_an_item_is_the_chat_that_is_served(
    encode: Encoder, served: PreTrainedTokenizerFast
) -> None:
    """
    Training sees the very ids that the chat template makes of the same conversation.
    """
    for item in islice(training_items("chat"), 300):
        roles = ("user", "assistant")
        messages = [
            {"role": role, "content": text}
            for turn in item.turns
            for role, text in zip(roles, turn, strict=True)
        ]

        rendered = served.apply_chat_template(messages, return_dict=False)

        assert rendered == encode(item)[0]


def test_a_question_is_rendered_up_to_the_answer(
    encode: Encoder, served: PreTrainedTokenizerFast
) -> None:
    """
    The prompt of a chat ends where the labels of the same item begin.
    """
    question, answer = "What is 47 + 85?", "47 + 85 = 132"
    messages = [{"role": "user", "content": question}]

    prompt = served.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )

    ids, labels = encode(one("47 + 85", question, answer))
    assert prompt == ids[: len(prompt)]
    assert labels[: len(prompt) - 1] == [IGNORED] * (len(prompt) - 1)
    assert labels[len(prompt) - 1] == ids[len(prompt)]


def test_rows_hold_whole_items(encode: Encoder, batch: Batch) -> None:
    """
    Each row is full but for its end, of items that are complete and in order.
    """
    begin = encode(Item((), (), is_kept_back=False))[0]
    drawn = [encode(item) for item in islice(training_items("batch"), 400)]
    whole = {(tuple(ids), tuple(labels)) for ids, labels in drawn}

    for ids, labels, items in zip(batch.ids, batch.labels, batch.items, strict=True):
        numbers = items[items > 0]
        last = int(numbers.max())

        assert numbers.tolist() == sorted(numbers.tolist())
        assert numbers.unique().tolist() == list(range(1, last + 1))
        assert ids[items > 0].tolist().count(begin[0]) == last
        for n in range(1, last + 1):
            mine = items == n
            assert (tuple(ids[mine].tolist()), tuple(labels[mine].tolist())) in whole


def test_padding_teaches_nothing(batch: Batch) -> None:
    """
    What is left of a row is at its end, has no labels and is little.
    """
    is_padding = batch.items == 0

    assert (batch.labels[is_padding] == IGNORED).all()
    assert (is_padding.int().diff(dim=1) >= 0).all()
    assert is_padding.float().mean() < 0.2


def test_a_token_sees_what_precedes_it_in_its_item(batch: Batch) -> None:
    """
    The mask adds nothing to the scores of the tokens of the same item up to the token
    itself, and hides all others.
    """
    mask = batch.mask()
    is_seen = mask == 0

    assert mask.shape == (ROWS, 1, LENGTH, LENGTH)
    assert (mask[~is_seen] == -torch.inf).all()
    for row, items in zip(is_seen[:, 0].tolist(), batch.items.tolist(), strict=True):
        for token, sees in enumerate(row):
            first = items.index(items[token])
            expected = [first <= other <= token for other in range(LENGTH)]
            assert sees == expected


@pytest.mark.parametrize("least", [0, 150])
def test_the_first_item_is_long_enough(encode: Encoder, least: int) -> None:
    """
    Where a length is asked for, each row begins with an item of at least that length.
    """
    batch = pack(training_items("least"), encode, ROWS, LENGTH, least)

    firsts = (batch.items == 1).sum(dim=1)
    assert (firsts >= least).all()
    assert (firsts < 150).any() == (least == 0)
