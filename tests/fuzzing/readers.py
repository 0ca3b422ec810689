"""Everything that reads a file or a stored record: what is right, how that is made wrong.

A reader refuses by one of its own errors, or accepts; never another exception. What is sealed with
a checksum is sealed again after it was changed, so that what lies behind the checksum is reached.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import random
import struct
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import numpy as np
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as kserve

from router.dqn.paper_snapshot import load_paper_snapshot
from router.dqn.snapshot import SnapshotError
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from router.policies.base import PolicyParameterError
from router.policies.table import make_policy
from router.quality import Rating
from services.cli.policy_facts import snapshot_facts
from services.common.access.caller import Caller, CallerError
from services.common.access.keys import KeyFileError, new_key, read_keys, write_keys
from services.common.access.roles import GRANTED
from services.common.access.tls import read_certificates
from services.common.access.tokens import TokenReader
from services.common.addresses import parse_address
from services.common.books import books_of
from services.common.clock import SystemClock
from services.common.log import get_logger
from services.common.mesh_settings import load_mesh_files
from services.common.metrics import new_registry
from services.common.settings import SettingsError, load_settings
from services.common.state.policy_store import StoredPolicy
from services.common.telemetry_variables import understood
from services.common.tiers.answer import Budget
from services.common.tiers.errors import TierError
from services.common.triton.answer import AnswerReader, Forms
from services.load_monitor.convert import report_from_message
from services.load_monitor.convert_minutes import minute_of
from services.load_monitor.convert_ratings import kept_ratings, read_kept
from services.load_monitor.convert_state import read_picture, read_reports
from services.load_monitor.convert_targets import message_of_targets
from services.load_monitor.loads import NO_ORDER
from services.load_monitor.metrics_page import parse_queue_depths
from services.load_monitor.ratings import MeshRatings
from services.load_monitor.settings import Settings as MonitorSettings
from services.load_monitor.targets import TargetOverride, decode, encode, merged
from services.load_monitor.topology import decode_changes
from services.loadgen.records import COLUMNS, NAMED, RecordsError, RunRecords, run_summary
from services.loadgen.spec import LoadSpecError, read_spec
from services.local import manifest as manifests
from services.local.errors import CommandError, InputError
from services.local.paced_mesh import paced_options
from services.local.triton.repository.layout import RepositoryError, read_model_config
from services.router_inference.path.tickets import InvalidTicketError, Ticket, TicketSigner
from services.router_inference.policy.slot import PolicySlot, Promoted
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.settings import Settings as RouterSettings
from services.router_inference.view.convert import StateReader
from services.trainer.convert import BadRecordError, decode_policy, experience_from
from services.trainer.settings import Settings as TrainerSettings
from tests import certificates
from tests.fuzzing import answers, meshes
from tests.fuzzing.messages import MessageMaker
from tests.fuzzing.octets import (
    changed_bytes,
    changed_document,
    changed_lines,
    json_bytes,
    toml_bytes,
)
from tests.unit.deploy.manifests import ROOT
from tests.unit.trainer.traces import files as traces
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import minutes_pb2 as minutes_pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from trainer.evaluation import inputs
from trainer.evaluation.retrained import read_retrained
from trainer.learning.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trainer.learning.online.config import LearnerConfig, OnlineConfig
from trainer.learning.online.joining import DecisionRecord, Ending, OutcomeRecord
from trainer.learning.online.loop import OnlineLoop
from trainer.learning.online.replay import Replay, ReplayError
from trainer.reference_tiers.tokenizer import CharTokenizer, TokenizerError
from trainer.simulation.workload import WorkloadError
from trainer.traces.read import KINDS, read_trace
from trainer.traces.trace import TraceFileError

Change = Callable[[bytes, random.Random], bytes]
NOW_S = 1_800_000_000.0
_STATE_NAMES = ("a", "b", "availability")


@dataclass(frozen=True)
class Reader:
    """One kind of input.

    Attributes:
        name: what it is.
        seeds: what wrong ones are made of; the first one is right.
        change: makes wrong ones of them.
        read: reads one.
        errors: what `read` may raise.
        cost: about how many times as long it takes as most do; it gets that many fewer inputs.
    """

    name: str
    seeds: Sequence[bytes]
    change: Change
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()
    cost: int = 1


def table(
    change_whole: Change, parse: Callable[[str], Any], write: Callable[[Any], bytes]
) -> Change:
    """Returns what changes a document: its values mostly, else its text."""

    def change(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return change_whole(data, rng)
        return write(changed_document(parse(data.decode()), rng))

    return change


TOML = table(changed_lines, tomllib.loads, toml_bytes)
JSON = table(changed_bytes, json.loads, json_bytes)


def packed(data: bytes, rng: random.Random) -> bytes:
    """Changes a table, or its packed form."""
    if rng.random() < 0.3:
        return changed_bytes(gzip.compress(data, 1), rng)
    return gzip.compress(changed_lines(data, rng), 1)


def message(*kinds: type[Message]) -> Change:
    """Returns what changes a message."""

    def change(data: bytes, rng: random.Random) -> bytes:
        words = ("small", "large", "e0", "r1", "echo", "dqn", SCHEMA)
        maker = MessageMaker(rng, words, [np.ones(2, "<f4").tobytes()])
        return maker.wrong(kinds[0].FromString(data))

    return change


def sealed_snapshot(data: bytes, rng: random.Random) -> bytes:
    """Changes a snapshot's header, metadata or weights; seals it again, mostly."""
    if rng.random() < 0.2:
        return changed_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    how = rng.randrange(4)
    if how == 0:
        body = changed_bytes(body, rng) if rng.random() < 0.3 else _other_floats(body, rng)
    elif how == 1:
        header = changed_document(header, rng)
    else:
        meta = changed_document(json.loads(header["__metadata__"]["tiercel"]), rng)
        header["__metadata__"]["tiercel"] = json.dumps(meta)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and isinstance(metadata.get("tiercel"), str):
        text = metadata["tiercel"].encode("utf-8", "replace")
        metadata["sha256"] = hashlib.sha256(text + b"\0" + body).hexdigest()
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + body


def _other_floats(body: bytes, rng: random.Random) -> bytes:
    values = np.frombuffer(body, "<f4").copy()
    if len(values):
        picked = rng.sample(range(len(values)), min(len(values), rng.choice((1, 8, 200))))
        values[picked] = rng.choice((0.0, np.nan, np.inf, -3e38, 1e-45, 1e30))
    return values.tobytes()


def sealed_arrays(head: int, *documents: str) -> Change:
    """Returns what changes a file of arrays behind `head` bytes that end with its checksum."""

    def change(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return changed_bytes(data, rng)
        with np.load(io.BytesIO(data[head:]), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        name = rng.choice((*arrays, *documents, *documents))
        how = rng.randrange(6)
        if name in documents:
            is_text = arrays[name].dtype.kind == "U"
            text = str(arrays[name]) if is_text else arrays[name].tobytes().decode()
            written = json.dumps(changed_document(json.loads(text), rng))
            arrays[name] = (
                np.array(written) if is_text else np.frombuffer(written.encode(), np.uint8)
            )
        elif how == 0:
            del arrays[name]
        elif how == 1:
            arrays[name] = np.zeros(
                rng.choice(((0,), (1,), (3, 5), (2, 2, 2), ())), arrays[name].dtype
            )
        elif how == 2:
            arrays[name] = arrays[name].astype(rng.choice(("f8", "i8", "?", "U3", "u1", "c16")))
        elif how == 3:
            arrays[name] = arrays[name][..., :1] if arrays[name].ndim else arrays[name]
        elif arrays[name].dtype == np.uint8 and arrays[name].ndim == 1 and head:
            arrays[name] = np.frombuffer(inner_arrays(arrays[name].tobytes(), rng), np.uint8)
        elif arrays[name].size and arrays[name].dtype.kind in "fi":
            flat = arrays[name].copy().reshape(-1)
            flat[rng.randrange(len(flat))] = rng.choice((0, 1, -1, 127, -128))
            if flat.dtype.kind == "f":
                flat[rng.randrange(len(flat))] = rng.choice((np.nan, np.inf, 1e30, -1.0))
            arrays[name] = flat.reshape(arrays[name].shape)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        body = buffer.getvalue()
        if rng.random() < 0.1:
            body = changed_bytes(body, rng)
        return data[: head - 32] + hashlib.sha256(body).digest() + body if head else body

    return change


def inner_arrays(data: bytes, rng: random.Random) -> bytes:
    """Changes a file of arrays without a checksum."""
    return sealed_arrays(0)(data, rng)


class Folder:
    """Puts inputs into files, for what reads files.

    Args:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        """Returns a function that writes an input to a file and reads that."""
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)

        def written(data: bytes) -> object:
            place.write_bytes(data)
            return read(place)

        return written


def readers(path: Path) -> list[Reader]:
    """Returns every reader; `path` is a folder for files."""
    folder = Folder(path)
    return [
        *_settings(folder),
        *_access(folder),
        *_learning(folder),
        *_tables(folder),
        *_records(),
        *_commands(folder),
    ]


def _settings(folder: Folder) -> Iterator[Reader]:
    """What a service reads at its start."""
    root = folder.path
    (root / "profile.toml").write_text(meshes.PROFILE)
    (root / "quality.toml").write_text(meshes.QUALITY)
    text = meshes.MESH.format(
        redis_url="redis://u:p@127.0.0.1:6379/0",
        monitor="127.0.0.1:1",
        trainer="",
        tier="127.0.0.1:2",
    )
    for name, kind in (
        ("router", RouterSettings),
        ("monitor", MonitorSettings),
        ("trainer", TrainerSettings),
    ):

        def read(path: Path, kind: Any = kind) -> object:
            made = load_settings(kind, path=path, environ={})
            return load_mesh_files(made.mesh)

        yield Reader(
            f"settings of the {name}", [text.encode()], TOML, folder.file(f"{name}.toml", read),
            (SettingsError,), cost=4,
        )  # fmt: skip

    def by_environment(data: bytes) -> object:
        key, _, value = data.decode("utf-8", "surrogateescape").partition("=")
        environ = {f"TIERCEL_{key.upper()}": value}
        return load_settings(RouterSettings, path=root / "good.toml", environ=environ)

    (root / "good.toml").write_text(text)
    variables = [
        f"{section}={value}".encode()
        for section, value in (
            ("mesh__redis_url", "redis://127.0.0.1:6379/0"),
            ("mesh__profile", "profile.toml"),
            ("mesh__tls__key", "k.pem"),
            ("mesh__tiers", '["small", "large"]'),
            ("router_inference__lease_s", "3.0"),
            ("router_inference__listen", "127.0.0.1:0"),
            ("router_inference__policy_parameters__price", "{ level = 0.5 }"),
            ("log__level", "info"),
        )
    ]
    yield Reader(
        "settings in the environment", variables, changed_lines, by_environment, (SettingsError,),
        cost=4,
    )  # fmt: skip

    def good_mesh(place: Path) -> object:
        made = load_settings(RouterSettings, path=place.parent / "tiercel.toml", environ={})
        return load_mesh_files(made.mesh)

    for part, seed in (("profile", meshes.PROFILE), ("quality", meshes.QUALITY)):
        own = root / part
        own.mkdir()
        for name, each in (("profile", meshes.PROFILE), ("quality", meshes.QUALITY)):
            (own / f"{name}.toml").write_text(each)
        (own / "tiercel.toml").write_text(text)
        read_part = folder.file(f"{part}/{part}.toml", good_mesh)
        shipped = [*(ROOT / part if part == "quality" else ROOT / "profiles").glob("*.toml")]
        seeds = [seed.encode(), *(each.read_bytes() for each in shipped)]
        yield Reader(f"{part} of a mesh", seeds, TOML, read_part, (SettingsError,), cost=4)

    telemetry = [
        b"OTEL_EXPORTER_OTLP_TIMEOUT=10", b"OTEL_TRACES_SAMPLER=parentbased_traceidratio",
        b"OTEL_EXPORTER_OTLP_ENDPOINT=http://[::1]:4317", b"OTEL_BSP_MAX_QUEUE_SIZE=2048",
        b"OTEL_EXPORTER_OTLP_COMPRESSION=gzip", b"OTEL_ATTRIBUTE_COUNT_LIMIT=128",
        b"OTEL_RESOURCE_ATTRIBUTES=a=b,c=d", b"OTEL_EXPORTER_OTLP_HEADERS=a=b",
        b"OTEL_BSP_MAX_EXPORT_BATCH_SIZE=512", b"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc",
    ]  # fmt: skip

    def variable(data: bytes) -> object:
        name, _, value = data.decode("utf-8", "surrogateescape").partition("=")
        return understood({name: value})

    yield Reader("variables of OpenTelemetry", telemetry, changed_lines, variable)
    yield Reader(
        "addresses", [b"127.0.0.1:80", b"[::1]:80", b"host.name:1"], changed_lines,
        lambda data: parse_address(data.decode("utf-8", "replace")), (ValueError,),
    )  # fmt: skip


def _access(folder: Folder) -> Iterator[Reader]:
    """What says who may call."""
    key_file = folder.path / "seed-keys.toml"
    roles = [str(role) for role in GRANTED]
    write_keys(key_file, [new_key(name, list(GRANTED))[0] for name in ("shop", "desk")])
    assert roles
    yield Reader(
        "keys of clients", [key_file.read_bytes()], TOML, folder.file("keys.toml", read_keys),
        (KeyFileError,),
    )  # fmt: skip
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    row = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    jwks = json.dumps({"keys": [{**row, "kid": "k1", "alg": "ES256"}]}).encode()
    good = folder.path / "good-jwks.json"
    good.write_bytes(jwks)

    def reader_of(path: Path) -> TokenReader:
        return TokenReader(
            path, issuer="i", audience="a", monotonic_s=lambda: 0.0, wall_s=lambda: NOW_S,
            log=get_logger("fuzz"),
        )  # fmt: skip

    yield Reader(
        "keys of tokens (JWKS)", [jwks], JSON, folder.file("jwks.json", reader_of), (SettingsError,)
    )
    claims = {"sub": "shop", "iss": "i", "aud": "a", "exp": 4_000_000_000}
    tokens = reader_of(good)

    def signed(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return changed_bytes(data, rng)
        try:
            changed = changed_document(claims, rng)
            headers = changed_document({"kid": "k1", "crit": [], "b64": True, "zip": ""}, rng)
            return jwt.encode(changed, key, "ES256", headers=headers).encode()
        except Exception:  # the library will not sign it: the part as it is then
            payload = base64.urlsafe_b64encode(json_bytes(changed_document(claims, rng)))
            first, _, last = data.split(b".")
            return b".".join((first, payload.rstrip(b"="), last))

    token = jwt.encode(claims, key, "ES256", headers={"kid": "k1"}).encode()
    yield Reader(
        "tokens", [token], signed, lambda data: tokens.client_of(data.decode("latin-1")), cost=2
    )
    own = certificates.tls_settings("router-inference")
    for name in ("root_certificates", "certificate", "key"):
        settings = own.model_copy(update={name: str(folder.path / f"{name}.pem")})

        def read(path: Path, settings: Any = settings) -> object:
            return read_certificates(settings, SystemClock().wall_ns() / 1e9)

        seed = Path(getattr(own, name)).read_bytes()
        yield Reader(
            f"TLS {name}", [seed], changed_lines, folder.file(f"{name}.pem", read),
            (SettingsError,), cost=2,
        )  # fmt: skip

    def caller(path: Path) -> object:
        return Caller(roots=str(path)).credentials("127.0.0.1:1")

    seed = Path(own.root_certificates).read_bytes()
    yield Reader(
        "certificates of a command", [seed], changed_lines, folder.file("roots.pem", caller),
        (CallerError,),
    )  # fmt: skip
    signer = TicketSigner(b"a key of the fuzzer")
    right = signer.sign(
        Ticket("r1", 7, 1, "clock", 5.0, 30.0, 0.5, 0.2, 1.0, 8, "echo", "small", "e0", "i", "me")
    )

    def ticket(data: bytes) -> None:
        signer.read(data)
        assert data == right, "a changed ticket is taken for a right one"

    yield Reader("tickets", [right], changed_bytes, ticket, (InvalidTicketError,))


def _learning(folder: Folder) -> Iterator[Reader]:
    """Snapshots, checkpoints, what online learning keeps."""
    shipped = [(ROOT / "policies" / f"{name}.safetensors").read_bytes()
               for name in ("reference", "opt-a100")]  # fmt: skip
    paper = (ROOT / "policies" / "opt-a100.dqn-paper.safetensors").read_bytes()
    made = load_settings(RouterSettings, path=folder.path / "good.toml", environ={})
    catalog = load_mesh_files(made.mesh).catalog

    def promote(blob: bytes) -> object:
        promoted = Promoted("dqn", "v", blob, hashlib.sha256(blob).digest(), 1)
        slot = PolicySlot(
            catalog=catalog, parameters={}, policy="price", fallback="price",
            metrics=RouterMetrics(new_registry()), log=get_logger("fuzz"),
        )  # fmt: skip
        return slot.promote(promoted)

    snapshots = [meshes.snapshot(), *shipped]
    yield Reader("snapshots promoted at a router", snapshots, sealed_snapshot, promote, cost=8)
    yield Reader(
        "snapshots shown by a command", [*snapshots, paper], sealed_snapshot,
        lambda blob: snapshot_facts(blob, "s"), (CommandError,), cost=2,
    )  # fmt: skip

    def use_paper(blob: bytes) -> object:
        return make_policy("dqn-paper", catalog, snapshot=load_paper_snapshot(blob))

    yield Reader(
        "snapshots of the paper's network", [paper], sealed_snapshot, use_paper,
        (SnapshotError, PolicyParameterError), cost=2,
    )  # fmt: skip
    head = len(b"tiercel-checkpoint-1\n") + 32
    place = folder.path / "seed.checkpoint"
    save_checkpoint(place, {"a": [1, 2.5], "b": {"c": None}}, {"x": np.ones(3), "y": np.eye(2)})
    yield Reader(
        "checkpoints", [place.read_bytes()], sealed_arrays(head, "__meta__"),
        folder.file("run.checkpoint", load_checkpoint), (CheckpointError,),
    )  # fmt: skip
    config = OnlineConfig(
        learner=LearnerConfig(hidden_count=4, batch_size=16, replay_capacity=1000),
        deadline_s=0.2, patience_s=5.0, feature_schema="s", feature_names=_STATE_NAMES,
        availability_column=2, min_transitions=16,
    )  # fmt: skip
    state = folder.path / "online" / "seed.state"
    loop = OnlineLoop(config, path=state)
    decisions, outcomes = _online_records(60)
    loop.ingest(decisions, outcomes)
    loop.learn(1.0, iter(np.arange(0.0, 9.0, 0.1)).__next__)
    loop.save()

    def go_on(path: Path) -> object:
        path.with_name(f"{path.name}.previous").unlink(missing_ok=True)
        restored = OnlineLoop(config, path=path)
        restored.ingest(*_online_records(12, first=100))
        restored.learn(0.3, iter(np.arange(0.0, 9.0, 0.1)).__next__)
        return restored.snapshot()

    yield Reader(
        "online.state", [state.read_bytes()], sealed_arrays(head, "__meta__"),
        folder.file("online/online.state", go_on), cost=20,
    )  # fmt: skip
    replay = Replay(capacity=1000, feature_count=3)
    with np.load(io.BytesIO(state.read_bytes()[head:]), allow_pickle=False) as file:
        kept = file["replay"].tobytes()
    yield Reader("a replay", [kept], inner_arrays, replay.restore, (ReplayError,), cost=2)


def _online_records(count: int, first: int = 1) -> tuple[list[DecisionRecord], list[OutcomeRecord]]:
    rng = np.random.default_rng(first)
    decisions, outcomes = [], []
    for sequence in range(first, first + count):
        features = rng.random((2, 3)).astype(np.float32)
        features[:, 2] = 1.0
        key = ("r", 1, sequence)
        decisions.append(
            DecisionRecord(
                key=key, time_s=1e9 + sequence * 0.05, features_CF=features, action=sequence % 2,
                feature_schema="s", policy_version="v", behavior_probability=1.0, slack_s=0.2,
                task="echo",
            )
        )  # fmt: skip
        outcomes.append(OutcomeRecord(key, 0.5, Ending.ANSWERED))
    return decisions, outcomes


def _tables(folder: Folder) -> Iterator[Reader]:
    """Traces, and what the load generator reads and writes."""
    requests = [(0.0, 10, 1), (0.5, 20, 2), (2.25, 30, 3), (61.0, 5, 1)]
    seeds = {
        "azure-llm": (traces.LLM, traces.llm_rows(requests)),
        "burstgpt": (traces.BURSTGPT, traces.burstgpt_rows(requests)),
        "azure-functions-2021": (
            traces.FUNCTIONS_2021, traces.call_rows([(0.0, 1.0), (2.0, 0.5), (9.0, 1.0)])
        ),
        "azure-functions-2019": (
            traces.FUNCTIONS_2019, traces.count_rows([{1: 2, 3: 4}, {1440: 1}])
        ),
    }  # fmt: skip
    assert seeds.keys() == KINDS.keys()
    for name, (header, rows) in seeds.items():
        seed = traces.write(folder.path / f"{name}.csv", header, rows).read_bytes()
        yield Reader(
            f"trace {name}", [seed], changed_lines, folder.file(f"{name}.csv", read_trace),
            (TraceFileError, WorkloadError), cost=40 if name == "azure-functions-2019" else 4,
        )  # fmt: skip
    seed = traces.write(folder.path / "t.csv", traces.LLM, traces.llm_rows(requests)).read_bytes()
    yield Reader(
        "trace, packed", [seed], packed, folder.file("t.csv.gz", read_trace),
        (TraceFileError, WorkloadError),
    )  # fmt: skip
    spec = {
        "router_addresses": ["127.0.0.1:1"],
        "phases": [{"name": "burst", "duration_s": 0.2, "rate_rps": 200}],
        "deadline_s": 0.5, "task_mix": {"sort": 1.0}, "seed": 5,
        "prompts": {"sort": [{"text": "ab", "answer": "AB"}]},
    }  # fmt: skip
    for suffix, change, write in (("toml", TOML, toml_bytes), ("json", JSON, json_bytes)):
        yield Reader(
            f"load spec ({suffix})", [write(spec)], change,
            folder.file(f"spec.{suffix}", read_spec), (LoadSpecError,),
        )  # fmt: skip
    columns = {name: np.zeros(4, dtype) for name, dtype in COLUMNS.items()}
    names = dict.fromkeys(NAMED, ("a", "b"))
    records = folder.path / "seed.npz"
    RunRecords(columns, names, {"deadline_s": 0.5}).save(records)
    yield Reader(
        "records of a load run", [records.read_bytes()], sealed_arrays(0, "head"),
        folder.file("run.npz", lambda path: run_summary(RunRecords.load(path))), (RecordsError,),
        cost=8,
    )  # fmt: skip


def _records() -> Iterator[Reader]:
    """What stands in Redis, and what is told by other services and by endpoints."""
    features_F = [(each.low + each.high) / 2.0 for each in FEATURES]
    decision = experience_pb2.DecisionRecord(
        router_id="r1", epoch=7, sequence=1, request_id="i", task="echo", feature_schema=SCHEMA,
        candidates=[common_pb2.Candidate(tier=t, endpoint="e0") for t in ("small", "large")],
        features=np.array([features_F] * 2, "<f4").tobytes(),
        feature_count=FEATURE_COUNT, action=1, behavior_probability=1.0, policy="dqn",
        policy_version="v",
    )  # fmt: skip
    decision.decide_time.FromSeconds(1_700_000_000)
    outcome = experience_pb2.OutcomeRecord(
        router_id="r1", epoch=7, sequence=1, status=common_pb2.OUTCOME_STATUS_ON_TIME, reward=0.5
    )
    outcome.end_time.FromSeconds(1_700_000_000)
    entry = experience_pb2.ExperienceEntry
    seeds = [entry(decision=decision), entry(outcome=outcome)]
    yield Reader(
        "experience", [each.SerializeToString() for each in seeds], message(entry),
        lambda data: experience_from(data, now_s=NOW_S, tasks={"echo"}), (BadRecordError,),
    )  # fmt: skip
    info = trainer_pb.PolicyInfo(
        policy="dqn", policy_version="v", stage=trainer_pb.POLICY_STAGE_PROPOSED,
        feature_schema=SCHEMA, transition_count=5, description="d", scores={"a": 0.5},
    )  # fmt: skip
    info.publish_time.FromSeconds(1_700_000_000)
    yield Reader(
        "policies in Redis", [info.SerializeToString()], message(trainer_pb.PolicyInfo),
        lambda data: decode_policy(StoredPolicy("dqn", "v", data)), (BadRecordError,),
    )  # fmt: skip
    state = state_pb.SystemState(version=3, monitor_id="m", topology_version=2)
    state.publish_time.FromSeconds(1_700_000_000)
    view = state.endpoints.add(ramp_weight=1.0, health=common_pb2.ENDPOINT_HEALTH_READY)
    view.endpoint.endpoint, view.endpoint.address = "e0", "127.0.0.1:1"
    for tier in ("small", "large"):
        view.endpoint.tiers.add(tier=tier)
        view.gauges.add(tier=tier, ready=True, queue_depth=1)
        state.candidates.add(tier=tier, endpoint="e0")
    state.routers.extend(meshes.loads())
    state.task_ratings.add(task="copa").tiers.add(tier="small", rating_count=3, mean=0.5)
    stored = state.SerializeToString()
    kind = state_pb.SystemState
    for name, read in (("pictures", read_picture), ("reports", read_reports)):
        yield Reader(
            f"{name} of other monitors", [stored], message(kind),
            lambda data, read=read: read(data, NO_ORDER), (ValueError,),  # type: ignore[misc]
        )  # fmt: skip
    changes = {
        "version": 3, "removed": ["e1"], "draining": {"e0": 5.0}, "fingerprint": "ab",
        "added": [
            {
                "name": "e0", "address": "127.0.0.1:1", "device": "", "profile": "",
                "metrics_address": "", "speed": 1.0, "tiers": [{"tier": "small", "model": "s"}],
            }
        ],
    }  # fmt: skip
    yield Reader(
        "the endpoint list in Redis", [json_bytes(changes)], JSON,
        lambda data: decode_changes(data, lambda *_: None), (ValueError,),
    )  # fmt: skip
    wall_ns = 1_700_000_000_000_000_000
    said = TargetOverride("copa", 0.9, wall_ns, "ops", "why", wall_ns + 10**9)
    yield Reader(
        "the targets in Redis", [encode({"copa": said})], JSON,
        lambda data: message_of_targets(merged(decode(data, wall_ns)[0], (), wall_ns).values()),
        (ValueError,),
    )  # fmt: skip
    rated = {("copa", "small"): Rating(3, 0.5, 0.3), ("copa", "large"): Rating(1, 1.0, 1.0)}
    yield Reader(
        "the ratings in Redis", [kept_ratings(rated, {("r1", 7): rated})],
        message(state_pb.KeptRatings), _adopted, (ValueError,),
    )  # fmt: skip
    minute = minutes_pb.Minute(tasks=[minutes_pb.TaskMinute(task="copa", on_time_count=3)])
    minute.start_time.seconds = 1_700_000_040
    minute.tasks[0].latency.answer_counts.append(3)
    minute.hindsight.tasks.add(task="copa", recorded_count=3, bound_sum=2.0)
    minute.hindsight.static_large.add(device_count=2, performance=0.5)
    yield Reader(
        "minutes in Redis", [minute.SerializeToString()], message(minutes_pb.Minute),
        lambda data: books_of([minute_of(data)]), (ValueError,),
    )  # fmt: skip
    others = state_pb.OtherRoutersState(version=3, topology_version=2, is_whole_list=True)
    others.endpoints.extend(state.endpoints)
    for part in (others.ratings.tasks, others.ratings.own_tasks):
        part.extend(state.task_ratings)
    row = np.ones(2, "<f4").tobytes()
    for field in (
        "in_flight_counts",
        "waiting_prompt_token_counts",
        "remaining_output_token_counts",
    ):
        setattr(others.loads, field, row)
    watched = monitor_pb.WatchSystemStateResponse

    def watch(data: bytes) -> object:
        # Bytes that are no message end the stream within the library.
        reader = StateReader("r0", 1)
        reader.read(watched(others=others))
        return reader.read(watched.FromString(data))

    from google.protobuf.message import DecodeError

    yield Reader(
        "states that a router is told",
        [watched(others=others).SerializeToString(), watched(state=state).SerializeToString()],
        message(watched), watch, (ValueError, DecodeError),
    )  # fmt: skip
    whole = kserve.ModelStreamInferResponse()
    answer = whole.infer_response
    answer.id = "i"
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    answer.raw_output_contents.append(b"\x01\0\0\0a")
    answer.outputs.add(name="num_output_tokens", datatype="UINT32", shape=[1])
    answer.raw_output_contents.append(b"\x01\0\0\0")
    answer.parameters["triton_final_response"].bool_param = True
    forms: Forms = []
    yield Reader(
        "answers of a tier", [whole.SerializeToString()],
        message(kserve.ModelStreamInferResponse),
        lambda data: AnswerReader("i", Budget(4), forms).read(data), (TierError,),
    )  # fmt: skip
    yield Reader(
        "streams of servers that speak OpenAI", answers.stream_seeds(), answers.changed_stream,
        answers.read_stream, (TierError,), cost=2,
    )  # fmt: skip
    yield Reader(
        "answers of servers that speak OpenAI", answers.answer_seeds(), answers.changed_answer,
        answers.read_answer, (TierError,), cost=2,
    )  # fmt: skip
    page = b"".join(
        b'nv_inference_pending_request_count{model="m%d",version="1"} %d\n' % (n, n)
        for n in range(3)
    )
    yield Reader(
        "metrics of an endpoint", [page], changed_lines, parse_queue_depths,
        (ValueError, ArithmeticError, LookupError), cost=2,
    )  # fmt: skip


def _adopted(data: bytes) -> object:
    """Goes on from stored ratings, and takes in a report of a router that is among them."""
    ratings = MeshRatings(clock=SystemClock())
    ratings.adopt(*read_kept(data))
    ratings.take(report_from_message(meshes.loads()[0]))
    return kept_ratings(ratings.table, ratings.counted())


def _commands(folder: Folder) -> Iterator[Reader]:
    """What commands read."""
    root = folder.path
    manifest = manifests.Manifest(
        name="m", pid=1, started_ticks=1, kind="paced", config="c", routers=("127.0.0.1:1",),
        addresses={}, metrics={}, processes={}, cores={},
    )  # fmt: skip
    manifest.write(root / "m")

    def find(path: Path) -> object:
        return manifests.read_manifest(path)

    name = f"m/{manifests.FILE_NAME}"
    seed = (root / name).read_bytes()
    yield Reader("the manifest of a mesh", [seed], JSON, folder.file(name, find), (CommandError,))
    for part, text in (("profile", meshes.PROFILE), ("quality", meshes.QUALITY)):

        def options(path: Path, part: str = part) -> object:
            files = {"profile": root / "profile.toml", "quality": root / "quality.toml", part: path}
            return paced_options("m", files["profile"], quality=files["quality"])

        yield Reader(
            f"{part} of a paced mesh", [text.encode()], TOML,
            folder.file(f"paced-{part}.toml", options), (InputError,), cost=2,
        )  # fmt: skip
    config = (ROOT / "deploy" / "triton" / "reference" / "small" / "config.pbtxt").read_bytes()
    yield Reader(
        "a model's config.pbtxt", [config], changed_lines,
        folder.file("config.pbtxt", read_model_config), (RepositoryError,),
    )  # fmt: skip
    tokens = ROOT / "deploy" / "triton" / "reference" / "small" / "1" / "tokenizer.json"
    yield Reader(
        "a tokenizer", [tokens.read_bytes()], JSON,
        folder.file("tokenizer/tokenizer.json", lambda path: CharTokenizer.load(path.parent)),
        (TokenizerError,),
    )  # fmt: skip
    number = {"performance": 0.9, "retrained_performance": 0.9, "ratio": 1.0, "availability": 1.0}
    compared = {
        "snapshot_version": "v", "setting": {"devices": 4}, "rounds": 9,
        "rows": [
            {
                "shift": "mix", "load": 2.0, "share_of_always_small": 0.1, "safety_net": True,
                "ratio_ci95": [0.9, 1.1], "retrained_availability": 1.0, **number,
            }
        ],
        "training": [
            {
                "shift": "mix", "rounds": 9, "samples": 5, "validation_original": 0.9,
                "validation_trained": 0.8, "kept": "original",
            }
        ],
    }  # fmt: skip
    yield Reader(
        "a comparison with retrained policies", [json_bytes({"retrained": compared})], JSON,
        folder.file("retrained.json", lambda path: read_retrained(path, [])),
    )  # fmt: skip
    crossed = {
        "learner": "a", "steps": 5, "seed_count": 3, "load": 2.0, "availability": 0.9,
        "availability_ci95": [0.8, 1.0], "performance": 0.9, "performance_ci95": [0.8, 1.0],
    }  # fmt: skip
    yield Reader(
        "a cross-check",
        [json_bytes({"crosscheck": [crossed]})],
        JSON,
        folder.file("crosscheck.json", lambda path: inputs._crosscheck(path, [])),
    )
