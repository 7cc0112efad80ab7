"""Learns a model's KV geometry by running it, and proves that we compute the model.

The proof: two random sequences, packed, in uneven chunks, over scattered blocks, must
give the logits of the model's own attention over each sequence whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.attention import PagedAttention, ScoreRule
from engine.batch import Batch, pack
from engine.bfloat16_linear import quick_linear
from engine.blocks import KVBlocks
from engine.configuration import layer_types
from engine.cpu import CpuAttention
from engine.errors import UnsupportedModel
from engine.forward import Forward
from engine.interface import Chunk
from engine.recorder import Recorder
from engine.reference import ReferenceAttention
from engine.sampled import sampled_logits
from engine.skeleton import state
from protocol.memory import DType, KVGeometry, LayerGeometry, ModelFacts
from protocol.sampling import SamplingParams

# Of the logits' norm. float32 rounding leaves 1e-6 to 1e-5 and bfloat16 one to three
# hundredths; an attention that is wrong is off by tenths.
TOLERANCE: dict[DType, float] = {"float32": 1e-4, "bfloat16": 0.1}

# How many tokens of each of the two sequences the successive steps compute.
_PIECES = ((17, 1), (1, 23), (11, 1), (1, 5), (14, 12))
_DONE_BEFORE = (np.cumsum(_PIECES, axis=0) - _PIECES).tolist()
_NO_SAMPLING = SamplingParams(temperature=0.0, max_tokens=1)


AttentionOf = Callable[[Batch], PagedAttention]
GeometryOf = Callable[[tuple[LayerGeometry, ...]], KVGeometry]


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a proof runs: the device, and attention there over so many fresh blocks."""

    device: torch.device
    over_scratch: Callable[[int, KVGeometry], AttentionOf]


def _on_cpu(num_blocks: int, geometry: KVGeometry) -> AttentionOf:
    blocks = KVBlocks.scratch(num_blocks, geometry)
    return lambda batch: CpuAttention(blocks, batch)


def _by_reference(num_blocks: int, geometry: KVGeometry) -> AttentionOf:
    blocks = KVBlocks.scratch(num_blocks, geometry)
    return lambda batch: ReferenceAttention(blocks, batch)


CPU = Backend(torch.device("cpu"), _on_cpu)
WITHOUT_KERNELS = Backend(torch.device("cpu"), _by_reference)


class _Witness:
    """Stands in for attention, to see each layer's shapes and rules."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerGeometry] = {}
        self.windows: dict[int, int] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule
    ) -> Tensor:
        if layer in self.layers:
            raise UnsupportedModel("its layers attend more than once")
        self.layers[layer] = LayerGeometry(
            num_kv_heads=key.shape[1],
            k_head_dim=key.shape[2],
            v_head_dim=value.shape[2],
        )
        self.windows[layer] = rule.window
        return query.new_zeros((*query.shape[:2], value.shape[2]))


def learn(served: Any, geometry_of: GeometryOf) -> KVGeometry:
    """The model's KV geometry, by running it on the CPU; `geometry_of` its layers.

    Raises UnsupportedModel with the reason.
    """
    with _refusing():
        return geometry_of(_layers(Forward(served), served.config))


def prove(
    loaded: Any,
    served: Any,
    facts: ModelFacts,
    geometry: KVGeometry,
    backend: Backend = CPU,
) -> Tensor:
    """What `loaded` answers (`own_logits`), once `served` has answered the same.

    `loaded` is the model as transformers runs it, `served` the same weights with our
    attention. Raises UnsupportedModel with the reason.
    """
    with _refusing():
        sequences = _prompts(facts)
        expected = _whole(loaded, sequences, backend.device)
        versions = _versions(served)
        found = _paged(served, sequences, geometry, backend)
    difference = float((found - expected).norm() / expected.norm())
    if _versions(served) != versions:
        raise UnsupportedModel("it writes into its own weights while it runs")
    if not difference <= TOLERANCE[geometry.dtype]:
        raise UnsupportedModel(
            f"over paged memory its logits differ by {difference:.2g} of their norm"
        )
    return expected


def prove_stand_ins(
    expected: Tensor,
    served: Any,
    facts: ModelFacts,
    geometry: KVGeometry,
    backend: Backend = CPU,
    recorder: Recorder | None = None,
) -> None:
    """The same of a proved model in which modules were replaced since.

    `expected` is what it answered before (`own_logits`, `paged_logits`). Stand-ins round
    elsewhere, and rounding may choose other experts for some tokens: it is a middling row
    that counts. On the CPU the stand-ins' `recorder` leaves out rows that are not sampled;
    the sampled ones must answer the same. Raises UnsupportedModel with the reason.
    """
    sequences = _prompts(facts)
    found = _paged(served, sequences, geometry, backend)
    norms = expected.norm(dim=-1).clamp(min=1e-30)  # a padding token's logits are zero
    rows = (found - expected).norm(dim=-1) / norms
    if not (rows.isfinite().all() and rows.median() <= TOLERANCE[geometry.dtype]):
        raise UnsupportedModel(
            f"with faster modules its logits differ by {float(rows.median()):.2g}"
        )
    if recorder is not None:
        ends = np.cumsum([len(sequence) for sequence in sequences]) - 1
        sampled = _sampled(served, sequences, geometry, recorder)
        errors = (sampled - expected[ends]).norm(dim=-1) / norms[ends]
        if not errors.min() <= TOLERANCE[geometry.dtype]:
            raise UnsupportedModel(
                f"sampled rows alone differ by {float(errors.min()):.2g}"
            )


def own_logits(loaded: Any, facts: ModelFacts, backend: Backend = CPU) -> Tensor:
    """What the model answers to the proof's prompts, computed by transformers."""
    return _whole(loaded, _prompts(facts), backend.device)


def paged_logits(
    served: Any, facts: ModelFacts, geometry: KVGeometry, backend: Backend
) -> Tensor:
    """What a proved model answers to them over blocks."""
    return _paged(served, _prompts(facts), geometry, backend)


@contextmanager
def _refusing() -> Iterator[None]:
    """What goes wrong inside is the model's fault, in words."""
    try:
        yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"it fails over packed sequences: {type(error).__name__}: {error}"
        ) from error


def _layers(forward: Forward, config: Any) -> tuple[LayerGeometry, ...]:
    witness = _Witness()
    batch = pack([Chunk([0, 0], 0, [0, 1], _NO_SAMPLING, 0)], block_size=2)
    forward(batch, witness, torch.from_numpy(batch.last_rows))
    expected = config.get_text_config().num_hidden_layers
    if sorted(witness.layers) != list(range(expected)):
        raise UnsupportedModel(
            f"{len(witness.layers)} of its {expected} layers use attention that can be "
            "replaced"
        )
    _check_windows(config, witness.windows)
    return tuple(witness.layers[layer] for layer in range(expected))


def _check_windows(config: Any, windows: dict[int, int]) -> None:
    """A window longer than the proof's prompts would otherwise go unnoticed."""
    kinds = layer_types(config)
    if kinds is None:
        slides = getattr(config.get_text_config(), "sliding_window", None)
        kinds = ["sliding_attention" if slides else "full_attention"] * len(windows)
    for layer, kind in enumerate(kinds):
        if (kind == "sliding_attention") != (windows[layer] > 0):
            raise UnsupportedModel(f"layer {layer} hides its window from its attention")


def _prompts(facts: ModelFacts) -> list[list[int]]:
    """Two random prompts, as long as the pieces."""
    lengths = np.sum(_PIECES, axis=0).tolist()
    if facts.max_position < max(lengths):
        raise UnsupportedModel(f"it reads only {facts.max_position} tokens")
    random = np.random.default_rng(0)
    return [random.integers(0, facts.vocab_size, n).tolist() for n in lengths]


def _versions(model: Any) -> dict[str, int]:
    """How often each weight was written; served weights are mapped read-only."""
    return {name: tensor._version for name, tensor in state(model).items()}


def _whole(loaded: Any, sequences: Sequence[list[int]], device: torch.device) -> Tensor:
    with torch.inference_mode(), quick_linear():
        logits = [
            loaded(
                input_ids=torch.tensor([sequence], device=device), use_cache=False
            ).logits[0]
            for sequence in sequences
        ]
    return torch.cat(logits).float()


def _paged(
    served: Any,
    sequences: Sequence[list[int]],
    geometry: KVGeometry,
    backend: Backend,
) -> Tensor:
    """The same logits from our attention, computed piece by piece."""
    forward = Forward(served, backend.device)
    lengths = [len(sequence) for sequence in sequences]
    needed = [geometry.num_blocks(length) for length in lengths]
    scattered = np.random.default_rng(1).permutation(sum(needed)).tolist()
    tables = [scattered[: needed[0]], scattered[needed[0] :]]
    attention_of = backend.over_scratch(sum(needed), geometry)
    steps, rows = [], []
    for done, piece in zip(_DONE_BEFORE, _PIECES, strict=True):
        chunks = [
            Chunk(sequence[at : at + count], at, table, _NO_SAMPLING, None)
            for sequence, at, count, table in zip(
                sequences, done, piece, tables, strict=True
            )
        ]
        batch = pack(chunks, geometry.block_size)
        everything = torch.arange(sum(piece))
        with quick_linear():
            steps.append(forward(batch, attention_of(batch), everything))
        rows.append(batch.positions + np.repeat([0, lengths[0]], piece))
    return torch.cat(steps)[np.argsort(np.concatenate(rows))].float()


def _sampled(
    served: Any,
    sequences: Sequence[list[int]],
    geometry: KVGeometry,
    recorder: Recorder,
) -> Tensor:
    """The last row of each, computed without what only other rows need."""
    chunks, first = [], 0
    for sequence in sequences:
        end = first + geometry.num_blocks(len(sequence))
        table = list(range(first, end))
        chunks.append(Chunk(sequence, 0, table, _NO_SAMPLING, 0))
        first = end
    batch = pack(chunks, geometry.block_size)
    blocks = KVBlocks.scratch(first, geometry)
    return sampled_logits(Forward(served), recorder, batch, blocks).float()
