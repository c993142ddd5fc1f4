"""Settings from flags, environment and file; each mistake is one line that says what, where and what is accepted."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import banner, commands, serve
from proxy.config.settings import SameModel, Settings, StoreSetting
from proxy.config.upstream_urls import parse_upstream
from proxy.process import run as process_run
from proxy.protocol.providers import PROVIDERS
from proxy.upstream.egress import DIRECT
from tests.support.settings import DEFAULTS


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Settings]:
    """Catches the settings that would have been served."""
    caught: list[Settings] = []

    async def serve(settings: Settings, *, announce: Any, write_log: Any, bound: None, parent: None) -> None:
        assert callable(announce)
        assert callable(write_log)
        assert bound is parent is None
        caught.append(settings)

    monkeypatch.setattr(process_run, "serve", serve)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return caught


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_defaults(served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch) == 0
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
            max_queued_items=100_000,
            max_held_bytes=1024**3,
            max_connections=10_000,
            upstream_concurrency=64,
            upstream_connect_timeout_s=10.0,
            upstream_read_timeout_s=600.0,
            upstream_timeout_s=600.0,
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
    assert run(monkeypatch, "--port", "21") == 0
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
        "max_queued_items": "8", "max_held": "1MiB", "upstream_concurrency": "9", "upstream_connect_timeout": "1s",
        "upstream_read_timeout": "2s", "upstream_timeout": "3s", "drain_delay": "4s", "shutdown_timeout": "5s",
        "share": "all", "revalidate": "6m", "upstream_key_env": "KEY", "client_keys": "clients",
        "record_key_env": "SECRET", "max_connections": "10", "log_requests": "no", "traces": "otlp",
        "workers": "1", "key_headers": "X-Route, X-User", "neutral_headers": "X-Session, X-Plan",
        "cors_origins": "https://app.example.com, http://localhost:3000",
        "upstream_proxy": "http://u:c4nary@p:3128", "upstream_ca": "ca.pem", "upstream_cert": "cert.pem",
        "upstream_cert_key": "key.pem",
    }  # fmt: skip
    monkeypatch.setenv("KEY", "sk-owned")
    monkeypatch.setenv("SECRET", "s" * 32)
    file = tmp_path / "proxy.toml"
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in given.items()))
    run(monkeypatch, *(part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)))
    run(monkeypatch, "--config", str(file))
    for name, value in given.items():
        monkeypatch.setenv(f"EMBEDDING_PROXY_{name.upper()}", value)
    run(monkeypatch)
    assert served[0] == served[1] == served[2]
    assert served[0].reports_full_usage
    assert {param.name for param in serve.serve_command.params} == {*given, "config"}


SAME = """
[[upstream]]
provider = "openai"
[[upstream]]
name = "b"
provider = "openai"
models = ["b"]
[[upstream.same_model]]
upstream = "openai"
"""
OWN = ("--upstream", "openai", "--upstream-key-env")
KEYED = '[[upstream]]\nname = "openai"\nprovider = "openai"\nkey_env = "OWNED"\n'
UNKEYED = '[[upstream]]\nprovider = "jina"\nmodels = ["jina*"]\n'
MISTAKES = [
    (["--memory", "12 bananas"], {}, "", "--memory: '12 bananas' is not a size; accepted: a number with B, KB"),
    (["--upstream", "opneai"], {}, "", "--upstream: 'opneai' is not an upstream; did you mean openai?"),
    (["--port", "http"], {}, "", "--port: 'http' is not a valid integer"),
    (["--port", "70000"], {}, "", "--port: 70000 is not in the range 0<=x<=65535"),
    (["--prot", "1"], {}, "", "No such option '--prot'."),
    (["--log-format", "xml"], {}, "", "--log-format: 'xml' is not one of 'console', 'json'"),
    ([], {"STORE": "mysql://h"}, "", "EMBEDDING_PROXY_STORE: 'mysql://h' is not a store; accepted: memory:"),
    ([], {"TTL": "soon"}, "", "EMBEDDING_PROXY_TTL: 'soon' is not a duration; accepted:"),
    ([], {"UPSTRAEM": "x"}, "", "unknown environment variable EMBEDDING_PROXY_UPSTRAEM; did you mean EMBEDDING_PROX"),
    ([], {}, 'memory = "lots"', "memory in the configuration file: 'lots' is not a size"),
    ([], {}, "memory = 5\nlog_requests = [true]", "log_requests in FILE: not a single value"),
    ([], {}, 'upstream = "openai"\n[[upstream]]\nprovider = "jina"', "FILE: not TOML: Cannot overwrite a value"),
    ([], {}, '[upstream]\nprovider = "jina"', "upstream in FILE: accepted: a URL or a name, as in upstream ="),
    ([], {}, "[provider.openai]", "provider in FILE: accepted: the name of a provider, as in prov"),
    ([], {}, "prices = 3", "prices in FILE: accepted: a table [prices] with lines as"),
    ([], {}, '[prices]\n"a" = "0.02"', "FILE: [prices] 'a': accepted: money per million tokens, as 0.02"),
    ([], {}, "[prices]\na.b = 1", "FILE: [prices] 'a': accepted: money per million tokens, as 0.02; quote names"),
    (["--upstream", "https://h/v1/embeddings"], {}, "", "--upstream: 'https://h/v1/embeddings' ends with the route /e"),
    (["--upstream", "OpenAI"], {}, "", "--upstream: 'OpenAI' is not an upstream; did you mean openai?"),
    (["--upstream", "api.openai.com/v1"], {}, "", "--upstream: 'api.openai.com/v1' is not an upstream; did"),
    (["--upstream", "localhost:8000"], {}, "", "--upstream: 'localhost:8000' is not an upstream; did you mean http"),
    ([], {"UPSTREAM": '"http://h:1/v1"'}, "", "EMBEDDING_PROXY_UPSTREAM: '\"http://h:1/v1\"' is not an upstream; di"),
    ([], {}, '[[upstream]]\nbase_url = "h:1"', "FILE: [[upstream]]: 'h:1' is not an upstream; did you mean http"),
    ([], {}, '[providers.x]\nbase_url = "h:1"', "FILE: [providers.x]: 'h:1' is not an upstream; did you mean http://h"),
    (["--upstream", "http://h", "--provider", "opanai"], {}, "",
     "--provider: 'opanai' is not a provider; did you mean"),
    ([], {}, "memroy = 1", "unknown key 'memroy' in FILE; did you mean memory?"),
    ([], {}, "colour = 1", "unknown key 'colour' in FILE; accepted: host, port,"),
    ([], {}, "port = [1]", "port in FILE: not a single value; accepted: a string or a number"),
    ([], {}, "store = 5", "store in the configuration file: '5' is not a store"),
    ([], {}, "memory = true", "memory in FILE: not a single value"),
    ([], {}, "port 80", "FILE: not TOML:"),
    ([], {"UPSTREAM": ""}, "", "EMBEDDING_PROXY_UPSTREAM is empty; give it a value or unset it"),
    (["--upstream", "azure"], {}, "", "--upstream: azure has no default base URL; set the base URL, and azure as"),
    (["--upstream", "http://h", "--provider", "x"], {}, "",
     "--provider: 'x' is not a provider; accepted: generic, inf"),
    (["--upstream", "openai", "--provider", "vllm"], {}, "", "--provider: vllm needs a base URL, but the upstream is"),
    ([], {}, '[[upstream]]\nprovider = "openai"\nmodels = ["a"]', "FILE: every [[upstream]] has models, so no up"),
    (["--upstream", "demo"], {}, SAME, "FILE: upstream 'b' has same_model 'openai', which --upstream replaces"),
    (["--provider", "tei"], {}, SAME, "--provider: it needs --upstream; for an [[upstream]] table, set its prov"),
    ([], {}, '[[upstream]]\nbase_url = "h"', "FILE: [[upstream]]: 'h' is not an upstream"),
    ([], {}, "[[upstream]]\nmodel = 1", "FILE: [[upstream]] 1: Object contains unknown field `model`"),
    ([], {}, "[providers.x]\nkeys = []", "FILE: [providers.x]: Object contains unknown field `keys`"),
    ([], {}, "providers = 1", "providers in FILE: accepted: tables, as [providers.NAME]"),
    ([], {"CONFIG": "/nonexistent/proxy.toml"}, "", "--config /nonexistent/proxy.toml: No such file or directory"),
    (["--share", "everybody"], {}, "", "--share: 'everybody' is not one of 'credential', 'all'"),
    (["--neutral-headers", "X-Plan, authorization"], {}, "", "--neutral-headers: 'authorization' authenticates cli"),
    ([], {"NEUTRAL_HEADERS": "x y"}, "", "EMBEDDING_PROXY_NEUTRAL_HEADERS: 'x y' is not the name of a header field"),
    (["--key-headers", "X-Plan", "--neutral-headers", "x-plan"], {}, "", "'x-plan' is in --key-headers and in --neut"),
    (["--key-headers", "X-Plan", "--upstream", "openai"], {}, '[providers.openai]\nneutral_headers = ["x-plan"]',
     "'x-plan' is in --key-headers and in neutral_headers of [providers.openai]; remove it from one of them"),
    (["--revalidate", "0"], {}, "", "--revalidate: '0' is not above zero; accepted: a number with ms"),
    ([], {"REVALIDATE": "none"}, "", "EMBEDDING_PROXY_REVALIDATE: 'none' is not a duration; accepted: a number"),
    ([*OWN, "NOT_SET"], {}, "", "--upstream-key-env: the environment variable NOT_SET is not set, or empty"),
    ([*OWN, "EMPTY"], {}, "", "--upstream-key-env: the environment variable EMPTY is not set, or empty"),
    ([*OWN, "BLANK"], {}, "", "--upstream-key-env: the environment variable BLANK is not set, or empty"),
    ([*OWN, "LINES"], {}, "", "--upstream-key-env: LINES has characters that are not allowed in a header"),
    ([*OWN, "UMLAUT"], {}, "", "--upstream-key-env: UMLAUT has characters that are not allowed in a header"),
    ([*OWN, "sk-c4nary"], {}, "", "--upstream-key-env: the environment has no variable of that name; accepted"),
    ([], {"RECORD_KEY_ENV": "c4nary" * 9}, "",
     "--record-key-env: the environment has no variable of that name; accepted"),
    (["--record-key-env", "NOT_SET"], {}, "",
     "--record-key-env: the environment variable NOT_SET is not set, or empty"),
    (["--record-key-env", "SHORT"], {}, "", "--record-key-env: SHORT has fewer than 32 characters; make one: openssl"),
    (["--client-keys", "f"], {}, "", "--client-keys needs --upstream-key-env; without it, clients send the upstream"),
    *[([*OWN, "OWNED", "--host", host], {}, "", f"--host {host} accepts other machines, which could use the proxy")
      for host in ("0.0.0.0", "::", "192.168.1.5", "fe80::1", "proxy.internal")],
    ([], {"HOST": "0.0.0.0"}, KEYED, "--host 0.0.0.0 accepts other machines, which could use the proxy's own key"),
    ([], {}, KEYED + UNKEYED,
     "the proxy has a key for openai but none for jina; set a key for all upstreams or for none"),
    ([*OWN, "OWNED"], {}, UNKEYED,
     "the proxy has a key for openai but none for jina; set a key for all upstreams or for none"),
    (["--upstream", "openai"], {}, KEYED.replace("name", 'models = ["a"]\nname'), "the proxy has a key for"),
    (["--upstream-key-env", "OWNED"], {}, KEYED,
     "--upstream-key-env: it needs --upstream; for an [[upstream]] table, set"),
    ([], {}, KEYED.replace("OWNED", "NOT_SET"),
     "FILE: [[upstream]] key_env: the environment variable NOT_SET is not set, or e"),
    ([], {}, KEYED.replace("OWNED", "sk-c4nary"), "FILE: [[upstream]] key_env: the environment has no variable of"),
    ([], {}, KEYED.replace('"OWNED"', '""'), "FILE: [[upstream]] 1: Expected `str` of length >= 1 - at `$.key_env`"),
    (["--store", "redis://:c4nary@h:x/0"], {}, "", "--store: 'redis://…@h:x/0' is not a store; accepted: memory:,"),
    ([], {"STORE": "rediss://u:c4nary@h/0?password=c4nary"}, "", "EMBEDDING_PROXY_STORE: 'rediss://…@h/0?…' is not a"),
    (["--upstream-proxy", "http://u:c4nary@p/x"], {}, "", "--upstream-proxy: 'http://…@p' is not a forward proxy; a"),
    ([], {"UPSTREAM_PROXY": "p:3128"}, "", "EMBEDDING_PROXY_UPSTREAM_PROXY: 'p:3128' is not a forward proxy; did you"),
    ([], {}, 'upstream_proxy = "socks5://p"', "upstream_proxy in the configuration file: 'socks5://p' is not a forwa"),
    (["--upstream-proxy", "http://p:1"], {}, "",
     "--upstream-proxy needs --upstream; the built-in demo makes no connections"),
    (["--upstream-ca", "f"], {}, "", "--upstream-ca and --upstream-cert need an upstream with an https:// URL"),
    (["--upstream", "http://h/v1", "--upstream-cert", "f"], {}, "",
     "--upstream-ca and --upstream-cert need an upstream"),
    (["--upstream", "openai", "--upstream-cert-key", "f"], {}, "", "--upstream-cert-key: it needs --upstream-cert"),
    (["--upstream", "https://u:c4nary@h/v1"], {}, "", "--upstream: 'https://…@h/v1' has a query, a fragment, a user"),
    (["--upstream", "https://h/v1?key=c4nary"], {}, "", "--upstream: 'https://h/v1?…' has a query, a fragment, a us"),
]  # fmt: skip
SECRETS = {
    "OWNED": "sk-c4nary-owned", "EMPTY": "", "BLANK": " \n", "LINES": "sk-c4nary\r\nX: y", "UMLAUT": "sk-c4nary-\u00e4",
    "SHORT": "c4nary" + "s" * 25,
}  # fmt: skip


@pytest.mark.parametrize(("flags", "variables", "file", "message"), MISTAKES, ids=[m[3][:60] for m in MISTAKES])
def test_a_mistake_is_one_line_and_exit_status_2(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    flags: list[str], variables: dict[str, str], file: str, message: str,
) -> None:  # fmt: skip
    path = tmp_path / "proxy.toml"
    if file:
        path.write_text(file)
        flags = [*flags, "--config", str(path)]
    for name, value in variables.items():
        monkeypatch.setenv(f"EMBEDDING_PROXY_{name}", value)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert run(monkeypatch, *flags) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("embedding-proxy: " + message.replace("FILE", str(path)))
    assert "c4nary" not in err
    assert not served


FILE = """
port = 8000

[providers.generic]
neutral = ["trace_id"]

[providers.mine]
like = "vllm"
base_url = "http://gpu:8000/v1"

[[upstream]]
base_url = "https://llm.example.com/v1"

[[upstream]]
provider = "mine"
models = ["local/*"]
"""


def test_a_file_has_upstreams_and_rows_for_them(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(FILE)
    assert run(monkeypatch, "--config", str(path)) == 0
    assert run(monkeypatch, "--config", str(path), "--upstream", "openai") == 0
    assert [settings.upstream.name for settings in served] == ["llm.example.com", "openai"]
    assert "trace_id" in served[0].upstream.provider.neutral
    for settings in served:
        (mine,) = settings.routed
        assert (mine.name, mine.base_url, mine.models) == ("mine", "http://gpu:8000/v1", ("local/*",))
        assert mine.provider.key == PROVIDERS["vllm"].key


def test_the_providers_are_shown_as_the_file_has_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(FILE)
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "providers", "--config", str(path), "mine", "jina"])
    with pytest.raises(SystemExit, match="0"):
        commands.main()
    shown = capsys.readouterr().out
    assert shown.startswith("mine        http://gpu:8000/v1/embeddings\n  auth        Authorization: Bearer\n")
    few = ("late_chunking", "return_multivector", "return_tokenized_input")
    assert f"cross-item  {', '.join(f'{name} other than false' for name in few)}\n" in shown
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", "providers"])
    with pytest.raises(SystemExit, match="0"):
        commands.main()
    rows, _, rest = capsys.readouterr().out.rpartition("\n\n")
    assert re.findall(r"^(\w+)", rows, re.MULTILINE) == list(PROVIDERS)
    assert rest.startswith("For all of them, lists for *gemini-embedding-2* and any request for *colbert*,")


def test_the_variables_kubernetes_makes_for_a_service_of_our_name_are_no_mistake(
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
    }.items():
        monkeypatch.setenv(f"EMBEDDING_PROXY_{name}", value)
    assert run(monkeypatch) == 0
    assert (served[0].port, served[0].admin_port) == (8080, 9090)


@pytest.mark.parametrize(
    "flags",
    [
        *[("--host", host) for host in ("127.0.0.1", "127.8.9.10", "::1", "localhost")],
        *[("--host", host, "--client-keys", "clients") for host in ("0.0.0.0", "::", "192.168.1.5")],
    ],
    ids=" ".join,
)
def test_who_may_ask_with_the_proxys_key(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    monkeypatch.setenv("OWNED", " sk-c4nary-owned\n")  # as a file of secrets is often mounted
    assert run(monkeypatch, *OWN, "OWNED", *flags) == 0
    assert served[0].upstream.key == "sk-c4nary-owned"
    assert "c4nary" not in repr(served[0])


def test_every_upstream_has_a_key_of_its_own(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text(KEYED + UNKEYED + 'key_env = "JINA"\n')
    monkeypatch.setenv("OWNED", "sk-c4nary-openai")
    monkeypatch.setenv("JINA", "sk-c4nary-jina")
    assert run(monkeypatch, "--config", str(path)) == 0
    (settings,) = served
    assert [upstream.key for upstream in (settings.upstream, *settings.routed)] == [
        "sk-c4nary-openai",
        "sk-c4nary-jina",
    ]
    assert "c4nary" not in repr(settings)


def test_a_secret_of_32_characters_will_do(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "c4nary" + "s" * 26)
    assert run(monkeypatch, "--record-key-env", "SECRET") == 0
    assert served[0].record_key == b"c4nary" + b"s" * 26
    assert "c4nary" not in repr(served[0])


def test_the_way_out_is_of_every_upstream_but_the_demo(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text('[[upstream]]\nprovider = "jina"\nmodels = ["j*"]\n')
    way = ("--config", str(path), "--upstream-proxy", "http://u:c4nary@p:3128", "--upstream-ca", "~/ca.pem")
    assert run(monkeypatch, *way, "--upstream", "openai") == 0
    assert run(monkeypatch, *way, "--upstream", "demo") == 0
    monkeypatch.setenv("EMBEDDING_PROXY_UPSTREAM_PROXY", "http://p:3128")
    assert run(monkeypatch, "--upstream", "openai", "--upstream-proxy", "none") == 0
    first, second, third = served
    for own in (first.upstream, *first.routed, *second.routed):
        assert own.egress.proxy is not None
        assert (own.egress.proxy.url, own.egress.ca) == ("http://p:3128", Path.home() / "ca.pem")
    assert second.upstream.egress == third.upstream.egress == DIRECT
    assert "c4nary" not in repr(served)


def test_a_file_that_can_not_be_used_ends_a_real_process_with_one_line(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        command = [sys.executable, "-m", "proxy", "serve", "--upstream", "openai", "--store", "memory:", "--port", "0"]
        command += ["--admin-port", "0", "--workers", workers, "--upstream-ca", str(tmp_path / "ca.pem")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr == (
            f"embedding-proxy: upstream openai: the CA file {tmp_path}/ca.pem: No such file or directory\n"
        )


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["--version"]])
def test_help(arguments: list[str]) -> None:
    shown = subprocess.run([sys.executable, "-m", "proxy", *arguments], capture_output=True, text=True, check=True)
    assert not shown.stderr
    assert "embedding-proxy" in shown.stdout


def test_a_mistake_in_a_real_process_is_no_traceback() -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--upstream", "nowhere"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1


def test_without_a_command_it_shows_its_help() -> None:
    shown = subprocess.run([sys.executable, "-m", "proxy"], capture_output=True, text=True, check=False)
    assert shown.returncode == 2
    assert shown.stdout.startswith("Usage: embedding-proxy")
    assert shown.stdout.count("\n") > 5


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "nosuchhost.invalid"])
def test_a_host_that_is_none_is_said_in_one_line(host: str) -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--host", host, "--store", "memory:", "--admin-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"embedding-proxy: can't listen on {host}:8080:")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("keys", "add"), "name is missing: set it; see --help"),
        (
            ("keys", "add", "web"),
            "--client-keys is missing: set it, or EMBEDDING_PROXY_CLIENT_KEYS in the environment",
        ),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_banner_says_how_to_use_a_socket() -> None:
    text = banner.text_of(replace(DEFAULTS, host="unix:/run/x.sock"), "http://localhost/v1", "http://127.0.0.1:9090")
    assert "curl --unix-socket /run/x.sock -i" in text
    assert "pip install openai httpx" in text
    assert 'uds="/run/x.sock"' in text
    assert "OPENAI_BASE_URL" not in text  # it can't name a socket


def test_a_banner_hints_at_the_path_that_a_base_url_lacks() -> None:
    def shown(url: str, provider: str) -> str:
        upstream = parse_upstream(url, row=PROVIDERS[provider])
        return banner.text_of(replace(DEFAULTS, upstream=upstream), "http://127.0.0.1:8080/v1", "http://127.0.0.1:9090")

    hint = "If it returns 404: most such APIs are at http://gpu:8000/v1\n"
    assert hint in shown("http://gpu:8000", "generic")
    assert hint in shown("http://gpu:8000/", "vllm")
    for url, provider in (("http://gpu:8000", "infinity"), ("http://gpu:8000/v1", "vllm"), ("https://h", "azure")):
        assert "404" not in shown(url, provider)


def test_a_banner_asks_for_no_key_that_is_not_needed() -> None:
    def shown(**changes: Any) -> str:
        return banner.text_of(replace(DEFAULTS, **changes), "http://127.0.0.1:8080/v1", "http://127.0.0.1:9090")

    remote, local = parse_upstream("openai"), parse_upstream("vllm")
    assert "Bearer $OPENAI_API_KEY" in shown(upstream=remote)
    assert "Bearer any" in shown(upstream=local)
    held = replace(remote, key="sk-c4nary")
    assert "Bearer any" in shown(upstream=held)
    assert "Bearer $PROXY_KEY" in shown(upstream=held, client_keys=Path("keys"))
    other = replace(local, name="gpu", models=("a", "b*"), same_model=(SameModel(upstream="gpu-2"),))
    assert "gpu for a, b*, http://127.0.0.1:8000/v1, as vllm, else gpu-2\n" in shown(routed=(other,))
    assert "c4nary" not in shown(upstream=held)
