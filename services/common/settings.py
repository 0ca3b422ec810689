"""Typed, frozen settings: TOML file, environment and command line, all mistakes at once.

Order, later wins: defaults, file, `TIERCEL_<SECTION>__<KEY>` variables, command line. A value that
is wrong is never replaced: `SettingsError` lists every mistake with its origin, and the process
ends with exit code 2.
"""

from __future__ import annotations

import datetime
import difflib
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from router.documents import parse_toml
from router.messages import one_line, shown
from router.types import InvalidFileError
from services.common.addresses import without_password
from services.common.files import read_text

ENVIRONMENT_PREFIX = "TIERCEL_"
SETTINGS_EXIT_CODE = 2
# Sections of the mesh's file. A service reads its own and ignores the other services'.
KNOWN_SECTIONS = frozenset(
    {"mesh", "log", "router_inference", "load_monitor", "trainer", "openai_door"}
)
_SECRET_WORDS = ("secret", "password", "ticket_key")
_URL_WORD = "redis_url"
_LONGEST_TEXT = 4_096
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_BOOLEAN_TYPES = frozenset({"bool_type", "bool_parsing"})

KeyPath = tuple[str | int, ...]


class SettingsError(Exception):
    """The settings hold mistakes; `problems` has one line for each.

    Args:
        problems: Lines of the form `ORIGIN: section.key: problem (got VALUE)`.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake found by a cross check.

    Args:
        path: Key path below the section, e.g. `("endpoints", 0, "tiers")`.
        text: What is wrong, and what would be right.
        got: The offending value.
    """

    path: KeyPath
    text: str
    got: object = None


class SettingsModel(BaseModel):
    """Base of every section: frozen, unknown keys refused, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        str_max_length=_LONGEST_TEXT,
        use_attribute_docstrings=True,
    )

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields mistakes that only show between keys.

        Called with the raw section, so that they are reported together with the mistakes inside
        keys; it must therefore cope with values of any type.
        """
        yield from ()


S = TypeVar("S", bound=SettingsModel)


def _resolve(path: Path, info: ValidationInfo) -> Path:
    """Returns a path made absolute. Its links stay: each reading of the file follows them anew.

    Kubernetes mounts a file as a link, and renews it by changing where that leads. With `..` in a
    path the links of its folders are followed now: what lies above a link is not told otherwise.
    """
    base = (info.context or {}).get("base_dir")
    found = (Path.cwd() if base is None else Path(base)) / path
    try:
        found.resolve()
    except RuntimeError:
        raise ValueError("is a loop of symbolic links") from None
    return found.parent.resolve() / found.name if ".." in path.parts else found


def _resolve_optional(text: str, info: ValidationInfo) -> str:
    return str(_resolve(Path(text), info)) if text else ""


RelativePath = Annotated[Path, AfterValidator(_resolve)]
"""A path relative to the settings file (to the working directory without a file)."""
OptionalRelativePath = Annotated[str, AfterValidator(_resolve_optional)]
"""The same as text; empty means none."""


@dataclass(slots=True)
class _Layers:
    """Merged raw values and where each of them came from."""

    file_name: str
    has_file: bool
    values: dict[str, Any]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def origin(self, path: KeyPath) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.file_name

    def line(self, path: KeyPath, text: str, got: object = None, *, with_got: bool = True) -> str:
        dotted = ".".join(str(part) for part in path)
        tail = f" (got {_shown(path, got)})" if with_got else ""
        return f"{self.origin(path)}: {one_line(dotted)}: {one_line(text)}{tail}"


def load_settings(
    model: type[S],
    *,
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, str] | None = None,
) -> S:
    """Reads, merges and checks settings.

    Args:
        model: The service's root model; its fields are section names.
        path: The TOML file; None means defaults, environment and command line only.
        environ: Environment variables.
        overrides: Command line values as `{"section.key": text}`.

    Returns:
        The checked settings, paths made absolute.

    Raises:
        SettingsError: Any mistake anywhere; all of them are listed.
    """
    layers = _read_file(path)
    base_dir = _base_dir(path, layers.file_name)
    _apply_environment(layers, model, environ)
    for dotted, text in (overrides or {}).items():
        _apply_text(layers, model, tuple(dotted.split(".")), text, "command line")
    own = {name: value for name, value in layers.values.items() if name in model.model_fields}
    problems = list(layers.problems)
    for keys, moment in _moments((), own):
        problems.append(layers.line(keys, "is a date or a time; put a text in quotes", str(moment)))
    for name, section in _sections(model).items():
        # A section that is missing although it is needed is one mistake, not one per rule in it.
        absent = name not in own and model.model_fields[name].is_required()
        raw = own.get(name, {})
        if isinstance(raw, dict) and not absent:
            problems.extend(
                layers.line((name, *found.path), found.text, found.got)
                for found in section.cross_problems(raw, base_dir)
            )
    try:
        # JSON mode is strict about types (true is no number) yet takes lists for tuples.
        settings = model.model_validate_json(
            json.dumps(own, default=str), strict=True, context={"base_dir": base_dir}
        )
    except ValidationError as error:
        problems.extend(_validation_lines(model, layers, error))
        raise SettingsError(_unique(problems)) from None
    if problems:
        raise SettingsError(_unique(problems))
    return settings


def _base_dir(path: Path | None, file_name: str) -> Path:
    """Returns the folder that relative paths count from; a relative one may be gone meanwhile."""
    try:
        return Path.cwd() if path is None else path.absolute().parent
    except OSError:
        problem = "the current folder is gone; name the settings file by its whole path"
        raise SettingsError([f"{file_name}: {problem}"]) from None


def misspelled_variables(model: type[SettingsModel], environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with one underscore where a section ends, each with the right name.

    They are not followed: other programs may have variables of such names too.
    """
    return {
        name: right
        for section, inner in _sections(model).items()
        for key in inner.model_fields
        if (name := f"{ENVIRONMENT_PREFIX}{section}_{key}".upper()) in environ
        and (right := f"{ENVIRONMENT_PREFIX}{section}__{key}".upper())
    }


def exit_with_settings_error(error: SettingsError) -> NoReturn:
    """Prints every mistake on standard error and ends the process with exit code 2."""
    sys.stderr.write("".join(f"{line}\n" for line in error.problems))
    raise SystemExit(SETTINGS_EXIT_CODE)


def _read_file(path: Path | None) -> _Layers:
    if path is None:
        return _Layers(file_name="defaults", has_file=False, values={})
    layers = _Layers(file_name=str(path), has_file=True, values={})
    try:
        layers.values = parse_toml(read_text(path), str(path))
    except OSError as error:
        layers.problems.append(f"{path}: cannot be read: {error.strerror or error}")
    except UnicodeDecodeError:
        layers.problems.append(f"{path}: is not valid UTF-8")
    except InvalidFileError as error:
        layers.problems.extend(f"{path}: {problem}" for problem in error.problems)
    for name in sorted(set(layers.values) - KNOWN_SECTIONS):
        known = ", ".join(sorted(KNOWN_SECTIONS))
        layers.problems.append(
            layers.line((name,), f"unknown section; known: {known}", with_got=False)
        )
    if layers.problems and not layers.values:
        # Nothing could be read: complaints about missing keys would only hide the cause.
        raise SettingsError(layers.problems)
    return layers


def _apply_environment(
    layers: _Layers, model: type[SettingsModel], environ: Mapping[str, str]
) -> None:
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or "__" not in name:
            continue
        keys = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        if keys[0] not in KNOWN_SECTIONS:
            known = ", ".join(sorted(KNOWN_SECTIONS))
            layers.problems.append(f"{name}: {keys[0]}: unknown section; known: {known}")
            continue
        _apply_text(layers, model, keys, environ[name], name)


def _apply_text(
    layers: _Layers, model: type[SettingsModel], keys: tuple[str, ...], text: str, origin: str
) -> None:
    """Puts one textual override into the merged values, typed by the field it meets."""
    if len(keys) < 2 or not all(keys):
        layers.problems.append(f"{origin}: {'.'.join(keys)}: expected section.key")
        return
    if keys[0] not in KNOWN_SECTIONS:
        known = ", ".join(sorted(KNOWN_SECTIONS))
        layers.problems.append(f"{origin}: {keys[0]}: unknown section; known: {known}")
        return
    try:
        f"{'.'.join(keys)}={text}".encode()
    except UnicodeEncodeError:
        layers.problems.append(f"{origin}: {'.'.join(keys)}: is not valid UTF-8 (got {text!r})")
        return
    annotation = _annotation(model, keys)
    if not text and annotation is not None and not _takes_text(annotation):
        return  # a variable without a value counts as not set
    target = layers.values
    for key in keys[:-1]:
        nested = target.setdefault(key, {})
        if not isinstance(nested, dict):
            layers.problems.append(f"{origin}: {'.'.join(keys)}: {key} is not a table")
            return
        target = nested
    target[keys[-1]] = _typed(annotation, text)
    layers.origins[keys] = origin


def _annotation(model: type[SettingsModel], keys: tuple[str, ...]) -> Any:
    """Returns the type of a field; None if there is no such field."""
    annotation: Any = model
    for key in keys:
        fields = getattr(annotation, "model_fields", {})
        if key not in fields:
            return None
        annotation = fields[key].annotation
    return annotation


def _moments(path: KeyPath, value: object) -> Iterator[tuple[KeyPath, object]]:
    """Yields dates and times, which TOML has and no key takes, with their paths."""
    if isinstance(value, datetime.date | datetime.time):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _moments((*path, key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _moments((*path, index), inner)


def _typed(annotation: Any, text: str) -> object:
    """Returns `text` for text fields, else the TOML value it spells (`text` if it is none)."""
    if _takes_text(annotation):
        return text
    if annotation is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        found = parse_toml(f"value = {text}", "value")
    except InvalidFileError:
        return text
    # A text of several lines may hold more than the value.
    return found["value"] if found.keys() == {"value"} else text


def _takes_text(annotation: Any) -> bool:
    if annotation is str or annotation is Path:
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(_takes_text(part) for part in typing.get_args(annotation))
    return False


def _sections(model: type[SettingsModel]) -> dict[str, type[SettingsModel]]:
    found: dict[str, type[SettingsModel]] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, SettingsModel):
            found[name] = info.annotation
    return found


def _validation_lines(
    model: type[SettingsModel], layers: _Layers, error: ValidationError
) -> Iterator[str]:
    entries = error.errors(include_url=False, include_context=False)
    paths = [tuple(entry["loc"]) for entry in entries]
    for entry in entries:
        path: KeyPath = tuple(entry["loc"])
        if any(other[: len(path)] == path and other != path for other in paths):
            continue  # "too few valid items" only repeats what is said about the items
        if entry["type"] == "missing":
            hint = "" if layers.has_file else "; give a settings file with --config"
            yield layers.line(path, f"is missing{hint}", with_got=False)
        elif entry["type"] == "extra_forbidden":
            yield layers.line(path, f"unknown key{_meant(model, path)}", entry["input"])
        elif entry["type"] in _BOOLEAN_TYPES:
            yield layers.line(path, "must be true or false", entry["input"])
        else:
            text = entry["msg"].removeprefix("Value error, ")
            yield layers.line(path, text[:1].lower() + text[1:], entry["input"])


def _meant(model: type[SettingsModel], path: KeyPath) -> str:
    """Returns a hint to the known key that an unknown one is like; empty if there is none."""
    found: Any = model
    for key in path[:-1]:
        if isinstance(key, str):
            known = found.model_fields.get(key)
            found = _model_in(known.annotation) if known else None
        if found is None:
            return ""
    close = difflib.get_close_matches(str(path[-1]), found.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _model_in(annotation: Any) -> Any:
    """Returns the model that a field is, or each of its items; None if they are none."""
    if typing.get_origin(annotation) is None and isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(_model_in, typing.get_args(annotation))), None)


def _shown(path: KeyPath, value: object) -> str:
    if any(word in str(part) for part in path for word in _SECRET_WORDS):
        return "a value that is not shown"
    if _URL_WORD in path and isinstance(value, str):
        return repr(without_password(value))
    return shown(value)


def _unique(lines: list[str]) -> list[str]:
    return list(dict.fromkeys(lines))
