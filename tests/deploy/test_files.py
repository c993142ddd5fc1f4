"""What can be said of deploy/ with pip's packages alone: schemas, flags, times, sizes."""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from aiohttp import web
from packaging.requirements import Requirement

from proxy import __version__
from proxy.config.quantities import parse_seconds, parse_size
from proxy.config.settings import MIB
from tests.deploy import rules
from tests.deploy.manifests import (
    CHART,
    DEPLOY,
    EXAMPLES,
    KUBERNETES,
    PREFIX,
    ROOT,
    Proxy,
    documents,
    files,
    known_flags,
    known_variables,
    pod_specs,
    proxies,
    settings,
)

_VARIABLE = re.compile(rf"{PREFIX}[A-Z][A-Z_]*[A-Z]")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# Of docker, python, and the command's own help.
_OTHERS = {"--build", "--build-arg", "--help", "--without-pip"}
POD = documents((EXAMPLES / "pod-with-sidecar.yaml").read_text())
UNIT = (DEPLOY / "systemd" / "embedding-proxy.service").read_text()


def compose(*names: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in names:
        for service, given in yaml.safe_load((DEPLOY / name).read_text())["services"].items():
            merged.setdefault(service, {})
            for key, value in given.items():
                merged[service][key] = merged[service].get(key, {}) | value if isinstance(value, dict) else value
    return merged


def interpolated(environment: dict[str, str]) -> dict[str, str]:
    """With each ``${NAME:-default}`` as it is where nothing is set, and each ``${NAME:?why}`` set."""
    return {
        name: re.sub(r"\$\{\w+:\?[^}]*\}", "set", re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
        for name, value in environment.items()
    }


# --- Names that must not rot


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_variable_is_one_of_the_commands(path: Path) -> None:
    assert set(_VARIABLE.findall(path.read_text())) - known_variables() == set()


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_flag_of_the_proxy_is_one_of_the_commands(path: Path) -> None:
    """As far as it stands in a comment or a text of ours; other programs' flags stand in their own commands."""
    text = path.read_text()
    if path.suffix == ".md":
        named = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)[^`\n]*`", text))
    else:
        comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
        given = [line for line in text.splitlines() if "embedding-proxy serve" in line]
        named = set(_FLAG.findall("\n".join(comments + given)))
    assert named - known_flags() - _OTHERS == set()


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_the_image_is_of_this_version(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"embedding-proxy:(\d+\.[\w.]+)", text)) <= {__version__}
    assert set(re.findall(r"^ *(?:newTag|VERSION|appVersion|version): (\d[\w.]*)$", text, re.MULTILINE)) <= {
        __version__
    }


# --- Image


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_builds_it_is_locked() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    lock = (DEPLOY / "build.lock").read_text()
    for requirement in map(Requirement, needed):
        match = re.search(rf"^{requirement.name}==(\S+) \\\n +--hash=sha256:", lock, re.MULTILINE)
        assert match is not None
        assert requirement.specifier.contains(match[1]), "make lock"


def test_what_it_copies_is_not_ignored() -> None:
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names.split()} == kept
    assert all((ROOT / name).exists() for name in kept)


async def test_the_probe_tells_200_from_anything_else() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=200 if request.path == "/healthz" else 503)

    app = web.Application()
    app.router.add_get("/{path}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        assert await probe("/healthz", port) == (0, "")
        assert await probe("/readyz", port) == (1, f"/readyz on port {port}: 503\n")
    finally:
        await runner.cleanup()
    status, why = await probe("/healthz", port)
    assert status == 1
    assert "refused" in why


async def test_the_probe_ignores_an_address_of_kubernetes() -> None:
    """A Service named embedding-proxy-admin sets the variable in every Pod of its namespace."""
    _, why = await probe("/none", "tcp://10.0.0.12:9090")
    assert why.startswith("/none on port 9090: ")


async def probe(target: str, port: int | str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(DEPLOY / "probe.py"), target,
        env={"EMBEDDING_PROXY_ADMIN_PORT": str(port)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


# --- Compose


@pytest.mark.parametrize("name", ["compose.yaml", "compose.key.yaml"])
def test_compose_is_of_its_schema(name: str) -> None:
    schema = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    jsonschema.validate(yaml.safe_load((DEPLOY / name).read_text()), json.loads(schema))


@pytest.mark.parametrize("names", [["compose.yaml"], ["compose.yaml", "compose.key.yaml"]], ids=len)
def test_composes_proxy_starts(names: list[str]) -> None:
    """Up to its listening: an owned key beyond loopback needs a list of keys."""
    service = compose(*names)["proxy"]
    environment = interpolated(service["environment"])
    secrets = {name: environment.pop(name) for name in list(environment) if not name.startswith(PREFIX)}
    given = settings(environment)
    named = given["upstream_key_env"]
    assert (named is None) or (secrets[named] and given["client_keys"] is not None)
    assert given["host"] == "0.0.0.0"
    assert (given["upstream"], given["store"].url) == ("demo", "redis://redis:6379/0")


def test_composes_times_and_sizes_agree() -> None:
    service = compose("compose.yaml")["proxy"]
    given = settings(interpolated(service["environment"]))
    grace_s = parse_seconds(service["stop_grace_period"])
    assert given["drain_delay"] + given["shutdown_timeout"] < grace_s
    assert int(service["mem_limit"].removesuffix("m")) * MIB >= rules.memory_needed(given)


def test_compose_publishes_on_loopback_only() -> None:
    services = compose("compose.yaml")
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "ports" not in services["redis"]


def test_composes_services_may_do_little_and_take_little() -> None:
    for name, service in compose("compose.yaml").items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        # The proxy's own health check is in its image.
        assert name == "proxy" or service["healthcheck"]["test"], name


def test_composes_redis_is_a_cache() -> None:
    command = compose("compose.yaml")["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {
        "--save": "",
        "--appendonly": "no",
        "--maxmemory": "1gb",
        "--maxmemory-policy": "allkeys-lfu",
    }


def test_what_compose_mounts_is_there() -> None:
    for service in compose("compose.yaml").values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists()
    mounted = {
        volume.split(":")[0]: volume.split(":")[1] for volume in compose("compose.yaml")["prometheus"]["volumes"]
    }
    given = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    for path in given["rule_files"]:
        assert path.startswith(mounted["../grafana/rules"] + "/")
        assert (ROOT / "grafana" / "rules" / Path(path).name).exists()
    datasource = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert given["global"]["scrape_interval"] == datasource["datasources"][0]["jsonData"]["timeInterval"]


# --- Kubernetes


@pytest.mark.parametrize(
    "path", sorted([*EXAMPLES.glob("*.yaml"), *KUBERNETES.glob("base/[!k]*.yaml")]), ids=lambda path: path.name
)
def test_a_manifest_is_of_its_schema(path: Path) -> None:
    for resource in documents(path.read_text()):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("proxy", proxies(POD), ids=lambda proxy: proxy.where)
@pytest.mark.parametrize("rule", rules.OF_PROXIES, ids=lambda rule: rule.__name__)
def test_the_example_keeps_the_rules(proxy: Proxy, rule: Any) -> None:
    rule(proxy)
    for _, pod in pod_specs(POD):
        rules.is_restricted(pod)


def test_the_example_is_the_components_sidecar() -> None:
    component = documents((KUBERNETES / "components/sidecar/sidecar.yaml").read_text())[0]["spec"]["template"]["spec"]
    spec = POD[0]["spec"]
    tagged = component["initContainers"][0] | {"image": f"embedding-proxy:{__version__}"}
    assert (spec["initContainers"], spec["volumes"]) == ([tagged], component["volumes"])


def test_the_ingress_and_nginx_agree() -> None:
    given = documents((EXAMPLES / "ingress.yaml").read_text())[0]["metadata"]["annotations"]
    annotations = {name.rpartition("/")[2]: value for name, value in given.items()}
    nginx = dict(re.findall(r"^ +(\w+) ([^;]+);", (EXAMPLES / "nginx.conf").read_text(), re.MULTILINE))
    assert annotations.pop("proxy-body-size") == nginx["client_max_body_size"]
    for name, value in annotations.items():
        assert nginx[name.replace("-", "_")].removesuffix("s") == value
    defaults = settings({})
    longest_s = defaults["rate_limit_wait"] + defaults["upstream_timeout"]
    assert int(annotations["proxy-read-timeout"]) > max(longest_s, defaults["upstream_read_timeout"])
    assert int(nginx["client_max_body_size"].removesuffix("m")) * MIB == defaults["max_body"]


# --- Chart


def test_the_charts_values_are_of_its_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, schema)
    assert set(schema["properties"]) - {"global"} == set(values)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values | {"upstrem": "openai"}, schema)


@pytest.mark.parametrize("name", ["rules", "dashboards"])
def test_the_chart_has_grafanas_files_and_no_copies(name: str) -> None:
    assert (CHART / "files" / name).is_symlink()
    assert (CHART / "files" / name).resolve() == ROOT / "grafana" / name


# --- systemd


def test_the_unit_gives_the_drain_its_time() -> None:
    environment = dict(
        line.split("=", 1) for line in (DEPLOY / "systemd" / "env").read_text().splitlines() if line.startswith(PREFIX)
    )
    given = settings(environment)
    found = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    assert given["drain_delay"] + given["shutdown_timeout"] < parse_seconds(found["TimeoutStopSec"])
    assert (found["KillSignal"], found["KillMode"]) == ("SIGTERM", "mixed")
    assert found["ExecReload"].startswith("/bin/kill -HUP")
    assert int(found["LimitNOFILE"]) > 2 * given["max_connections"]
    assert parse_size(found["MemoryMax"] + "iB") >= rules.memory_needed(given)
