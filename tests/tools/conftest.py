"""A tokenizer as the demo model's, from fewer items."""

from itertools import islice

import pytest
from tokenizers import Tokenizer

from demo_data import training_items
from demo_text import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(islice(training_items("tokenizer"), 2000))
