"""What the KServe door says of the router and its models when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from tritonclient.grpc import model_config_pb2 as config_pb
from tritonclient.grpc import service_pb2 as kserve

from services.common.tiers.model import ROUTER_BACKEND
from services.router_inference.doors.kserve import tensors
from services.router_inference.doors.kserve.models import ROUTER, VERSION, Model, Models

EXTENSIONS = ("model_configuration", "parameters", "statistics")
"""Extensions of the protocol that are served."""
_CONFIG_TYPES = {
    "BYTES": config_pb.TYPE_STRING,
    "BOOL": config_pb.TYPE_BOOL,
    "UINT32": config_pb.TYPE_UINT32,
}


def server_metadata() -> kserve.ServerMetadataResponse:
    """Returns name, version and extensions."""
    version = metadata.version("tiercel")
    return kserve.ServerMetadataResponse(name=ROUTER, version=version, extensions=EXTENSIONS)


def model_metadata(model: Model) -> kserve.ModelMetadataResponse:
    """Returns a model's inputs and outputs."""
    found = kserve.ModelMetadataResponse(name=model.name, versions=[VERSION], platform=ROUTER)
    for name, datatype in tensors.INPUTS.items():
        found.inputs.add(name=name, datatype=datatype, shape=[1])
    for output in tensors.OUTPUTS:
        found.outputs.add(name=output.name, datatype=output.datatype, shape=[-1])
    return found


def model_config(
    model: Model, tasks: Sequence[str], default_task: str
) -> kserve.ModelConfigResponse:
    """Returns a model's configuration, with the tasks that its requests can be of."""
    found = kserve.ModelConfigResponse()
    config = found.config
    config.name, config.backend = model.name, ROUTER_BACKEND
    config.version_policy.latest.num_versions = 1
    config.model_transaction_policy.decoupled = model.is_decoupled
    for name, datatype in tensors.INPUTS.items():
        is_optional = name != tensors.PROMPT
        config.input.add(
            name=name, data_type=_CONFIG_TYPES[datatype], dims=[1], optional=is_optional
        )
    for output in tensors.OUTPUTS:
        config.output.add(name=output.name, data_type=_CONFIG_TYPES[output.datatype], dims=[-1])
    said = {"tier": model.tier, "tasks": ",".join(tasks), "default_task": default_task}
    for key, text in said.items():
        config.parameters[f"tiercel_{key}"].string_value = text
    return found


def repository_index(
    models: Models, ready: set[str], *, only_ready: bool
) -> kserve.RepositoryIndexResponse:
    """Returns the models, and which of them can answer."""
    found = kserve.RepositoryIndexResponse()
    for model in models:
        if model.name in ready:
            found.models.add(name=model.name, version=VERSION, state="READY")
        elif not only_ready:
            found.models.add(
                name=model.name,
                version=VERSION,
                state="UNAVAILABLE",
                reason="no endpoint of the tier is usable",
            )
    return found
