"""The Kubernetes manifests: schema, probes, ports, drain times, access."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from services.local.backends import redis_command
from services.local.certificates import PODS
from services.local.triton.server import __main__ as launcher
from services.local.triton.server.config import arguments
from tests.unit.deploy import kustomize
from tests.unit.deploy.gateway_schemas import HTTP_ROUTE, INFERENCE_POOL
from tests.unit.deploy.manifests import (
    ALL_SERVICES,
    CONFIG_IN_IMAGE,
    DEPLOY,
    DOORS,
    GATEWAY,
    INSECURE,
    KEDA,
    OVERLAYS,
    SERVICES,
    pod,
    port,
    rendered,
    resource,
    tool,
)

_ROOM_S = 5.0
_HEALTH_PROBE = "services.common.health_probe"


@pytest.fixture(scope="module", params=OVERLAYS)
def resources(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The resources of the base, then those of each overlay."""
    return rendered(request.param)


def _settings(resources: list[dict[str, Any]]) -> dict[str, Any]:
    return tomllib.loads(resource(resources, "ConfigMap", "tiercel-config")["data"]["tiercel.toml"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_pass_the_strict_schema(overlay: str, tmp_path: Path) -> None:
    """Every rendered resource is valid for the Kubernetes API, without unknown keys."""
    document = tmp_path / "rendered.yaml"
    # Kubernetes has no schema of the kinds of cert-manager, KEDA and the Gateway API.
    foreign = (
        *("cert-manager.io/", "keda.sh/"),
        *("gateway.networking.k8s.io/", "inference.networking.k8s.io/"),
    )
    known = [each for each in rendered(overlay) if not each["apiVersion"].startswith(foreign)]
    document.write_text(yaml.safe_dump_all(known), encoding="utf-8")
    done = _validated(document)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("passed") == len(known)


def _validated(document: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("kubernetes-validate")),
        "--strict",
        str(document),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_schema_check_refuses_an_unknown_key(tmp_path: Path) -> None:
    """The schema check of the test above can fail."""
    deployment = resource(rendered("base"), "Deployment", "trainer")
    deployment["spec"]["replica"] = 1
    document = tmp_path / "wrong.yaml"
    document.write_text(yaml.safe_dump(deployment), encoding="utf-8")
    assert _validated(document).returncode != 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_real_kustomize_renders_the_same(overlay: str) -> None:
    """The real Kustomize agrees with the tests' renderer, but for hashes in generated names."""
    kubectl = tool("kubectl")
    if kubectl is None:
        pytest.skip(
            "kubectl (1.25 or newer) is not installed: only the tests' own renderer was used"
        )
    done = subprocess.run(
        [kubectl, "kustomize", str(DEPLOY / "kubernetes" / overlay)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode != 0 and "unknown field" in done.stderr:
        pytest.skip("the installed kubectl is too old for components; 1.25 or newer is needed")
    assert done.returncode == 0, done.stderr
    theirs = _by_name(list(yaml.safe_load_all(done.stdout)))
    ours = _by_name(rendered(overlay))
    assert ours.keys() == theirs.keys()
    for name, entry in ours.items():
        assert entry == theirs[name], name


def _by_name(resources: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns resources by kind and name, generated hashes replaced."""
    name = next(r["metadata"]["name"] for r in resources if r["kind"] == "ConfigMap")
    text = yaml.safe_dump_all(resources).replace(name, "tiercel-config-HASH")
    found = {}
    for entry in yaml.safe_load_all(text):
        _sort_named_lists(entry)
        found[entry["kind"], entry["metadata"]["name"]] = entry
    return found


def _sort_named_lists(entry: Any) -> None:
    """Sorts lists whose order means nothing: Kustomize puts a patch's new entries first."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            if key in {"volumes", "volumeMounts", "env", "ports"}:
                entry[key] = sorted(
                    value, key=lambda item: str(item.get("mountPath", item.get("name", "")))
                )
            _sort_named_lists(value)
    elif isinstance(entry, list):
        for item in entry:
            _sort_named_lists(item)


def test_renderer_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """A kustomization with an unknown field is an error, not a silent omission."""
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n", encoding="utf-8")
    with pytest.raises(kustomize.RenderError, match="namePrefix"):
        kustomize.render(tmp_path)


def test_renderer_refuses_what_an_older_kubectl_does_not_take(tmp_path: Path) -> None:
    """Several patches in one file: Kustomize takes them from 5.2.1 on."""
    patch = "kind: Deployment\nmetadata: {name: a}\n"
    (tmp_path / "two.yaml").write_text(f"{patch}---\n{patch}", encoding="utf-8")
    text = "patches: [{path: two.yaml}]\n"
    (tmp_path / "kustomization.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(kustomize.RenderError, match="one patch per file"):
        kustomize.render(tmp_path)


def _is_protected(container: dict[str, Any]) -> bool:
    names = {entry["name"] for entry in container.get("env", [])}
    return "TIERCEL_MESH__TLS__CERTIFICATE" in names


@pytest.mark.parametrize("overlay", ["base", "overlays/production"])
@pytest.mark.parametrize("service", [*ALL_SERVICES, "triton", "redis"])
def test_everything_serves_by_tls_with_a_certificate_of_its_own(service: str, overlay: str) -> None:
    """cert-manager makes the secret that is mounted, for the name by which others call."""
    resources = rendered(overlay)
    spec = pod(resources, service)
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    secret = volumes[mounts["/run/tls"]]["secret"]["secretName"]
    (made,) = [
        each["spec"]
        for each in resources
        if each["kind"] == "Certificate" and each["spec"]["secretName"] == secret
    ]
    assert made["dnsNames"][0] == service
    assert {"server auth", "client auth"} <= set(made["usages"])
    probes = (spec["containers"][0].get(f"{kind}Probe", {}) for kind in ("startup", "readiness"))
    commands = [probe.get("exec", {}).get("command", ()) for probe in probes]
    asked = {each[-1].partition(":")[0] for each in commands if _HEALTH_PROBE in each}
    assert asked <= {*made["dnsNames"], *made.get("ipAddresses", ())}
    if service == "triton":
        mesh = _settings(resources)["mesh"]
        hosts = {entry["address"].partition(":")[0] for entry in mesh["endpoints"]}
        assert hosts <= set(made["dnsNames"])
    if service in ALL_SERVICES:
        env = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
        assert not [name for name in env if name.endswith("INSECURE_OPEN_TO_NETWORK")]
        assert env["TIERCEL_MESH__TLS__KEY"] == "/run/tls/tls.key"


def test_a_pool_may_grow_without_another_certificate() -> None:
    """Of Triton's pods as many have a name here as in a certificate of `tiercel certificates`."""
    names = resource(rendered("base"), "Certificate", "triton")["spec"]["dnsNames"]
    pods = [f"triton-{index}.triton" for index in range(PODS)]
    assert [name for name in names if re.fullmatch(r"triton-\d+\.triton", name)] == pods


@pytest.mark.parametrize("name", ["redis", "triton"])
def test_a_certificate_that_is_read_once_leaves_time_for_a_restart(name: str) -> None:
    """Both take a renewed one in only when they start, and may run for months."""
    spec = resource(rendered("base"), "Certificate", name)["spec"]
    holds_h, renewed_h = (int(spec[key].removesuffix("h")) for key in ("duration", "renewBefore"))
    assert min(renewed_h, holds_h - renewed_h) >= 180 * 24


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_only_the_overlay_of_that_name_is_open_to_the_network(service: str) -> None:
    """There every service says so, and nothing expects a certificate."""
    spec = pod(rendered(INSECURE), service)
    env = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
    assert env[f"TIERCEL_{ALL_SERVICES[service].upper()}__INSECURE_OPEN_TO_NETWORK"] == "true"
    assert "/run/tls" not in {m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize("service", SERVICES)
def test_ports_and_probes_follow_the_settings(
    resources: list[dict[str, Any]], service: str
) -> None:
    """Container ports, probes, Service and scrape annotation name the ports of the settings."""
    own = _settings(resources)[SERVICES[service]]
    grpc_port, metrics_port = port(own["listen"]), port(own["metrics_listen"])
    container = pod(resources, service)["containers"][0]
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    env = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
    listen = env.get("TIERCEL_ROUTER_INFERENCE__ENVOY_LISTEN")
    picker = {"picker": port(listen)} if service == "router-inference" and listen else {}
    assert ports == {"grpc": grpc_port, "metrics": metrics_port, **picker}
    asked: dict[str, Any] = {"grpc": {"port": grpc_port}}
    if _is_protected(container):
        module = "services.common.health_probe"
        asked = {"exec": {"command": ["python", "-m", module, f"127.0.0.1:{grpc_port}"]}}
    assert asked.items() <= container["readinessProbe"].items()
    # A service that cannot serve yet, or any more, is not restarted for it.
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["tcpSocket"] == {"port": "grpc"}
    served = resource(resources, "Service", service)["spec"]["ports"]
    assert [(entry["port"], entry["targetPort"]) for entry in served] == [(grpc_port, "grpc")]
    template = resource(resources, "Deployment", service)["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(metrics_port)


_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_WAYS = {"exec", "grpc", "httpGet", "tcpSocket"}


def test_every_probe_asks_in_one_way(resources: list[dict[str, Any]]) -> None:
    """A patch that changes how a probe asks leaves nothing of how it asked before."""
    for entry in resources:
        spec = entry.get("spec", {}).get("template", {}).get("spec", {})
        for container in spec.get("containers", []):
            for name in container.keys() & set(_PROBES):
                assert len(container[name].keys() & _WAYS) == 1, (container["name"], name)


def test_triton_is_asked_where_its_http_listens(resources: list[dict[str, Any]]) -> None:
    """The kubelet calls the pod's address; what listens on loopback is asked from inside."""
    container = pod(resources, "triton")["containers"][0]
    words = container["args"]
    if "command" not in container:  # then our launcher makes Triton's own arguments of them
        config, _ = launcher._parse(words)
        ports = (config.grpc_port, config.http_port, config.metrics_port)
        words = arguments(config, config.repository, ports, "token")
    flags = {flag: value for flag, _, value in (word.partition("=") for word in words)}
    host, number = flags["--http-address"], flags["--http-port"]
    for name in _PROBES:
        probe = container[name]
        if host == "0.0.0.0":
            assert probe["httpGet"]["port"] == "http", name
        else:
            program, option, code = probe["exec"]["command"]
            assert (program, option) == ("python3", "-c")
            assert f"'http://{host}:{number}/v2/health/" in code
            compile(code, name, "exec")
            # An interpreter starts, and asks for 4 s.
            assert probe["timeoutSeconds"] >= 5
    is_protected = "--grpc-use-ssl-mutual" in flags
    assert host == ("127.0.0.1" if is_protected else "0.0.0.0")


@pytest.mark.parametrize("service", DOORS)
def test_a_door_is_probed_by_its_health_pages(
    resources: list[dict[str, Any]], service: str
) -> None:
    """Readiness follows the routers, life does not; by TLS where it serves by TLS."""
    own = _settings(resources)[DOORS[service]]
    container = pod(resources, service)["containers"][0]
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    assert ports == {"http": port(own["listen"]), "metrics": port(own["metrics_listen"])}
    scheme = {"scheme": "HTTPS"} if _is_protected(container) else {}
    for probe, path in (
        ("startupProbe", "/health/live"),
        ("readinessProbe", "/health"),
        ("livenessProbe", "/health/live"),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "http", **scheme}
    served = resource(resources, "Service", service)["spec"]["ports"]
    assert [(entry["port"], entry["targetPort"]) for entry in served] == [(ports["http"], "http")]
    template = resource(resources, "Deployment", service)["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    for router in own["routers"]:
        name, _, number = router.partition(":")
        found = resource(resources, "Service", name)["spec"]["ports"]
        assert int(number) in {entry["port"] for entry in found}


def test_a_gateway_reaches_pickers_and_pods_of_the_pool() -> None:
    """The pool's labels, ports and picker are those of the other resources; no key is made up."""
    resources = rendered(GATEWAY)
    pool = resource(resources, "InferencePool", "triton")["spec"]
    jsonschema.validate(pool, INFERENCE_POOL)
    picker = pool["endpointPickerRef"]
    pods = resource(resources, "StatefulSet", "triton")["spec"]["template"]
    assert pool["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    [target] = pool["targetPorts"]
    endpoints = _settings(resources)["mesh"]["endpoints"]
    assert {port(entry["http_address"]) for entry in endpoints} == {target["number"]}
    service = resource(resources, "Service", picker["name"])["spec"]
    [served] = service["ports"]
    assert served["port"] == picker["port"]["number"]
    routers = resource(resources, "Deployment", "router-inference")["spec"]["template"]
    assert service["selector"].items() <= routers["metadata"]["labels"].items()
    [container] = routers["spec"]["containers"]
    env = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    listen = env["TIERCEL_ROUTER_INFERENCE__ENVOY_LISTEN"]
    assert port(listen) == served["port"]
    assert served["targetPort"] in {entry["name"] for entry in container["ports"]}
    route = resource(resources, "HTTPRoute", "tiercel")["spec"]
    jsonschema.validate(route, HTTP_ROUTE)
    [rule] = route["rules"]
    [backend] = rule["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "triton")
    open_ports = {
        name: resource(resources, "NetworkPolicy", f"gateway-to-{name}")["spec"]["ingress"][0]
        for name in ("router-inference", "triton")
    }
    assert open_ports["router-inference"]["ports"][0]["port"] == served["port"]
    assert open_ports["triton"]["ports"][0]["port"] == target["number"]


def test_what_is_wrong_in_a_pool_or_a_route_is_seen() -> None:
    """An unknown field, a value that there is not, a port out of range, a duration of words."""
    pool = {
        "selector": {"matchLabels": {"a": "b"}},
        "targetPorts": [{"number": 8000}],
        "endpointPickerRef": {"name": "p", "port": {"number": 1}, "failureMode": "FailOpen"},
    }
    jsonschema.validate(pool, INFERENCE_POOL)
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (INFERENCE_POOL, pool | {"extensionRef": {"name": "p"}}),
        (INFERENCE_POOL, pool | {"targetPorts": [{"number": 70_000}]}),
        (INFERENCE_POOL, pool | {"endpointPickerRef": {"name": "p", "failureMode": "Open"}}),
        (HTTP_ROUTE, {"rules": [{"timeouts": {"request": "a minute"}}]}),
        (HTTP_ROUTE, {"rules": [{"matches": [{"path": {"type": "Prefix", "value": "/"}}]}]}),
    ]
    for schema, spec in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spec, schema)


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_grace_covers_the_drain(resources: list[dict[str, Any]], service: str) -> None:
    """Kubernetes waits longer than lame duck, grace and the time to flush and close."""
    own = _settings(resources)[ALL_SERVICES[service]]
    needed_s = own["lame_duck_s"] + own["grace_s"] + _ROOM_S
    assert pod(resources, service)["terminationGracePeriodSeconds"] >= needed_s


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_settings_file_is_mounted_where_the_command_reads_it(
    resources: list[dict[str, Any]], service: str
) -> None:
    """The command's --config is a file of the mounted ConfigMap."""
    spec = pod(resources, service)
    container = spec["containers"][0]
    assert container["args"] == ["--config", CONFIG_IN_IMAGE]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume_name = mounts["/opt/tiercel/" + str(Path(CONFIG_IN_IMAGE).parent)]
    volume = next(volume for volume in spec["volumes"] if volume["name"] == volume_name)
    config_map = resource(resources, "ConfigMap", "tiercel-config")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert Path(CONFIG_IN_IMAGE).name in config_map["data"]


def test_routers_share_one_ticket_key_from_a_secret(resources: list[dict[str, Any]]) -> None:
    """The key file that the environment names lies in the mounted Secret."""
    spec = pod(resources, "router-inference")
    container = spec["containers"][0]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    key_file = Path(env["TIERCEL_ROUTER_INFERENCE__TICKET_KEY_FILE"])
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume_name = mounts[str(key_file.parent)]
    volume = next(volume for volume in spec["volumes"] if volume["name"] == volume_name)
    assert volume["secret"]["secretName"] == "tiercel-ticket-key"


def test_routers_are_balanced_by_clients(resources: list[dict[str, Any]]) -> None:
    """The routers' Service is headless."""
    assert resource(resources, "Service", "router-inference")["spec"]["clusterIP"] == "None"


def test_pods_are_locked_down(resources: list[dict[str, Any]]) -> None:
    """Every container runs as a user, on a read-only file system, without capabilities or token."""
    for entry in resources:
        if entry["kind"] not in {"Deployment", "StatefulSet"}:
            continue
        spec = entry["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_an_image_without_our_user_is_told_a_name_and_a_home() -> None:
    """PyTorch asks for the user's name, which such an image does not know."""
    container = pod(rendered("overlays/production"), "triton")["containers"][0]
    assert not container["image"].startswith("tiercel/")
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["USER"]
    assert env["HOME"] in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_images_are_pinned(resources: list[dict[str, Any]]) -> None:
    """Every image names a tag, never `latest`."""
    for entry in resources:
        spec = entry.get("spec", {}).get("template", {}).get("spec", {})
        for container in spec.get("containers", []):
            _, _, tag = container["image"].rpartition(":")
            assert tag not in {"", "latest"}
            assert tag != container["image"]


def test_every_endpoint_of_the_settings_is_a_pod(resources: list[dict[str, Any]]) -> None:
    """Endpoint addresses are triton-N.triton for exactly the replicas of the StatefulSet."""
    stateful_set = resource(resources, "StatefulSet", "triton")["spec"]
    container = pod(resources, "triton")["containers"][0]
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    endpoints = _settings(resources)["mesh"]["endpoints"]
    assert {entry["address"] for entry in endpoints} == {
        f"triton-{index}.{stateful_set['serviceName']}:{ports['grpc']}"
        for index in range(stateful_set["replicas"])
    }
    assert {port(entry["metrics_address"]) for entry in endpoints} == {ports["metrics"]}
    flags = dict(flag.removeprefix("--").split("=") for flag in container["args"])
    assert int(flags["grpc-port"]) == ports["grpc"]
    assert int(flags["http-port"]) == ports["http"]
    assert int(flags["metrics-port"]) == ports["metrics"]


def test_settings_name_services_that_exist(resources: list[dict[str, Any]]) -> None:
    """Redis, monitor and trainer addresses are Services of the same namespace with that port."""
    mesh = _settings(resources)["mesh"]
    addresses = [mesh["load_monitor_address"], mesh["trainer_address"]]
    addresses.append(mesh["redis_url"].removeprefix("redis://").partition("/")[0])
    for address in addresses:
        name, _, number = address.partition(":")
        ports = resource(resources, "Service", name)["spec"]["ports"]
        assert int(number) in {entry["port"] for entry in ports}


def test_network_policies_open_only_ports_that_listen(resources: list[dict[str, Any]]) -> None:
    """Each allowed port is a container port of its pods, and a default denies the rest."""
    policies = [entry for entry in resources if entry["kind"] == "NetworkPolicy"]
    assert any(
        entry["spec"]["podSelector"] == {} and "ingress" not in entry["spec"] for entry in policies
    )
    for policy in policies:
        labels = policy["spec"]["podSelector"].get("matchLabels")
        if not labels:
            continue
        container = pod(resources, labels["app.kubernetes.io/name"])["containers"][0]
        listening = {entry["containerPort"] for entry in container["ports"]}
        for rule in policy["spec"]["ingress"]:
            assert {entry["port"] for entry in rule["ports"]} <= listening


_CALLERS = {
    ("router-inference", "grpc"): {"openai-door"},
    ("load-monitor", "grpc"): {"router-inference", "trainer"},
    ("trainer", "grpc"): {"router-inference"},
    ("triton", "grpc"): {"router-inference", "load-monitor"},
    ("triton", "http"): set(),
    ("triton", "metrics"): {"load-monitor"},
    ("redis", "redis"): {"router-inference", "load-monitor", "trainer"},
}
"""Workloads of the mesh that call a port of another one, by the addresses in its settings."""


def test_network_policies_let_the_mesh_call_itself(resources: list[dict[str, Any]]) -> None:
    """Every service reaches what its settings name, and no other one of the mesh does."""
    for (callee, port_name), callers in _CALLERS.items():
        container = pod(resources, callee)["containers"][0]
        numbers = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
        rules = resource(resources, "NetworkPolicy", callee)["spec"]["ingress"]
        peers = [
            peer["podSelector"]
            for rule in rules
            if numbers[port_name] in {entry["port"] for entry in rule["ports"]}
            for peer in rule["from"]
            if "podSelector" in peer
        ]
        assert {name for peer in peers for name in _selected(peer)} == callers, callee


def _selected(selector: dict[str, Any]) -> set[str]:
    """Returns the names of the workloads that a selector of pods takes."""
    if labels := selector.get("matchLabels"):
        return {labels["app.kubernetes.io/name"]}
    (expression,) = selector["matchExpressions"]
    return set(expression["values"])


def test_disruption_budgets_select_pods(resources: list[dict[str, Any]]) -> None:
    """Every budget's selector matches the pods of a workload."""
    labels = [
        entry["spec"]["template"]["metadata"]["labels"]
        for entry in resources
        if entry["kind"] in {"Deployment", "StatefulSet"}
    ]
    budgets = [entry for entry in resources if entry["kind"] == "PodDisruptionBudget"]
    assert budgets
    for budget in budgets:
        wanted = budget["spec"]["selector"]["matchLabels"].items()
        assert any(wanted <= own.items() for own in labels)


def test_replicas_are_spread_over_nodes(resources: list[dict[str, Any]]) -> None:
    """One node that goes takes not all of a service with it."""
    for entry in resources:
        if entry["kind"] == "Deployment" and entry["spec"].get("replicas") != 1:
            template = entry["spec"]["template"]
            (spread,) = template["spec"]["topologySpreadConstraints"]
            assert spread["topologyKey"] == "kubernetes.io/hostname"
            chosen = spread["labelSelector"]["matchLabels"]
            assert chosen.items() <= template["metadata"]["labels"].items()


def test_redis_keeps_its_log_alone_and_has_room_to_rewrite_it(
    resources: list[dict[str, Any]],
) -> None:
    """It is started as the embedded one is; a rewrite may copy all of its memory."""
    container = pod(resources, "redis")["containers"][0]
    flags = _pairs(container["args"][1:])
    ours = _pairs(redis_command(6379, Path("data"))[1:])
    for flag in ("--appendonly", "--save", "--maxmemory-policy"):
        assert flags[flag] == ours[flag]
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert 1024 * int(limit.removesuffix("Gi")) >= 2 * int(flags["--maxmemory"].removesuffix("mb"))


def _pairs(words: Sequence[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def _gauges() -> set[str]:
    registry = yaml.safe_load((DEPLOY / "telemetry" / "registry.yaml").read_text(encoding="utf-8"))
    return {
        entry["name"]
        for entry in registry["metrics"]
        if entry["type"] == "gauge" and "router-inference" in entry["services"]
    }


def test_autoscaler_reads_a_registered_gauge() -> None:
    """The overlay scales routers on a metric that the router has, and leaves `replicas` to it."""
    resources = rendered("overlays/production")
    autoscaler = resource(resources, "HorizontalPodAutoscaler", "router-inference")["spec"]
    metrics = {entry["pods"]["metric"]["name"] for entry in autoscaler["metrics"]}
    assert metrics <= _gauges()
    assert "replicas" not in resource(resources, "Deployment", "router-inference")["spec"]
    # What the adapter names is what the autoscaler asks for.
    document = (DEPLOY / "prometheus" / "adapter-rules.yaml").read_text(encoding="utf-8")
    rules = yaml.safe_load(document)["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == metrics
    assert {rule["seriesQuery"].partition("{")[0] for rule in rules} == metrics
    assert all("<<.Series>>{<<.LabelMatchers>>}" in rule["metricsQuery"] for rule in rules)


_SCALED_OBJECT: dict[str, set[str]] = {
    "spec": {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "initialCooldownPeriod",
        "idleReplicaCount", "minReplicaCount", "maxReplicaCount", "advanced", "fallback",
        "triggers",
    },
    "scaleTargetRef": {"apiVersion", "kind", "name", "envSourceContainerName"},
    "fallback": {"failureThreshold", "replicas", "behavior"},
    "advanced": {"restoreToOriginalReplicaCount", "horizontalPodAutoscalerConfig"},
    "horizontalPodAutoscalerConfig": {"name", "behavior"},
    "trigger": {"type", "name", "metadata", "metricType", "authenticationRef", "useCachedMetrics"},
    "metadata": {
        "serverAddress", "query", "threshold", "activationThreshold", "namespace", "authModes",
        "customHeaders", "ignoreNullValues", "queryParameters", "unsafeSsl", "timeout",
    },
}  # fmt: skip
"""Keys of keda.sh/v1alpha1 and of its Prometheus scaler, as its documentation lists them."""


def _unknown_keys(spec: dict[str, Any]) -> set[str]:
    """Returns the keys of a ScaledObject's spec that KEDA does not have."""
    parts = [("spec", spec), ("scaleTargetRef", spec["scaleTargetRef"])]
    parts += [(name, spec[name]) for name in ("fallback", "advanced") if name in spec]
    config = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {})
    parts.append(("horizontalPodAutoscalerConfig", config))
    for trigger in spec["triggers"]:
        parts += [("trigger", trigger), ("metadata", trigger["metadata"])]
    return {key for name, part in parts for key in part.keys() - _SCALED_OBJECT[name]}


def test_keda_scales_by_a_query_of_a_registered_gauge(tmp_path: Path) -> None:
    """It stands in the place of the autoscaler, with bounds and behaviour of the same schema."""
    resources = rendered(KEDA)
    assert not [each for each in resources if each["kind"] == "HorizontalPodAutoscaler"]
    spec = resource(resources, "ScaledObject", "router-inference")["spec"]
    assert _unknown_keys(spec) == set()
    assert _unknown_keys({**spec, "maxReplicas": 1}) == {"maxReplicas"}
    target = spec["scaleTargetRef"]
    assert "replicas" not in resource(resources, target["kind"], target["name"])["spec"]
    assert 0 < spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    # A fallback counts for means alone, and KEDA takes numbers as text.
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    used = set(re.findall(r"tiercel_[a-z_]+", trigger["metadata"]["query"]))
    assert used
    assert used <= _gauges()
    # One mesh, one threshold: the autoscaler of the production overlay says the same.
    ours = resource(rendered("overlays/production"), "HorizontalPodAutoscaler", target["name"])
    (metric,) = ours["spec"]["metrics"]
    assert metric["pods"]["target"]["averageValue"] == trigger["metadata"]["threshold"]
    bounds = ours["spec"]["minReplicas"], ours["spec"]["maxReplicas"]
    assert bounds == (spec["minReplicaCount"], spec["maxReplicaCount"])
    ours["spec"]["behavior"] = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    document = tmp_path / "autoscaler.yaml"
    document.write_text(yaml.safe_dump(ours), encoding="utf-8")
    assert _validated(document).returncode == 0


def test_prometheus_parses_the_query_of_keda(tmp_path: Path) -> None:
    """It is PromQL."""
    promtool = tool("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    (trigger,) = resource(rendered(KEDA), "ScaledObject", "router-inference")["spec"]["triggers"]
    rule = {"record": "keda:query", "expr": trigger["metadata"]["query"]}
    document = tmp_path / "rules.yaml"
    document.write_text(yaml.safe_dump({"groups": [{"name": "keda", "rules": [rule]}]}))
    done = subprocess.run(
        [promtool, "check", "rules", str(document)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
