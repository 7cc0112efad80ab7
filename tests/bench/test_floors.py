"""What steps must read and multiply, against counts over a model's own tensors."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from floors import Floors, milliseconds
from models import SHAPES


def num_bytes(shape: str, *parts: str) -> int:
    """In bfloat16, of the parameters with one of these in their names; of all, if none."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.bfloat16)
    return sum(
        parameter.nbytes
        for name, parameter in model.named_parameters()
        if not parts or any(part in name for part in parts)
    )


@pytest.mark.parametrize("shape", ["llama-3.1-8b", "qwen3-0.6b"])
def test_a_dense_model_reads_all_but_its_embedding(shape: str) -> None:
    """
    One that is the last layer, too, is read for that.
    """
    floors = Floors(SHAPES[shape], num_bytes(shape))
    tied = SHAPES[shape].tie_word_embeddings

    found = floors.decode_bytes(1, 0)

    assert found == num_bytes(shape) - (0 if tied else num_bytes(shape, "embed_tokens"))


def test_a_token_reads_the_experts_it_is_sent_to() -> None:
    """
    Eight of 128, and many tokens together nearly all; about 3 of 30 billion weights.
    """
    shape = "qwen3-30b-a3b"
    floors = Floors(SHAPES[shape], num_bytes(shape))
    experts = num_bytes(shape, "experts")

    one, many = floors.decode_bytes(1, 0), floors.decode_bytes(256, 0)

    always = num_bytes(shape) - experts - num_bytes(shape, "embed_tokens")
    assert one == pytest.approx(always + experts * 8 / 128)
    assert many == pytest.approx(always + experts, rel=1e-6)
    assert one / 2 == pytest.approx(3.0e9, rel=0.05)


def test_each_token_before_is_read_once() -> None:
    """
    K and V of eight heads of 128 in 32 layers: 128 KiB for a token of Llama-3.1-8B.
    """
    shape = "llama-3.1-8b"
    floors = Floors(SHAPES[shape], num_bytes(shape))

    found = floors.decode_bytes(4, 1000) - floors.decode_bytes(4, 0)

    assert found == 4 * 1000 * 128 * 1024


def test_a_prompt_multiplies_two_for_each_weight() -> None:
    """
    The last layer has one token, which does not count; attention grows with the square.
    """
    shape = "llama-3.1-8b"
    floors = Floors(SHAPES[shape], num_bytes(shape))
    layers = num_bytes(shape, "layers", "model.norm")

    short, long = floors.prompt_operations(1), floors.prompt_operations(1000)

    attended = 2 * 4096 * 32
    assert short == pytest.approx(layers + attended)
    assert long == pytest.approx(1000 * layers + 1000**2 * attended)


def test_times_are_by_the_machine_s_rates() -> None:
    """
    A prompt takes as long as its operations, a token as its bytes, in the middle of the
    answer.
    """
    floors = Floors(SHAPES["llama-120m"], num_bytes("llama-120m"))

    found = milliseconds(floors, 512, 128, (10e9, 1e12))

    assert found == {
        "TTFT p50, ms": pytest.approx(floors.prompt_operations(512) / 1e9),
        "TPOT p50, ms": pytest.approx(floors.decode_bytes(1, 576) / 10e6),
    }
