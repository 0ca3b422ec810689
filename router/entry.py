"""The decision as machine code: one compiled call on the addresses of a board's arrays.

Imports numba; a router without it decides in plain Python (`router.bound`). Compiling takes some
twenty seconds of a core, so it is done once per machine and version: `compiled_code` returns
the machine code as bytes, which `load` makes callable in a fraction of a second.

Arguments of a compiled call are looked at one by one: a board's sixty arrays would take as long as
the decision. So the call is given one address, that of a table of the arrays' addresses and sizes;
and its type is always the same, whatever fleet or policy it is given, so nothing is ever compiled
anew.
"""

# mypy: disable-error-code="attr-defined, import-untyped, no-untyped-call"
# numba has types for its decorators alone.

from __future__ import annotations

import hashlib
import itertools
import pickle
import platform
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np
from llvmlite.binding import get_default_triple
from numba.core import cgutils
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from router import decision
from router.bound import BoundDecision, Rule
from router.compiled import MODULES, digest_of, make_twins, twin_name
from router.decision import Board
from router.features import FEATURE_COUNT
from router.fleet import FleetArrays
from router.policies.scores import Query
from router.seat import NO_SEAT, Seat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from router.bound import Bind, Call

# What numba is asked for here has no types, or not all of them.
_njit: Any = numba.njit
_Result: Any = CompileResult

_PREFIX = "router_entry"
_DIGEST_BYTES = 32
_OPTIONS: Final[dict[str, Any]] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


class CodeError(ValueError):
    """Machine code cannot be used: it is damaged, or of another version."""


def _reader(dtype: Any) -> Any:
    """Returns a compiled function that makes an array of an address and a shape.

    `numba.carray` needs reference counting, which the decision is compiled without.
    """

    @intrinsic
    def read(typing_context: Any, address: Any, shape: Any) -> Any:
        array = numba.types.Array(dtype, len(shape), "C")

        def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out = make_array(array)(context, builder)
            item_bytes = context.get_abi_sizeof(context.get_data_type(dtype))
            stride = context.get_constant(numba.types.int64, item_bytes)
            lengths: list[Any] = cgutils.unpack_tuple(builder, args[1], array.ndim)
            strides: list[Any] = []
            for length in reversed(lengths):
                strides.insert(0, stride)
                stride = builder.mul(stride, length)
            populate_array(
                out,
                data=builder.inttoptr(args[0], out.data.type),
                shape=lengths,
                strides=strides,
                itemsize=context.get_constant(numba.types.int64, item_bytes),
                meminfo=None,
            )
            return out._getvalue()

        lengths = numba.types.UniTuple(numba.types.int64, len(shape))
        return array(numba.types.int64, lengths), make

    return read


_f64 = _reader(numba.types.float64)
_f32 = _reader(numba.types.float32)
_i64 = _reader(numba.types.int64)
_bool = _reader(numba.types.boolean)

_READERS: Final = {"d": "_f64", "f": "_f32", "l": "_i64", "?": "_bool"}
"""Name of the reader of each type, as numpy writes it."""


def _prototype() -> Board:
    """Returns a board, of which types and numbers of dimensions are read."""
    one, zero = np.ones(1), np.zeros(1, np.int64)
    fleet = FleetArrays(
        zero,
        zero,
        zero.reshape(1, 1),
        one,
        one,
        one,
        one,
        one,
        one.reshape(1, 1),
        one,
        np.ones(1, np.bool_),
        one,
        one,
    )
    rule = Rule(0, one)
    return BoundDecision(rule, fleet, *np.zeros((3, 3, 1))).board


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the arrays and numbers of a tuple of tuples, each after its field's name."""
    if isinstance(value, tuple):
        for field, part in zip(value._fields, value, strict=True):
            yield from _leaves(part, field)
    else:
        yield name, value


_LIKE: Final = tuple(_leaves(_prototype()))


def _text(value: Any, place: Iterator[int], scope: dict[str, Any]) -> str:
    """Returns the expression that makes a value like this one of the table `at`.

    The types it names are put into `scope`.
    """
    if isinstance(value, tuple):
        scope[type(value).__name__] = type(value)
        parts = ", ".join(_text(part, place, scope) for part in value)
        return f"{type(value).__name__}({parts})"
    shape = "".join(f"at[{next(place)}], " for _ in range(max(1, value.ndim)))
    array = f"{_READERS[value.dtype.char]}(at[{next(place)}], ({shape}))"
    return array if value.ndim else f"{array}[0]"


def _entry(decide_request: Any) -> types.FunctionType:
    """Returns the function that calls `decide_request` on the board of a table's address."""
    scope = {**globals(), "decide_request": decide_request, "Query": Query}
    board = _text(_prototype(), itertools.count(), scope)
    length = board.count("at[")
    query, rest = ", ".join(Query._fields), ", ".join(_REST)
    lines = (
        f"def decide(address, row, picker, every, {query}, {rest}):",
        f"    at = _i64(address, ({length},))",
        f"    return decide_request({board}, row, picker, every != 0, Query({query}), {rest})",
    )
    code: dict[str, Any] = {}
    exec(compile("\n".join(lines), __file__, "exec"), scope, code)  # noqa: S102 - our own text
    function: types.FunctionType = code["decide"]
    return function


_REST: Final = (
    "quality_floor",
    "tier_pin",
    "ramp_draw",
    "pick_draw",
    "admission_slack_s",
    "admission_factor",
    "seat_row",
    "cached_tokens",
    "margin",
)
_FIRST: Final = ("address", "row", "picker", "every")
_WHOLE: Final = (*_FIRST, "task", "tier_pin", "seat_row")
_SIGNATURE: Final = numba.types.int64(
    *(
        numba.types.int64 if name in _WHOLE else numba.types.float64
        for name in (*_FIRST, *Query._fields, *_REST)
    )
)


def table_of(board: Board) -> tuple[np.ndarray, list[Any]]:
    """Returns sizes and address of each of a board's arrays, as compiled code reads them.

    The second part is to be kept as long as the table is used.

    Raises:
        ValueError: an array has another type or size than compiled code reads.
    """
    size_of = {"C": len(board.fleet.tier_C), "F": FEATURE_COUNT, "H": board.weights.hidden_count}
    table: list[int] = []
    kept: list[Any] = []
    for (name, found), (_, like) in zip(_leaves(board), _LIKE, strict=True):
        # Compiled code steps through memory and looks at nothing: what is wrong must be found here.
        letters = name.rpartition("_")[2] if found.ndim else ""
        expected = tuple(map(size_of.get, letters, found.shape))
        fits = found.dtype == like.dtype and found.ndim == like.ndim and expected == found.shape
        array = np.atleast_1d(found)
        if not fits or not array.flags.c_contiguous:
            raise ValueError(f"{name}: {found.dtype} {found.shape} is not what is compiled for")
        table += [*array.shape, array.ctypes.data]
        kept.append(array)
    return np.array(table, np.int64), kept


def code_name() -> str:
    """Returns a name for machine code of exactly these sources, platform, Python and numba."""
    told = (
        digest_of([Path(__file__)]),
        platform.python_version(),
        numba.__version__,
        np.__version__,
        get_default_triple(),
    )
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


ENVIRONMENT: Final = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
"""Variables of a process that compiles: its code must run on every processor of the platform, so
that an image may bring it along. The network's products, which gain most by a newer processor, are
those of a library that chooses at run time."""


def compiled_code() -> bytes:
    """Compiles the decision and returns its machine code, a digest before it.

    Raises:
        CodeError: this process does not compile for every processor (`ENVIRONMENT`).
    """
    if ENVIRONMENT["NUMBA_CPU_NAME"] != numba.config.CPU_NAME:
        raise CodeError("set the variables of ENVIRONMENT before numba is imported")
    managed = _njit(**_OPTIONS, _nrt=True)
    unmanaged = _njit(**_OPTIONS, _nrt=False)
    twins = make_twins(_PREFIX, managed, unmanaged)
    function = _entry(twins[decision.__name__].decide_request)
    options = {**_OPTIONS, "no_cpython_wrapper": False}
    entry = _njit(_SIGNATURE, **options, _nrt=False)(function)
    (result,) = entry.overloads.values()
    code: bytes = dumps((code_name(), result._reduce()))
    return hashlib.sha256(code).digest() + code


def write_code(path: str) -> None:
    """Writes `compiled_code` to a file: what a process that compiles does."""
    Path(path).write_bytes(compiled_code())


def load(code: bytes) -> Bind:
    """Returns what binds a board to machine code of `compiled_code`.

    Raises:
        CodeError: it is damaged, or made for something else.
    """
    if hashlib.sha256(code[_DIGEST_BYTES:]).digest() != code[:_DIGEST_BYTES]:
        raise CodeError("the machine code is damaged")
    # Functions are found by the names of their modules, of which only the names are needed.
    for name in MODULES:
        name = twin_name(_PREFIX, name)
        sys.modules.setdefault(name, types.ModuleType(name))
    name, parts = pickle.loads(code[_DIGEST_BYTES:])  # noqa: S301 - code is run anyway
    if name != code_name():
        raise CodeError("the machine code is of another version or platform")
    rtsys.initialize(cpu_target.target_context)  # some kernels make arrays
    entry = _njit(_entry(decision.decide_request))
    entry.add_overload(_Result._rebuild(cpu_target.target_context, *parts))
    entry.disable_compile()

    def bind(board: Board, rule: Rule) -> Call:
        table, kept = table_of(board)
        first = (table.ctypes.data, rule.row, rule.picker, int(rule.every))

        def call(
            query: Query,
            quality_floor: float,
            tier_pin: int,
            ramp_draw: float,
            pick_draw: float,
            admission_slack_s: float,
            admission_factor: float,
            seat: Seat = NO_SEAT,
            _kept: object = (table, kept),
        ) -> int:
            action: int = entry(
                *first, *query, quality_floor, tier_pin, ramp_draw, pick_draw,
                admission_slack_s, admission_factor, *seat,
            )  # fmt: skip
            return action

        return call

    return bind
