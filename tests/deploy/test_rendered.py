"""What the programs that read deploy/ make of it: Kustomize, Helm, promtool, systemd, nginx."""

import asyncio
import io
import json
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from aiohttp import ClientSession, web

from tests.deploy import rules
from tests.deploy.manifests import (
    CHART,
    DEPLOY,
    EXAMPLES,
    KUBERNETES,
    ROOT,
    find,
    kustomized,
    pod_specs,
    proxies,
    run,
    templated,
)
from tests.grafana import expressions
from tests.support.process import Process
from tests.support.redis_server import free_port
from tests.support.scripted import Call, ScriptedUpstream

pytestmark = pytest.mark.deploy

EVERYTHING = (
    "serviceMonitor.enabled=true", "prometheusRule.enabled=true", "dashboards.enabled=true",
    "upstreamKey.secretName=keys", "autoscaling.enabled=false", "settings.SHARE=all",
    "upstreamProxy.secretName=way", "upstreamTLS.secretName=tls",
    "settings.UPSTREAM_CA=/tls/ca.crt", "settings.UPSTREAM_CERT=/tls/tls.crt",
    "settings.UPSTREAM_CERT_KEY=/tls/tls.key",
)  # fmt: skip
# The oldest Kubernetes that has sidecars without asking for them, and the newest that there is a schema for.
_VERSIONS = ("1.29", kubernetes_validate.latest_version())
# No schema of Kubernetes' own: what the operator requires of its kinds,
# https://prometheus-operator.dev/docs/api-reference/api.
_OPERATORS = {"ServiceMonitor": {"selector", "endpoints"}, "PrometheusRule": {"groups"}}
# nginx forks, opens its files anew and keeps no handle of ours but its pid.
_READY_S = 10


_RENDERED: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "base": lambda: kustomized(KUBERNETES / "base"),
    "fleet": lambda: kustomized(KUBERNETES / "overlays" / "fleet"),
    "sidecar": lambda: kustomized(KUBERNETES / "overlays" / "sidecar"),
    "chart": templated,
    "chart with everything": lambda: templated(*EVERYTHING),
}


@cache
def rendered(what: str) -> list[dict[str, Any]]:
    return _RENDERED[what]()


EVERY = pytest.mark.parametrize("what", _RENDERED)


def of_kind(what: str, kind: str) -> dict[str, Any]:
    found = [resource for resource in rendered(what) if resource["kind"] == kind]
    return next(resource for resource in found if "embedding-proxy" in resource["metadata"]["name"])


# --- Kubernetes


@EVERY
@pytest.mark.parametrize("version", _VERSIONS)
def test_every_resource_is_of_its_schema(what: str, version: str) -> None:
    for resource in rendered(what):
        if resource["kind"] in _OPERATORS:
            assert resource["apiVersion"] == "monitoring.coreos.com/v1"
            assert set(resource["spec"]) == _OPERATORS[resource["kind"]]
        else:
            kubernetes_validate.validate(resource, version, strict=True)


@EVERY
@pytest.mark.parametrize("rule", rules.OF_PROXIES, ids=lambda rule: rule.__name__)
def test_every_proxy_keeps_the_rules(what: str, rule: Any) -> None:
    found = proxies(rendered(what))
    assert len(found) == 1
    rule(found[0])


@EVERY
def test_every_pod_is_restricted(what: str) -> None:
    for _, pod in pod_specs(rendered(what)):
        rules.is_restricted(pod)
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"].get("readOnlyRootFilesystem") is True


@EVERY
def test_every_selector_selects_some_of_the_pods(what: str) -> None:
    """A Service, a policy or a budget that selects nothing, or everything, says so to nobody."""
    resources = rendered(what)
    labels = [
        resource["spec"]["template"]["metadata"]["labels"].items()
        for resource in resources
        if "template" in resource.get("spec", {})
    ]
    for resource in resources:
        spec = resource.get("spec", {})
        if resource["kind"] in {"Service", "NetworkPolicy", "PodDisruptionBudget"}:
            selector = spec["selector"] if "selector" in spec else spec["podSelector"]
            wanted = selector.get("matchLabels", selector).items()
            assert wanted
            assert sum(wanted <= given for given in labels) == 1, resource["metadata"]["name"]


def test_the_chart_says_how_the_upstream_is_reached() -> None:
    (proxy,) = proxies(rendered("chart with everything"))
    settings = proxy.settings
    assert settings["upstream_proxy"].url == "http://of.the.operator"
    mounts = {mount["mountPath"]: mount["name"] for mount in proxy.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in proxy.pod["volumes"]}
    assert volumes[mounts["/tls"]]["secret"]["secretName"] == "tls"
    for name in ("upstream_ca", "upstream_cert", "upstream_cert_key"):
        assert str(settings[name].parent) in mounts


@pytest.mark.parametrize("what", ["fleet", "chart with everything"])
def test_the_monitor_finds_the_port(what: str) -> None:
    monitor, service = of_kind(what, "ServiceMonitor"), of_kind(what, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
    container = proxies(rendered(what))[0].container
    targets = {port["name"]: port["containerPort"] for port in container["ports"]}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert targets[ports[endpoint["port"]]] == proxies(rendered(what))[0].settings["admin_port"]


@pytest.mark.parametrize("what", ["base", "fleet", "chart"])
def test_the_autoscaler_and_the_budget_leave_somebody(what: str) -> None:
    autoscaler = of_kind(what, "HorizontalPodAutoscaler")["spec"]
    assert autoscaler["minReplicas"] > of_kind(what, "PodDisruptionBudget")["spec"]["maxUnavailable"]
    deployment = of_kind(what, "Deployment")
    assert "replicas" not in deployment["spec"], "it would undo the autoscaler's at every apply"
    assert autoscaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_the_fleets_proxies_ask_the_fleets_redis() -> None:
    assert of_kind("fleet", "HorizontalPodAutoscaler")["spec"]["minReplicas"] == 3
    assert proxies(rendered("fleet"))[0].environment["EMBEDDING_PROXY_STORE"] == "redis+cluster://redis:6379"
    redis = next(
        resource
        for resource in rendered("fleet")
        if resource["kind"] == "Service" and resource["metadata"]["name"] == "redis"
    )
    assert [port["port"] for port in redis["spec"]["ports"]] == [6379, 16379]


def test_the_charts_rules_are_grafanas() -> None:
    groups = of_kind("chart with everything", "PrometheusRule")["spec"]["groups"]
    assert groups == [group for path in expressions.RULES for group in yaml.safe_load(path.read_text())["groups"]]


def test_the_charts_dashboards_are_grafanas() -> None:
    found = [
        json.loads(text)
        for resource in rendered("chart with everything")
        if resource["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
        for text in resource["data"].values()
    ]
    assert sorted(found, key=lambda dashboard: str(dashboard["uid"])) == list(expressions.dashboards().values())


def test_the_chart_refuses_what_its_schema_does() -> None:
    done = subprocess.run(
        [find("helm"), "template", "e", CHART, "--kube-version", "1.33.0", "--set", "memory=lots"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "memory" in done.stderr


def test_helm_lints_the_chart() -> None:
    run(find("helm"), "lint", "--strict", CHART)


# --- Prometheus and systemd


def test_promtool_takes_composes_configuration(tmp_path: Path) -> None:
    given = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    given["rule_files"] = [str(ROOT / "grafana" / "rules" / Path(path).name) for path in given["rule_files"]]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(given))
    run(find("promtool"), "check", "config", tmp_path / "prometheus.yaml")


def test_systemd_takes_the_unit_and_calls_it_hardened(tmp_path: Path) -> None:
    # It looks whether the program is there.
    program = tmp_path / "embedding-proxy"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "embedding-proxy.service"
    text = (DEPLOY / "systemd" / "embedding-proxy.service").read_text()
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", text))
    done = subprocess.run([find("systemd-analyze"), "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), "a name that it does not know is no error to it"
    # Tenths: what remains is the network, which a proxy is for.
    run(find("systemd-analyze"), "security", "--offline=true", "--threshold=15", unit)


# --- nginx


@dataclass(frozen=True, slots=True)
class Nginx:
    url: str
    behind: int  # the port that it asks
    backup: int  # the port that it would ask next, if it did


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    """The example on a port of its own and without TLS, in front of whoever listens on another."""
    port, behind, backup = free_port(), free_port(), free_port()
    text = (EXAMPLES / "nginx.conf").read_text()
    text = re.sub(r"(?m)^ +ssl_.*\n", "", text).replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    servers = f"server 127.0.0.1:{behind} max_fails=0; server 127.0.0.1:{backup} backup;"
    (tmp_path / "site.conf").write_text(text.replace("server 127.0.0.1:8080 max_fails=0;", servers))
    paths = "".join(
        f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {tmp_path}/pid; error_log stderr; events {{}}"
        f" http {{ access_log off; {paths} include {tmp_path}/site.conf; }}"
    )
    command = [find("nginx"), "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    run(*command, "-t")
    process = subprocess.Popen(command)
    yield Nginx(f"http://127.0.0.1:{port}", behind, backup)
    process.send_signal(signal.SIGTERM)
    process.wait()


@asynccontextmanager
async def proxy_behind(port: int, folder: Path, upstream: ScriptedUpstream) -> AsyncIterator[Process]:
    process = await asyncio.to_thread(Process, folder, port, "--upstream", upstream.base_url, "--store", "memory:")
    try:
        yield process
    finally:
        process.popen.kill()
        await asyncio.to_thread(process.wait)


async def until_it_answers(session: ClientSession, url: str) -> None:
    async with asyncio.timeout(_READY_S):
        while True:
            try:
                async with session.get(url):
                    return
            except OSError:
                await asyncio.sleep(0.01)


async def test_nginx_hands_on_large_bodies_and_streams(
    nginx: Nginx, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    more = asyncio.Event()

    async def stream(call: Call) -> web.StreamResponse:
        if not call.target.endswith("/chat/completions"):
            return upstream.embed(call)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(call.request)
        await response.write(b"data: 1\n\n")
        await more.wait()
        await response.write(b"data: 2\n\n")
        return response

    upstream.reply = stream
    async with proxy_behind(nginx.behind, tmp_path, upstream), ClientSession() as session:
        await until_it_answers(session, f"{nginx.url}/none")
        large = json.dumps({"model": "m", "input": ["x" * 1_000_000 + str(number) for number in range(20)]}).encode()
        headers = {"Content-Type": "application/json"}
        for outcome in ("MISS", "HIT"):
            async with session.post(f"{nginx.url}/v1/embeddings", data=io.BytesIO(large), headers=headers) as answer:
                assert (answer.status, answer.headers["X-Cache"]) == (200, outcome)
        async with session.post(f"{nginx.url}/v1/chat/completions", json={"model": "m", "stream": True}) as answer:
            assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"
            more.set()
            assert await answer.content.readuntil(b"\n\n") == b"data: 2\n\n"


async def test_nginx_sends_nothing_twice(nginx: Nginx, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with (
        proxy_behind(nginx.behind, tmp_path, upstream) as process,
        proxy_behind(nginx.backup, tmp_path, upstream),
        ClientSession() as session,
    ):
        await until_it_answers(session, f"{nginx.url}/none")
        upstream.calls.clear()

        async def fall(call: Call) -> web.StreamResponse:
            process.popen.kill()
            await asyncio.to_thread(process.popen.wait)
            return upstream.embed(call)

        upstream.reply = fall
        async with session.post(f"{nginx.url}/v1/embeddings", json={"model": "m", "input": "x"}) as answer:
            assert answer.status == 502
    assert len(upstream.calls) == 1
