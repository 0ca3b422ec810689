"""Puts the router's parts together: everything but sockets and links."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from prometheus_client import CollectorRegistry

from router.estimators import OutputLengthPredictor
from router.explanation import Explainer
from router.exploration import Exploration
from router.profile import LatencyProfile
from router.reserve import SHARES
from router.safety import SafetyLimits
from router.types import Priority
from services.common.access.guard import CALLER, Context
from services.common.clock import Clock
from services.common.convert import endpoint_of_settings
from services.common.log import Logger
from services.common.mesh_settings import MeshFiles, MeshSettings
from services.common.state.experience_stream import ExperienceStream
from services.common.telemetry import Telemetry
from services.router_inference import health_notes
from services.router_inference.client_pool import ClientPool
from services.router_inference.doors.envoy.picker import Picker
from services.router_inference.doors.envoy.places import Names, Places
from services.router_inference.doors.intake import Intake
from services.router_inference.doors.kserve.models import Models
from services.router_inference.doors.kserve.servicer import KserveServicer
from services.router_inference.doors.servicer import RouterInferenceServicer
from services.router_inference.doors.validation import Limits, Validator
from services.router_inference.health_notes import HealthNotes
from services.router_inference.machine_code import MachineCode
from services.router_inference.path.admission import Admission
from services.router_inference.path.attempt import AttemptParts
from services.router_inference.path.clients import (
    ClientLimit,
    Clients,
    LimitedDispatcher,
    LimitedEnding,
)
from services.router_inference.path.conversations import Conversations, table_words
from services.router_inference.path.decide import Decider
from services.router_inference.path.dispatch import Dispatcher, DispatchLimits
from services.router_inference.path.end import Ending
from services.router_inference.path.exchanges import Exchanges
from services.router_inference.path.explore import Explorer
from services.router_inference.path.hold import TargetHold
from services.router_inference.path.lag import LoopLag
from services.router_inference.path.leases import Leases
from services.router_inference.path.priorities import Priorities
from services.router_inference.path.relay import StreamRelay
from services.router_inference.path.second_chance import RetryBudget, SecondChance
from services.router_inference.path.targets import Targets
from services.router_inference.path.tickets import TicketSigner
from services.router_inference.policy.slot import PolicySlot
from services.router_inference.policy.trial import Trial
from services.router_inference.policy.trial_work import TrialLimits
from services.router_inference.policy.watch import PolicyWatch
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.attainment import Attainments
from services.router_inference.records.convert import RecordBuilder
from services.router_inference.records.experience import ExperienceWriter
from services.router_inference.records.explanations import Explanations
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.records.router_counts import RouterCounts
from services.router_inference.records.tracing import Tracing
from services.router_inference.settings import (
    ClientLimitSettings,
    RouterInferenceSettings,
    Settings,
    default_task,
)
from services.router_inference.status import StatusReader
from services.router_inference.view.breaker import BreakerLimits
from services.router_inference.view.fleet import FleetView
from services.router_inference.view.quality import LearnedQuality
from services.router_inference.view.view import View
from services.router_inference.workers.kserve import WorkerKserveServicer
from services.router_inference.workers.place import Place
from services.router_inference.workers.servicer import WorkerServicer


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a core is built into.

    Attributes:
        settings: the settings.
        files: what the files they name hold.
        place: which process this is.
        clock: of everything.
        log: of everything.
        registry: the process's metrics.
        metrics: the router's.
        telemetry: traces.
        experience: where experience goes; None for nowhere.
        clients: of the endpoints.
        slot: the policy in use.
        machine_code: how decisions are bound.
        signer: of tickets.
        client_of: tells whose a call is.
        clock_id: name of the monotonic clock, to tell tickets of this machine.
    """

    settings: Settings
    files: MeshFiles
    place: Place
    clock: Clock
    log: Logger
    registry: CollectorRegistry
    metrics: RouterMetrics
    telemetry: Telemetry
    experience: ExperienceStream | None
    clients: ClientPool
    slot: PolicySlot
    machine_code: MachineCode
    signer: TicketSigner
    client_of: Callable[[Context], str]
    clock_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """The parts that the process, its links and the tests need to reach."""

    view: View
    validator: Validator
    dispatcher: Dispatcher
    slot: PolicySlot
    trial: Trial
    watch: PolicyWatch
    accounts: Accounts
    counts: RouterCounts
    admission: Admission
    hold: TargetHold
    targets: Targets
    explorer: Explorer
    attainments: Attainments
    second_chance: SecondChance
    clients: Clients | None
    experience: ExperienceWriter
    explanations: Explanations
    notes: HealthNotes
    lag: LoopLag
    leases: Leases
    status: StatusReader
    servicer: RouterInferenceServicer
    picker: Picker | None
    kserve: KserveServicer
    conversations: Conversations | None
    quality: LearnedQuality


def build_core(env: Surroundings) -> Core:
    """Builds the parts; nothing is opened but what `env.clients` opens."""
    own, mesh, clock = env.settings.router_inference, env.settings.mesh, env.clock
    place, epoch = env.place, env.place.epoch
    # Two workers that draw alike would give the same ids.
    seed = own.seed + place.number if own.seed else secrets.randbits(64)
    ids = random.Random(seed)
    catalog = env.files.catalog
    lengths = OutputLengthPredictor(
        {task.name: task.expected_output_tokens for task in catalog.tasks}
    )
    notes = HealthNotes(metrics=env.metrics, log=env.log)
    problem = env.machine_code.problem
    notes.set(health_notes.DECISION_NOT_COMPILED, bool(problem), problem)
    accounts = Accounts(env.metrics, env.registry)
    counts = RouterCounts(
        accounts, catalog.tiers, [task.name for task in catalog.tasks], place.siblings
    )
    lag = LoopLag(clock=clock, metrics=env.metrics)
    rng = np.random.default_rng(seed)
    view = _view(env, rng)
    quality = LearnedQuality(
        catalog=catalog,
        is_on=own.learn_quality,
        fleet=view.fleet,
        counts=counts,
        metrics=env.metrics,
        clock=clock,
        log=env.log,
    )
    admission = Admission(
        safety_limits(own), clock.monotonic_s, lambda: lag.lasting_s, view.traffic.latency_ratio
    )
    hold = TargetHold((), clock.monotonic_s(), place.siblings.common_pressure())
    priorities = Priorities()
    targets = Targets(
        hold=hold,
        tasks=catalog.tasks,
        is_held=own.safety_net,
        clock=clock,
        log=env.log,
    )
    attainments = Attainments(counts, targets.by_task)
    explainer = Explainer(env.machine_code.bind)
    experience = _experience(env, epoch, explainer)
    tracing = Tracing(
        telemetry=env.telemetry,
        router_id=place.worker_id,
        explainer=explainer,
        bad_per_s=own.bad_traces_per_s,
    )
    explanations = Explanations(own.explanation_memory_bytes)
    watch = PolicyWatch(
        slot=env.slot,
        fleet=view.fleet,
        siblings=place.siblings,
        slow_s=own.canary_decision_s,
        metrics=env.metrics,
        clock=clock,
        log=env.log,
    )
    trial = Trial(
        slot=env.slot,
        explanations=explanations,
        watch=watch,
        siblings=place.siblings,
        bind=env.machine_code.bind,
        limits=trial_limits(own),
        # Not from what ids are made of: these are shown.
        chance=(random.Random(seed + 1) if own.seed else random.SystemRandom()).random,
        metrics=env.metrics,
        clock=clock,
        log=env.log,
    )
    clients = _clients(env)
    conversations = _conversations(env)
    make_ending = Ending if clients is None else partial(LimitedEnding, clients)
    ending = make_ending(
        router_id=place.worker_id,
        epoch=epoch,
        accounts=accounts,
        admission=admission,
        hold=hold,
        trial=trial,
        watch=watch,
        experience=experience,
        lengths=lengths,
        tracing=tracing,
        memory_count=own.feedback_memory_count,
        conversations=conversations,
    )
    explorer = Explorer(exploration(own), hold=hold, notes=notes, counts=accounts.explorations)
    decider, parts, dispatcher = _request_path(
        env,
        explorer,
        view,
        accounts,
        admission,
        hold,
        priorities,
        trial,
        watch,
        experience,
        explanations,
        ending,
        tracing,
        rng,
        clients,
        conversations,
        lag,
    )
    leases = Leases(
        router_id=place.worker_id,
        epoch=epoch,
        first_sequence=place.siblings.first_sequence,
        clock_id=env.clock_id,
        signer=env.signer,
        lease_s=own.lease_s,
        max_leases=own.max_leases,
        max_leases_per_client=own.max_leases_per_client,
        decider=decider,
        dispatcher=dispatcher,
        ending=ending,
        view=view,
        accounts=accounts,
        experience=experience,
        quality=quality,
        clock=clock,
    )
    status = StatusReader(
        router_id=place.router_id,
        epoch=epoch,
        view=view,
        slot=env.slot,
        watch=watch,
        counts=counts,
        admission=admission,
        hold=hold,
        priorities=priorities,
        targets=targets,
        attainments=attainments,
        metrics=env.metrics,
        experience=experience,
        quality=quality,
        explorer=explorer,
        notes=notes,
        clock=clock,
        typical_output_tokens=float(
            np.mean([task.expected_output_tokens for task in catalog.tasks])
        ),
        has_monitor=bool(mesh.load_monitor_address),
    )
    validator = Validator(
        catalog=catalog,
        limits=request_limits(own, mesh),
        lengths=lengths,
        new_id=lambda: f"{ids.getrandbits(128):032x}",
        new_seed=lambda: ids.getrandbits(31),
        conversation_key=_conversation_key(conversations),
    )
    intake = Intake(validator=validator, accounts=accounts, clock=clock)
    make_servicer = (
        partial(WorkerServicer, place=place) if place.number else RouterInferenceServicer
    )
    servicer = make_servicer(
        intake=intake,
        dispatcher=dispatcher,
        leases=leases,
        slot=env.slot,
        status=status,
        explanations=explanations,
        explainer=explainer,
        accounts=accounts,
        clock=clock,
        new_relay=partial(StreamRelay, own.stream_coalesce_s),
        client_of=env.client_of,
    )
    make_kserve = partial(WorkerKserveServicer, place=place) if place.number else KserveServicer
    kserve = make_kserve(
        models=Models(catalog.tiers, view),
        intake=intake,
        dispatcher=dispatcher,
        clock=clock,
        new_relay=partial(StreamRelay, own.stream_coalesce_s),
        client_of=env.client_of,
        tasks=validator.tasks,
        max_streams_per_client=own.max_streams_per_client,
    )
    return Core(
        view=view,
        validator=validator,
        dispatcher=dispatcher,
        slot=env.slot,
        trial=trial,
        watch=watch,
        accounts=accounts,
        counts=counts,
        admission=admission,
        hold=hold,
        targets=targets,
        attainments=attainments,
        second_chance=parts.second_chance,
        clients=clients,
        experience=experience,
        explanations=explanations,
        notes=notes,
        lag=lag,
        leases=leases,
        status=status,
        servicer=servicer,
        picker=_picker(env, view, intake, parts, leases) if own.envoy_listen else None,
        kserve=kserve,
        conversations=conversations,
        explorer=explorer,
        quality=quality,
    )


def _conversations(env: Surroundings) -> Conversations | None:
    """Returns what is remembered of conversations; None where settings say nothing is."""
    own = env.settings.router_inference
    if not own.conversation_count:
        return None
    words, secret = env.place.siblings.conversations(table_words(own.conversation_count))
    return Conversations(
        words=words,
        count=own.conversation_count,
        memory_s=own.conversation_memory_s,
        margin=own.conversation_margin,
        secret=secret,
    )


def _conversation_key(conversations: Conversations | None) -> Callable[[str], bytes]:
    """Returns the hash of the ids of whoever calls; ids of two who are authenticated differ."""
    if conversations is None:
        return lambda _: b""

    def key(conversation_id: str) -> bytes:
        if not conversation_id:
            return b""
        caller = CALLER.get(None)
        return conversations.key("" if caller is None else caller.client, conversation_id)

    return key


def _request_path(
    env: Surroundings,
    explorer: Explorer,
    view: View,
    accounts: Accounts,
    admission: Admission,
    hold: TargetHold,
    priorities: Priorities,
    trial: Trial,
    watch: PolicyWatch,
    experience: ExperienceWriter,
    explanations: Explanations,
    ending: Ending,
    tracing: Tracing,
    rng: np.random.Generator,
    clients: Clients | None,
    conversations: Conversations | None,
    lag: LoopLag,
) -> tuple[Decider, AttemptParts, Dispatcher]:
    own, monotonic_s = env.settings.router_inference, env.clock.monotonic_s
    decider = Decider(
        view=view,
        guard=env.slot.guard,
        trial=trial,
        watch=watch,
        admission=admission,
        hold=hold,
        priorities=priorities,
        accounts=accounts,
        experience=experience,
        rng=rng,
        explanations=explanations,
        next_sequence=env.place.siblings.next_sequence,
        monotonic_s=monotonic_s,
        log=env.log,
        explorer=explorer,
        conversations=conversations,
    )
    second_chance = SecondChance(
        view=view,
        limits=safety_limits(own),
        budget=RetryBudget(own.retry_share, own.retry_burst),
        max_retries=own.max_retries,
        rng=rng,
        monotonic_s=monotonic_s,
    )
    parts = AttemptParts(
        view=view,
        second_chance=second_chance,
        hold=hold,
        accounts=accounts,
        tracing=tracing,
        stream_tiers=own.stream_tiers,
        learn_slowness=own.learn_slowness,
        monotonic_s=monotonic_s,
        lag_s=lambda: lag.lag_s,
    )
    limits = DispatchLimits(own.max_in_flight, own.max_leases)
    make = Dispatcher if clients is None else partial(LimitedDispatcher, clients)
    dispatcher = make(decider=decider, parts=parts, limits=limits, ending=ending)
    return decider, parts, dispatcher


def _picker(
    env: Surroundings, view: View, intake: Intake, parts: AttemptParts, leases: Leases
) -> Picker:
    return Picker(
        intake=intake,
        exchanges=Exchanges(parts=parts, leases=leases),
        places=Places(view.fleet, Names(env.clock), env.settings.mesh.may_be_endpoint),
        view=view,
        clock=env.clock,
        client_of=env.client_of,
        reads_bodies=env.settings.router_inference.envoy_reads_bodies,
    )


def _clients(env: Surroundings) -> Clients | None:
    """Returns the clients' accounts; None where no client has a limit or a name."""
    own, access = env.settings.router_inference, env.settings.mesh.access
    limits, others = client_limits(own)
    if not (limits or access.keys_file or access.jwks_file or others != ClientLimit()):
        return None
    return Clients(
        limits=limits,
        others=others,
        requests=env.metrics.client_requests,
        lowered=env.metrics.priority_lowered,
        monotonic_s=env.clock.monotonic_s,
    )


def client_limits(own: RouterInferenceSettings) -> tuple[dict[str, ClientLimit], ClientLimit]:
    """Returns what each client of the settings may take, and what each other one may."""
    named = {each.name: _client_limit(each) for each in own.clients}
    return named, _client_limit(own.other_clients)


def _client_limit(settings: ClientLimitSettings) -> ClientLimit:
    return ClientLimit(
        settings.max_in_flight,
        settings.rate_rps,
        settings.tokens_per_s,
        settings.weight,
        Priority[settings.highest_priority.upper()],
    )


def _view(env: Surroundings, rng: np.random.Generator) -> View:
    own = env.settings.router_inference
    now_s = env.clock.monotonic_s()
    fleet = FleetView(
        catalog=env.files.catalog,
        endpoints=[endpoint_of_settings(entry) for entry in env.settings.mesh.endpoints],
        profiles=profiles_by_name(env.files),
        limits=BreakerLimits(
            own.eject_after_failures, own.eject_s, own.eject_max_s, own.silent_eject_s, own.ramp_s
        ),
        connect=env.clients.get,
        keep=env.clients.keep,
        now_s=now_s,
    )
    return View(
        fleet=fleet,
        siblings=env.place.siblings,
        state_max_age_s=own.state_max_age_s,
        homes=own.homes,
        rng=rng,
        bind=env.machine_code.bind,
        reserve=SHARES[own.reserve],
        now_s=now_s,
    )


def _experience(env: Surroundings, epoch: int, explainer: Explainer) -> ExperienceWriter:
    own = env.settings.router_inference
    return ExperienceWriter(
        builder=RecordBuilder(
            router_id=env.place.worker_id,
            epoch=epoch,
            explainer=explainer,
            features_always=own.features_always,
        ),
        stream=env.experience if own.experience else None,
        metrics=env.metrics,
        clock=env.clock,
        log=env.log,
        buffer_count=own.experience_buffer_count,
        buffer_s=own.experience_buffer_s,
        batch_count=own.experience_batch_count,
        interval_s=own.experience_interval_s,
        retry_s=own.reconnect_s,
    )


def trial_limits(own: RouterInferenceSettings) -> TrialLimits:
    """Returns what stops a policy on trial."""
    return TrialLimits(own.trial_cpu_share, own.canary_misses, own.canary_decision_s)


def exploration(own: RouterInferenceSettings) -> Exploration:
    """Returns how much is explored, and where."""
    return Exploration(own.exploration_share, own.exploration_on_time)


def safety_limits(own: RouterInferenceSettings) -> SafetyLimits | None:
    """Returns how far the safety net trusts predictions; None if it is off."""
    if not own.safety_net:
        return None
    return SafetyLimits(
        own.safety_optimism, own.safety_margin, own.safety_guard_s, own.safety_pessimism
    )


def request_limits(own: RouterInferenceSettings, mesh: MeshSettings) -> Limits:
    """Returns what a request may ask for."""
    return Limits(
        max_prompt_bytes=mesh.max_prompt_bytes,
        max_output_tokens=own.max_output_tokens,
        max_deadline_s=own.max_deadline_s,
        lease_s=own.lease_s,
        soft_late_s=own.soft_late_s,
        bytes_per_token=mesh.bytes_per_token,
        default_task=default_task(own, mesh),
    )


def profiles_by_name(files: MeshFiles) -> Mapping[str, LatencyProfile]:
    """Returns every profile by endpoint name and by its own name; the default one under ""."""
    named = {profile.name: profile for profile in files.endpoint_profiles.values()}
    return {
        **named,
        files.profile.name: files.profile,
        **files.endpoint_profiles,
        "": files.profile,
    }
