"""Settings from flags, environment and file."""

from pathlib import Path

import pytest

from proxy.cli.serve import serve_command
from proxy.config.settings import Settings, StoreSetting
from proxy.protocol.providers import PROVIDERS
from proxy.upstream.egress import DIRECT
from tests.support.command import FILE, KEYED, OWN, UNKEYED, serve


def test_serve_without_options_has_the_documented_settings(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert serve(monkeypatch) == 0
    assert served == [
        Settings(
            host="127.0.0.1",
            port=8080,
            admin_host="127.0.0.1",
            admin_port=9090,
            upstream=served[0].upstream,
            store=StoreSetting(path=tmp_path / "embedding-proxy" / "cache.sqlite3"),
            store_limit_bytes=10 * 1024**3,
            memory_bytes=512 * 1024**2,
            ttl_s=None,
            shares_all=False,
            revalidate_s=600.0,
            key_headers=frozenset(),
            neutral_headers=frozenset(),
            cors_origins=frozenset(),
            client_keys=None,
            max_body_bytes=64 * 1024**2,
            reports_full_usage=False,
            log_format="console",
            logs_requests=True,
            traces="off",
            batch_window_s=0.01,
            max_batch_items=None,
            rate_limit_wait_s=60.0,
            interactive_items=4,
            max_queued_items=100_000,
            max_held_bytes=1024**3,
            max_connections=10_000,
            upstream_concurrency=64,
            upstream_connect_timeout_s=10.0,
            upstream_read_timeout_s=600.0,
            upstream_timeout_s=600.0,
            canary_interval_s=None,
            on_drift="alarm",
            drain_delay_s=0.0,
            shutdown_timeout_s=30.0,
        )
    ]
    assert served[0].upstream.is_demo


def test_flag_beats_environment_beats_file_beats_default(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text('port = 1\nadmin_port = 2\nmemory = "3MiB"\nttl = 60\n')
    monkeypatch.setenv("EMBEDDING_PROXY_PORT", "11")
    monkeypatch.setenv("EMBEDDING_PROXY_ADMIN_PORT", "12")
    monkeypatch.setenv("EMBEDDING_PROXY_CONFIG", str(file))
    assert serve(monkeypatch, "--port", "21") == 0
    settings = served[0]
    assert (settings.port, settings.admin_port, settings.memory_bytes, settings.ttl_s) == (21, 12, 3 * 1024**2, 60)
    assert settings.admin_host == "127.0.0.1"


def test_every_flag_has_its_variable_and_its_key(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {
        "host": "0.0.0.0", "port": "1", "admin_host": "::1", "admin_port": "2", "upstream": "https://h/v1",
        "provider": "vllm", "store": "memory:", "store_limit": "1GiB", "memory": "1MiB", "ttl": "1d",
        "max_body": "1KB", "usage": "full", "log_format": "json", "batch_window": "5ms", "max_batch_items": "7",
        "rate_limit_wait": "5s", "interactive_items": "8",
        "max_queued_items": "8", "max_held": "1MiB", "upstream_concurrency": "9", "upstream_connect_timeout": "1s",
        "upstream_read_timeout": "2s", "upstream_timeout": "3s", "drain_delay": "4s", "shutdown_timeout": "5s",
        "share": "all", "revalidate": "6m", "upstream_key_env": "KEY", "client_keys": "clients",
        "record_key_env": "SECRET", "max_connections": "10", "log_requests": "no", "traces": "otlp",
        "workers": "1", "key_headers": "X-Route, X-User", "neutral_headers": "X-Session, X-Plan",
        "cors_origins": "https://app.example.com, http://localhost:3000",
        "upstream_proxy": "http://u:c4nary@p:3128", "upstream_ca": "ca.pem", "upstream_cert": "cert.pem",
        "upstream_cert_key": "key.pem", "client_labels_key_env": "SECRET",
        "canary": "2h", "canary_key_env": "CANARY", "on_drift": "new-epoch",
    }  # fmt: skip
    monkeypatch.setenv("KEY", "sk-owned")
    monkeypatch.setenv("CANARY", "sk-canary")
    monkeypatch.setenv("SECRET", "s" * 32)
    file = tmp_path / "proxy.toml"
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in given.items()))
    serve(monkeypatch, *(part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)))
    serve(monkeypatch, "--config", str(file))
    for name, value in given.items():
        monkeypatch.setenv(f"EMBEDDING_PROXY_{name.upper()}", value)
    serve(monkeypatch)
    assert served[0] == served[1] == served[2]
    assert served[0].reports_full_usage
    assert served[0].canary_interval_s == 7200
    assert served[0].upstream.canary_key == "sk-canary"
    assert {param.name for param in serve_command.params} == {*given, "config"}


def test_a_file_has_upstreams_and_providers(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(FILE)
    assert serve(monkeypatch, "--config", str(path)) == 0
    assert serve(monkeypatch, "--config", str(path), "--upstream", "openai") == 0
    assert [settings.upstream.name for settings in served] == ["llm.example.com", "openai"]
    assert "trace_id" in served[0].upstream.provider.neutral
    for settings in served:
        (mine,) = settings.routed
        assert (mine.name, mine.base_url, mine.models) == ("mine", "http://gpu:8000/v1", ("local/*",))
        assert mine.provider.key == PROVIDERS["vllm"].key


def test_kubernetes_service_variables_with_our_prefix_are_ignored(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables"""
    for name, value in {
        "SERVICE_HOST": "10.0.0.11",
        "SERVICE_PORT": "8080",
        "SERVICE_PORT_HTTP": "8080",
        "PORT": "tcp://10.0.0.11:8080",
        "PORT_8080_TCP": "tcp://10.0.0.11:8080",
        "PORT_8080_TCP_ADDR": "10.0.0.11",
        "ADMIN_SERVICE_HOST": "10.0.0.12",
        "ADMIN_PORT": "tcp://10.0.0.12:9090",
        "ADMIN_PORT_9090_TCP_ADDR": "10.0.0.12",
        "REDIS_SERVICE_HOST": "10.0.0.13",
        "REDIS_SERVICE_PORT_REDIS": "6379",
        "REDIS_PORT": "tcp://10.0.0.13:6379",
        "REDIS_PORT_6379_TCP_PROTO": "tcp",
    }.items():
        monkeypatch.setenv(f"EMBEDDING_PROXY_{name}", value)
    assert serve(monkeypatch) == 0
    assert (served[0].port, served[0].admin_port) == (8080, 9090)


@pytest.mark.parametrize(
    "flags",
    [
        *[("--host", host) for host in ("127.0.0.1", "127.8.9.10", "::1", "localhost")],
        *[("--host", host, "--client-keys", "clients") for host in ("0.0.0.0", "::", "192.168.1.5")],
    ],
    ids=" ".join,
)
def test_hosts_on_which_a_proxy_may_have_a_key(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setenv("OWNED", " sk-c4nary-owned\n")  # as a file of secrets is often mounted
    assert serve(monkeypatch, *OWN, "OWNED", *flags) == 0
    assert served[0].upstream.key == "sk-c4nary-owned"
    assert "c4nary" not in repr(served[0])


def test_every_upstream_has_its_own_key(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(KEYED + UNKEYED + 'key_env = "JINA"\n')
    monkeypatch.setenv("OWNED", "sk-c4nary-openai")
    monkeypatch.setenv("JINA", "sk-c4nary-jina")
    assert serve(monkeypatch, "--config", str(path)) == 0
    (settings,) = served
    assert [upstream.key for upstream in (settings.upstream, *settings.routed)] == [
        "sk-c4nary-openai",
        "sk-c4nary-jina",
    ]
    assert "c4nary" not in repr(settings)


def test_a_record_key_of_32_characters_is_accepted(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "c4nary" + "s" * 26)
    assert serve(monkeypatch, "--record-key-env", "SECRET") == 0
    assert served[0].record_key == b"c4nary" + b"s" * 26
    assert "c4nary" not in repr(served[0])


def test_egress_options_apply_to_every_upstream_but_the_demo(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text('[[upstream]]\nprovider = "jina"\nmodels = ["j*"]\n')
    way = ("--config", str(path), "--upstream-proxy", "http://u:c4nary@p:3128", "--upstream-ca", "~/ca.pem")
    assert serve(monkeypatch, *way, "--upstream", "openai") == 0
    assert serve(monkeypatch, *way, "--upstream", "demo") == 0
    monkeypatch.setenv("EMBEDDING_PROXY_UPSTREAM_PROXY", "http://p:3128")
    assert serve(monkeypatch, "--upstream", "openai", "--upstream-proxy", "none") == 0
    first, second, third = served
    for own in (first.upstream, *first.routed, *second.routed):
        assert own.egress.proxy is not None
        assert (own.egress.proxy.url, own.egress.ca) == ("http://p:3128", Path.home() / "ca.pem")
    assert second.upstream.egress == third.upstream.egress == DIRECT
    assert "c4nary" not in repr(served)
