from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy.canary.check_bodies import tokens_a_month
from proxy.cli import banner
from proxy.config.settings import SameModel
from proxy.config.upstream_urls import parse_upstream
from proxy.protocol.providers import PROVIDERS
from tests.support.settings import DEFAULTS


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


def test_a_banner_says_what_the_canary_costs_and_whether_it_has_a_key() -> None:
    def shown(**changes: Any) -> str:
        return banner.text_of(replace(DEFAULTS, **changes), "http://127.0.0.1:8080/v1", "http://127.0.0.1:9090")

    remote, local = parse_upstream("openai"), parse_upstream("vllm")
    assert "canary" not in shown(upstream=remote)
    cost = f"every 6 h, about {tokens_a_month(21600.0):,} tokens a month for each model in use"
    hint = "; without a key for openai: set --canary-key-env"
    assert f"  canary    {cost}{hint}\n" in shown(upstream=remote, canary_interval_s=21600.0)
    for upstream in (local, replace(remote, key="sk-own"), replace(remote, canary_key="sk-c4nary")):
        text = shown(upstream=upstream, canary_interval_s=21600.0)
        assert f"  canary    {cost}\n" in text
        assert "c4nary" not in text
