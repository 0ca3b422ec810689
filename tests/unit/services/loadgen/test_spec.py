"""What a load run shall do: every mistake is named."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.loadgen.spec import LoadSpecError, read_spec
from tests.unit.services.loadgen.specs import spec_of


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"router_addresses": ["10.0.0.1:7410"]}, "loopback addresses only"),
        ({"router_addresses": ["example.com:7410"]}, "loopback addresses only"),
        ({"router_addresses": ["127.0.0.1"]}, "not host:port"),
        ({"router_addresses": []}, "router_addresses"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": math.inf}, "deadline_s"),
        ({"task_mix": {"sort": 0.0}}, "task_mix: at least one share"),
        ({"phases": [{"name": "a", "duration_s": 1, "rate_rps": -1}]}, "phases.0.rate_rps"),
        ({"surprise": 1}, "surprise"),
        ({"phases": [{"name": "a", "duration_s": 3000, "rate_rps": 9000}]}, "more than 200000"),
    ],
)
def test_bad_specs_name_their_field(fields: Any, message: Any) -> None:
    """Every mistake is refused before anything is sent."""
    with pytest.raises(LoadSpecError, match=message):
        spec_of("127.0.0.1:7410", **fields)


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
