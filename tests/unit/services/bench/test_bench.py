"""What a benchmark stands on."""

from __future__ import annotations

import os
import subprocess
import sys

from services.bench.bench import Server


def test_memory_of_a_server_is_that_of_its_workers_too() -> None:
    """A program whose first process only looks after others is not a small one."""
    server = Server("", "", os.getpid())
    program = [sys.executable, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()  # it runs
        whole_mb = server.tree_memory_mb()
        alone_mb = server.memory_mb()
        assert worker.stdin is not None
        worker.stdin.close()
    assert whole_mb > alone_mb + 1.0
