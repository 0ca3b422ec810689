"""Documents agree with the code they describe."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from router.ledger import LoadArrays
from router.policies.table import KNOWN_POLICIES
from services.cli.app import make_app
from services.common.http_host import REASON_HOST
from services.common.openai.wishes import METADATA_PREFIX, Wishes
from services.common.tiers.errors import BAD_ANSWER
from services.local.target import PART_VARIABLES
from services.router_inference import health_notes
from services.router_inference.job import Outcome, StepDown
from tests.unit.deploy.doc_commands import commands_text
from tests.unit.deploy.doc_tables import (
    PAGES,
    SECTIONS,
    page_with_tables,
    table,
)
from tests.unit.deploy.manifests import DEPLOY, ROOT, load_yaml
from tests.unit.router import fleets
from tiercel import AsyncClient, GenerateOptions

_PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        ROOT / "services/client/README.md",
        ROOT / "tests/README.md",
        ROOT / "trainer/research/diary.md",
    ]
)

_TOLD = [
    page
    for page in _PAGES
    if page.name not in ("CHANGELOG.md", "diary.md") and "results" not in page.parts
]
"""Pages that say what is, and not what was."""
GLOSSARY = ROOT / "docs" / "glossary.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_up_to_date(page: Path) -> None:
    """Every command, setting, metric and policy parameter is in its page, with its limits."""
    text = page.read_text(encoding="utf-8")
    assert page_with_tables(page) == text, "run: python -m tests.unit.deploy.doc_tables"


@pytest.mark.parametrize("name", SECTIONS)
def test_every_setting_is_one_row(name: str) -> None:
    """Whatever its default holds, a line end among it."""
    model = SECTIONS[name]
    rows = table(model).splitlines()
    assert len(rows) == 2 + len(model.model_fields)
    assert all(row.startswith("| ") and row.endswith(" |") for row in (rows[0], *rows[2:]))


def test_every_policy_is_described() -> None:
    """docs/policies.md has a section for every known policy."""
    text = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    names = [heading.replace("&lt;", "<").replace("&gt;", ">") for heading in headings]
    assert names == list(KNOWN_POLICIES)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    """Every relative link names a file of the repository, every anchor a heading of it."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(path), f"{page.name}: {target}"


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_says_whom_it_is_for() -> None:
    """The first sentence of every page but the front page and the decisions names its readers."""
    for page in _PAGES:
        if page != ROOT / "README.md" and page.parent.name != "adr":
            first = page.read_text(encoding="utf-8").split("\n\n")[1]
            assert first.startswith("For "), page.name


def test_named_files_exist() -> None:
    """Every repository path that a document names in code style exists."""
    for page in _PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(
            r"`((?:deploy|docs|protos|router|services|tests|trainer)/[\w./-]+)`", text
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_named_modules_exist() -> None:
    """Every module that a document runs by `python -m` exists, and so do the options it gives."""
    command = re.compile(
        r"python -m ((?:services|tests|trainer)\.[a-z_.]*[a-z_])\b((?:\\\n|[^`|\n])*)"
    )
    for page in _PAGES:
        if page.name == "CHANGELOG.md":  # which names what was
            continue
        for name, rest in command.findall(page.read_text(encoding="utf-8")):
            assert importlib.util.find_spec(name), f"{page.name}: {name}"
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", rest):
                assert _options(name).fullmatch(option), f"{page.name}: {name} {option}"


@functools.cache
def _options(module: str) -> re.Pattern[str]:
    """Returns what matches the options of a module's folder, and of the one above it."""
    path = ROOT / module.replace(".", "/")
    found = {"--help"}
    for file in (*path.glob("*.py"), *path.parent.glob("*.py")):
        found.update(re.findall(r'"(--[a-z_{}-]+)"', file.read_text(encoding="utf-8")))
    return re.compile("|".join(re.sub(r"\{\w+\}", "[a-z-]+", each) for each in sorted(found)))


_COMMAND = re.compile(
    r"(?:^|^# +|`|/|\$\(|\bif )tiercel ((?:[a-z][a-z-]* ?)+)([^`\n#]*)", re.MULTILINE
)
_SHOWING = [
    *_PAGES,
    *sorted(path for path in (ROOT / "examples").iterdir() if path.is_file()),
    *sorted(DEPLOY.rglob("*.yaml")),
]


@pytest.mark.parametrize("page", _SHOWING, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_commands_exist(page: Path) -> None:
    """Every `tiercel ...` command and option that a document or an example shows exists."""
    root = typer.main.get_command(make_app())
    for words, rest in _COMMAND.findall(page.read_text(encoding="utf-8")):
        command: Any = root
        for word in words.split():
            if hasattr(command, "commands"):
                command = command.get_command(None, word)
                assert command is not None, f"{page.name}: tiercel {words}"
        options = {
            name
            for parameter in command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        is_passed_on = command.context_settings.get("ignore_unknown_options")
        for option in [] if is_passed_on else re.findall(r"--[a-z-]+", rest):
            assert option in options, f"{page.name}: tiercel {words}{rest}"


def test_every_page_is_in_the_index() -> None:
    """Who reads docs/index.md finds every page beside it."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_the_tree_names_every_room() -> None:
    """docs/architecture.md says what each folder of services and trainer holds."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## The tree\n")[2].partition("\n## ")[0]
    for part in ("services", "trainer"):
        for path in (ROOT / part).glob("*/__init__.py"):
            assert re.search(rf"[/`]{path.parent.name}`", section), path.parent


def test_the_glossary_is_in_order() -> None:
    """A word is found where the alphabet has it, and is there once."""
    rows = re.findall(r"^\| ([^|]+) \|", GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows[0] == "term"
    assert [each.upper() for each in rows[1:]] == sorted({each.upper() for each in rows[1:]})


_NAMES = re.compile(r"\btiercel_[a-z0-9_]+")


@pytest.mark.parametrize("page", _TOLD, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_metrics_and_parameters_exist(page: Path) -> None:
    """Every `tiercel_...` of a page is a metric as PromQL reads it, or a name at a door."""
    metrics = {row["name"] for row in load_yaml(DEPLOY / "telemetry/registry.yaml")["metrics"]}
    for name in set(_NAMES.findall(page.read_text(encoding="utf-8"))):
        assert name in metrics or f"{name}_total" not in metrics, f"{page.name}: {name}"
        assert name in metrics | _names_at_doors(), f"{page.name}: {name}"


@functools.cache
def _names_at_doors() -> frozenset[str]:
    """Parameters, metadata and settings of models that begin like a metric."""
    texts = "".join(
        path.read_text(encoding="utf-8")
        for folder in (
            "services/router_inference/doors",
            "services/calibrate",
            "services/common/tiers",
        )
        for path in (ROOT / folder).rglob("*.py")
    )
    wishes = {METADATA_PREFIX + each.name for each in dataclasses.fields(Wishes)}
    parts = {f"tiercel_{part}_us" for part in ("queue", "prefill", "decode", "hop")}
    return frozenset({*_NAMES.findall(texts), *wishes, *parts})


_SETTING = re.compile(
    r"`((?:mesh|router_inference|load_monitor|trainer|openai_door|log)\.[a-z_.]+)"
)


@pytest.mark.parametrize("page", _TOLD, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_settings_exist(page: Path) -> None:
    """Every `section.key` of a page is a setting, but where it is a file or a module."""
    keys = {f"{name}.{key}" for name, model in SECTIONS.items() for key in model.model_fields}
    for name in set(_SETTING.findall(page.read_text(encoding="utf-8"))) - {"mesh.json"}:
        is_module = (ROOT / Path(*name.split(".")[:2])).exists()
        assert name in keys or is_module or page.parent.name == "adr", f"{page.name}: {name}"


def test_every_reason_to_be_degraded_is_told() -> None:
    """docs/operations.md has a row for each, and for none that is not there."""
    reasons = {name for name, value in vars(health_notes).items() if name == value}
    assert len(reasons) > 5
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition("### What degraded means\n")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| `([A-Z_]+)`", section, flags=re.MULTILINE)) == reasons


@pytest.mark.parametrize(
    ("page", "heading", "words"),
    [
        ("operations.md", "### How a request ends", set(Outcome) - {Outcome.INVALID}),
        ("doors.md", "## Why a smaller tier answered", set(StepDown) - {StepDown.NONE}),
    ],
)
def test_every_word_of_an_answer_is_told(page: str, heading: str, words: set[enum.Enum]) -> None:
    """How it ended, and why a smaller tier gave it."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = text.partition(f"{heading}\n")[2].partition("\n#")[0]
    told = re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)
    assert sorted(told) == sorted(str(each.value) for each in words)


def test_every_reason_to_leave_a_candidate_alone_is_told() -> None:
    """docs/operations.md says what each means that `tiercel status` shows of an endpoint."""
    raised = re.compile(r'(?:TierUnavailableError|on_failure)\([^")]*"([A-Z_]+)"')
    files = [path for part in ("common", "router_inference") for path in _files(part)]
    found = {r for path in files for r in raised.findall(path.read_text(encoding="utf-8"))}
    found -= {"CANCELLED"}  # by the router itself
    assert len(found) >= 5
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition("### Why a candidate is not used\n")[2].partition("\n### ")[0]
    assert found | {BAD_ANSWER} <= set(re.findall(r"`([A-Z_]+)`", section))


def _files(service: str) -> list[Path]:
    return sorted((ROOT / "services" / service).rglob("*.py"))


def test_every_reason_of_an_error_is_told() -> None:
    """docs/doors.md says what each means that a request can end with."""
    router = ROOT / "services" / "router_inference"
    files = [*(router / "path").rglob("*.py"), *(router / "doors").rglob("*.py")]
    found = {
        reason
        for path in files
        for reason in re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', path.read_text(encoding="utf-8"))
    }
    # Why a candidate is left alone, which no caller is told.
    found -= {"TIER_FAILED", "RETRIED_BY_GATEWAY"}
    assert len(found) > 15
    text = (ROOT / "docs" / "doors.md").read_text(encoding="utf-8")
    section = text.partition("## What an error says\n")[2].partition("\n## ")[0]
    assert found <= set(re.findall(r"`([A-Z_]+)`", section))


def test_every_code_of_the_openai_door_is_told() -> None:
    """docs/doors.md says what each means that the door gives by itself, and of no other."""
    texts = [path.read_text(encoding="utf-8") for path in _files("openai_door")]
    found = {REASON_HOST, "NOT_FOUND", "METHOD_NOT_ALLOWED", "NO_ROUTER", "NO_ANSWER"}
    for text in texts:
        found.update(re.findall(r'HttpError\(\s*\d+, "([A-Z_]+)"', text))
    assert len(found) > 10
    text = (ROOT / "docs" / "doors.md").read_text(encoding="utf-8")
    section = text.partition("### Codes of this door\n")[2].partition("\n### ")[0]
    told = re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|([^|]+)\|", section, re.MULTILINE)))
    assert sorted(told) == sorted({each.lower() for each in found} | {"code"})


def test_every_reason_of_the_other_services_is_told() -> None:
    """docs/operations.md says what each means that a call to load monitor or trainer ends with."""
    texts = [p.read_text(encoding="utf-8") for p in (*_files("trainer"), *_files("load_monitor"))]
    texts += [
        (ROOT / "services" / "common" / f"{name}.py").read_text(encoding="utf-8")
        for name in ("running_calls", "health")
    ]
    found = {word for text in texts for word in re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', text)}
    for error, ending in (("NotFoundError", "NOT_FOUND"), ("AlreadyExistsError", "ALREADY_EXISTS")):
        named = re.compile(rf'raise {error}\(\s*"([a-z ]+)"')
        kinds = {kind for text in texts for kind in named.findall(text)}
        found |= {f"{kind.upper().replace(' ', '_')}_{ending}" for kind in kinds}
    found -= {"REDIS_UNREACHABLE"}  # why a monitor is degraded
    assert len(found) > 30
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.partition("### Why a call to load monitor or trainer fails\n")[2]
    section = section.partition("\n### ")[0]
    assert found <= set(re.findall(r"`([A-Z_]+)`", section))


def test_variables_that_are_no_settings_are_told() -> None:
    """docs/configuration.md has each that the code or a Compose file reads, and no other."""
    files = [
        *(path for part in ("router", "services") for path in (ROOT / part).rglob("*.py")),
        *DEPLOY.glob("compose*.yaml"),
    ]
    variable = re.compile(r"\bTIERCEL_[A-Z]+(?:_[A-Z]+)*\b")
    read = {*PART_VARIABLES.values()}
    for path in files:
        read.update(variable.findall(path.read_text(encoding="utf-8")))
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = text.partition("## Variables that are no settings\n")[2].partition("\n## ")[0]
    assert set(variable.findall(section)) == read


def test_an_option_has_one_default() -> None:
    """Where a help text names the default, typer adds no other from what stands for it inside."""
    for line in commands_text().splitlines():
        assert line.count("[default: ") <= 1, line


def test_every_option_of_the_client_is_told() -> None:
    """Whoever installs the client from its wheel has its README, and not this documentation."""
    text = (ROOT / "services" / "client" / "README.md").read_text(encoding="utf-8")
    names = {*inspect.signature(AsyncClient).parameters, *GenerateOptions.__annotations__}
    for name in (names - {"addresses"}) | {"prompt_token_count"}:
        assert f"`{name}`" in text, name


def test_pre_commit_runs_the_projects_own_tools() -> None:
    """Every hook's program is in the project's environment."""
    hooks = load_yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    programs = {hook["entry"].split()[0] for hook in hooks} - {"bash"}
    assert programs
    for program in programs:
        assert program.startswith(".venv/bin/")
        assert Path(sys.executable).with_name(Path(program).name).is_file()


def test_the_rule_of_the_page_on_policies_decides() -> None:
    """The kernel that docs/add-a-policy.md shows prefers quality in calm and speed under load."""
    text = (ROOT / "docs" / "add-a-policy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(next(block for block in blocks if "def score" in block), scope)
    params_P = np.array([each.default for each in scope["PARAMETERS"]])
    arrays = fleets.fleet().arrays
    chosen = []
    for in_flight in (0.0, 300.0):
        count_C = np.full(len(arrays.tier_C), in_flight)
        load = LoadArrays(count_C, 0.0 * count_C, 8.0 * count_C)
        scores_C = fleets.compute_scores(
            scope["score"], arrays, load, np.ones(len(count_C), bool), fleets.QUERY, params_P
        )
        chosen.append(int(arrays.tier_C[int(np.argmax(scores_C))]))
    assert chosen[0] > chosen[1]
