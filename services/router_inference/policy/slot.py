"""The policy in use: made by name or from a snapshot, guarded, swapped between two decisions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from router.catalog import Catalog
from router.dqn.paper_snapshot import PaperSnapshot, load_paper_snapshot
from router.dqn.snapshot import (
    REASON_BASE,
    REASON_CHECKSUM,
    REASON_FORMAT,
    REASON_MALFORMED,
    REASON_NOT_FINITE,
    REASON_POLICY,
    REASON_SCHEMA,
    REASON_SHAPE,
    REASON_TOO_LARGE,
    Snapshot,
    SnapshotError,
    load_snapshot,
)
from router.features import SCHEMA
from router.guard import FallbackReason, Guard
from router.picker import PICKERS, UnknownPickerError
from router.policies.base import PolicyParameterError
from router.policies.table import (
    DQN,
    LEARNED,
    MissingSnapshotError,
    base_name,
    known_policies,
    make_policy,
)
from router.policy import Policy
from router.types import UnknownPolicyError
from services.common.errors import FailedPreconditionError, NotFoundError
from services.common.log import Logger
from services.router_inference.records.metrics import RouterMetrics

REASON_UNKNOWN = "POLICY_UNKNOWN"
REASON_NO_PREVIOUS = "NO_PREVIOUS_POLICY"
REASON_NO_SNAPSHOT = "SNAPSHOT_MISSING"
REASON_PARAMETERS = "POLICY_PARAMETERS_INVALID"
_REFUSALS = (
    REASON_BASE, REASON_CHECKSUM, REASON_FORMAT, REASON_MALFORMED, REASON_NOT_FINITE, REASON_POLICY,
    REASON_SCHEMA, REASON_SHAPE, REASON_TOO_LARGE, REASON_UNKNOWN, REASON_NO_SNAPSHOT,
    REASON_PARAMETERS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Promoted:
    """A policy somebody wants used.

    Attributes:
        name: its name.
        version: its version; empty if unknown.
        snapshot: its weights; empty for policies without one.
        sha256: checksum of the snapshot; empty if none was sent.
        activation: number of the activation.
    """

    name: str
    version: str
    snapshot: bytes
    sha256: bytes
    activation: int


class RefusedPolicyError(Exception):
    """A policy that somebody wants used cannot be; `reason` says why, as a label does."""

    def __init__(self, reason: str, error: Exception) -> None:
        """Keeps the reason and what was wrong."""
        super().__init__(str(error))
        self.reason = reason


class PolicySlot:
    """Holds the guard, makes policies, remembers the newest good snapshot.

    Attributes:
        is_pinned: True from `use` on, until the trainer's next word.
        on_swap: called after every swap, and when settings made the same policy anew.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        parameters: Mapping[str, Mapping[str, float]],
        policy: str,
        fallback: str,
        metrics: RouterMetrics,
        log: Logger,
        snapshot: bytes = b"",
    ) -> None:
        """Starts with a policy by name; a learned one is the fallback until a snapshot comes.

        `snapshot` is the file of the learned policy `policy`, or empty.

        Raises:
            UnknownPolicyError: policy or fallback is not known.
            UnknownPickerError: the endpoint picker after a policy's name is not known.
            PolicyParameterError: a parameter is wrong.
            MissingSnapshotError: the fallback needs a snapshot.
            SnapshotError: the snapshot is refused.
        """
        self._catalog = catalog
        self._parameters = parameters
        self._metrics = metrics
        self._log = log
        self._configured = (policy, snapshot)
        self._snapshots = {base_name(policy): snapshot} if snapshot else {}
        self._present = self._configured
        self._before: tuple[str, bytes] | None = None
        self._replaced: tuple[str, bytes] | None = None
        self.on_swap: Callable[[], None] = _nobody
        self._is_promoted = False
        self.is_pinned = False
        self.activation = 0
        self.refusal = ""
        self.wanted = policy
        self.refused: dict[str, int] = {}
        # Told as 0: nobody sees a count rise that began as 1.
        for reason in _REFUSALS:
            metrics.refused_snapshots.labels(reason=reason)
        for each in FallbackReason:
            metrics.fallbacks.labels(reason=each.value)
        self.known = known_policies(catalog.tiers)
        self.guard = Guard(policy=self._made_of(self._configured), fallback=self._make(fallback))
        self._show()

    @property
    def name(self) -> str:
        """Name of the policy that decides when nothing is wrong."""
        return self.guard.name

    @property
    def version(self) -> str:
        """Its version."""
        return self.guard.version

    @property
    def is_waiting(self) -> bool:
        """True while the fallback decides because the wanted policy has no snapshot yet."""
        return self.guard.name != self.wanted

    def use(self, name: str) -> None:
        """Uses a policy by name from the next decision on.

        Raises:
            NotFoundError: the name is not known.
            FailedPreconditionError: it needs a snapshot and none is here, or its parameters in the
                settings or its snapshot are wrong.
        """
        if base_name(name) not in self.known:
            raise NotFoundError("policy", name[:64], self.known)
        snapshot = self._snapshots.get(base_name(name), b"")
        try:
            with _as_precondition(name):
                policy = self._make(name, snapshot)
        except UnknownPickerError as error:
            raise NotFoundError("endpoint picker", error.name[:64], tuple(PICKERS)) from None
        except MissingSnapshotError:
            raise FailedPreconditionError(
                f"policy {base_name(name)!r} needs a snapshot, and none has reached this router "
                "yet",
                reason=REASON_NO_SNAPSHOT,
            ) from None
        self._before = self._present
        self.is_pinned = True
        self._swap(policy, (name, snapshot))

    def use_previous(self) -> None:
        """Goes back to what was in use before the last `use`; a second time, forth again.

        Raises:
            FailedPreconditionError: nothing was, or by the settings of now it cannot be.
        """
        if self._before is None:
            raise FailedPreconditionError(
                "this router has used no policy but the present one", reason=REASON_NO_PREVIOUS
            )
        before = self._before
        with _as_precondition(before[0]):
            policy = self._made_of(before)
        self._before = self._present
        self.is_pinned = True
        self._swap(policy, before)

    def promote(self, promoted: Promoted) -> bool:
        """Uses what was promoted; returns False, keeping the old policy, if it is refused."""
        try:
            policy = self.made(promoted)
        except RefusedPolicyError as error:
            self._refuse(error.reason, promoted, error)
            return False
        self.activation, self.refusal = promoted.activation, ""
        self._is_promoted, self.is_pinned = True, False
        self._replaced = self._present
        if promoted.snapshot:
            self._snapshots[base_name(promoted.name)] = promoted.snapshot
        self._swap(policy, (promoted.name, promoted.snapshot))
        return True

    def go_back(self, reason: str) -> None:
        """Uses again what the present activation replaced, which counts as refused from now on.

        Args:
            reason: why, as a label says it.
        """
        before, self._replaced = self._replaced, None
        if before is None:
            return
        self.refusal = reason
        try:
            policy = self._made_of(before)
        except (PolicyParameterError, SnapshotError) as error:
            # Settings have changed since. What they name themselves was made when they were taken.
            self._log.warning("policy_not_made_again", policy=before[0], detail=str(error))
            before = self._configured
            policy = self._made_of(before)
        self._swap(policy, before)

    def withdraw(self, activation: int) -> None:
        """Goes back to what the settings say: nothing is promoted any more."""
        self.activation, self.refusal, self._replaced = activation, "", None
        self._is_promoted = self.is_pinned = False
        self._swap(self._made_of(self._configured), self._configured)

    def made(self, promoted: Promoted) -> Policy:
        """Returns the policy somebody wants used, which is not used yet.

        Raises:
            RefusedPolicyError: It cannot be.
        """
        try:
            return self._promoted_policy(promoted)
        except SnapshotError as error:
            raise RefusedPolicyError(error.reason, error) from error
        except MissingSnapshotError as error:
            raise RefusedPolicyError(REASON_NO_SNAPSHOT, error) from error
        except (UnknownPolicyError, UnknownPickerError) as error:
            raise RefusedPolicyError(REASON_UNKNOWN, error) from error
        except PolicyParameterError as error:
            raise RefusedPolicyError(REASON_PARAMETERS, error) from error

    def configure(
        self,
        *,
        catalog: Catalog,
        parameters: Mapping[str, Mapping[str, float]],
        policy: str,
        fallback: str,
        snapshot: bytes,
    ) -> None:
        """Takes other settings. What was promoted stays in use, made anew from them.

        Raises:
            Exception: as the constructor; then nothing has changed.
        """
        before = self._catalog, self._parameters
        configured = (policy, snapshot)
        # By hand or not: a policy of the file that nobody edited is no wish to go back to it.
        stays = self._is_promoted or configured == self._configured
        present = self._present if stays else configured
        self._catalog, self._parameters = catalog, parameters
        try:
            waiting_for = self._made_of(configured)
            made = self._made_of(present) if stays else waiting_for
            new_fallback = self._make(fallback)
        except BaseException:
            self._catalog, self._parameters = before
            raise
        self._configured = configured
        if snapshot and not self._is_promoted:
            self._snapshots[base_name(policy)] = snapshot
        self._swap(made, present, new_fallback)

    def _made_of(self, wanted: tuple[str, bytes]) -> Policy | None:
        """Returns a policy of name and snapshot, None if it is learned and has no snapshot."""
        name, snapshot = wanted
        if base_name(name) not in self.known:
            raise UnknownPolicyError(name, self.known)
        if base_name(name) in LEARNED and not snapshot:
            return None
        return self._make(name, snapshot)

    def _promoted_policy(self, promoted: Promoted) -> Policy:
        if base_name(promoted.name) not in self.known:
            raise UnknownPolicyError(promoted.name[:64], self.known)
        if promoted.snapshot and base_name(promoted.name) not in LEARNED:
            raise SnapshotError(
                REASON_POLICY, f"policy {promoted.name!r} takes no snapshot, and one came with it"
            )
        digest = hashlib.sha256(promoted.snapshot).digest()
        if promoted.snapshot and promoted.sha256 and digest != promoted.sha256:
            raise SnapshotError(REASON_CHECKSUM, "the snapshot was damaged on its way")
        return self._make(promoted.name, promoted.snapshot)

    def _make(self, name: str, blob: bytes = b"") -> Policy:
        """Returns a policy; a learned one is read from its snapshot file `blob`."""
        base = base_name(name)
        snapshot: Snapshot | PaperSnapshot | None = None
        if base in LEARNED and blob:
            if base == DQN:
                snapshot = load_snapshot(blob, SCHEMA)
            else:
                snapshot = load_paper_snapshot(blob, self._catalog)
        return make_policy(name, self._catalog, self._parameters.get(base), snapshot)

    def _swap(
        self, policy: Policy | None, made_of: tuple[str, bytes], fallback: Policy | None = None
    ) -> None:
        """Uses a policy; None is a learned one that waits for its snapshot."""
        self._present = made_of
        self.wanted = made_of[0] if policy is None else policy.name
        # Between two decisions: requests under way keep the decision they have.
        self.guard.replace(policy, fallback)
        self._show()
        self._log.info("policy_in_use", policy=self.name, policy_version=self.version)
        self.on_swap()

    def _refuse(self, reason: str, promoted: Promoted, error: Exception) -> None:
        # Asking for it again would only refuse it again.
        self.activation, self.refusal = promoted.activation, reason
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self._metrics.refused_snapshots.labels(reason=reason).inc()
        self._log.warning(
            "policy_refused",
            reason=reason,
            policy=promoted.name[:64],
            detail=str(error),
            kept=self.guard.name,
        )

    def _show(self) -> None:
        self._metrics.policy_info.clear()
        self._metrics.policy_info.labels(policy=self.name, policy_version=self.version).set(1.0)


def _nobody() -> None:
    """Tells nobody."""


@contextmanager
def _as_precondition(name: str) -> Iterator[None]:
    """Turns what keeps a known policy from being made into an error for who asked for it."""
    try:
        yield
    except PolicyParameterError as error:
        text = f"router_inference.policy_parameters: {error}"
        raise FailedPreconditionError(text, reason=REASON_PARAMETERS) from None
    except SnapshotError as error:
        text = f"policy {base_name(name)!r} cannot be made: {error}"
        raise FailedPreconditionError(text, reason=error.reason) from None
