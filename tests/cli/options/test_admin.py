"""Which admin port a command asks."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from proxy.cli.options.admin import admin_url_of, with_admin_options


@click.command()
@with_admin_options
@click.pass_context
def shown(ctx: click.Context, /, **_: Any) -> None:
    click.echo(admin_url_of(ctx))


FILE = ["--config", "proxy.toml"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("proxy.toml").write_text('admin_port = 7001\nadmin_host = "10.0.0.1"\nttl = "30d"\n')


@pytest.mark.parametrize(
    ("arguments", "environment", "url"),
    [
        ([], {}, "http://127.0.0.1:9090"),
        (["--admin-port", "7000"], {}, "http://127.0.0.1:7000"),
        ([], {"ADMIN_PORT": "7002"}, "http://127.0.0.1:7002"),
        (FILE, {}, "http://10.0.0.1:7001"),
        ([], {"CONFIG": "proxy.toml"}, "http://10.0.0.1:7001"),
        (FILE, {"ADMIN_PORT": "7002"}, "http://10.0.0.1:7002"),
        ([*FILE, "--admin-port", "7000"], {"ADMIN_PORT": "7002"}, "http://10.0.0.1:7000"),
        (["--admin-host", "0.0.0.0"], {}, "http://127.0.0.1:9090"),
        (["--admin-host", ""], {}, "http://127.0.0.1:9090"),
        (["--admin-host", "::"], {}, "http://[::1]:9090"),
        (["--admin-host", "fd00::1"], {}, "http://[fd00::1]:9090"),
        (["--admin-host", "proxy.internal"], {}, "http://proxy.internal:9090"),
        (["--admin-host", "unix:/run/admin.sock"], {"ADMIN_PORT": "0"}, "unix:/run/admin.sock"),
        (["--admin-url", "http://x:1"], {"ADMIN_PORT": "7002", "CONFIG": "proxy.toml"}, "http://x:1"),
    ],
)
def test_it_is_the_one_of_the_proxy_with_the_same_options(
    arguments: list[str], environment: dict[str, str], url: str
) -> None:
    variables = {f"EMBEDDING_PROXY_{key}": value for key, value in environment.items()}
    run = CliRunner().invoke(shown, arguments, env=variables)
    assert (run.exit_code, run.output) == (0, url + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--admin-port", "0"], "--admin-port 0 lets the proxy choose a port; accepted: --admin-url with the URL that"),
        (["--admin-url", "http://x:1", "--admin-port", "9"], "--admin-url and --admin-port; accepted: one of them"),
        (["--admin-url", "http://x:1", "--admin-host", "h"], "--admin-url and --admin-host; accepted: one of them"),
        (["--config", "missing.toml"], "--config missing.toml: No such file or directory"),
    ],
)
def test_what_names_no_port_is_refused(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(shown, arguments)
    assert (run.exit_code, message in run.output) == (2, True), run.output
