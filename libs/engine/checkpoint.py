"""A checkpoint on disk, loaded, proved servable and laid out for shared memory.

Used by the short-lived loader process only: it holds a second copy of the weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from engine.compression import compress_weights, expect_compressed
from engine.configuration import max_position, read_configuration
from engine.errors import BrokenCheckpoint, UnsupportedModel
from engine.fingerprint import fingerprint
from engine.memory import Memory, as_bytes
from engine.modules import speed_up
from engine.packing import is_ours
from engine.proof import (
    CPU,
    WITHOUT_KERNELS,
    learn,
    own_logits,
    prove,
    prove_stand_ins,
)
from engine.quantization import expect_quantized, quantize_weights
from engine.skeleton import bind, skeleton, state, views
from protocol.memory import (
    ALIGNMENT_BYTES,
    PACKED,
    Device,
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
    _loaded: Any
    _served: Any

    @classmethod
    def read(
        cls,
        path: Path,
        dtype: DType,
        block_size: int,
        device: Device = "cpu",
        quantization: Quantization = "none",
        *,
        compression: bool = True,
        kernels: bool = True,
    ) -> "Checkpoint":
        """Load the model of `path` and, for the CPU, prove that we compute it.

        For a GPU `prove_in` does, once the weights are there. Quantised weights are
        proved to be computed as what they stand for, in bfloat16; weights that our
        kernels read compressed are, if `compression` is wanted. While there are no
        `kernels`, stand-ins are for others to prove. Safetensors only,
        local files only, no code from the checkpoint. Raises
        BrokenCheckpoint for bad files and UnsupportedModel with its reason.
        """
        if quantization != "none":
            assert (dtype, device) == ("bfloat16", "cpu"), "int8 is for both of these"
        config = read_configuration(path)
        if device == "cpu" and block_size % PACKED[dtype]:
            raise UnsupportedModel(
                f"in {dtype} a KV block holds an even number of tokens"
            )
        facts = ModelFacts(
            model=str(path),
            fingerprint=fingerprint(path, dtype, device, quantization),
            vocab_size=config.get_text_config().vocab_size,
            max_position=max_position(config),
        )
        loaded = _load(path, dtype)
        tensors = state(loaded)
        served = skeleton(config, getattr(torch, dtype))
        bind(served, tensors)
        geometry = learn(
            served,
            lambda layers: KVGeometry(
                layers=layers, dtype=dtype, block_size=block_size, device=device
            ),
        )
        if device == "cpu":
            backend = CPU if kernels else WITHOUT_KERNELS
            answered = prove(loaded, served, facts, geometry, backend)
        if quantization == "int8":
            facts, answered = _quantize(loaded, tensors, facts, answered)
        elif compression and (dtype, device) == ("bfloat16", "cpu") and is_ours():
            compress_weights(loaded, tensors)
        if device == "cpu":
            served = skeleton(config, getattr(torch, dtype))
            expect_quantized(served, tensors)
            expect_compressed(served, tensors)
            bind(served, tensors)
        if device == "cpu" and dtype == "bfloat16" and kernels:
            recorder = speed_up(served)
            prove_stand_ins(answered, served, facts, geometry, recorder=recorder)
        specs, weights_bytes = lay_out(tensors)
        return cls(facts, geometry, specs, weights_bytes, tensors, loaded, served)

    def copy_into(self, memory: Memory) -> None:
        """Fill writable memory of at least `weights_bytes` bytes with the weights."""
        if len(as_bytes(memory)) < self.weights_bytes:
            raise ValueError(f"no room for {self.weights_bytes} bytes of weights")
        targets = views(memory, self.tensors)
        if self.geometry.device == "cuda":
            from engine.staging import copy_to_device  # needs a GPU

            copy_to_device(self._state, targets)
            return
        for name, target in targets.items():
            target.copy_(self._state[name])

    def prove_in(self, memory: Memory) -> None:
        """Prove that we compute the model on the GPU, over the weights copied there.

        Raises UnsupportedModel with its reason.
        """
        from engine.cuda import on_device
        from engine.cuda_modules import speed_up

        tensors = views(memory, self.tensors)
        for model in (self._loaded, self._served):
            bind(model, tensors)
        place = self.facts, self.geometry, on_device()
        answered = prove(self._loaded, self._served, *place)
        if self.geometry.dtype == "bfloat16":
            speed_up(self._served)
            prove_stand_ins(answered, self._served, *place)


def _load(path: Path, dtype: DType) -> Any:
    disable_progress_bar()
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            # The definition of a family's attention: the faster ones leave things out.
            attn_implementation="eager",
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


def _quantize(
    loaded: Any, tensors: dict[str, Tensor], facts: ModelFacts, before: Tensor
) -> tuple[ModelFacts, Tensor]:
    """Put int8 among the tensors; `loaded` has what they stand for, facts by how much.

    The other answer is the model's, which was `before`.
    """
    tensors.update(quantize_weights(loaded))
    after = own_logits(loaded, facts)
    error = float((after - before).norm() / before.norm())
    return facts.changed(quantization_error=error), after


def lay_out(tensors: dict[str, Tensor]) -> tuple[tuple[TensorSpec, ...], int]:
    """Offsets of every name; names of one tensor (tied weights) share its bytes."""
    offsets: dict[tuple[int, tuple[int, ...], torch.dtype], int] = {}
    specs, end = [], 0
    for name, tensor in sorted(tensors.items(), key=_beside(tensors)):
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


def _beside(tensors: Iterable[str]) -> Callable[[tuple[str, Tensor]], tuple[int, str]]:
    """An order in which weights of modules side by side lie side by side.

    So one product can span those that read the same input: queries, keys and values.
    Their biases follow, again side by side.
    """
    places: dict[str, int] = {}
    for name in tensors:
        places.setdefault(name.rpartition(".")[0].rpartition(".")[0], len(places))

    def key(item: tuple[str, Tensor]) -> tuple[int, str]:
        module, _, own = item[0].rpartition(".")
        return places[module.rpartition(".")[0]], "" if own == "weight" else own

    return key
