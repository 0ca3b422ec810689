"""Writes the tables of docs/commands.md, configuration.md, metrics.md, policies.md, security.md.

And the Prometheus Operator's copy of the alert rules. Run `python -m tests.unit.deploy.doc_tables`;
test_docs.py and test_telemetry.py compare.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from router.policies.base import Parameter
from router.policies.table import BY_NAME, KNOWN_POLICIES
from services.common.access.access import AccessSettings
from services.common.access.roles import ROLE_OF, Role
from services.common.access.tls import TlsSettings
from services.common.log import LogSettings
from services.common.mesh_settings import EndpointSettings, MeshSettings, TaskSettings
from services.load_monitor.settings import LoadMonitorSettings
from services.openai_door.settings import ChatTemplateSettings, OpenAiDoorSettings
from services.router_inference.settings import ClientSettings, RouterInferenceSettings
from services.trainer.settings import TrainerSettings
from tests.unit.deploy.doc_commands import commands_text
from tests.unit.deploy.manifests import ALL_SERVICES, DEPLOY, ROOT, load_yaml

COMMANDS = ROOT / "docs" / "commands.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
METRICS = ROOT / "docs" / "metrics.md"
SECURITY = ROOT / "docs" / "security.md"
POLICIES = ROOT / "docs" / "policies.md"
OPERATOR_RULES = DEPLOY / "kubernetes" / "prometheus-operator" / "rules.yaml"
_OPERATOR_HEAD = """\
# Written from deploy/prometheus/rules.yaml, which is the one to change, by
# `python -m tests.unit.deploy.doc_tables`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tiercel
  labels: {app.kubernetes.io/part-of: tiercel}
spec:
  groups:
"""
PAGES = (COMMANDS, CONFIGURATION, METRICS, POLICIES, SECURITY)
"""Pages with tables that are written here."""
SECTIONS: dict[str, type[BaseModel]] = {
    "mesh": MeshSettings,
    "mesh.access": AccessSettings,
    "mesh.tls": TlsSettings,
    "mesh.tasks": TaskSettings,
    "mesh.endpoints": EndpointSettings,
    "router_inference": RouterInferenceSettings,
    "router_inference.clients": ClientSettings,
    "load_monitor": LoadMonitorSettings,
    "trainer": TrainerSettings,
    "openai_door": OpenAiDoorSettings,
    "openai_door.own_template": ChatTemplateSettings,
    "log": LogSettings,
}
_SIGNS = ((Gt, "gt", ">"), (Ge, "ge", ">="), (Lt, "lt", "<"), (Le, "le", "<="))


def table(model: type[BaseModel]) -> str:
    """Returns a Markdown table of a section's keys: default, limits, meaning."""
    lines = ["| key | default | limits | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {_default(field)} | {_limits(field)} | {meaning} |")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if value is PydanticUndefined and field.default_factory is not None:
        value = field.default_factory()  # type: ignore[call-arg]
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        return "see there"
    if value in ("", (), {}):
        return "empty"
    if isinstance(value, dict | list | tuple):
        return f"`{_toml(value)}`"
    # A line end would end the row.
    return "`{}`".format(str(value).replace("\n", "\\n"))


def _toml(value: Any) -> str:
    """Returns a value as the settings file has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _limits(field: FieldInfo) -> str:
    found = []
    if typing.get_origin(field.annotation) is typing.Literal:
        found.append(", ".join(f"`{choice}`" for choice in typing.get_args(field.annotation)))
    for constraint in field.metadata:
        for kind, attribute, sign in _SIGNS:
            if isinstance(constraint, kind):
                found.append(f"{sign} {_number(getattr(constraint, attribute))}")
        if isinstance(constraint, MinLen):
            found.append(f"length >= {constraint.min_length}")
        if isinstance(constraint, MaxLen):
            found.append(f"length <= {constraint.max_length}")
        if pattern := getattr(constraint, "pattern", None):
            found.append(f"`{pattern.removeprefix('^').removesuffix('$')}`")
    return ", ".join(found)


def _number(limit: float) -> str:
    """Returns a limit as a settings file may have it, to its last digit."""
    return f"{limit:g}" if limit != int(limit) else str(int(limit))


def parameter_table(parameters: tuple[Parameter, ...]) -> str:
    """Returns a Markdown table of a policy's parameters."""
    if not parameters:
        return "No parameters."
    lines = ["| parameter | default | from | to | meaning |", "|---|---|---|---|---|"]
    for entry in parameters:
        numbers = " | ".join(f"{value:g}" for value in (entry.default, entry.low, entry.high))
        lines.append(f"| `{entry.name}` | {numbers} | {entry.meaning} |")
    return "\n".join(lines)


def metric_table(service: str) -> str:
    """Returns a Markdown table of the metrics of a service, as the registry has them."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for row in load_yaml(DEPLOY / "telemetry" / "registry.yaml")["metrics"]:
        if service in row["services"]:
            unit = {"1": "", "requests_per_second": "requests/s"}.get(row["unit"], row["unit"])
            kind = ", ".join(filter(None, (row["type"], unit)))
            labels = ", ".join(f"`{label}`" for label in row["labels"])
            meaning = row["description"].replace("|", "\\|")
            lines.append(f"| `{row['name']}` | {kind} | {labels} | {meaning} |")
    return "\n".join(lines)


def role_table() -> str:
    """Returns a Markdown table of what each role may call."""
    lines = ["| role | for | methods |", "|---|---|---|"]
    meanings = _docstrings(Role)
    for role in Role:
        methods = [name.rpartition(".")[2] for name, needed in ROLE_OF.items() if needed is role]
        listed = ", ".join(f"`{each.replace('/', '.')}`" for each in methods)
        lines.append(f"| {role} | {meanings[role.name]} | {listed} |")
    return "\n".join(lines)


def _docstrings(kind: type) -> dict[str, str]:
    """Returns the text under each member of a class."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for member, text in pairwise(body.body):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr):
            (name,) = member.targets
            found[ast.unparse(name)] = " ".join(ast.literal_eval(text.value).split())
    return found


def tables(page: Path) -> dict[str, str]:
    """Returns the tables of a page by the name in its markers."""
    if page == CONFIGURATION:
        return {name: table(model) for name, model in SECTIONS.items()}
    if page == SECURITY:
        return {"roles": role_table()}
    if page == COMMANDS:
        return {"commands": commands_text()}
    if page == METRICS:
        return {service: metric_table(service) for service in ALL_SERVICES}
    return {name: parameter_table(BY_NAME[name].parameters) for name in KNOWN_POLICIES}


def page_with_tables(page: Path) -> str:
    """Returns the page's text with its tables brought up to date.

    Raises:
        ValueError: The markers of a table are missing.
    """
    text = page.read_text(encoding="utf-8")
    for name, content in tables(page).items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        if not tail:
            raise ValueError(f"{page}: markers of {name} are missing")
        text = f"{head}{begin}\n{content}\n\n{end}{tail}"
    return text


def operator_rules() -> str:
    """Returns deploy/prometheus/rules.yaml as the Prometheus Operator takes it."""
    text = (DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8")
    groups = text.partition("\ngroups:\n")[2]
    body = "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(True))
    return f"{_OPERATOR_HEAD}{body}"


if __name__ == "__main__":
    OPERATOR_RULES.write_text(operator_rules(), encoding="utf-8")
    for document in PAGES:
        document.write_text(page_with_tables(document), encoding="utf-8")
        sys.stdout.write(f"{document.relative_to(ROOT)} is up to date\n")
