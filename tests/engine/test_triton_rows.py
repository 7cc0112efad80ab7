"""The GPU's kernels over rows against transformers' modules and torch."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from triton_device import DEVICE

from engine.triton_rows import Activation, gate, rms_norm, rotate

# The interpreter computes by numpy, which warns of exponentials that become infinite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of a number near 1; the interpreter cuts bfloat16 where a GPU rounds it, and twice.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(
        DEVICE, dtype
    )


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.is_contiguous()
    rounding = ROUNDING[found.dtype]
    torch.testing.assert_close(found, expected, atol=rounding, rtol=rounding)


def weighted(kind: type[nn.Module], weight: Tensor) -> nn.Module:
    """A norm of transformers with this weight."""
    module = kind(len(weight), eps=1e-5).requires_grad_(False)
    module.weight.data = weight
    return module


@pytest.mark.parametrize(("kind", "offset"), [(LlamaRMSNorm, 0.0), (GemmaRMSNorm, 1.0)])
@pytest.mark.parametrize("dim", [8, 80, 3000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_answers_as_transformers_does(
    dtype: torch.dtype, dim: int, kind: type[nn.Module], offset: float
) -> None:
    """Short rows, which share a program, and long ones, with both kinds of rounding."""
    x, weight = normal(1, 5, dim, dtype=dtype), normal(dim, dtype=dtype)

    found = rms_norm(x, weight, 1e-5, offset)

    assert_near(found, weighted(kind, weight)(x))


@pytest.mark.parametrize("num_tokens", [1, 6])
def test_norm_of_heads_reads_them_in_a_wider_row(num_tokens: int) -> None:
    """Heads of one projection's output, as Qwen3 norms them."""
    heads = normal(1, num_tokens, 9, 32, dtype=torch.float32)[:, :, 2:7]
    weight = normal(32, dtype=torch.float32)

    found = rms_norm(heads, weight, 1e-5)

    assert_near(found, weighted(LlamaRMSNorm, weight)(heads))


def test_norm_reads_any_strides() -> None:
    """A transposed matrix, and a part of each row."""
    weight = normal(24, dtype=torch.float32)
    turned = normal(24, 7, dtype=torch.float32).T
    part = normal(1, 7, 40, dtype=torch.float32)[..., :24]

    found = rms_norm(turned, weight, 1e-5), rms_norm(part, weight, 1e-5)

    module = weighted(LlamaRMSNorm, weight)
    assert_near(found[0], module(turned))
    assert_near(found[1], module(part))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [24, 2500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_answers_as_torch_does(
    dtype: torch.dtype, width: int, activation: Activation
) -> None:
    """Gates and ups are halves of one projection's rows, some of them extreme."""
    both = normal(1, 5, 2 * width, dtype=dtype)
    both[0, 0, :4] = torch.tensor([-60.0, -9.0, 9.0, 60.0])
    gates, ups = both.chunk(2, dim=-1)

    found = gate(gates, ups, activation)

    if activation == "silu":
        expected = nn.functional.silu(gates) * ups
    else:
        expected = nn.functional.gelu(gates, approximate="tanh") * ups
    assert_near(found, expected)


@pytest.mark.parametrize("dim", [4, 80, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_is_transformers(dtype: torch.dtype, dim: int) -> None:
    """Query and key heads, views of one projection's rows, by the angles of each."""
    both = normal(6, 9, dim, dtype=dtype)
    q, k = both[:, :7], both[:, 7:]
    cos, sin = normal(6, dim, dtype=dtype), normal(6, dim, dtype=dtype).flip(0)

    found = rotate(q, k, cos, sin)

    by_head = q[None].transpose(1, 2), k[None].transpose(1, 2)
    expected = apply_rotary_pos_emb(*by_head, cos[None], sin[None])
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other[0].transpose(0, 1))


def test_rotation_reads_heads_by_tokens() -> None:
    """As transformers lays them out: heads first, and angles in float32."""
    q, k = (normal(heads, 3, 16, dtype=torch.bfloat16) for heads in (40, 1))
    cos, sin = normal(3, 16, dtype=torch.float32), normal(3, 16, dtype=torch.float32)

    found = rotate(q.transpose(0, 1), k.transpose(0, 1), cos, sin)

    expected = apply_rotary_pos_emb(
        q[None].float(), k[None].float(), cos[None], sin[None]
    )
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other[0].transpose(0, 1).bfloat16())


def test_no_rows_are_no_launch() -> None:
    """A step without tokens answers with tensors without tokens."""
    none = torch.empty((0, 2, 16), device=DEVICE)
    angles = torch.empty((0, 16), device=DEVICE)

    normed = rms_norm(none, torch.ones(16, device=DEVICE), 1e-5)
    gated = gate(none, none, "silu")
    rotated = rotate(none, none, angles, angles)

    assert normed.shape == gated.shape == rotated[0].shape == rotated[1].shape
