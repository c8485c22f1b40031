"""What kernels need beyond Numba's own: addresses as arrays, bits as floats, counts of bits."""

# mypy: ignore-errors
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _pointer_cast(element):
    pointer = types.CPointer(element)

    @intrinsic
    def cast(typing_context, address):
        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(pointer))

        return pointer(types.int64), codegen

    return cast


u64 = _pointer_cast(types.uint64)
i64 = _pointer_cast(types.int64)
u8 = _pointer_cast(types.uint8)
i8 = _pointer_cast(types.int8)
u16 = _pointer_cast(types.uint16)
u32 = _pointer_cast(types.uint32)
i32 = _pointer_cast(types.int32)
f64 = _pointer_cast(types.float64)
f32 = _pointer_cast(types.float32)


@intrinsic
def bits_to_float(typing_context, bits):
    """Reinterpret the 64 bits of an integer as a float."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic
def popcount(typing_context, word):
    """Count set bits."""

    def codegen(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), codegen


@intrinsic
def trailing_zeros(typing_context, word):
    """Count zeros below the lowest set bit."""

    def codegen(context, builder, signature, arguments):
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.uint64(types.uint64), codegen
