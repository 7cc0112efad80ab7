"""The roofline of a step, checked by hand."""

import pytest
from simulating import COSTS, DEVICE, SHAPE

from bench.simulation.costs import (
    KEPT_BY_READING,
    Costs,
    Share,
    decoding,
    prompt,
    slowdown,
)
from bench.simulation.devices import DEVICES
from bench.simulation.shapes import SHAPES

LLAMA = SHAPES["llama-3-8b"]


def test_a_decode_step_waits_for_memory() -> None:
    """
    It reads the weights once, and K and V of every token before.
    """
    num_bytes = SHAPE.streamed_bytes + 304 * SHAPE.kv_bytes_per_token

    pace = COSTS.pace(decoding(4, 300))

    assert pace.first == pytest.approx(0.001 + 4 * 0.0001 + num_bytes / 1e8)
    assert pace.more == pytest.approx(4 * SHAPE.kv_bytes_per_token / 1e8)


def test_a_prompt_waits_for_arithmetic() -> None:
    """
    Two operations for each weight and token, attention to all tokens up to itself, and
    the last layer for one token.
    """
    pairs = sum(100 + n + 1 for n in range(50))
    flops = 2 * 50 * SHAPE.layer_weights + pairs * SHAPE.flops_per_pair
    flops += 2 * SHAPE.head_weights

    seconds = COSTS.pace(prompt(50, 100)).first

    assert seconds == pytest.approx(0.001 + 0.0001 + flops / 1e9)


def test_prompts_beside_who_decodes_read_the_weights_once() -> None:
    """
    A mixed step takes less than both apart: that is what chunked prefill is for.
    """
    chunk, batch = prompt(50, 0), decoding(8, 800)

    together = COSTS.pace(chunk.beside(batch)).first

    assert together < COSTS.pace(chunk).first + COSTS.pace(batch).first
    assert together > max(COSTS.pace(chunk).first, COSTS.pace(batch).first)


def test_a_real_model_on_a_real_gpu_takes_what_was_measured() -> None:
    """
    Steps of the 8B shape on an H200 as bench/results/2026-11-27-gpu-h200.md has them.
    """
    costs = Costs(LLAMA, DEVICES["h200"])
    measured = {
        0.00432: decoding(1, 1024),
        0.00508: decoding(8, 8 * 1024),
        0.00591: decoding(32, 32 * 1024),
        0.0497: prompt(2048, 0),
        0.2188: prompt(8192, 0),
    }

    for seconds, work in measured.items():
        assert costs.pace(work).first == pytest.approx(seconds, rel=0.1)


def test_memory_that_the_weights_leave_is_for_tokens() -> None:
    """
    16 GB of weights on 80 GB; 128 KiB for a token's K and V. Weights that do not fit
    leave nothing.
    """
    a100 = DEVICES["a100-80g"]

    assert LLAMA.weights_bytes == pytest.approx(16.06e9, rel=0.01)
    assert LLAMA.kv_bytes_per_token == 128 * 1024
    assert Costs(LLAMA, a100).max_tokens == pytest.approx(439_000, rel=0.01)
    assert Costs(SHAPES["llama-3-70b"], a100).max_tokens == 0


def test_arithmetic_scales_with_the_share_and_reading_less() -> None:
    """
    On a fifth of the device, alone on it, each is as much slower as it is elastic.
    """
    fifth = Share(0.2)
    chunk, batch = prompt(50, 0), decoding(4, 300)

    fixed = 0.001 + 0.0001
    slower = COSTS.pace(chunk, fifth).first - fixed
    assert slower == pytest.approx(5 * (COSTS.pace(chunk).first - fixed))
    fixed = 0.001 + 4 * 0.0001
    slower = COSTS.pace(batch, fifth).first - fixed
    assert slower == pytest.approx(3 * (COSTS.pace(batch).first - fixed))


def test_company_slows_reading_alone() -> None:
    """
    Memory is not divided: who waits for it waits longer while others use it.
    """
    shared = Share(1.0, is_alone=False)

    reading = COSTS.pace(decoding(4, 300)).first - 0.0014
    assert COSTS.pace(decoding(4, 300), shared).first == pytest.approx(
        0.0014 + 1.25 * reading
    )
    assert COSTS.pace(prompt(50, 0), shared) == COSTS.pace(prompt(50, 0))


def test_the_slowdown_of_an_h200_s_decode_step_is_as_measured() -> None:
    """
    On 24, 36, 48 and 73 % of its SMs: 1.33, 1.21, 1.09 and 1.06 (sglang-omni #1635).
    """
    elasticity = DEVICES["h200"].memory_elasticity

    for part, measured in ((0.24, 1.33), (0.36, 1.21), (0.48, 1.09), (0.73, 1.06)):
        assert slowdown(elasticity, part) == pytest.approx(measured, rel=0.04)


def test_what_waits_for_memory_leaves_sms_to_others() -> None:
    """
    Prompts want all that they may have, decoding half of the device at most, and nobody
    anything while the host is at work.
    """
    batch = COSTS.parts(decoding(4, 300))
    busy = batch.memory / sum(batch)

    assert COSTS.demand(prompt(500, 0), 1.0) > 0.9
    assert COSTS.demand(decoding(4, 300), 1.0) == pytest.approx(KEPT_BY_READING * busy)
    assert COSTS.demand(decoding(4, 300), 0.2) == pytest.approx(0.2 * busy)
    assert DEVICE.step_seconds > 0
