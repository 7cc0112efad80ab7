"""How long a step takes: a roofline over a model's shape on a device.

Linear layers take the longer of their arithmetic and of reading the weights once;
attention of prompts takes its arithmetic, that of decoding the reading of K and V (four
operations a byte and less: no device is short of arithmetic there). What a step takes
beside that, and what sharing the device costs, are the device's own figures.
"""

from dataclasses import dataclass
from typing import NamedTuple

from bench.simulation.devices import Device
from bench.simulation.shapes import Shape

MEMORY_FOR_KV = 0.9  # of what the weights leave; activations and graphs have the rest
# Of the SMs, by work that waits for memory: about half of them saturate it (an H200's
# decode step on 64 of its 132 took 1.09 times as long; sglang-omni, pull request 1635).
KEPT_BY_READING = 0.5


class Work(NamedTuple):
    """What a step computes, summed over its sequences."""

    num_tokens: int  # through all layers
    num_sampled: int  # through the last layer: sequences that get a token
    num_sequences: int
    num_pairs: float = 0  # of query and key, in prompts
    num_read: int = 0  # tokens whose K and V decoding sequences read

    def beside(self, other: "Work") -> "Work":
        """Both in one step."""
        return Work(
            self.num_tokens + other.num_tokens,
            self.num_sampled + other.num_sampled,
            self.num_sequences + other.num_sequences,
            self.num_pairs + other.num_pairs,
            self.num_read + other.num_read,
        )


def decoding(num_sequences: int, num_context: int) -> Work:
    """A token for each; `num_context` is what they have before it, all together."""
    return Work(
        num_sequences,
        num_sequences,
        num_sequences,
        num_read=num_context + num_sequences,
    )


def prompt(num_tokens: int, num_before: int, *, is_last: bool = True) -> Work:
    """A chunk of one; it attends to itself and to what was computed before it."""
    num_pairs = num_tokens * (num_before + (num_tokens + 1) / 2)
    return Work(num_tokens, int(is_last), 1, num_pairs)


NOTHING = Work(0, 0, 0)


class Share(NamedTuple):
    """What of the device a step has."""

    part: float = 1.0  # of the SMs, or cores
    is_alone: bool = True  # or someone computes on the rest at the same time


ALONE = Share()


class Pace(NamedTuple):
    """Seconds of a batch's steps: of the first, and how much longer each further one."""

    first: float
    more: float = 0.0


class Parts(NamedTuple):
    """Seconds of a step that has the whole device to itself."""

    fixed: float  # nothing is asked of the device
    compute: float  # arithmetic is what it waits for
    memory: float  # reading is what it waits for


@dataclass(frozen=True, slots=True)
class Costs:
    shape: Shape
    device: Device

    def parts(self, work: Work) -> Parts:
        device, shape = self.device, self.shape
        flop = 1 / (device.peak_flops * device.compute_efficiency)
        fixed = device.step_seconds + work.num_sequences * device.sequence_seconds
        linear = flop * 2 * work.num_tokens * shape.layer_weights
        linear += flop * 2 * work.num_sampled * shape.head_weights
        reading = shape.streamed_bytes * self._byte_seconds
        compute = flop * work.num_pairs * shape.flops_per_pair
        memory = work.num_read * self._token_seconds
        if linear > reading:
            return Parts(fixed, compute + linear, memory)
        return Parts(fixed, compute, memory + reading)

    def pace(self, work: Work, share: Share = ALONE) -> Pace:
        """Of this step and the same again: decoding sequences are a token longer."""
        device = self.device
        fixed, compute, memory = self.parts(work)
        arithmetic = slowdown(device.compute_elasticity, share.part)
        reading = slowdown(device.memory_elasticity, share.part)
        if not share.is_alone:
            reading *= 1 + device.contention
        num_growing = work.num_sequences if work.num_read else 0
        return Pace(
            fixed + arithmetic * compute + reading * memory,
            reading * num_growing * self._token_seconds,
        )

    def demand(self, work: Work, cap: float) -> float:
        """What part of the device's time and SMs the work keeps from another one, if it
        may have no more of the SMs than the cap.
        """
        fixed, compute, memory = self.parts(work)
        reading = min(cap, KEPT_BY_READING)
        return (cap * compute + reading * memory) / (fixed + compute + memory)

    @property
    def _byte_seconds(self) -> float:
        return 1 / (self.device.peak_bytes * self.device.memory_efficiency)

    @property
    def _token_seconds(self) -> float:
        """Of reading a token's K and V."""
        return self.shape.kv_bytes_per_token * self._byte_seconds

    @property
    def max_tokens(self) -> int:
        """Tokens whose K and V fit beside the weights; 0 when these do not fit."""
        left = self.device.memory_bytes - self.shape.weights_bytes
        return max(0, int(MEMORY_FOR_KV * left / self.shape.kv_bytes_per_token))


def slowdown(elasticity: float, part: float) -> float:
    """Of what takes 1 on the whole device, on a part of it."""
    return 1 + elasticity * (1 / part - 1)
