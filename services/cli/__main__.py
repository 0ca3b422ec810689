"""Entry point of the ``tiercel`` command."""

from __future__ import annotations

import io
import os
import sys

from services.common.standard_streams import hold_standard_streams


def main() -> None:
    """Runs the command line and exits with its code."""
    hold_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not know the letters of a path
            stream.reconfigure(errors="backslashreplace")
    # gRPC reads it when it is imported, and else tells of every child started beside its threads.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        from services.cli.app import INTERRUPTED_EXIT_CODE, run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # while it still imports
        sys.exit(INTERRUPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
