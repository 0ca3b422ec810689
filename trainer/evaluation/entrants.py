"""Which policies take part: those named, or every one there is."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from router.catalog import Catalog
from router.dqn.snapshot import SnapshotError
from router.policies.table import LEARNED, MissingSnapshotError, known_policies
from router.types import UnknownPolicyError
from trainer.evaluation.policies import Contender, baseline, baseline_names, learned, yardsticks
from trainer.shipped import POLICIES, SNAPSHOT_SUFFIX
from trainer.shipped import shipped as shipped_path


def entrants(
    asked: Sequence[str], catalog: Catalog, profile: str, problems: list[str], notes: list[str]
) -> dict[str, Contender]:
    """Returns the policies asked for, or all; the yardsticks always.

    Args:
        asked: names or snapshot files; empty: every policy, and the profile's shipped snapshots.
        catalog: tiers and tasks.
        profile: name of the profile, which shipped snapshots begin with.
        problems: gets what is wrong with what was asked for.
        notes: gets what is wrong with a shipped snapshot nobody asked for.
    """
    every = sorted(shipped_path(POLICIES).glob(f"*{SNAPSHOT_SUFFIX}"))
    shipped = [path for path in every if path.name.startswith(f"{profile}.")]
    names, files = list(baseline_names(catalog)), shipped
    if asked:
        names, files = _sorted_out(asked, profile, shipped, problems)
        names = [*yardsticks(catalog), *names]
    found = _baselines(dict.fromkeys(names), catalog, problems)
    for path in files:
        _add_snapshot(found, path, catalog, problems if asked else notes)
    if not problems and not any(each.kind == "learned" for each in found.values()):
        notes.append("no learned policy was evaluated: give a snapshot with --policy")
    return found


def _sorted_out(
    asked: Sequence[str], profile: str, shipped: Sequence[pathlib.Path], problems: list[str]
) -> tuple[list[str], list[pathlib.Path]]:
    """Returns names and files; a learned policy's name stands for its shipped snapshot."""
    names: list[str] = []
    files: list[pathlib.Path] = []
    for name in asked:
        if name.endswith(SNAPSHOT_SUFFIX):
            files.append(pathlib.Path(name))
        elif name in LEARNED:
            own = [path for path in shipped if _is_of(path, name)]
            files.extend(own)
            if not own:
                problems.append(
                    f"--policy: {name} needs a snapshot and none is shipped for {profile}; "
                    "give its file"
                )
        else:
            names.append(name)
    return names, files


def _is_of(path: pathlib.Path, policy: str) -> bool:
    """Returns whether a shipped snapshot's file name is that of a policy."""
    return (".dqn-paper" in path.name) == (policy == "dqn-paper")


def _baselines(
    names: Sequence[str] | dict[str, None], catalog: Catalog, problems: list[str]
) -> dict[str, Contender]:
    """Returns policies that need no snapshot, in the registry's order, others behind."""
    order = baseline_names(catalog)
    found = {}
    for name in sorted(names, key=lambda name: order.index(name) if name in order else len(order)):
        try:
            found[name] = baseline(name, catalog)
        except (UnknownPolicyError, MissingSnapshotError):
            known = ", ".join(known_policies(catalog.tiers))
            problems.append(
                f"--policy: unknown policy {name!r}; known: {known}, or a *{SNAPSHOT_SUFFIX} file"
            )
        except LookupError as error:  # the endpoint picker after a policy's name
            problems.append(f"--policy: {error}")
    return found


def _add_snapshot(
    found: dict[str, Contender], path: pathlib.Path, catalog: Catalog, problems: list[str]
) -> None:
    try:
        contenders = learned(path.read_bytes(), catalog, str(path))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
        return
    except SnapshotError as error:
        problems.append(str(error))
        return
    if contenders[0].name in found:
        # A second snapshot of the same policy goes by its file's name.
        contenders = [each.renamed(contenders[0].name, path.stem) for each in contenders]
    found |= {each.name: each for each in contenders}
