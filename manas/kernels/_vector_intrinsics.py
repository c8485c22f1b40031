"""Sixteen at a time: comparisons of codes, similarities of centroids and the greatest of a group, as vector code.

Numba has no types for vector registers, so these are written for LLVM directly. What they compute does not depend on
the processor: where it has instructions for sums of products of bytes they are used, elsewhere others will do.
"""

# mypy: ignore-errors
from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from manas.kernels.vector_layout import GROUP

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_CHAINS = 4
"""Sums made side by side, a power of two: one addition takes as long as a processor can begin eight."""
_INTS, _FLOATS = ir.VectorType(_I32, GROUP), ir.VectorType(ir.FloatType(), GROUP)


def _at(builder, address, kind, offset=None):
    """Return a pointer to what is at an address, counted in its own size."""
    pointer = builder.inttoptr(address, kind.as_pointer())
    return pointer if offset is None else builder.gep(pointer, [offset])


def _splat(builder, value, kind):
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * GROUP))


def _called(builder, name, result, arguments):
    wanted = ir.FunctionType(result, [a.type for a in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, wanted, name)
    return builder.call(function, arguments)


def _products(builder, total, codes, weights, *, native):
    """Add to each of 16 sums the products of four unsigned bytes with the same four signed ones."""
    if native:
        return _called(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, [total, codes, weights])
    for byte in range(4):
        shift = ir.Constant(_INTS, [8 * byte] * GROUP)
        code = builder.and_(builder.lshr(codes, shift), ir.Constant(_INTS, [255] * GROUP))
        up = builder.shl(weights, ir.Constant(_INTS, [24 - 8 * byte] * GROUP))
        weight = builder.ashr(up, ir.Constant(_INTS, [24] * GROUP))
        total = builder.add(total, builder.mul(code, weight))
    return total


def reaching_of(*, native):
    """Return `reaching`, with or without the processor's own instruction."""

    @intrinsic
    def reaching(typing_context, codes, weights, fours, bar):
        """Return a bit for each of 16 rows of codes whose sum of products with the weights is at least `bar`.

        Codes are unsigned bytes, for every four dimensions those of 16 rows; weights signed ones, `fours` x 4 of them,
        an even number of fours.
        """

        def codegen(context, builder, signature, arguments):
            at, weights_at, count, least = arguments
            zero = ir.Constant(_INTS, [0] * GROUP)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
            with cgutils.for_range(builder, builder.lshr(count, _I64(1))) as loop:
                for part, total in enumerate(sums):
                    place = builder.add(builder.shl(loop.index, _I64(1)), _I64(part))
                    four = builder.load(_at(builder, at, _INTS, place), align=4)
                    weight = _splat(builder, builder.load(_at(builder, weights_at, _I32, place), align=4), _INTS)
                    added = _products(builder, builder.load(total), four, weight, native=native)
                    builder.store(added, total)
            found = builder.add(builder.load(sums[0]), builder.load(sums[1]))
            limit = _splat(builder, builder.trunc(least, _I32), _INTS)
            flags = builder.bitcast(builder.icmp_signed(">=", found, limit), ir.IntType(GROUP))
            return builder.zext(flags, _I64)

        return types.uint64(types.int64, types.int64, types.int64, types.int64), codegen

    return reaching


def native_products() -> bool:
    """Tell whether this processor multiplies and adds up bytes by itself."""
    return bool(llvm.get_host_cpu_features().get("avx512vnni"))


reaching = reaching_of(native=native_products())


@intrinsic
def similarities(typing_context, block, query, dims, out):
    """Write the similarities of 16 float32 vectors to `out`; `block` has for every dimension those of all 16."""

    def codegen(context, builder, signature, arguments):
        at, query_at, count, out_at = arguments
        zero = ir.Constant(_FLOATS, [0.0] * GROUP)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(_CHAINS)]

        def add(place, total):
            values = builder.load(_at(builder, at, _FLOATS, place), align=4)
            weight = _splat(builder, builder.load(_at(builder, query_at, ir.FloatType(), place)), _FLOATS)
            product = builder.fmul(values, weight, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)

        rounds = builder.udiv(count, _I64(_CHAINS))
        with cgutils.for_range(builder, rounds) as loop:
            for part, total in enumerate(totals):
                add(builder.add(builder.mul(loop.index, _I64(_CHAINS)), _I64(part)), total)
        done = builder.mul(rounds, _I64(_CHAINS))
        with cgutils.for_range(builder, builder.sub(count, done)) as loop:
            add(builder.add(done, loop.index), totals[0])
        left = [builder.load(total) for total in totals]
        while len(left) > 1:
            left = [builder.fadd(one, other) for one, other in zip(left[::2], left[1::2], strict=True)]
        builder.store(left[0], _at(builder, out_at, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def most(typing_context, address):
    """Return the greatest of 16 float32."""

    def codegen(context, builder, signature, arguments):
        values = builder.load(_at(builder, arguments[0], _FLOATS), align=4)
        width = GROUP
        while width > 1:
            width //= 2
            mask = [(place + width) % GROUP for place in range(GROUP)]
            turned = builder.shuffle_vector(values, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, mask))
            values = builder.select(builder.fcmp_ordered(">", values, turned), values, turned)
        return builder.extract_element(values, _I32(0))

    return types.float32(types.int64), codegen


@intrinsic
def place_of(typing_context, address, value):
    """Return the first of 16 places that has a float32; the last where none has."""

    def codegen(context, builder, signature, arguments):
        values = builder.load(_at(builder, arguments[0], _FLOATS), align=4)
        same = builder.fcmp_ordered("==", values, _splat(builder, arguments[1], _FLOATS))
        bits = builder.zext(builder.bitcast(same, ir.IntType(GROUP)), _I64)
        return builder.cttz(builder.or_(bits, _I64(1 << (GROUP - 1))), cgutils.false_bit)

    return types.int64(types.int64, types.float32), codegen


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line of an address."""

    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
        wanted = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        name = "llvm.prefetch.p0i8" if "i8*" in str(pointer.type) else "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, wanted, name)
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
