"""Renders the part of Kustomize that deploy/ uses, where no kubectl is at hand.

Knows `namespace`, `resources` (files and directories), `components`, `configMapGenerator` (files;
create or merge), `images` (newName, newTag) and `patches` by `path` (a strategic merge each; it may
delete its resource). Anything else raises, so that nothing is skipped in silence;
test_kubernetes.py compares its result with the real tool's wherever that is installed.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

_KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "images",
    "patches",
}  # fmt: skip
_CLUSTER_WIDE = {"Namespace"}
# Lists that strategic merge joins by a key instead of replacing them.
_MERGE_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}


class RenderError(ValueError):
    """The kustomization uses something this renderer does not know, or is wrong."""


def render(directory: Path) -> list[Resource]:
    """Returns the resources of a kustomization, ConfigMap names with a content hash appended."""
    return _with_hashed_names(_accumulate(directory, []))


def _accumulate(directory: Path, inherited: list[Resource]) -> list[Resource]:
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text(encoding="utf-8"))
    unknown = kustomization.keys() - _KNOWN
    if unknown:
        raise RenderError(f"{directory}: not known to this renderer: {sorted(unknown)}")
    resources = list(inherited)
    for entry in kustomization.get("resources", []):
        path = (directory / entry).resolve()
        if path.is_dir():
            resources += _accumulate(path, [])
        else:
            if directory.resolve() not in path.parents:
                raise RenderError(f"{directory}: {entry} is not below the kustomization")
            documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
            resources += [document for document in documents if document]
    for generator in kustomization.get("configMapGenerator", []):
        _generate(directory, generator, resources)
    for entry in kustomization.get("components", []):
        resources = _accumulate((directory / entry).resolve(), resources)
    for entry in kustomization.get("patches", []):
        _patch(directory, entry, resources)
    for entry in kustomization.get("images", []):
        _set_image(entry, resources)
    namespace = kustomization.get("namespace")
    for resource in resources if namespace else []:
        if resource["kind"] not in _CLUSTER_WIDE:
            resource["metadata"]["namespace"] = namespace
    return resources


def _generate(directory: Path, generator: dict[str, Any], resources: list[Resource]) -> None:
    if generator.keys() - {"name", "files", "behavior"}:
        raise RenderError(f"{directory}: configMapGenerator: {sorted(generator)}")
    data: dict[str, str] = {}
    for entry in generator["files"]:
        key, _, source = entry.rpartition("=")
        path = directory / source
        data[key or path.name] = path.read_text(encoding="utf-8")
    if generator.get("behavior") == "merge":
        _find(resources, "ConfigMap", generator["name"])["data"].update(data)
        return
    config_map = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]},
        "data": data,
    }  # fmt: skip
    resources.append(config_map)


def _patch(directory: Path, entry: dict[str, Any], resources: list[Resource]) -> None:
    if entry.keys() != {"path"}:
        raise RenderError(f"{directory}: patches: only `path` is known, got {sorted(entry)}")
    text = (directory / entry["path"]).read_text(encoding="utf-8")
    documents = list(yaml.safe_load_all(text))
    if len(documents) != 1:
        raise RenderError(
            f"{directory}: {entry['path']}: kubectl before 1.31 takes one patch per file"
        )
    (patch,) = documents
    target = _find(resources, patch["kind"], patch["metadata"]["name"])
    directive = patch.pop("$patch", "merge")
    if directive == "delete":
        resources.remove(target)
    elif directive == "merge":
        _merge(target, patch)
    else:
        raise RenderError(f"{directory}: $patch: only `delete` is known, got {directive!r}")


def _find(resources: list[Resource], kind: str, name: str) -> Resource:
    for resource in resources:
        if (resource["kind"], resource["metadata"]["name"]) == (kind, name):
            return resource
    raise RenderError(f"no {kind} {name}")


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Merges `patch` into `target`: null removes, mappings merge, keyed lists join."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif key in _MERGE_KEYS and isinstance(target.get(key), list):
            target[key] = _merge_list(target[key], value, _MERGE_KEYS[key])
        else:
            target[key] = copy.deepcopy(value)


def _merge_list(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    merged = list(target)
    for item in patch:
        for present in merged:
            if present.get(key) == item.get(key):
                _merge(present, item)
                break
        else:
            merged.append(copy.deepcopy(item))
    return merged


def _set_image(entry: dict[str, str], resources: list[Resource]) -> None:
    for resource in resources:
        pod = resource.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", []):
            name, _, tag = container["image"].partition(":")
            if name == entry["name"]:
                name = entry.get("newName", name)
                tag = entry.get("newTag", tag)
                container["image"] = f"{name}:{tag}" if tag else name


def _with_hashed_names(resources: list[Resource]) -> list[Resource]:
    names = {
        resource["metadata"]["name"]: _hashed(resource)
        for resource in resources
        if resource["kind"] == "ConfigMap"
    }
    for resource in resources:
        if resource["kind"] == "ConfigMap":
            resource["metadata"]["name"] = names[resource["metadata"]["name"]]
        pod = resource.get("spec", {}).get("template", {}).get("spec", {})
        for volume in pod.get("volumes", []):
            source = volume.get("configMap", {})
            if source.get("name") in names:
                source["name"] = names[source["name"]]
    return resources


def _hashed(resource: Resource) -> str:
    content = json.dumps(resource["data"], sort_keys=True).encode()
    return f"{resource['metadata']['name']}-{hashlib.sha256(content).hexdigest()[:10]}"
