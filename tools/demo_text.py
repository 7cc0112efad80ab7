"""From items to token ids: the demo model's tokenizer, its chat format, packed rows.

Digits are single tokens, and so are the letters of a word directly before a quotation
mark: a model can count, sort and spell only what it sees. A word comes with the space
after it, so that the first word of a line is the token that it is elsewhere: to find
something in a text is then to find the same tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo_item import WORDS, Item

VOCABULARY = 4096
BEGIN, END, USER, ASSISTANT, SYSTEM = SPECIAL = (
    "<s>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPLIT = Regex(
    r"""[A-Za-z](?=[A-Za-z]*")|\d|[A-Za-z]+(?:'[a-z]+)? ?|[^\sA-Za-z\d]+ ?|\s"""
)
IGNORED = -100  # the label of what the model does not have to say
FULL = 0.97  # of a row: more is not worth the search for an item that fits


def train_tokenizer(items: Iterable[Item]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SPLIT, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for item in items for turn in item.turns for text in turn)
    tokenizer.train_from_iterator(_with_words(texts), trainer)
    return tokenizer


def _with_words(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for words in WORDS.values():
        yield from (f"{word} " for word in words)


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_tokens: int) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)


class Encoder:
    """Items as token ids in the chat's format, with the labels that training wants."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, item: Item) -> tuple[list[int], list[int]]:
        """Token ids, and for each what should come next (IGNORED outside answers)."""
        ids = self._ids(BEGIN)
        is_said = [False]
        for question, answer in item.turns:
            heard = self._ids(USER + question.strip() + END + ASSISTANT)
            said = self._ids(answer.strip() + END)
            ids += heard + said
            is_said += [False] * len(heard) + [True] * len(said)
        following = zip(ids[1:], is_said[1:], strict=True)
        labels = [token if is_label else IGNORED for token, is_label in following]
        return ids, [*labels, IGNORED]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of whole items, back to back.

    ids, labels: int64 [rows, length]. items: int64 [rows, length], which item of its row
    a token belongs to, from 1; 0 is padding.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    items: torch.Tensor

    def mask(self) -> torch.Tensor:
        """bfloat16 [rows, 1, length, length], to be added to the scores: a token sees
        what precedes it in its item.
        """
        length = self.items.shape[1]
        same = self.items[:, :, None] == self.items[:, None, :]
        seen = same & torch.ones(length, length, dtype=torch.bool).tril()
        return torch.where(seen, 0.0, -torch.inf).bfloat16()[:, None]


def pack(
    items: Iterator[Item], encode: Encoder, rows: int, length: int, least: int = 0
) -> Batch:
    """Fill the rows with items, the first item of each of at least so many tokens."""
    packed = [_Row(length) for _ in range(rows)]
    for row in packed:
        while len(row.ids) < FULL * length and row.num_refused < 20:
            ids, labels = encode(next(items))
            if row.ids or len(ids) >= least:
                row.add(ids, labels)
    return Batch(
        ids=_padded((row.ids for row in packed), length, 0),
        labels=_padded((row.labels for row in packed), length, IGNORED),
        items=_padded((row.items for row in packed), length, 0),
    )


def _padded(rows: Iterable[list[int]], length: int, filler: int) -> torch.Tensor:
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


class _Row:
    def __init__(self, length: int) -> None:
        self.length = length
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.items: list[int] = []
        self.num_refused = 0

    def add(self, ids: list[int], labels: list[int]) -> None:
        if len(self.ids) + len(ids) > self.length:
            self.num_refused += 1
            return
        number = self.items[-1] + 1 if self.items else 1
        self.ids += ids
        self.labels += labels
        self.items += [number] * len(ids)
