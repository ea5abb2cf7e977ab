"""The structs of src/weft.h and of the operators, field by field. What each means is said there."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_void_p
from enum import IntEnum

import numpy as np

BLOCK_N = 32
MOST_HEAD_DIM = 256
MOST_MODULES = 4


class OpKind(IntEnum):
    """The operators, in the order of RUN in src/team.c."""

    EMBED = 0
    NORM = 1
    SHRINK = 2
    LINEAR = 3
    ROTATE = 4
    ATTENTION = 5
    POOL = 6
    GATE = 7
    ADD = 8
    HEAD_INPUT = 9
    HEAD = 10
    CHOOSE = 11
    SCALE = 12


class Weight(ctypes.Structure):
    """One linear weight."""

    _fields_ = (
        ("codes", c_void_p),
        ("scale", c_void_p),
        ("minimum", c_void_p),
        ("minimum32", c_void_p),
        ("scale32", c_void_p),
        ("dense", c_void_p),
        ("bias", c_void_p),
        ("num_out", c_int32),
        ("num_in", c_int32),
        ("group_size", c_int32),
        ("unused", c_int32),
    )


LOW_RANK = np.dtype(
    [("a", "u8"), ("b", "u8"), ("rank", "i4"), ("pooled", "i4"), ("scale", "f4"), ("offset", "i4")], align=True
)
"""One adapter's factors at one module."""
ROW_SCALE = np.dtype([("scale", "u8"), ("shift", "u8")], align=True)
"""What one adapter does at one place."""


class Step(ctypes.Structure):
    """One step and its buffers."""

    _fields_ = (
        ("num_rows", c_int32),
        ("num_merged", c_int32),
        ("num_spans", c_int32),
        ("num_segments", c_int32),
        ("num_logits", c_int32),
        ("num_slots", c_int32),
        ("token", c_void_p),
        ("embedded", c_void_p),
        ("position", c_void_p),
        ("slot", c_void_p),
        ("segments", c_void_p),
        ("spans", c_void_p),
        ("blocks", c_void_p),
        ("last", c_void_p),
        ("low_rank", c_void_p),
        ("scales", c_void_p),
        ("hidden", c_void_p),
        ("normed", c_void_p),
        ("wide", c_void_p),
        ("sum", c_void_p),
        ("query", c_void_p),
        ("inner", c_void_p),
        ("pool", c_void_p),
        ("pooled", c_void_p),
        ("low", c_void_p),
        ("low_stride", c_int32),
        ("pool_stride", c_int32),
    )


class Op(ctypes.Structure):
    """One operator of a program."""

    _fields_ = (("kind", c_int32), ("unused", c_int32), ("args", c_void_p))


class Embed(ctypes.Structure):
    """Tokens to the residual stream."""

    _fields_ = (("step", c_void_p), ("table", c_void_p), ("hidden", c_int32), ("blocked", c_int32))


class Norm(ctypes.Structure):
    """The residual stream to the input of the next site."""

    _fields_ = (
        ("step", c_void_p),
        ("norm", c_void_p),
        ("epsilon", c_float),
        ("hidden", c_int32),
        ("group_size", c_int32),
    )


class Linear(ctypes.Structure):
    """A linear site with its adapters."""

    _fields_ = (
        ("step", c_void_p),
        ("weight", c_void_p),
        ("merged", c_void_p),
        ("input", c_void_p),
        ("output", c_void_p),
        ("sum", c_void_p),
        ("module", c_int32),
        ("num_modules", c_int32),
        ("module_end", c_int32 * MOST_MODULES),
        ("next", c_void_p),
    )


class Rotate(ctypes.Structure):
    """Rotary embedding and caching."""

    _fields_ = (
        ("step", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("cache", c_void_p),
        ("epsilon", c_float),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
    )


class Attention(ctypes.Structure):
    """Attention of one layer."""

    _fields_ = (
        ("step", c_void_p),
        ("cache", c_void_p),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("window", c_int32),
        ("scale", c_float),
    )


class Pool(ctypes.Structure):
    """The groups' sums of the input of attention_out or mlp_out."""

    _fields_ = (("step", c_void_p), ("width", c_int32), ("group_size", c_int32))


class Scale(ctypes.Structure):
    """Rows times their own adapters' factors."""

    _fields_ = (("step", c_void_p), ("x", c_void_p), ("wide_x", c_void_p), ("width", c_int32), ("place", c_int32))


class Gate(ctypes.Structure):
    """silu(gate) * up."""

    _fields_ = (("step", c_void_p), ("inner", c_int32), ("group_size", c_int32))


class Add(ctypes.Structure):
    """What a sublayer adds, onto the residual stream."""

    _fields_ = (("step", c_void_p), ("hidden", c_int32))


class Head(ctypes.Structure):
    """The last norm, the head and the greedy choice."""

    _fields_ = (
        ("step", c_void_p),
        ("weight", c_void_p),
        ("norm", c_void_p),
        ("epsilon", c_float),
        ("num_out", c_int32),
        ("input", c_void_p),
        ("logits", c_void_p),
        ("best", c_void_p),
        ("token", c_void_p),
        ("block_best", c_void_p),
    )


OPERATORS: dict[type[ctypes.Structure], tuple[OpKind, ...]] = {
    Embed: (OpKind.EMBED,),
    Norm: (OpKind.NORM,),
    Linear: (OpKind.SHRINK, OpKind.LINEAR),
    Rotate: (OpKind.ROTATE,),
    Attention: (OpKind.ATTENTION,),
    Pool: (OpKind.POOL,),
    Scale: (OpKind.SCALE,),
    Gate: (OpKind.GATE,),
    Add: (OpKind.ADD,),
    Head: (OpKind.HEAD_INPUT, OpKind.HEAD, OpKind.CHOOSE),
}
"""The operators that read each kind of arguments, in their order."""
