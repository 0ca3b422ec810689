"""The decision as machine code: one compiled call on the addresses of a board's arrays.

Imports numba; a router without it decides in plain Python (`router.bound`). Compiling takes some
twenty seconds of a core, so it is done once per machine and version: `compiled_code` returns
the machine code as bytes, which `load` makes callable in a fraction of a second.

Arguments of a compiled call are looked at one by one: a board's sixty arrays would take as long as
the decision. So the call is given one address, that of a table of the arrays' addresses and sizes;
and its type is always the same, whatever fleet or policy it is given, so nothing is ever compiled
anew.

Shape letters: K tasks, C candidates, P device mates or parameters, F features, H hidden units, T
tiers.
"""

# mypy: disable-error-code="attr-defined, import-untyped, no-untyped-call"
# numba has types for its decorators alone.

from __future__ import annotations

import hashlib
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
from router.compiled import MODULES, digest_of, make_twins, twin_name
from router.decision import RESULTS, Board
from router.dqn.network import NetworkArrays
from router.dqn.snapshot import Weights
from router.features import FEATURE_COUNT, FeatureScratch
from router.fleet import FleetArrays
from router.ledger import LoadArrays
from router.policies.scores import Query, Scratch

if TYPE_CHECKING:
    from router.bound import Bind, Call, Rule

# What numba is asked for here has no types, or not all of them.
_njit: Any = numba.njit
_Result: Any = CompileResult

_PREFIX = "router_entry"
_DIGEST_BYTES = 32
_RESULT_COUNT = len(RESULTS)
_OPTIONS: Final[dict[str, Any]] = {"error_model": "numpy", "no_cpython_wrapper": True}
_SIGNATURE = numba.types.int64(
    numba.types.int64,  # address of the table
    numba.types.int64,  # row
    numba.types.int64,  # picker
    numba.types.float64,  # the network's last bias
    numba.types.int64,  # task
    *(numba.types.float64 for _ in Query._fields[1:]),
    numba.types.float64,  # quality_floor
    numba.types.int64,  # tier_pin
    *(numba.types.float64 for _ in range(4)),  # two draws, admission's slack and factor
)


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

_SIZES, _ARRAYS = 6, 48
_KINDS: Final = "lll" + "d" * 16 + "??d" + "f" * 5 + "d" * 12 + "f" + "d" * 5 + "ldd"
"""Type of each array of the table, as numpy writes it."""


def table_of(board: Board) -> np.ndarray:
    """Returns sizes and addresses of a board's arrays, as `_board_at` reads them.

    The board must be kept as long as the table is used.

    Raises:
        ValueError: an array has another type or size than compiled code reads.
    """
    fleet, weights = board.fleet, board.weights
    arrays = (
        *fleet,
        *board.own,
        *board.others,
        *board.seen,
        board.excluded_C,
        board.allowed_C,
        board.params_P,
        *weights[:-1],
        *board.scratch.seen,
        *board.scratch.load,
        *board.scratch.reckoned,
        board.scratch.band_C,
        board.features_CF,
        *board.decided,
        board.network.base_C,
        board.picked_T,
        board.rescue_C,
        board.result_R,
    )
    count, peers, tasks = len(fleet.tier_C), fleet.peers_CP.shape[1], len(fleet.quality_KC)
    params, hidden, tiers = len(board.params_P), weights.hidden_count, len(board.picked_T)
    size_of: dict[int, tuple[int, ...]] = dict.fromkeys(range(_ARRAYS), (count,))
    size_of |= {2: (count, peers), 8: (tasks, count), 21: (params,), 22: (FEATURE_COUNT, hidden)}
    size_of |= {23: (hidden,), 24: (2 * hidden, hidden), 25: (hidden,)}
    size_of |= {26: (hidden + FEATURE_COUNT,), 39: (count, FEATURE_COUNT), 45: (tiers,)}
    size_of |= {47: (_RESULT_COUNT,)}
    # Compiled code steps through memory and looks at nothing: what is wrong must be found here.
    for place, (array, kind) in enumerate(zip(arrays, _KINDS, strict=True)):
        fits = array.dtype.char == kind and array.shape == size_of[place]
        if not fits or not array.flags.c_contiguous:
            raise ValueError(
                f"array {place}: {array.dtype} {array.shape}, expected {size_of[place]} of kind "
                f"{kind!r} without gaps"
            )
    sizes = (count, peers, tasks, params, hidden, tiers)
    return np.array([*sizes, *(array.ctypes.data for array in arrays)], np.int64)


def _decide(
    address: int,
    row: int,
    picker: int,
    b3: float,
    task: int,
    slack_s: float,
    prompt_tokens: float,
    output_tokens: float,
    event_tokens: float,
    soft_decay_s: float,
    mean_prompt_tokens: float,
    rate_short_rps: float,
    rate_long_rps: float,
    state_age_s: float,
    draw: float,
    own_share: float,
    own_rate_rps: float,
    burstiness: float,
    slowdown: float,
    quality_floor: float,
    tier_pin: int,
    ramp_draw: float,
    pick_draw: float,
    admission_slack_s: float,
    admission_factor: float,
) -> int:
    """Calls `decide_request` on the board whose table lies at an address."""
    sizes = _i64(address, (_SIZES,))
    count, peers, tasks = sizes[0], sizes[1], sizes[2]
    params, hidden, tiers = sizes[3], sizes[4], sizes[5]
    at = _i64(address + 8 * _SIZES, (_ARRAYS,))
    each = (count,)
    allowed_C = _bool(at[20], each)
    features_CF = _f32(at[39], (count, FEATURE_COUNT))
    score_C = _f64(at[43], each)
    board = Board(
        FleetArrays(
            _i64(at[0], each),
            _i64(at[1], each),
            _i64(at[2], (count, peers)),
            _f64(at[3], each),
            _f64(at[4], each),
            _f64(at[5], each),
            _f64(at[6], each),
            _f64(at[7], each),
            _f64(at[8], (tasks, count)),
            _f64(at[9], each),
        ),
        LoadArrays(_f64(at[10], each), _f64(at[11], each), _f64(at[12], each)),
        LoadArrays(_f64(at[13], each), _f64(at[14], each), _f64(at[15], each)),
        LoadArrays(_f64(at[16], each), _f64(at[17], each), _f64(at[18], each)),
        _bool(at[19], each),
        allowed_C,
        _f64(at[21], (params,)),
        Weights(
            _f32(at[22], (FEATURE_COUNT, hidden)),
            _f32(at[23], (hidden,)),
            _f32(at[24], (2 * hidden, hidden)),
            _f32(at[25], (hidden,)),
            _f32(at[26], (hidden + FEATURE_COUNT,)),
            np.float32(b3),
        ),
        FeatureScratch(
            Scratch(_f64(at[27], each), _f64(at[28], each), _f64(at[29], each), _f64(at[30], each)),
            LoadArrays(_f64(at[31], each), _f64(at[32], each), _f64(at[33], each)),
            Scratch(_f64(at[34], each), _f64(at[35], each), _f64(at[36], each), _f64(at[37], each)),
            _f64(at[38], each),
        ),
        features_CF,
        Scratch(_f64(at[40], each), _f64(at[41], each), _f64(at[42], each), score_C),
        NetworkArrays(features_CF, allowed_C, _f64(at[44], each), score_C),
        _i64(at[45], (tiers,)),
        _f64(at[46], each),
        _f64(at[47], (_RESULT_COUNT,)),
    )
    return decide_request(
        board,
        row,
        picker,
        Query(
            task,
            slack_s,
            prompt_tokens,
            output_tokens,
            event_tokens,
            soft_decay_s,
            mean_prompt_tokens,
            rate_short_rps,
            rate_long_rps,
            state_age_s,
            draw,
            own_share,
            own_rate_rps,
            burstiness,
            slowdown,
        ),
        quality_floor,
        tier_pin,
        ramp_draw,
        pick_draw,
        admission_slack_s,
        admission_factor,
    )


decide_request = decision.decide_request
"""Compiled: its twin (`compiled_code`)."""


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
    scope = {**globals(), "decide_request": twins[decision.__name__].decide_request}
    function = types.FunctionType(_decide.__code__, scope, _decide.__name__)
    options = {**_OPTIONS, "no_cpython_wrapper": False}
    entry = _njit(_SIGNATURE, **options, _nrt=False)(function)
    (result,) = entry.overloads.values()
    code: bytes = dumps((code_name(), result._reduce()))
    return hashlib.sha256(code).digest() + code


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
    entry = _njit(_decide)
    entry.add_overload(_Result._rebuild(cpu_target.target_context, *parts))
    entry.disable_compile()

    def bind(board: Board, rule: Rule) -> Call:
        table = table_of(board)
        address, row, picker, b3 = table.ctypes.data, rule.row, rule.picker, float(rule.weights.b3)

        def call(
            query: Query,
            quality_floor: float,
            tier_pin: int,
            ramp_draw: float,
            pick_draw: float,
            admission_slack_s: float,
            admission_factor: float,
            _kept: object = (table, board),
        ) -> int:
            action: int = entry(
                address, row, picker, b3, *query, quality_floor, tier_pin, ramp_draw, pick_draw,
                admission_slack_s, admission_factor,
            )  # fmt: skip
            return action

        return call

    return bind


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(compiled_code())
