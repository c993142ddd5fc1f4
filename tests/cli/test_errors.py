"""Each mistake is one line that says what is wrong, where, and what is accepted."""

import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cli import commands
from proxy.config.settings import Settings
from tests.support.command import KEYED, OWN, UNKEYED, serve

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


ERRORS = [
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
    *[([], {}, f'[prices]\n"a" = {price}', "FILE: [prices] 'a': accepted: money per million tokens, such as 0.02")
      for price in ("inf", "nan", "-1", "1e400")],
    *[([], {}, f'[[upstream]]\nbase_url = "http://h/v1"\n[[upstream.limits]]\n{name} = {limit}',
       f"FILE: [[upstream]] 1: Expected `float` {bound}") for name in ("requests_per_minute", "tokens_per_minute")
      for limit, bound in (("inf", "<= 1000000000000.0"), ("1e400", "<= 1000000000000.0"), ("1e-320", ">= 0.001"),
                           ("0", ">= 0.001"))],
    *[([], {}, f"[providers.x]\nauth = {auth!r}", "FILE: [providers.x]: Expected `str` matching regex")
      for auth in (" ", "X Key", "Authorization:Bearer", "Authorization: ", "X-Key\\n")],
    *[([], {}, f'{key} = "a\\u0000b"', f"{key} in FILE: has a NUL character")
      for key in ("client_keys", "host", "store", "upstream")],
    ([], {}, '[prices]\n"a" = "0.02"', "FILE: [prices] 'a': accepted: money per million tokens, such as 0.02"),
    ([], {}, "[prices]\na.b = 1", "FILE: [prices] 'a': accepted: money per million tokens, such as 0.02; quote names"),
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
    (["--upstream-timeout", "0"], {}, "", "--upstream-timeout: '0' is not above zero; accepted: a number with ms"),
    (["--upstream-read-timeout", "0s"], {}, "", "--upstream-read-timeout: '0s' is not above zero; accepted: a number"),
    ([], {"UPSTREAM_CONNECT_TIMEOUT": "0ms"}, "", "EMBEDDING_PROXY_UPSTREAM_CONNECT_TIMEOUT: '0ms' is not above zero"),
    (["--max-held", "1KiB"], {}, "", "--max-held: '1KiB' is too small; accepted: 1MiB or more"),
    ([], {}, "max_held = 0", "max_held in the configuration file: '0' is too small; accepted: 1MiB or more"),
    (["--max-held", "63MiB"], {}, "", "--max-held 63.0 MiB is less than --max-body 64.0 MiB: larger bodies would get"),
    (["--max-held", "2MiB", "--max-body", "3MiB"], {}, "", "--max-held 2.0 MiB is less than --max-body 3.0 MiB: larg"),
    (["--max-body", "999"], {}, "", "--max-body: '999' is too small; accepted: 1KB or more"),
    *[([f"--{name}", "9999999GiB"], {}, "", f"--{name}: '9999999GiB' is too large; accepted: 1048576GiB or less")
      for name in ("memory", "max-body", "max-held", "store-limit")],
    (["--ttl", "0.5s"], {}, "", "--ttl: '0.5s' is less than a second; to keep entries indefinitely, use none"),
    *[([f"--{name}", "36501d"], {}, "", f"--{name}: '36501d' is more than a hundred years; accepted: a number with m")
      for name in ("ttl", "revalidate", "canary", "batch-window", "rate-limit-wait", "upstream-timeout", "drain-delay",
                   "upstream-connect-timeout", "upstream-read-timeout", "shutdown-timeout")],
    (["--canary", "5s"], {}, "", "--canary: '5s' is less than a minute; accepted: 1m or more, such as 6h; or off"),
    (["--canary", "often"], {}, "", "--canary: 'often' is not a duration; accepted: a number with m, h, d or w"),
    (["--on-drift", "new-epoch"], {}, "", "--on-drift new-epoch needs --canary, as --canary 6h"),
    (["--canary-key-env", "OWNED"], {}, "", "--canary-key-env needs --canary, as --canary 6h"),
    (["--canary-key-env", "EMPTY"], {}, "", "--canary-key-env: the environment variable EMPTY is not set, or empty"),
    (["--canary", "6h"], {}, '[[upstream]]\nprovider = "jina"\ncanary_key_env = "EMPTY"',
     "FILE: [[upstream]] canary_key_env: the environment variable EMPTY is not set"),
    (["--canary", "6h", "--canary-key-env", "OWNED"], {}, '[[upstream]]\nprovider = "jina"',
     "--canary-key-env: it needs --upstream; for an [[upstream]] table, set its canary_key_env"),
]  # fmt: skip

SECRETS = {
    "OWNED": "sk-c4nary-owned", "EMPTY": "", "BLANK": " \n", "LINES": "sk-c4nary\r\nX: y", "UMLAUT": "sk-c4nary-\u00e4",
    "SHORT": "c4nary" + "s" * 25,
}  # fmt: skip


@pytest.mark.parametrize(("flags", "variables", "file", "message"), ERRORS, ids=[m[3][:60] for m in ERRORS])
def test_an_error_is_one_line_and_exit_status_2(
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
    assert serve(monkeypatch, *flags) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert err.startswith("embedding-proxy: " + message.replace("FILE", str(path)))
    assert "c4nary" not in err
    assert not served


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
def test_a_missing_argument_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["embedding-proxy", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_error_in_a_real_process_has_no_traceback() -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--upstream", "nowhere"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1


def test_an_unreadable_file_ends_a_real_process_with_one_line(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        command = [sys.executable, "-m", "proxy", "serve", "--upstream", "openai", "--store", "memory:", "--port", "0"]
        command += ["--admin-port", "0", "--workers", workers, "--upstream-ca", str(tmp_path / "ca.pem")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr == (
            f"embedding-proxy: upstream openai: the CA file {tmp_path}/ca.pem: No such file or directory\n"
        )


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "nosuchhost.invalid"])
def test_an_invalid_host_is_one_line(host: str) -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--host", host, "--store", "memory:", "--admin-port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"embedding-proxy: can't listen on {host}:8080:")
    assert ended.stderr.count("\n") == 1
