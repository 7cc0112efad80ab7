"""Which SMs a stream's kernels run on, measured. For tests and benchmarks alone."""

import torch
import triton
import triton.language as tl

PROGRAMS_PER_SM = 64  # twice as many one-warp programs as an SM holds at a time
NUM_STEPS = 2000  # some tens of microseconds, so that every SM gets a program meanwhile


@triton.jit
def _occupy(seen, num_steps) -> None:
    """Each program writes down its SM, then computes a chain of steps."""
    program = tl.program_id(0)
    sm = tl.inline_asm_elementwise(
        "mov.u32 $0, %smid;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )
    # A chain of xorshifts (Marsaglia 2003): no compiler finds a shorter way to its end.
    word = program + 1
    for _ in range(num_steps):
        word ^= word << 13
        word ^= word >> 17
        word ^= word << 5
    tl.store(seen + 2 * program, sm)
    tl.store(seen + 2 * program + 1, word)


def occupy(seen: torch.Tensor, num_steps: int) -> None:
    """On the current stream, a one-warp program for each row of `seen`.

    `seen`: int32, `[num_programs, 2]`, on the GPU; column 0 becomes the program's SM.
    A program takes `num_steps` x some ten nanoseconds of computing. It counts work, not
    time: programs of two processes that take turns take twice as long.
    """
    _occupy[(len(seen),)](seen, num_steps, num_warps=1)


def places(num_programs: int) -> torch.Tensor:
    """Where so many programs of `occupy` write: int32, `[num_programs, 2]`, all -1."""
    return torch.full((num_programs, 2), -1, dtype=torch.int32, device="cuda")


def sm_ids(stream: torch.cuda.Stream) -> frozenset[int]:
    """The numbers of all SMs that kernels of this stream run on."""
    num_sms = torch.cuda.get_device_properties().multi_processor_count
    with torch.cuda.stream(stream):
        seen = places(num_sms * PROGRAMS_PER_SM)
        occupy(seen, NUM_STEPS)
        return frozenset(seen[:, 0].tolist())
