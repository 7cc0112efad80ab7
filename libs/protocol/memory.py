"""What lies where in shared memory: weights by name, K/V by block. Only arithmetic.

A KV block holds `block_size` tokens of every layer in one contiguous run of bytes,
layer after layer, K before V:

    block = [ layer 0: K | V ][ layer 1: K | V ] ...
    K     = [num_kv_heads, k_head_dim / P, block_size, P]
    V     = [num_kv_heads, block_size / P, v_head_dim, P]

What a sum runs over (head dims of K, tokens of V) lies P by P next to each other, as
instructions multiply it: P is 2 for bfloat16 and 1 for float32; head dims are rounded up.
The keys of a block lie side by side because a query scores them so. On a GPU, whose
threads load whole rows, they are plain rows:

    K     = [num_kv_heads, block_size, k_head_dim]
    V     = [num_kv_heads, block_size, v_head_dim]

A block is contiguous, so it is the unit of sharing, eviction, offload and transfer.
Behind the host's blocks lie the counters by which steps let each other go first.
"""

from typing import Literal

from pydantic import Field

from protocol.wire import Message

ALIGNMENT_BYTES = 64  # a cache line, and enough for every vector load
COUNTERS_BYTES = 64  # behind the blocks (`engine.watch`)

DType = Literal["float32", "bfloat16"]
Quantization = Literal["none", "int8"]  # of the weights of linear layers
Device = Literal["cpu", "cuda"]
Sharing = Literal["memfd", "vmm", "ipc"]  # how processes come to the same memory
ITEM_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2}
LAYOUT = 3  # of KV blocks; another number for each change, lest workers mix them
PACKED: dict[DType, int] = {"float32": 1, "bfloat16": 2}  # P above


class LayerGeometry(Message):
    """The shape of one layer's K and V, as its attention function sees them."""

    num_kv_heads: int = Field(ge=1)
    k_head_dim: int = Field(ge=1)
    v_head_dim: int = Field(ge=1)

    def num_elements(self, block_size: int, packed: int) -> tuple[int, int]:
        """K and V of one layer in one block."""
        k_head_dim = -(-self.k_head_dim // packed) * packed
        of_all_heads = self.num_kv_heads * block_size
        return of_all_heads * k_head_dim, of_all_heads * self.v_head_dim


class KVGeometry(Message):
    """The shape of a KV block."""

    layers: tuple[LayerGeometry, ...] = Field(min_length=1)
    dtype: DType
    block_size: int = Field(ge=1)
    device: Device = "cpu"

    @property
    def packed(self) -> int:
        """P above."""
        return PACKED[self.dtype] if self.device == "cpu" else 1

    @property
    def block_bytes(self) -> int:
        elements = sum(
            sum(layer.num_elements(self.block_size, self.packed))
            for layer in self.layers
        )
        return elements * ITEM_BYTES[self.dtype]

    def segment_bytes(self, num_blocks: int) -> int:
        """Of so many blocks and what lies behind them."""
        size = self.block_bytes * num_blocks
        if self.device != "cpu":
            return size
        return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES + COUNTERS_BYTES

    def num_blocks(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_size)


class TensorSpec(Message):
    """Where one parameter or buffer lies in the weights segment."""

    name: str
    offset: int  # bytes from the segment's start, a multiple of ALIGNMENT_BYTES
    shape: tuple[int, ...]
    dtype: str  # torch's name of it: "float32", "bfloat16", "int64", ...


class ModelFacts(Message):
    """What the rest of the mesh must know of a model; learnt once, by the loader."""

    model: str  # directory or hub id, as given
    fingerprint: str  # of configuration and dtype: what makes two workers agree
    vocab_size: int
    max_position: int  # tokens that the model's positions reach
    # What quantisation changes of the logits' norm, on the prompts of the proof.
    quantization_error: float = 0.0


class SegmentHandle(Message):
    """How to map a segment that another process made.

    `memfd` and `vmm` (a CUDA allocation) come as a descriptor after the message, `ipc`
    is CUDA's older handle of 64 bytes, which says all by itself.
    """

    sharing: Sharing
    size_bytes: int = Field(ge=0)
    ipc: bytes = Field(default=b"", max_length=64)
