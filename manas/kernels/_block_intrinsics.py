"""A block at a time: bitmaps of 16 words joined, and codes of 64 ids compared, as vector code.

Numba has no types for vector registers, so these are written for LLVM directly, which makes of them what the processor
has: two registers of AVX-512, four of AVX2, or more and smaller ones.
"""

# mypy: ignore-errors
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from manas.kernels.layout import BLOCK_WORDS

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_I64, BLOCK_WORDS)
_IN_WORD = 64


def _load(builder, address):
    return builder.load(builder.inttoptr(address, _WORDS.as_pointer()), align=8)


def _store(builder, value, address):
    builder.store(value, builder.inttoptr(address, _WORDS.as_pointer()), align=8)


def _called(builder, name, result, arguments):
    wanted = ir.FunctionType(result, [a.type for a in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, wanted, name)
    return builder.call(function, arguments)


def _joining(join, words):
    """Return a function that changes the block at its first address by the block at its second."""

    @intrinsic
    def change(typing_context, into, other):
        def codegen(context, builder, signature, arguments):
            to, source = arguments
            _store(builder, join(builder, _load(builder, to), _load(builder, source)), to)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    change.__doc__ = words
    return change


copy_words = _joining(lambda builder, own, other: other, "Copy a block.")
or_words = _joining(lambda builder, own, other: builder.or_(own, other), "Add what another block has.")
and_words = _joining(lambda builder, own, other: builder.and_(own, other), "Keep what another block has too.")
andnot_words = _joining(
    lambda builder, own, other: builder.and_(own, builder.not_(other)), "Take out what another block has."
)


@intrinsic
def clear_words(typing_context, address):
    """Empty a block."""

    def codegen(context, builder, signature, arguments):
        _store(builder, ir.Constant(_WORDS, [0] * BLOCK_WORDS), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def flip_words(typing_context, address):
    """Put in what is not in a block, and take out what is."""

    def codegen(context, builder, signature, arguments):
        _store(builder, builder.not_(_load(builder, arguments[0])), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def any_word(typing_context, address):
    """Tell whether a block has a bit."""

    def codegen(context, builder, signature, arguments):
        name = f"llvm.vector.reduce.or.v{BLOCK_WORDS}i64"
        return builder.icmp_unsigned("!=", _called(builder, name, _I64, [_load(builder, arguments[0])]), _I64(0))

    return types.boolean(types.int64), codegen


def _reaching(width, words):
    """Return a function that gives a bit for each of `width` codes at an address that is at least another one."""
    kind = ir.VectorType(_I8, width)

    @intrinsic
    def reaching(typing_context, codes, least):
        def codegen(context, builder, signature, arguments):
            own = builder.load(builder.inttoptr(arguments[0], kind.as_pointer()), align=1)
            undefined = ir.Constant(kind, ir.Undefined)
            single = builder.insert_element(undefined, builder.trunc(arguments[1], _I8), _I32(0))
            lanes = ir.Constant(ir.VectorType(_I32, width), [0] * width)
            every = builder.shuffle_vector(single, undefined, lanes)
            flags = builder.bitcast(builder.icmp_unsigned(">=", own, every), ir.IntType(width))
            return flags if width == 64 else builder.zext(flags, _I64)

        return types.uint64(types.int64, types.int64), codegen

    reaching.__doc__ = words
    return reaching


codes_reaching = _reaching(64, "Return a bit for each of 64 codes that is at least `least`.")
words_reaching = _reaching(BLOCK_WORDS, "Return a bit for each word of a block whose largest code is at least `least`.")


@intrinsic
def between(typing_context, values, place, low, high):
    """Return a bit for each of 64 numbers from a place on that is in a closed interval of the numbers' own kind.

    Whole numbers are compared as narrow as they are stored; bounds are int64, and float64 for floats.
    """
    kind = values.dtype
    floating = kind in (types.float32, types.float64)

    def codegen(context, builder, signature, arguments):
        at, first, least, most = arguments
        element = context.get_value_type(kind)
        vector = ir.VectorType(element, _IN_WORD)
        own = builder.bitcast(builder.gep(at, [first]), vector.as_pointer())
        numbers = builder.load(own, align=kind.bitwidth // 8)
        if floating:
            wide = ir.VectorType(ir.DoubleType(), _IN_WORD)
            if kind is types.float32:
                numbers = builder.fpext(numbers, wide)
            below = builder.fcmp_ordered("<", numbers, _splat(builder, least, wide))
            above = builder.fcmp_ordered(">", numbers, _splat(builder, most, wide))
            return builder.not_(builder.bitcast(builder.or_(below, above), _I64))
        if kind.bitwidth < _I64.width:
            top = _I64((1 << kind.bitwidth) - 1)
            least = builder.select(builder.icmp_signed("<", least, _I64(0)), _I64(0), least)
            most = builder.select(builder.icmp_signed(">", most, top), top, most)
        none = builder.icmp_signed(">", least, most)
        span = builder.sub(most, least)
        if kind.bitwidth < _I64.width:
            least, span = builder.trunc(least, element), builder.trunc(span, element)
        above = builder.sub(numbers, _splat(builder, least, vector))
        flags = builder.bitcast(builder.icmp_unsigned("<=", above, _splat(builder, span, vector)), _I64)
        return builder.select(none, _I64(0), flags)

    bound = types.float64 if floating else types.int64
    return types.uint64(values, types.int64, bound, bound), codegen


def _splat(builder, value, vector):
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    lanes = ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), lanes)
