"""The very requests of a load run, for the simulator: arrivals, tasks, lengths of both sides."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np

from router.catalog import parse_quality
from router.profile import parse_profile
from services.common.files import read_text
from services.live.mesh import StretchedMesh
from services.loadgen.spec import LoadSpec
from services.local.paced_mesh import DEADLINE_S
from services.local.triton.repository.layout import models_root
from trainer.simulation.setting import Setting, shared_fleet_setting
from trainer.simulation.simulate import SimulationConfig
from trainer.simulation.workload import OPT_LENGTHS, Workload


def stretched_setting(mesh: StretchedMesh) -> Setting:
    """Returns the mesh as the simulator has it, in its own stretched time.

    So constants that are not stretched live, as those of arrival rates, are not stretched here.

    Raises:
        InvalidFileError: A file is wrong.
        OSError: It cannot be read.
    """
    profile = parse_profile(read_text(mesh.profile), str(mesh.profile))
    quality = parse_quality(read_text(mesh.quality), str(mesh.quality))
    return shared_fleet_setting(
        profile.name,
        dataclasses.replace(profile.scaled(mesh.time_scale), name=profile.name),
        quality,
        tiers=mesh.options().fleet.tiers,
        device_count=mesh.devices,
        deadline_s=DEADLINE_S * mesh.time_scale,
    )


def simulation_config(mesh: StretchedMesh, setting: Setting) -> SimulationConfig:
    """Returns what is simulated: reports of the others as old, on average, as live ones."""
    return dataclasses.replace(
        setting.config(),
        routers=mesh.routers,
        report_interval_s=mesh.report_s,
        staleness_s=0.5 * mesh.publish_s,
    )


def workload_of(spec: LoadSpec, setting: Setting) -> Workload:
    """Returns the requests that the load generator sends by a spec."""
    arrivals = spec.arrivals()
    arrival_N = arrivals.arrival_s
    prompts = spec.drawn_prompts(arrivals)
    tasks = {task.name: k for k, task in enumerate(setting.catalog.tasks)}
    limits = {task.name: task.default_max_output_tokens for task in setting.catalog.tasks}
    engine = paced_engine()
    prompt_tokens: Callable[[bytes], int] = engine.prompt_token_count
    output_tokens: Callable[..., int] = engine.output_token_count
    texts = [each.text.encode() for each in prompts]
    answers = [
        output_tokens(
            text,
            0,
            each.max_output_tokens or limits[each.task],
            OPT_LENGTHS.output_mean,
            OPT_LENGTHS.output_variation,
        )
        for each, text in zip(prompts, texts, strict=True)
    ]
    return Workload(
        arrival_N=np.asarray(arrival_N, np.float64),
        task_N=np.array([tasks[each.task] for each in prompts], np.int64),
        prompt_N=np.array([prompt_tokens(text) for text in texts], np.float64),
        output_N=np.array(answers, np.int64),
        slack_N=np.array([spec.deadline_of(each.task) for each in prompts], np.float64),
        duration_s=spec.arrivals().duration_s,
        # The generator takes the routers in turn, so each of them sees more even gaps than all do.
        router_N=np.arange(len(arrival_N), dtype=np.int64) % len(set(spec.router_addresses)),
    )


def paced_engine() -> ModuleType:
    """Returns the source that times paced tiers inside Triton: it draws the lengths of answers."""
    name = "tiercel_paced_engine"
    if name in sys.modules:
        return sys.modules[name]
    path = models_root() / "common" / "paced_engine.py"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # its data classes look themselves up there
    found.loader.exec_module(module)
    return module
