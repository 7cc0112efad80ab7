"""Processors without the instructions that kernels like best compute the same.

One process compiles for such a processor, whatever this one is.
"""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.compression import compress

PROGRAM = """
import sys
import torch
from safetensors.torch import load_file, save_file
from engine.compressed import compressed_tile, linear_compressed_tile
from engine.emitter import HAS_WIDE_REGISTERS, multiplies_pairs
from engine.int8 import INT8_TILE, linear_int8_tile
from engine.matmul import linear_tile, num_tiles
from engine.panels import PANEL, linear_slice, num_panels, num_slices, pack_panel
from engine.task import alone

assert not multiplies_pairs() and not HAS_WIDE_REGISTERS
given = load_file(sys.argv[1])
x, bias = given["x"], given["bias"]
rows, inputs, outputs = shape = len(x), x.shape[1], len(bias)
at = {name: tensor.data_ptr() for name, tensor in given.items()}
answers = {
    name: x.new_empty(rows, outputs)
    for name in ("weight", "integers", "compressed", "packed")
}
to = {name: tensor.data_ptr() for name, tensor in answers.items()}

for tile in range(num_tiles(outputs)):
    linear_tile(at["x"], at["weight"], at["bias"], to["weight"], shape, alone(tile))

scaled = at["integers"], at["scale"]
for tile in range(num_tiles(outputs, INT8_TILE)):
    linear_int8_tile(at["x"], scaled, at["bias"], to["integers"], shape, alone(tile))

row_bytes = given["compressed"].shape[1]
for tile in range(num_tiles(outputs, compressed_tile(outputs, row_bytes))):
    linear_compressed_tile(
        *(at["x"], at["compressed"], at["bias"], to["compressed"]),
        (*shape, row_bytes),
        alone(tile),
    )

panels = x.new_empty(num_panels(rows) * PANEL * inputs, dtype=torch.float32)
for panel in range(num_panels(rows)):
    pack_panel(at["x"], panels.data_ptr(), shape[:2], panel)
addresses = panels.data_ptr(), at["weight"], at["bias"], to["packed"]
for task in range(num_panels(rows) * num_slices(outputs)):
    linear_slice(*addresses, shape, alone(task))

save_file(answers, sys.argv[2])
"""


def normal(seed: int, *shape: int) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=numbers).bfloat16()


@pytest.fixture(scope="module")
def operands() -> dict[str, Tensor]:
    """Inputs around vectors and groups, outputs around tiles, an exception in a row."""
    weight = normal(2, 70, 350)
    weight[3, 349] = 2.0**-100
    rows = compress(weight)
    assert rows is not None
    return {
        "x": normal(1, 39, 350),
        "weight": weight,
        "bias": normal(3, 70),
        "integers": weight.mul(40).to(torch.int8),
        "scale": torch.linspace(0.01, 0.1, 70),
        "compressed": rows,
    }


@pytest.fixture(scope="module")
def answers(
    operands: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    """By what holds the weights."""
    folder = tmp_path_factory.mktemp("plain")
    save_file(operands, folder / "operands")
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    env = {**os.environ, **plain, "NUMBA_CACHE_DIR": str(folder)}
    files = [str(folder / name) for name in ("operands", "answers")]

    subprocess.run([sys.executable, "-c", PROGRAM, *files], env=env, check=True)

    return load_file(folder / "answers")


@pytest.fixture(scope="module")
def exact(operands: dict[str, Tensor]) -> Tensor:
    """x @ weight.T + bias in float64."""
    x, weight, bias = (operands[n].double() for n in ("x", "weight", "bias"))
    return x @ weight.T + bias


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """As near as bfloat16 comes, after sums in float32."""
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2e-3)


def test_without_pairs(answers: dict[str, Tensor], exact: Tensor) -> None:
    """
    Where no instruction multiplies pairs of bfloat16, two ordinary ones do.
    """
    assert_rounded(answers["weight"], exact)


def test_without_pairs_of_integers(
    answers: dict[str, Tensor], operands: dict[str, Tensor]
) -> None:
    """
    Nor of int8, which become float32 one way or another.
    """
    integers, scale = operands["integers"].double(), operands["scale"].double()
    x, bias = operands["x"].double(), operands["bias"].double()

    assert_rounded(answers["integers"], x @ (integers * scale[:, None]).T + bias)


def test_without_looking_up(answers: dict[str, Tensor], exact: Tensor) -> None:
    """
    Where no instruction looks up bytes, they are selected bit by bit.
    """
    assert_rounded(answers["compressed"], exact)


def test_with_fewer_registers(answers: dict[str, Tensor], exact: Tensor) -> None:
    """
    Where a vector is several registers, panels are narrower and sums fewer.
    """
    assert_rounded(answers["packed"], exact)
