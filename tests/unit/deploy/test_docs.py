"""Documents agree with the code they describe."""

from __future__ import annotations

import importlib.util
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
from tests.unit.deploy.doc_tables import (
    CONFIGURATION,
    POLICIES,
    SECTIONS,
    SECURITY,
    page_with_tables,
    table,
)
from tests.unit.deploy.manifests import ROOT, load_yaml
from tests.unit.router import fleets

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


@pytest.mark.parametrize("page", [CONFIGURATION, POLICIES, SECURITY], ids=lambda page: page.name)
def test_tables_are_up_to_date(page: Path) -> None:
    """Every setting and policy parameter is in its page, with its default and limits."""
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
    """Every module of the repository that a document runs by `python -m` exists."""
    for page in _PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"python -m ((?:services|tests|trainer)\.[a-z_.]*[a-z_])\b", text):
            if page.name != "CHANGELOG.md":  # which names what was
                assert importlib.util.find_spec(name), f"{page.name}: {name}"


_COMMAND = re.compile(r"(?:^|`|/)tiercel ((?:[a-z][a-z-]* ?)+)([^`\n#]*)", re.MULTILINE)


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_commands_exist(page: Path) -> None:
    """Every `tiercel ...` command and option that a document shows exists."""
    root = typer.main.get_command(make_app())
    for words, rest in _COMMAND.findall(page.read_text(encoding="utf-8")):
        command: Any = root
        for word in words.split():
            if hasattr(command, "commands"):
                command = command.get_command(None, word)
                assert command is not None, f"{page.name}: tiercel {words}"
        options = {name for parameter in command.params for name in parameter.opts}
        is_passed_on = command.context_settings.get("ignore_unknown_options")
        for option in [] if is_passed_on else re.findall(r"--[a-z-]+", rest):
            assert option in options, f"{page.name}: tiercel {words}{rest}"


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
