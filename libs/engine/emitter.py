"""Writes LLVM's instructions for vectors of sixteen float32, inside kernels of numba.

Memory holds float32, bfloat16 (as uint16 bits), int8, or bytes of `engine.compression`;
sums are float32 always.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils

LANES = 16  # float32 in the widest vector; narrower machines split it
PAIRS = 2 * LANES  # bfloat16 in the same vector
REGISTER_LANES = 8  # float32 in a register, where registers are few

INT = ir.IntType(64)
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
_REGISTER = ir.VectorType(FLOAT, REGISTER_LANES)
_INT32 = ir.IntType(32)
_WORDS = ir.VectorType(_INT32, LANES)
_HALF = ir.IntType(16)
_HALVES = ir.VectorType(_HALF, PAIRS)
_BYTES = ir.VectorType(ir.IntType(8), PAIRS)
_TABLE = ir.VectorType(ir.IntType(8), 16)
_CODES = ir.VectorType(ir.IntType(8), 2 * PAIRS)
# exp(x) = 2^y, and 2^f of a fraction is Horner's scheme over these.
LOG2_E, LEAST = 1.4426950408889634, -126.0
POWERS = (
    1.5403530e-4,
    1.3333558e-3,
    9.6181291e-3,
    5.5504109e-2,
    2.4022651e-1,
    6.9314718e-1,
    1.0,
)
_ODD_HALVES = list(range(1, 2 * PAIRS, 2))  # of two vectors in a row


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BFLOATS = ir.VectorType(_BFloat(), PAIRS)


def multiplies_pairs() -> bool:
    """Whether this processor multiplies bfloat16 and adds float32 in one instruction."""
    return has("avx512bf16")


def is_processor(name: str) -> bool:
    """Whether machine code is for this processor, by LLVM's name for it."""
    return (config.CPU_NAME or llvmlite.binding.get_host_cpu_name()) == name


def has(feature: str) -> bool:
    """Whether machine code may use this feature, by LLVM's name for it."""
    chosen = config.CPU_FEATURES  # where somebody wants code for another processor
    if chosen is None:
        chosen = llvmlite.binding.get_host_cpu_features().flatten()
    return f"+{feature}" in chosen.split(",")


# Whether a vector of LANES is one register of 32. Elsewhere it is several, of 16 often,
# and six such vectors of sums are the most that products have room for.
HAS_WIDE_REGISTERS = has("avx512f")
# Instructions that look up in sixteen bytes: of what, how many lanes, LLVM's name.
_LOOK_UPS = (
    ("avx512bw", 64, "llvm.x86.avx512.pshuf.b.512"),
    ("avx2", 32, "llvm.x86.avx2.pshuf.b"),
    ("ssse3", 16, "llvm.x86.ssse3.pshuf.b.128"),
)


class Emitter:
    """Instructions of one function that numba is compiling."""

    def __init__(self, context: Any, builder: Any, signature: Any) -> None:
        self._context = context
        self._builder = builder
        self._signature = signature

    def part(self, index: int, value: Any) -> tuple[Any, Any, Any, Any]:
        """A `Part` argument as (address, first, stride, type of an element)."""
        start, first, stride = cgutils.unpack_tuple(self._builder, value)
        element = self._signature.args[index].types[0].dtype
        return start, first, stride, element

    def at(self, part: tuple[Any, Any, Any, Any], row: Any, column: Any) -> Any:
        """Where an element lies."""
        address, first, stride, _ = part
        offset = self._builder.add(first, self._builder.mul(row, stride))
        return self._builder.gep(address, [self._builder.add(offset, column)])

    @property
    def zeros(self) -> Any:
        return ir.Constant(VECTOR, None)

    def sums(self, count: int) -> list[Any]:
        """Vectors of zeros to add to, which stay in registers."""
        zeros = self.zeros
        return [cgutils.alloca_once_value(self._builder, zeros) for _ in range(count)]

    def every(self, number: float) -> Any:
        """The same float32 in all lanes."""
        return ir.Constant(VECTOR, [_float32(number)] * LANES)

    def each(
        self, count: Any, do: Callable[[int, Any, Any], None], chains: int = 1
    ) -> None:
        """do(chain, index, mask) for LANES elements after others, of so many.

        Neighbours belong to different chains; the last ones may need a mask.
        """
        builder, step = self._builder, INT(chains * LANES)
        whole = builder.sub(count, builder.srem(count, step))
        with cgutils.for_range_slice(builder, INT(0), whole, step, inc=True) as at:
            for chain in range(chains):
                do(chain, builder.add(at[0], INT(chain * LANES)), None)
        rest = cgutils.for_range_slice(builder, whole, count, INT(LANES), inc=True)
        with rest as (index, _):
            do(0, index, self.mask(builder.sub(count, index)))

    def load(self, address: Any, mask: Any) -> Any:
        """LANES float32, perhaps stored as bfloat16; where the mask is unset, zero."""
        if address.type.pointee == _HALF:
            halves = self._masked_load(address, ir.VectorType(_HALF, LANES), mask)
            words = self._builder.zext(halves, _WORDS)
            words = self._builder.shl(words, ir.Constant(_WORDS, [16] * LANES))
            return self._builder.bitcast(words, VECTOR)
        return self._masked_load(address, VECTOR, mask)

    def load_register(self, address: Any) -> Any:
        """REGISTER_LANES float32."""
        return self._masked_load(address, _REGISTER, None)

    def registers(self, vector: Any) -> list[Any]:
        """The registers that a vector is."""
        firsts = range(0, LANES, REGISTER_LANES)
        lanes = [list(range(first, first + REGISTER_LANES)) for first in firsts]
        return [self._shuffle(vector, vector, some) for some in lanes]

    def load_element(
        self, address: Any, element: Any, mask: Any, keep: Any
    ) -> tuple[Any, ...]:
        """LANES elements, as `add_products` takes them: float32, or kept of pairs."""
        if element == types.float32:
            return (self.load(address, mask),)
        words = self._masked_load(address, _WORDS, mask)
        return self.pairs(self._builder.and_(words, self.splat(keep, _WORDS)))

    def spread(self, address: Any, element: Any) -> tuple[Any, ...]:
        """One element in all lanes, as `add_products` takes it."""
        scalar = self._builder.load(address)
        if element == types.float32:
            return (self.splat(scalar, VECTOR),)
        return self.pairs(self.splat(scalar, _WORDS))

    def load_words(self, address: Any, mask: Any) -> Any:
        """LANES pairs of bfloat16 as they are."""
        return self._masked_load(address, _WORDS, mask)

    def load_pairs(self, address: Any, mask: Any) -> tuple[Any, ...]:
        """PAIRS of bfloat16 or int8 in a row, as `add_products` takes them."""
        return self.pairs(self._load_pair_words(address, mask))

    def load_halves(self, address: Any, mask: Any) -> tuple[Any, Any]:
        """The same as float32: those of even numbers, and the others."""
        return self.halves(self._load_pair_words(address, mask))

    def _load_pair_words(self, address: Any, mask: Any) -> Any:
        if address.type.pointee == _BYTES.element:
            halves = self._as_bfloat(self._masked_load(address, _BYTES, mask))
        else:
            halves = self._masked_load(address, _HALVES, mask)
        return self._builder.bitcast(halves, _WORDS)

    def table(self, address: Any) -> Any:
        """Sixteen bytes to look up in."""
        table = self._masked_load(address, _TABLE, None)
        return self._shuffle(table, table, list(range(16)) * (_CODES.count // 16))

    def looked_up(self, table: Any, codes: Any) -> Any:
        """The byte of a table that each code says, of codes less than sixteen."""
        for feature, count, name in _LOOK_UPS:
            if has(feature):
                return self._by_parts(name, count, table, codes)
        kind = ir.FunctionType(_CODES, [_CODES, _CODES])
        function = self.function(kind, "tandem.looked_up")
        if not function.blocks:  # once for all callers: it is long
            _never_inlined(function)
            inner = ir.IRBuilder(function.append_basic_block())
            emit = Emitter(self._context, inner, self._signature)
            inner.ret(emit.selected(*function.args))
        return self._builder.call(function, [table, codes])

    def _by_parts(self, name: str, count: int, table: Any, codes: Any) -> Any:
        """What an instruction for so many bytes looks up of all of them."""
        part = ir.VectorType(_CODES.element, count)
        function = self.function(ir.FunctionType(part, [part, part]), name)
        found = []
        for first in range(0, _CODES.count, count):
            lanes = list(range(first, first + count))
            operands = [self._shuffle(each, each, lanes) for each in (table, codes)]
            found.append(self._builder.call(function, operands))
        while len(found) > 1:
            lanes = list(range(2 * found[0].type.count))
            pairs = zip(found[::2], found[1::2], strict=True)
            found = [self._shuffle(*pair, lanes) for pair in pairs]
        return found[0]

    def selected(self, table: Any, codes: Any) -> Any:
        """The same by ordinary instructions: of two neighbours the one that a bit says."""
        lanes = range(16)
        chosen = [self._shuffle(table, table, [i] * _CODES.count) for i in lanes]
        for bit in range(4):
            some = self._builder.and_(
                codes, ir.Constant(_CODES, [1 << bit] * _CODES.count)
            )
            is_odd = self._builder.icmp_unsigned("!=", some, ir.Constant(_CODES, None))
            pairs = zip(chosen[1::2], chosen[::2], strict=True)
            chosen = [self._builder.select(is_odd, *pair) for pair in pairs]
        return chosen[0]

    def load_coded(self, address: Any, table: Any) -> list[Any]:
        """A group of `engine.compression` as words of pairs of bfloat16."""
        count = _CODES.count
        places = (self._builder.gep(address, [INT(i * count)]) for i in range(3))
        codes, *lower = (self._masked_load(place, _CODES, None) for place in places)
        shifted = self._builder.lshr(codes, ir.Constant(_CODES, [4] * count))
        last_four = ir.Constant(_CODES, [15] * count)
        words = []
        for some, low in zip((codes, shifted), lower, strict=True):
            high = self.looked_up(table, self._builder.and_(some, last_four))
            for half in (0, 8):
                firsts = range(half, count, 16)
                every = [i for first in firsts for i in range(first, first + 8)]
                lanes = [lane for i in every for lane in (i, i + count)]
                both = self._shuffle(low, high, lanes)
                words.append(self._builder.bitcast(both, _WORDS))
        return words

    def _as_bfloat(self, integers: Any) -> Any:
        """int8 as bfloat16, which has all of them: the upper halves of float32."""
        halves = []
        for first in (0, LANES):
            some = self._shuffle(integers, integers, list(range(first, first + LANES)))
            words = self._builder.sext(some, _WORDS)
            vector = self._builder.sitofp(words, VECTOR)
            halves.append(self._builder.bitcast(vector, _HALVES))
        return self._shuffle(halves[0], halves[1], _ODD_HALVES)

    def pairs(self, words: Any) -> tuple[Any, ...]:
        """Words of pairs of bfloat16, as `add_products` takes them."""
        if multiplies_pairs():
            return (self._builder.bitcast(words, _BFLOATS),)
        return self.halves(words)

    def halves(self, words: Any) -> tuple[Any, Any]:
        """Words of pairs of bfloat16 as float32: the even ones, and the odd ones."""
        even = self._builder.shl(words, ir.Constant(_WORDS, [16] * LANES))
        odd = self._builder.and_(words, ir.Constant(_WORDS, [0xFFFF0000] * LANES))
        return self._builder.bitcast(even, VECTOR), self._builder.bitcast(odd, VECTOR)

    def in_order(self, words: Any) -> list[Any]:
        """Words of pairs of bfloat16 as float32, one after the other."""
        both = [lane for i in range(LANES) for lane in (i, i + LANES)]
        even, odd = self.halves(words)
        return [self._shuffle(even, odd, some) for some in (both[:LANES], both[LANES:])]

    def half_of(self, mask: Any, half: int) -> Any:
        """The lanes of PAIRS that are in the first LANES, or in the second."""
        return self._shuffle(mask, mask, list(range(half * LANES, (half + 1) * LANES)))

    def add_products(
        self, left: tuple[Any, ...], right: tuple[Any, ...], total: Any
    ) -> Any:
        """A vector of sums with the products of elements added; a pair gives two."""
        if left[0].type == _BFLOATS:
            kind = ir.FunctionType(VECTOR, [VECTOR, _BFLOATS, _BFLOATS])
            function = self.function(kind, "llvm.x86.avx512bf16.dpbf16ps.512")
            return self._builder.call(function, [total, *left, *right])
        for one, other in zip(left, right, strict=True):
            total = self.multiply_add(one, other, total)
        return total

    def store_rounded(self, vector: Any, address: Any, mask: Any) -> None:
        """LANES float32 as bfloat16, to the nearest even; NaN stays NaN."""
        kind = ir.VectorType(_HALF, LANES)
        if multiplies_pairs():
            rounded = self._builder.fptrunc(vector, ir.VectorType(_BFloat(), LANES))
            bits = self._builder.bitcast(rounded, kind)
        else:
            bits = self._builder.trunc(self._rounded_words(vector), kind)
        address = self._builder.bitcast(address, kind.as_pointer())
        if mask is None:
            self._builder.store(bits, address, align=2)
        else:
            self._masked_store(bits, address, mask, 2)

    def _rounded_words(self, vector: Any) -> Any:
        """bfloat16 in the lower halves, by arithmetic."""
        builder = self._builder

        def every(number: int) -> Any:
            return ir.Constant(_WORDS, [number] * LANES)

        words = builder.bitcast(vector, _WORDS)
        upper = builder.lshr(words, every(16))
        odd = builder.and_(upper, every(1))
        nearest = builder.add(builder.add(words, every(0x7FFF)), odd)
        nearest = builder.lshr(nearest, every(16))
        is_nan = builder.fcmp_unordered("uno", vector, vector)
        return builder.select(is_nan, builder.or_(upper, every(0x40)), nearest)

    def store_lanes(self, vector: Any, first: int, count: int, address: Any) -> None:
        """So many float32 of a vector in a row."""
        some = self._shuffle(vector, vector, list(range(first, first + count)))
        address = self._builder.bitcast(address, some.type.as_pointer())
        self._builder.store(some, address, align=4)

    def store(self, vector: Any, address: Any, mask: Any) -> None:
        address = self._builder.bitcast(address, vector.type.as_pointer())
        if mask is None:
            self._builder.store(vector, address, align=4)
            return
        self._masked_store(vector, address, mask, 4)

    def store_words(self, words: Any, address: Any) -> None:
        """LANES pairs of bfloat16 as they are."""
        address = self._builder.bitcast(address, _WORDS.as_pointer())
        self._builder.store(words, address, align=4)

    def store_pairs(self, words: Any, address: Any, mask: Any) -> None:
        """The PAIRS of bfloat16 in words of them."""
        address = self._builder.bitcast(address, _HALVES.as_pointer())
        halves = self._builder.bitcast(words, _HALVES)
        if mask is None:
            self._builder.store(halves, address, align=2)
        else:
            self._masked_store(halves, address, mask, 2)

    def mask(self, width: Any, lanes: int = LANES) -> Any:
        """The first `width` lanes."""
        kind = ir.VectorType(_INT32, lanes)
        numbers = ir.Constant(kind, list(range(lanes)))
        width = self._builder.trunc(width, _INT32)
        return self._builder.icmp_signed("<", numbers, self.splat(width, kind))

    def by_steps(
        self, depth: Any, step: int, body: Callable[[Any, list[Any]], None]
    ) -> None:
        """A loop over so many bfloat16: `body` gets where it is, and a mask for each PAIRS.

        Masks are None but in the last turn, where it is not whole.
        """
        builder, firsts = self._builder, range(0, step, PAIRS)
        rest = builder.srem(depth, INT(step))
        whole = builder.sub(depth, rest)
        loop = cgutils.for_range_slice(builder, INT(0), whole, INT(step), inc=True)
        with loop as (at, _):
            body(at, [None for _ in firsts])
        with builder.if_then(builder.icmp_signed("!=", rest, INT(0))):
            widths = [builder.sub(rest, INT(first)) for first in firsts]
            body(whole, [self.mask(width, PAIRS) for width in widths])

    def store_columns(self, columns: list[Any], places: list[Any]) -> None:
        """Store as rows: lane i of all vectors, up to four, at the i-th place."""
        count = len(columns)
        if count == 1:
            for lane, place in enumerate(places):
                value = self._builder.extract_element(columns[0], _INT32(lane))
                self._builder.store(value, place)
            return
        columns = columns + [self.zeros] * (4 - count)
        for first, four in enumerate(self._quads(columns)):
            for quarter in range(4):
                self.store_lanes(four, 4 * quarter, count, places[4 * quarter + first])

    def turned(self, rows: list[Any]) -> list[Any]:
        """Sixteen vectors of words with lanes and vectors exchanged."""
        groups = [self._quads(rows[first : first + 4]) for first in range(0, LANES, 4)]
        columns: list[Any] = [None] * LANES
        for first in range(4):
            a, b, c, d = (group[first] for group in groups)
            for odd in range(2):
                left, right = self._quarters(a, b, odd, 2), self._quarters(c, d, odd, 2)
                for pair in range(2):
                    column = 4 * (odd + 2 * pair) + first
                    columns[column] = self._quarters(left, right, pair, 2)
        return columns

    def _quads(self, vectors: list[Any]) -> list[Any]:
        """Of four vectors four: quarter q of the i-th is lane 4 q + i of each."""
        a, b, c, d = vectors
        halves = []
        for lanes in ([0, 16, 1, 17], [2, 18, 3, 19]):
            left, right = self._within(a, b, lanes), self._within(c, d, lanes)
            halves.append(self._within(left, right, [0, 1, 16, 17]))
            halves.append(self._within(left, right, [2, 3, 18, 19]))
        return halves

    def _within(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """These lanes of each four of two vectors."""
        every = [quarter + lane for quarter in (0, 4, 8, 12) for lane in lanes]
        return self._shuffle(a, b, every)

    def _quarters(self, a: Any, b: Any, first: int, step: int) -> Any:
        """Two quarters of each of two vectors."""
        quarters = [first, first + step, first + 4, first + 4 + step]
        return self._shuffle(
            a, b, [4 * q + lane for q in quarters for lane in range(4)]
        )

    def splat(self, scalar: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        one = self._builder.insert_element(undefined, scalar, _INT32(0))
        zeros = ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count)
        return self._builder.shuffle_vector(one, one, zeros)

    def multiply_add(self, left: Any, right: Any, total: Any) -> Any:
        kind = ir.FunctionType(total.type, [total.type] * 3)
        function = self.function(kind, f"llvm.fmuladd.{_name(total.type)}")
        return self._builder.call(function, [left, right, total])

    def across(self, vectors: list[Any]) -> Any:
        """The sums of the lanes of four vectors, or of sixteen, as one vector.

        Always in the same order: a sum does not depend on what is summed beside it.
        """
        fours = [vectors[i : i + 4] for i in range(0, len(vectors), 4)]
        sums = [self._quarters_of_four(*four) for four in fours]
        if len(sums) == 4:
            a, b, c, d = sums
            add, of = self._builder.fadd, self._quarters
            left = add(of(a, b, 0, 1), of(a, b, 2, 1))
            right = add(of(c, d, 0, 1), of(c, d, 2, 1))
            return add(of(left, right, 0, 2), of(left, right, 1, 2))
        (total,) = sums
        for count in (8, 4):
            halves = (
                self._shuffle(total, total, list(range(start, start + count)))
                for start in (0, count)
            )
            total = self._builder.fadd(*halves)
        return total

    def _quarters_of_four(self, a: Any, b: Any, c: Any, d: Any) -> Any:
        """Quarter q has, of each of four vectors, the sum of its lanes 4 q to 4 q + 3."""
        left = self._fold(a, b, [0, 16, 1, 17])
        right = self._fold(c, d, [0, 16, 1, 17])
        return self._fold(left, right, [0, 1, 16, 17])

    def _fold(self, a: Any, b: Any, low: list[int]) -> Any:
        """Half as many lanes of each of two vectors, within every four of them."""
        high = [lane + 2 for lane in low]
        return self._builder.fadd(self._within(a, b, low), self._within(a, b, high))

    def _shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        kind = ir.VectorType(_INT32, len(lanes))
        return self._builder.shuffle_vector(a, b, ir.Constant(kind, lanes))

    def exponential(self, x: Any) -> Any:
        """exp(x), lane by lane as `engine.elementwise.exponential`."""
        builder, every = self._builder, self.every
        y = builder.fmul(x, every(LOG2_E))
        kind = ir.FunctionType(VECTOR, [VECTOR])
        floor = self.function(kind, f"llvm.floor.{_name(VECTOR)}")
        n = builder.call(floor, [builder.fadd(y, every(0.5))])
        f = builder.fsub(y, n)
        power = every(POWERS[0])
        for factor in POWERS[1:]:
            power = self.multiply_add(power, f, every(factor))
        exponent = builder.add(
            builder.fptosi(n, _WORDS), ir.Constant(_WORDS, [127] * LANES)
        )
        scale = builder.shl(exponent, ir.Constant(_WORDS, [23] * LANES))
        value = builder.fmul(power, builder.bitcast(scale, VECTOR))
        is_tiny = builder.fcmp_ordered("<", y, every(LEAST))
        return builder.select(is_tiny, self.zeros, value)

    def sigmoid(self, z: Any) -> Any:
        """1 / (1 + exp(-z)), lane by lane."""
        builder, last = self._builder, self.every(87.0)
        # Beyond exp(87), float32's last, it is zero in all its digits; NaN stays.
        z = builder.fneg(z)
        z = builder.select(builder.fcmp_ordered(">", z, last), last, z)
        one = self.every(1.0)
        return builder.fdiv(one, builder.fadd(one, self.exponential(z)))

    def sum_of(self, vector: Any) -> Any:
        """Of all lanes, in an order of the vector's own."""
        kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
        function = self.function(kind, f"llvm.vector.reduce.fadd.{_name(VECTOR)}")
        start = ir.Constant(FLOAT, 0.0)
        return self._builder.call(function, [start, vector], fastmath=("reassoc",))

    def greater(self, left: Any, right: Any) -> Any:
        """Lane by lane the greater one; NaN where one is."""
        kind = ir.FunctionType(VECTOR, [VECTOR] * 2)
        function = self.function(kind, f"llvm.maximum.{_name(VECTOR)}")
        return self._builder.call(function, [left, right])

    def greatest(self, vector: Any) -> Any:
        """The greatest lane; NaN if one is."""
        kind = ir.FunctionType(FLOAT, [VECTOR])
        function = self.function(kind, f"llvm.vector.reduce.fmaximum.{_name(VECTOR)}")
        return self._builder.call(function, [vector])

    def least(self, left: Any, right: Any) -> Any:
        """The lesser one of two numbers."""
        is_less = self._builder.icmp_signed("<", left, right)
        return self._builder.select(is_less, left, right)

    def prefetch(self, address: Any, cache: int = 1) -> None:
        """Ask for the cache line of an address, to be read, into the first or second cache."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
        function = self.function(kind, "llvm.prefetch.p0")
        address = self._builder.bitcast(address, pointer)
        self._builder.call(function, [address, *(_INT32(n) for n in (0, 4 - cache, 1))])

    def _masked_store(self, vector: Any, address: Any, mask: Any, align: int) -> None:
        if not _has_masks(vector.type):
            place = cgutils.alloca_once_value(self._builder, vector)
            self._copy(address, place, vector.type, mask)
            return
        types = [vector.type, address.type, _INT32, mask.type]
        kind = ir.FunctionType(ir.VoidType(), types)
        function = self.function(kind, f"llvm.masked.store.{_name(vector.type)}.p0")
        self._builder.call(function, [vector, address, _INT32(align), mask])

    def _masked_load(self, address: Any, kind: Any, mask: Any) -> Any:
        address = self._builder.bitcast(address, kind.as_pointer())
        align = _bits(kind.element) // 8
        if mask is None:
            return self._builder.load(address, align=align)
        if not _has_masks(kind):
            place = cgutils.alloca_once(self._builder, kind)
            self._builder.store(ir.Constant(kind, None), place)
            self._copy(place, address, kind, mask)
            return self._builder.load(place)
        signature = ir.FunctionType(kind, [address.type, _INT32, mask.type, kind])
        function = self.function(signature, f"llvm.masked.load.{_name(kind)}.p0")
        zeros = ir.Constant(kind, None)
        return self._builder.call(function, [address, _INT32(align), mask, zeros])

    def _copy(self, to: Any, from_: Any, kind: Any, mask: Any) -> None:
        """As many elements as a mask has; they are the first ones, always."""
        bits = self._builder.bitcast(mask, ir.IntType(kind.count))
        count = self._builder.ctpop(bits)
        if kind.count < INT.width:
            count = self._builder.zext(count, INT)
        size = _bits(kind.element) // 8
        cgutils.raw_memcpy(self._builder, to, from_, count, size)

    def function(self, kind: Any, name: str) -> Any:
        return cgutils.get_or_insert_function(self._builder.module, kind, name)


def emit_alone(
    context: Any,
    builder: Any,
    signature: Any,
    arguments: Any,
    name: str,
    body: Callable[[Emitter, Any, list[Any], Any], None],
) -> None:
    """Call what `body` emits, in a function of its own that is never inlined.

    Its registers are then assigned without regard to what is around it. What has one
    name is the same function. `body` gets an emitter, its builder, the parts among the
    arguments, and the last one, a number.
    """
    kinds = [argument.type for argument in arguments]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), kinds), f"tandem.{name}"
    )
    if not function.blocks:
        _never_inlined(function)
        inner = ir.IRBuilder(function.append_basic_block())
        emit = Emitter(context, inner, signature)
        *parts, last = function.args
        body(emit, inner, [emit.part(i, p) for i, p in enumerate(parts)], last)
        inner.ret_void()
    builder.call(function, arguments)


def _never_inlined(function: Any) -> None:
    function.attributes.add("noinline")
    # Kernels that are linked into another one bring one copy together: with a copy each,
    # a step's kernel takes twice as long to compile.
    function.linkage = "linkonce_odr"


def _has_masks(kind: Any) -> bool:
    """Whether an instruction loads or stores some of such elements.

    Elsewhere LLVM makes a branch for each, and from thousands of them long compilations.
    """
    return has("avx2" if _bits(kind.element) == 32 else "avx512bw")


def _bits(element: Any) -> int:
    return 32 if element == FLOAT else int(element.width)


def _float32(number: float) -> float:
    """The nearest one, which llvmlite's constants must be."""
    return float(np.float32(number))


def _name(kind: Any) -> str:
    """A vector type as the names of LLVM's intrinsics spell it."""
    element = "f32" if kind.element == FLOAT else f"i{kind.element.width}"
    return f"v{kind.count}{element}"
