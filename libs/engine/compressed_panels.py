"""Products of many rows with weights of `engine.compression`, expanded a few at a time.

Otherwise as `engine.panels`, to the bit. What is expanded stays in the first cache while
several panels pass.
"""

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from engine.compiled import compiled
from engine.compressed import bytes_at
from engine.compression import GROUP, GROUP_BYTES, TABLE_BYTES, num_groups
from engine.emitter import INT, LANES, Emitter
from engine.matmul import bits_at, put_gated, put_linear, span_of
from engine.panels import (
    AT_ONCE,
    PANEL,
    SLICE,
    TOGETHER,
    multiply,
    num_panels,
    num_slices,
    panel_at,
)
from engine.task import Task
from engine.vectors import Part, start_of
from engine.widened import WIDENS, widen_row

Array = Any
PANELS_AT_ONCE = 4  # more of them would leave the second cache


@compiled()
def num_compressed_slices(rows: int, outputs: int) -> int:
    """Tasks of a product of many rows."""
    return int(num_groups_of_panels(rows) * num_slices(outputs))


@compiled()
def num_groups_of_panels(rows: int) -> int:
    """In how many parts panels share what is expanded for them."""
    return int(-(-num_panels(rows) // PANELS_AT_ONCE))


@compiled()
def linear_compressed_slice(
    packed: int,
    weight: int,
    bias: int,
    y: int,
    shape: tuple[int, int, int, int],
    task: Task,
) -> bool:
    """As `linear_compressed_tile`, of some panels and a slice of outputs, x packed."""
    sizes, row_bytes = shape[:3], shape[3]
    panels, span = _part_of(sizes, task.number)
    sums = _sums_of_panels(packed, (weight, row_bytes), sizes, panels, span)
    return put_linear(task, sums, bias, y, sizes[2], (*span, panels[0] * PANEL))


@compiled()
def gated_compressed_slice(
    packed: int,
    gate: tuple[int, int],
    up: tuple[int, int],
    y: int,
    shape: tuple[int, int, int],
    curve_and_task: tuple[int, Task],
) -> bool:
    """As `gated_compressed_tile`, of some panels and a slice of outputs, x packed."""
    curve, task = curve_and_task
    panels, span = _part_of(shape, task.number)
    gates = _sums_of_panels(packed, gate, shape, panels, span)
    ups = _sums_of_panels(packed, up, shape, panels, span)
    place = (*span, panels[0] * PANEL)
    return put_gated(task, (gates, ups), y, shape[2], curve, place)


@compiled()
def _part_of(
    shape: tuple[int, int, int], task: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """First panel and end of a task's, and its outputs."""
    groups = num_groups_of_panels(shape[0])
    some, group = divmod(task, groups)
    count = num_panels(shape[0])
    panels = group * count // groups, (group + 1) * count // groups
    return panels, span_of(some, SLICE, shape[2])


@compiled()
def _sums_of_panels(
    packed: int,
    of: tuple[int, int],
    shape: tuple[int, int, int],
    panels: tuple[int, int],
    span: tuple[int, int],
) -> Array:
    """A span's outputs of some panels' rows, [rows, width] float32."""
    (weight, row_bytes), (first, width) = of, span
    inputs = shape[1]
    depth = inputs // TOGETHER
    top = panels[0] * PANEL
    count = min(panels[1] * PANEL, shape[0]) - top
    sums = np.empty((-(-count // LANES) * LANES, width), np.float32)
    whole = np.empty((AT_ONCE, depth), np.float32 if WIDENS else np.uint32)
    right = Part(start_of(whole), 0, depth)
    for column in range(0, width, AT_ONCE):
        few = min(AT_ONCE, width - column)
        output = first + column
        for j in range(few):
            _expand_row(weight, row_bytes, output + j, whole[j])
        following = Part(bytes_at(weight), (output + few) * row_bytes, 0)
        for panel in range(panels[0], panels[1]):
            row = panel * PANEL - top
            vectors = -(-min(PANEL, count - row) // LANES)
            out = Part(start_of(sums), row * width + column, width)
            left = panel_at(packed, inputs, panel)
            multiply(out, left, right, following, (depth, vectors, few))
    return sums[:count]


@compiled()
def _expand_row(weight: int, row_bytes: int, output: int, whole: Array) -> None:
    """The weights of one output as what is multiplied, to the bit what was compressed."""
    inputs = TOGETHER * len(whole)
    groups = row_bytes - num_groups(inputs) * GROUP_BYTES
    source = Part(bytes_at(weight), output * row_bytes + groups, row_bytes)
    if WIDENS:
        widen_row(source, whole)
    else:
        _expand(Part(start_of(whole), 0, 0), source, inputs)
    words = carray(bits_at(weight), (output + 1, row_bytes // 2))[output]
    if words[1] == 0:
        return
    halves = whole.view(np.uint16)
    for at in range(0, (groups - TABLE_BYTES) // 2, 2):
        if words[at + 1] == 0:
            break
        # Of a float32 the upper half is a bfloat16.
        place = 2 * words[at] + 1 if WIDENS else words[at]
        halves[place] = words[at + 1]


@intrinsic
def _expand(typing: Any, out: Any, right: Any, depth: Any) -> Any:
    """One row of groups as pairs of bfloat16, exceptions as zeros."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Emitter(context, builder, signature)
        out, right = (emit.part(i, arguments[i]) for i in range(2))
        table = emit.table(emit.at(right, INT(0), INT(-TABLE_BYTES)))

        def put(depth: Any, masks: list[Any]) -> None:
            column = builder.mul(builder.sdiv(depth, INT(GROUP)), INT(GROUP_BYTES))
            words = emit.load_coded(emit.at(right, INT(0), column), table)
            for i, (some, mask) in enumerate(zip(words, masks, strict=True)):
                at = builder.add(builder.sdiv(depth, INT(2)), INT(i * LANES))
                emit.store_pairs(some, emit.at(out, INT(0), at), mask)

        emit.by_steps(arguments[2], GROUP, put)
        return context.get_dummy_value()

    return types.void(out, right, types.int64), generate
