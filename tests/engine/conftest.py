"""Tiny models on disk, engines over memory that the tests own, and a way to play them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numba
import pytest
import small_models
import torch
import transformers
from small_models import BLOCK_SIZE, FAMILIES, GREEDY, NUM_BLOCKS, Sequences, save_model

from engine.checkpoint import Checkpoint
from engine.eager import EagerEngine
from engine.memory import MappedMemory
from engine.transformer import TransformerEngine
from kv.segments import HostSegment
from protocol.memory import DType, Quantization
from protocol.sampling import SamplingParams


@dataclass
class Memory:
    """What a store would hold of one model: weights, and blocks of 64 x 16 tokens."""

    path: Path
    checkpoint: Checkpoint

    def __post_init__(self) -> None:
        self.writable = memoryview(bytearray(self.checkpoint.weights_bytes))
        self.checkpoint.copy_into(self.writable)
        self.weights = self.writable.toreadonly()
        size = NUM_BLOCKS * self.checkpoint.geometry.block_bytes
        # All ones is NaN in both dtypes: whoever reads an unwritten slot, shows it.
        self.blocks = memoryview(bytearray(b"\xff" * size))

    @property
    def mapped(self) -> MappedMemory:
        return MappedMemory(
            self.weights,
            self.checkpoint.tensors,
            self.blocks,
            self.checkpoint.geometry,
        )

    def engine(self, threads: int = 1) -> TransformerEngine:
        return TransformerEngine.build(self.path, self.mapped, threads)

    def eager_engine(self) -> EagerEngine:
        return EagerEngine(self.path, self.mapped, threads=1)


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads(), numba.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture
def shared_fd(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of the memory that all processes share, on a machine of two cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    segment = HostSegment("blocks", 4096)
    yield segment.fd
    segment.close()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a family's tiny model, made when first asked for."""

    @cache
    def directory(name: str) -> Path:
        class_name, changes = FAMILIES[name]
        return save_model(tmp_path_factory.mktemp(name), class_name, **changes)

    return directory


@pytest.fixture(params=FAMILIES)
def each_family(request: pytest.FixtureRequest, family: Callable[[str], Path]) -> Path:
    """The directory of every family's tiny model in turn."""
    return family(request.param)


@pytest.fixture(scope="session")
def stories() -> Path:
    """The real small model that comes with the repository."""
    return Path(__file__).parents[2] / "models" / "stories260K"


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Save a small random model of some configuration class; answers its directory."""
    return lambda class_name, **changes: save_model(tmp_path, class_name, **changes)


@pytest.fixture(scope="session")
def memory_of() -> Callable[..., Memory]:
    """Load a model as the loader does, into memory of the test's own."""

    @cache
    def read(
        path: Path, dtype: DType, quantization: Quantization, compression: bool
    ) -> Checkpoint:
        return Checkpoint.read(
            path, dtype, BLOCK_SIZE, quantization=quantization, compression=compression
        )

    def memory(
        path: Path,
        dtype: DType = "float32",
        quantization: Quantization = "none",
        *,
        compression: bool = True,
    ) -> Memory:
        return Memory(path, read(path, dtype, quantization, compression))

    return memory


@pytest.fixture(scope="session")
def reference() -> Callable[[Path, Sequence[Sequence[int]], int], list[list[int]]]:
    """What transformers' own greedy `generate` answers to each prompt by itself."""
    return small_models.generate


@pytest.fixture(scope="session")
def play() -> Callable[..., list[list[int]]]:
    """Generate `num_tokens` for each prompt: packed, in uneven chunks, scattered."""
    return small_models.play


@pytest.fixture(scope="session")
def sequences_of() -> Callable[..., Sequences]:
    """Sequences that a test steps through by itself."""

    def start(
        prompts: Sequence[Sequence[int]], sampling: SamplingParams = GREEDY
    ) -> Sequences:
        return Sequences([list(prompt) for prompt in prompts], sampling)

    return start
