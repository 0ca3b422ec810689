"""Who may call what: one table. A method without a row is for nobody."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

_ROUTER = "tiercel.router_inference.v1.RouterInferenceService"
_MONITOR = "tiercel.load_monitor.v1.LoadMonitorService"
_KSERVE = "inference.GRPCInferenceService"
_TRAINER = "tiercel.trainer.v1.TrainerService"
_ENVOY = "envoy.service.ext_proc.v3.ExternalProcessor"


class Role(StrEnum):
    """What a caller is allowed."""

    ANYONE = "anyone"
    """Needs no authentication: whoever reaches the port."""
    CALLER = "caller"
    """Needs an identity, with whichever role."""
    DATA = "data"
    """Has requests answered or routed."""
    GATEWAY = "gateway"
    """A gateway: asks where requests go, and tells whose they are and how they went."""
    REPORT = "report"
    """A router: reports its traffic, follows the mesh's state and policies."""
    OPERATE = "operate"
    """Changes the mesh: policies, endpoints, targets, training."""
    READ = "read"
    """Looks at the mesh; sees names and numbers, never prompts."""


GRANTED = (Role.DATA, Role.GATEWAY, Role.REPORT, Role.OPERATE, Role.READ)
"""Roles that a key or a certificate can have."""

ROLE_OF: Mapping[str, Role] = {
    f"{_ROUTER}/Generate": Role.DATA,
    f"{_ROUTER}/GenerateStream": Role.DATA,
    f"{_ROUTER}/Route": Role.DATA,
    f"{_ROUTER}/ReportOutcome": Role.DATA,
    f"{_ROUTER}/GetRouterStatus": Role.READ,
    f"{_ROUTER}/ExplainDecision": Role.READ,
    f"{_ROUTER}/UsePolicy": Role.OPERATE,
    # Who asks here names the client, and is believed about endpoints.
    f"{_ENVOY}/Process": Role.GATEWAY,
    # Triton's clients ask for these before they ask for answers; probes ask for the first two.
    f"{_KSERVE}/ServerLive": Role.ANYONE,
    f"{_KSERVE}/ServerReady": Role.ANYONE,
    f"{_KSERVE}/ModelReady": Role.CALLER,
    f"{_KSERVE}/ServerMetadata": Role.CALLER,
    f"{_KSERVE}/ModelMetadata": Role.CALLER,
    f"{_KSERVE}/ModelConfig": Role.CALLER,
    f"{_KSERVE}/RepositoryIndex": Role.CALLER,
    f"{_KSERVE}/ModelStatistics": Role.READ,
    f"{_KSERVE}/ModelInfer": Role.DATA,
    f"{_KSERVE}/ModelStreamInfer": Role.DATA,
    # Not served, for the reason that they tell.
    **dict.fromkeys(
        (
            f"{_KSERVE}/{each}"
            for each in (
                "RepositoryModelLoad",
                "RepositoryModelUnload",
                "SystemSharedMemoryStatus",
                "SystemSharedMemoryRegister",
                "SystemSharedMemoryUnregister",
                "CudaSharedMemoryStatus",
                "CudaSharedMemoryRegister",
                "CudaSharedMemoryUnregister",
                "TraceSetting",
                "LogSettings",
            )
        ),
        Role.CALLER,
    ),
    f"{_MONITOR}/ReportTraffic": Role.REPORT,
    f"{_MONITOR}/WatchSystemState": Role.REPORT,
    f"{_MONITOR}/GetSystemState": Role.READ,
    f"{_MONITOR}/ListMinutes": Role.READ,
    f"{_MONITOR}/AddEndpoint": Role.OPERATE,
    f"{_MONITOR}/RemoveEndpoint": Role.OPERATE,
    f"{_MONITOR}/SetTarget": Role.OPERATE,
    f"{_TRAINER}/WatchPolicies": Role.REPORT,
    f"{_TRAINER}/WatchTrial": Role.REPORT,
    f"{_TRAINER}/ListPolicies": Role.READ,
    f"{_TRAINER}/GetPolicy": Role.READ,
    f"{_TRAINER}/GetTraining": Role.READ,
    f"{_TRAINER}/WatchTraining": Role.READ,
    f"{_TRAINER}/StartTraining": Role.OPERATE,
    f"{_TRAINER}/DropReplay": Role.OPERATE,
    f"{_TRAINER}/PublishPolicy": Role.OPERATE,
    f"{_TRAINER}/PromotePolicy": Role.OPERATE,
    f"{_TRAINER}/PauseRollout": Role.OPERATE,
    f"{_TRAINER}/RollbackPolicy": Role.OPERATE,
    # Balancers and probes ask for health without an identity.
    "grpc.health.v1.Health/Check": Role.ANYONE,
    "grpc.health.v1.Health/Watch": Role.ANYONE,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.READ,
}
"""The role that each method needs, by `package.Service/Method`."""
