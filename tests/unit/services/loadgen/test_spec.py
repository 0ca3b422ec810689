"""What a load run shall do: every mistake is named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from services.common.prompt_sizes import MOST_PROMPT_BYTES
from services.loadgen.spec import LoadSpecError, read_spec
from tests.unit.services.loadgen.specs import spec_of
from trainer.simulation.workload import OPT_LENGTHS

PHASE = {"name": "a", "duration_s": 1, "rate_rps": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router_addresses": ["127.0.0.1"]}, "router_addresses: expected host:port"),
        ({"deadline_s": {"reverse": 1.0}}, "deadline_s: is missing for sort"),
        ({"router_addresses": []}, "router_addresses"),
        ({"deadline_s": 0}, "deadline_s: Input should be greater than 0, or: Input should be a"),
        ({"deadline_s": {"sort": -1.0}}, "deadline_s.sort: Input should be greater than 0"),
        ({"prompt_tokens": 0}, "prompt_tokens: Input should be greater than or equal to 1, or: "),
        ({"deadline_s": math.inf}, "deadline_s"),
        ({"task_mix": {"sort": 0.0}}, "task_mix: at least one share"),
        ({"priority_mix": {"low": 0.0}}, "priority_mix: at least one share"),
        (
            {"phases": [{**PHASE, "task_mix": {"a": 1.0}}]},
            "phases.0.task_mix: a: task_mix does not",
        ),
        ({"phases": [{**PHASE, "task_mix": {"sort": 0.0}}]}, "phases.0.task_mix: at least one"),
        ({"priority_mix": {"urgent": 1.0}}, "priority_mix.urgent"),
        ({"phases": [{"name": "a", "duration_s": 1, "rate_rps": -1}]}, "phases.0.rate_rps"),
        ({"token_interval_s": 0.1}, "token_interval_s: needs stream"),
        ({"token_interval_s": 0.1, "stream": True}, "token_interval_s: needs max_output_tokens"),
        ({"token_interval_s": 61.0}, "token_interval_s"),
        ({"surprise": 1}, "surprise"),
        ({"phases": [{"name": "a", "duration_s": 3000, "rate_rps": 9000}]}, "more than 200000"),
    ],
)
def test_bad_specs_name_their_field(fields: Any, message: Any) -> None:
    """Every mistake is refused before anything is sent."""
    with pytest.raises(LoadSpecError, match=message):
        spec_of("127.0.0.1:7410", **fields)


def test_routers_may_be_anywhere_and_tasks_have_their_own_deadlines() -> None:
    """Load goes where the caller says."""
    spec = spec_of(
        "router.example:7410", deadline_s={"sort": 0.2, "other": 9.0}, task_mix={"sort": 1.0}
    )
    assert spec.router_addresses == ["router.example:7410"]
    assert (spec.deadline_of("sort"), spec.longest_deadline_s) == (0.2, 0.2)


def test_several_mistakes_are_told_together() -> None:
    """One run of the command shows all that is wrong."""
    with pytest.raises(LoadSpecError) as caught:
        spec_of("127.0.0.1:7410", deadline_s=-1, cv=0, seed=-1)
    assert all(name in str(caught.value) for name in ("deadline_s", "cv", "seed"))


def test_spec_files_may_be_toml_or_json(tmp_path: Any) -> None:
    """Both formats give the same spec."""
    spec = spec_of("127.0.0.1:7410")
    json_path, toml_path = tmp_path / "a.json", tmp_path / "a.toml"
    json_path.write_text(spec.model_dump_json())
    assert read_spec(json_path) == spec
    toml_path.write_text(
        'router_addresses = ["127.0.0.1:7410"]\ndeadline_s = 0.5\ntask_mix = {sort = 1}\n'
        '[[phases]]\nname = "a"\nduration_s = 1\nrate_rps = 2\n'
    )
    assert read_spec(toml_path).phases[0].rate_rps == 2
    json_path.write_text("{")
    with pytest.raises(LoadSpecError, match="not JSON"):
        read_spec(json_path)


@pytest.mark.parametrize("name", ["a.toml", "a.json"])
@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, "a = " + "9" * 5_000, "9" * 5_000, '{"seed": NaN}', "\udcff", "3", "[1]"],
)
def test_files_that_are_no_spec_are_one_line(tmp_path: Any, name: str, text: str) -> None:
    """Whatever the file holds, it is named in one short line."""
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LoadSpecError) as caught:
        read_spec(path)
    (line,) = str(caught.value).splitlines()
    assert str(path) in line
    assert len(line) < 1_000


def test_mistakes_without_number_are_cut() -> None:
    """A file of nothing but mistakes is not answered with a page."""
    with pytest.raises(LoadSpecError) as caught:
        spec_of("127.0.0.1:7410", **{"x" * 5_000 + str(number): 1 for number in range(100)})
    assert len(str(caught.value)) < 10_000


def test_a_byte_order_mark_is_accepted(tmp_path: Any) -> None:
    """Editors that put a mark before the text do no harm."""
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + spec_of("127.0.0.1:7410").model_dump_json(), encoding="utf-8")
    assert read_spec(path).seed == 5


def test_made_up_prompts_are_as_long_as_the_evaluations() -> None:
    """By default lengths are drawn: about 124 tokens in the mean, spread as in the simulator."""
    pool = spec_of("127.0.0.1:7410", task_mix={"made_up": 1.0}).pools()["made_up"]
    lengths = np.array([len(prompt.text.split()) for prompt in pool])
    assert abs(lengths.mean() - OPT_LENGTHS.prompt_mean) < 10.0
    assert 45.0 < lengths.std() < 90.0
    assert len({prompt.text for prompt in pool}) == len(pool)


def test_answers_may_be_limited_by_drawn_lengths() -> None:
    """Limits are drawn per prompt within the evaluation's range; without asking there is none."""
    drawn = spec_of("127.0.0.1:7410", task_mix={"new": 1.0}, max_output_tokens="drawn").pools()
    limits = {prompt.max_output_tokens for pool in drawn.values() for prompt in pool}
    assert limits <= set(range(4, 13))
    assert len(limits) > 3
    plain = spec_of("127.0.0.1:7410").pools()
    assert {prompt.max_output_tokens for pool in plain.values() for prompt in pool} == {None}


def test_prompts_may_be_as_long_as_a_mesh_can_allow() -> None:
    """And limits of answers as high as those of tasks: one of more is refused by its field."""
    long = {"text": "x" * 100_000, "max_output_tokens": 65_536}
    spec = spec_of("127.0.0.1:7410", prompts={"sort": [long]})
    assert len(spec.prompts["sort"][0].text) == 100_000
    for field, value in (("text", "x" * (MOST_PROMPT_BYTES + 1)), ("max_output_tokens", 65_537)):
        with pytest.raises(LoadSpecError, match=f"prompts.sort.0.{field}"):
            spec_of("127.0.0.1:7410", prompts={"sort": [long | {field: value}]})
