"""What must be so of every Pod with a proxy in it, wherever it is written down."""

from typing import Any

from proxy.config.settings import MIB
from tests.deploy.manifests import Proxy, containers

# Python and its libraries, with room for what is being parsed. deploy/README.md, "Memory", has what was measured.
_BASE_BYTES = 192 * MIB
_PER_MEMORY_BYTE = 1.3
_PER_HELD_BYTE = 2
# What the kubelet, the network and the process need beside what the flags say.
_MARGIN_S = 5
_UNITS = {"Ki": 1024, "Mi": MIB, "Gi": 1024 * MIB}


def quantity(text: str) -> int:
    """Bytes, of Kubernetes' notation: ``512Mi``."""
    return int(text[:-2]) * _UNITS[text[-2:]]


def memory_needed(settings: dict[str, Any]) -> int:
    return int(_BASE_BYTES + _PER_MEMORY_BYTE * settings["memory"] + _PER_HELD_BYTE * settings["max_held"])


def ends_in_time(proxy: Proxy) -> None:
    settings = proxy.settings
    hook = proxy.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    takes_s = hook + settings["drain_delay"] + settings["shutdown_timeout"]
    assert takes_s + _MARGIN_S <= proxy.pod["terminationGracePeriodSeconds"], proxy.where
    if proxy.is_sidecar:
        # It is told after everybody it serves has gone, and the grace period began before that.
        assert settings["drain_delay"] == 0
        assert takes_s + _MARGIN_S < proxy.pod["terminationGracePeriodSeconds"], "nothing left for the app"


def is_noticed_before_it_stops_accepting(proxy: Proxy) -> None:
    probe = proxy.container.get("readinessProbe")
    if probe is None:
        assert proxy.is_sidecar, "only an app's own readiness stands for the proxy's"
        return
    assert probe["httpGet"]["path"] == "/readyz"
    slowest_s = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert slowest_s <= proxy.settings["drain_delay"]


def is_asked_where_it_answers(proxy: Proxy) -> None:
    """By HTTP only where the admin port is not on loopback, and never about its store or upstream."""
    is_loopback = proxy.settings["admin_host"] == "127.0.0.1"
    ports = {port["name"]: port["containerPort"] for port in proxy.container.get("ports", [])}
    for kind in ("startupProbe", "livenessProbe"):
        probe = proxy.container[kind]
        if is_loopback:
            assert probe["exec"]["command"][-2:] == ["/opt/embedding-proxy/probe.py", "/healthz"]
        else:
            assert probe["httpGet"]["path"] == "/healthz"
            assert ports[probe["httpGet"]["port"]] == proxy.settings["admin_port"]
    if not proxy.is_sidecar:
        assert ports["http"] == proxy.settings["port"]


def has_the_memory_its_flags_ask_for(proxy: Proxy) -> None:
    resources = proxy.container["resources"]
    assert quantity(resources["limits"]["memory"]) >= memory_needed(proxy.settings), proxy.where
    assert resources["requests"]["memory"] == resources["limits"]["memory"], "the memory tier fills, and stays full"
    assert "cpu" not in resources["limits"], "throttling is latency"


def keeps_its_file_within_its_volume(proxy: Proxy) -> None:
    store = proxy.settings["store"]
    volumes = {volume["name"]: volume for volume in proxy.pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in proxy.container["volumeMounts"]}
    size = quantity(mounted["/cache"]["emptyDir"]["sizeLimit"])
    if store.path is not None:
        assert str(store.path).startswith("/cache/")
        assert size > proxy.settings["store_limit"]


def is_restricted(pod: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
    of_pod = pod.get("securityContext", {})
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    for container in containers(pod):
        security = of_pod | container["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all("hostPath" not in volume for volume in pod.get("volumes", []))


OF_PROXIES = (
    ends_in_time,
    is_noticed_before_it_stops_accepting,
    is_asked_where_it_answers,
    has_the_memory_its_flags_ask_for,
    keeps_its_file_within_its_volume,
)
