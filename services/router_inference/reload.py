"""Puts settings that were read again into force in a router that serves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from typing import NamedTuple

from router.reserve import SHARES
from services.common.access.plain_text import Outgoing
from services.common.convert import endpoint_of_settings
from services.common.mesh_settings import MeshFiles, MeshSettings, load_mesh_files
from services.common.openai.keys import read_api_keys
from services.common.prompt_sizes import message_bytes
from services.common.settings import SettingsError
from services.router_inference.client_pool import ClientPool
from services.router_inference.core import (
    Core,
    client_limits,
    exploration,
    profiles_by_name,
    request_limits,
    safety_limits,
    trial_limits,
)
from services.router_inference.path.dispatch import DispatchLimits
from services.router_inference.path.second_chance import RetryBudget
from services.router_inference.policy.configured import (
    Configured,
    as_settings_errors,
    configured,
)
from services.router_inference.settings import (
    RouterInferenceSettings,
    Settings,
    default_task,
)

_POLICIES = ("policy", "fallback_policy", "policy_parameters", "policy_snapshot")
_SAFETY = (
    *("safety_net", "safety_optimism", "safety_margin", "safety_guard_s", "safety_pessimism"),
    *("retry_share", "retry_burst", "max_retries", "reserve"),
)
_LIMITS = (
    "default_task",
    "max_output_tokens",
    "max_in_flight",
    "max_deadline_s",
    "soft_late_s",
)
_CONVERSATIONS = ("conversation_memory_s", "conversation_margin")
_EXPLORATION = ("exploration_share", "exploration_on_time")
_QUALITY = ("learn_quality",)
_TRIAL = ("trial_cpu_share", "canary_misses", "canary_decision_s")
_CLIENTS = ("clients", "other_clients")
_MESH = (
    *("profile", "quality", "bytes_per_token", "max_prompt_bytes"),
    *("endpoints", "endpoint_addresses"),
)
_TASKS = ("tasks",)


class Wanted(NamedTuple):
    """Settings with what could not change left as it was.

    Attributes:
        own: the router's section.
        mesh: the mesh's.
        files: what the files it names hold.
        policies: the policies it names.
        keys: keys that were taken over.
        api_keys: what endpoints want to be shown, by address.
    """

    own: RouterInferenceSettings
    mesh: MeshSettings
    files: MeshFiles
    policies: Configured
    keys: set[str]
    api_keys: dict[str, str]


class LiveSettings:
    """The settings of a router that serves, and the parts that follow them."""

    def __init__(
        self, settings: Settings, files: MeshFiles, core: Core, clients: ClientPool
    ) -> None:
        """Takes what the core was built from."""
        self._own, self._mesh = settings.with_room(), settings.mesh
        self._files = files
        self._core = core
        self._clients = clients

    async def take(self, settings: Settings, changed: frozenset[str]) -> Collection[str]:
        """Puts into force what can change, and what the files hold now; returns the keys.

        Requests under way keep their deadline and their decision.

        Raises:
            SettingsError: A file or a policy is wrong; nothing has changed.
        """
        return self.apply(await asyncio.to_thread(self.read, settings), changed)

    def read(self, settings: Settings) -> Wanted:
        """Returns what can change of other settings, with what their files hold.

        Raises:
            SettingsError: A file is wrong, a key of an endpoint is missing, or an endpoint would be
            called in plain text.
        """
        clients = _CLIENTS if self._core.clients else ()
        own_keys = (
            *(*_POLICIES, *_SAFETY, *_LIMITS, *_CONVERSATIONS),
            *(*_EXPLORATION, *_QUALITY, *_TRIAL, *clients),
        )
        mesh_keys = (*_MESH, *(_TASKS if _keeps_tasks(self._mesh, settings.mesh) else ()))
        own = self._own.model_copy(
            update={key: getattr(settings.router_inference, key) for key in own_keys}
        )
        mesh = self._mesh.model_copy(update={key: getattr(settings.mesh, key) for key in mesh_keys})
        _check_sizes(mesh, self._own.max_message_bytes)
        self._outgoing(mesh).check_endpoints()
        files = load_mesh_files(mesh)
        default_task(own, mesh)  # raises where it is wrong
        keys = {f"router_inference.{key}" for key in own_keys} | {f"mesh.{k}" for k in mesh_keys}
        api_keys = read_api_keys(mesh, os.environ)
        return Wanted(own, mesh, files, configured(own, files.catalog), keys, api_keys)

    def apply(self, wanted: Wanted, changed: frozenset[str]) -> Collection[str]:
        """Puts it into force, between two requests; see `take`."""
        with as_settings_errors(wanted.own):
            self._core.slot.configure(**wanted.policies)
        self._clients.allow(self._outgoing(wanted.mesh).may_be_endpoint, wanted.api_keys)
        self._follow(wanted.own, wanted.mesh, wanted.files)
        news = _news(self._files, wanted.files)
        self._own, self._mesh, self._files = wanted.own, wanted.mesh, wanted.files
        return news | {key for key in changed if {key, key.rpartition(".")[0]} & wanted.keys}

    def _outgoing(self, mesh: MeshSettings) -> Outgoing:
        # Certificates, and leave to do without, take a restart.
        return Outgoing("router_inference", mesh, self._own.insecure_open_to_network)

    def _follow(self, own: RouterInferenceSettings, mesh: MeshSettings, files: MeshFiles) -> None:
        core = self._core
        if core.picker is not None:
            core.picker.places.allow(mesh.may_be_endpoint)
        endpoints = [endpoint_of_settings(entry) for entry in mesh.endpoints]
        catalog = core.quality.configure(files.catalog, is_on=own.learn_quality)
        core.view.configure(catalog, endpoints, profiles_by_name(files))
        core.validator.configure(files.catalog, request_limits(own, mesh))
        core.dispatcher.limits = DispatchLimits(own.max_in_flight, own.max_leases)
        core.view.traffic.reserve = SHARES[own.reserve]
        core.admission.limits = safety_limits(own)
        core.targets.configure(files.catalog.tasks, is_held=own.safety_net)
        core.counts.tasks = [task.name for task in files.catalog.tasks]
        core.explorer.exploration = exploration(own)
        core.trial.limits = trial_limits(own)
        core.watch.slow_s = own.canary_decision_s
        budget = RetryBudget(own.retry_share, own.retry_burst)
        core.second_chance.configure(safety_limits(own), budget, own.max_retries)
        if core.conversations is not None:
            core.conversations.configure(own.conversation_memory_s, own.conversation_margin)
        if core.clients is not None:
            core.clients.configure(*client_limits(own))


def _check_sizes(mesh: MeshSettings, most_message_bytes: int) -> None:
    """Raises SettingsError where the longest prompt would not fit into the messages of now."""
    if message_bytes(mesh.max_prompt_bytes) > most_message_bytes:
        what = f"messages of at most {most_message_bytes} bytes, until it starts anew"
        raise SettingsError([f"mesh.max_prompt_bytes: {mesh.max_prompt_bytes}: it takes {what}"])


def _keeps_tasks(old: MeshSettings, new: MeshSettings) -> bool:
    """Returns whether every task keeps its place, by which requests under way know it."""
    names = [task.name for task in old.tasks]
    return [task.name for task in new.tasks[: len(names)]] == names


def _news(old: MeshFiles, new: MeshFiles) -> set[str]:
    """Returns the keys of files that hold something else than before."""
    profiles = {"mesh.profile"} if old.profile != new.profile else set()
    return profiles | ({"mesh.quality"} if old.quality != new.quality else set())
