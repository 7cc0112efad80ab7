"""Programs of products that wait for each other, for tests of who computes them."""

import torch

from engine.operations import Kind, Unit
from engine.program import Program, program_of, with_claims


def chain_of(
    weight: torch.Tensor, bias: torch.Tensor, ends: torch.Tensor, length: int
) -> Program:
    """Products with the same weights, to and fro between two rows."""
    dim = weight.shape[1]
    program = program_of(length)
    program.kinds[:], program.units[:], program.rows[:] = Kind.LINEAR, Unit.ONE, 1
    rows = [end.data_ptr() for end in ends]
    for i in range(length):
        x, y = rows[i % 2], rows[(i + 1) % 2]
        numbers = x, weight.data_ptr(), bias.data_ptr(), y, dim, dim
        program.numbers[i, : len(numbers)] = numbers
    return with_claims(program, tokens=1, sampled=1)
