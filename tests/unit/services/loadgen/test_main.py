"""The load generator as a process."""

from __future__ import annotations

import json
from typing import Any

from services.loadgen import __main__ as load
from services.loadgen.records import RunRecords, run_summary
from services.loadgen.run import LoadRun
from tests.fakes.router import FakeRouter, serve
from tests.unit.services.loadgen.specs import spec_of


def test_the_process_writes_records_and_a_summary(
    tmp_path: Any, capsys: Any, monkeypatch: Any
) -> None:
    """The command runs a spec file to its end, and bad input exits with 2 and one line."""
    spec_path = tmp_path / "spec.json"
    spec_path.write_text(json.dumps({"phases": []}))
    assert load.main(["--spec", str(spec_path), "--out", str(tmp_path / "r.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1

    spec_path.write_text(spec_of("127.0.0.1:7410", nice=0).model_dump_json())

    class Done:
        def __init__(self, spec: Any) -> None:
            self.spec = spec

        def stop(self) -> Any:
            pass

        async def run(self, report: Any) -> Any:
            server, address = await serve(FakeRouter())
            work = LoadRun(self.spec.model_copy(update={"router_addresses": [address]}))
            try:
                return await work.run(report)
            finally:
                await server.stop(0)

    monkeypatch.setattr(load, "LoadRun", Done)
    assert load.main(["--spec", str(spec_path), "--out", str(tmp_path / "r.npz")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "summary"
    records = RunRecords.load(tmp_path / "r.npz")
    assert run_summary(records)["total"] == lines[-1]["total"]
