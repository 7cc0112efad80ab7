"""A checkpoint on disk, loaded, proved servable and laid out for shared memory.

Used by the short-lived loader process only: it holds a second copy of the weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from engine.configuration import max_position, read_configuration
from engine.errors import BrokenCheckpoint, UnsupportedModel
from engine.fingerprint import fingerprint
from engine.modules import speed_up
from engine.proof import own_logits, prove, prove_stand_ins
from engine.quantization import expect_quantized, quantize_weights
from engine.skeleton import bind, skeleton, state, views
from protocol.memory import (
    ALIGNMENT_BYTES,
    PACKED,
    DType,
    KVGeometry,
    ModelFacts,
    Quantization,
    TensorSpec,
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be served, and where each of its tensors goes."""

    facts: ModelFacts
    geometry: KVGeometry
    tensors: tuple[TensorSpec, ...]
    weights_bytes: int
    _state: dict[str, Tensor]

    @classmethod
    def read(
        cls,
        path: Path,
        dtype: DType,
        block_size: int,
        quantization: Quantization = "none",
    ) -> "Checkpoint":
        """Load the model of `path` and prove that paged attention computes it.

        Quantised weights are proved to be computed as what they stand for, in bfloat16.
        Safetensors only, local files only, no code from the checkpoint. Raises
        BrokenCheckpoint for bad files and UnsupportedModel with its reason.
        """
        assert quantization == "none" or dtype == "bfloat16", "int8 is for bfloat16"
        config = read_configuration(path)
        if block_size % PACKED[dtype]:
            raise UnsupportedModel(
                f"in {dtype} a KV block holds an even number of tokens"
            )
        facts = ModelFacts(
            model=str(path),
            fingerprint=fingerprint(path, dtype, quantization),
            vocab_size=config.get_text_config().vocab_size,
            max_position=max_position(config),
        )
        loaded = _load(path, dtype)
        tensors = state(loaded)
        served = skeleton(config, getattr(torch, dtype))
        bind(served, tensors)
        geometry = prove(loaded, served, facts, dtype, block_size)
        if quantization == "int8":
            facts = _quantize(loaded, tensors, facts)
            served = skeleton(config, torch.bfloat16)
            expect_quantized(served, tensors)
            bind(served, tensors)
        if dtype == "bfloat16":
            speed_up(served)
            prove_stand_ins(loaded, served, facts, geometry)
        specs, weights_bytes = _lay_out(tensors)
        return cls(facts, geometry, specs, weights_bytes, tensors)

    def copy_into(self, buffer: memoryview) -> None:
        """Fill a writable buffer of at least `weights_bytes` bytes with the weights."""
        if len(buffer) < self.weights_bytes:
            raise ValueError(f"{len(buffer)} bytes for {self.weights_bytes} of weights")
        for name, target in views(buffer, self.tensors).items():
            target.copy_(self._state[name])


def _load(path: Path, dtype: DType) -> Any:
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise BrokenCheckpoint(f"cannot load the weights of {path}: {error}") from error
    model, report = answer
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            names = ", ".join(sorted(map(str, report[problem]))[:3])
            raise BrokenCheckpoint(f"{path}: {problem.replace('_', ' ')}: {names}")
    return model.eval().requires_grad_(False)


def _quantize(loaded: Any, tensors: dict[str, Tensor], facts: ModelFacts) -> ModelFacts:
    """Put int8 among the tensors; `loaded` has what they stand for, facts by how much."""
    before = own_logits(loaded, facts)
    tensors.update(quantize_weights(loaded))
    error = float((own_logits(loaded, facts) - before).norm() / before.norm())
    return facts.changed(quantization_error=error)


def _lay_out(tensors: dict[str, Tensor]) -> tuple[tuple[TensorSpec, ...], int]:
    """Offsets of every name; names of one tensor (tied weights) share its bytes."""
    offsets: dict[tuple[int, tuple[int, ...], torch.dtype], int] = {}
    specs, end = [], 0
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if identity not in offsets:
            offsets[identity] = end
            end += -(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        specs.append(
            TensorSpec(
                name=name,
                offset=offsets[identity],
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
            )
        )
    return tuple(specs), end
