import tomllib
from pathlib import Path

import pytest

from proxy.config.provider_tables import parse_providers
from proxy.config.settings import RateLimit, SameModel, UpstreamSetting
from proxy.config.upstream_tables import parse_upstreams
from proxy.errors import ConfigError
from proxy.protocol.provider import InputFormat, Limits, Provider
from proxy.protocol.providers import GENERIC, PROVIDERS
from proxy.upstream.egress import DIRECT, Egress, parse_proxy


def rows(text: str) -> dict[str, Provider]:
    return dict(parse_providers(tomllib.loads(text).get("providers", {}), "f.toml"))


def tables(text: str, egress: Egress = DIRECT) -> list[UpstreamSetting]:
    return parse_upstreams(tomllib.loads(text)["upstream"], PROVIDERS, {}, "f.toml", egress=egress)


def test_a_table_puts_unknown_fields_into_classes() -> None:
    row = rows('[providers.openai]\nkey = ["prompt_name"]\nneutral = ["trace_id"]')["openai"]
    assert row.key == PROVIDERS["openai"].key | {"prompt_name"}
    assert row.neutral == PROVIDERS["openai"].neutral | {"trace_id"}
    assert row.base_url == PROVIDERS["openai"].base_url


def test_a_row_has_its_own_neutral_headers() -> None:
    added = rows(
        """
        [providers.mine]
        neutral_headers = ["X-Plan"]
        [providers.other]
        like = "mine"
        neutral_headers = ["X-Session"]
        """
    )
    assert added["mine"].neutral_headers == {"x-plan"}
    assert added["other"].neutral_headers == {"x-plan", "x-session"}
    assert GENERIC.neutral_headers == frozenset()


def test_a_table_moves_a_field_out_of_its_class() -> None:
    row = rows('[providers.vllm]\nkey = ["user"]\n[providers.vllm.cross_item]\npriority = 0')["vllm"]
    assert "user" in row.key
    assert not {"user", "priority"} & row.neutral
    assert row.cross_item == {"priority": 0}


def test_a_row_can_be_added_like_another_or_like_none() -> None:
    added = rows(
        """
        [providers.mine]
        like = "vllm"
        base_url = "https://h/V1/"
        path = "/embed"
        auth = "x-key"
        inputs = ["texts"]
        max_items = 7
        needs_model = true
        fused_models = ["f"]
        [providers.plain]
        """
    )
    mine = added["mine"]
    assert (mine.name, mine.base_url, mine.path, mine.auth) == ("mine", "https://h/V1", "/embed", "x-key")
    assert (mine.inputs, mine.limits, mine.needs_model) == (frozenset({InputFormat.TEXTS}), Limits(items=7), True)
    assert (mine.key, mine.fused_models) == (PROVIDERS["vllm"].key, (*PROVIDERS["vllm"].fused_models, "f"))
    assert rows('[providers.other]\nlike = "openai"')["other"].base_url is None
    assert (added["plain"].key, added["plain"].base_url) == (GENERIC.key, None)


def test_upstreams_by_model() -> None:
    found = tables(
        """
        [[upstream]]
        provider = "openai"

        [[upstream]]
        provider = "openai"
        name = "small"
        models = ["text-embedding-3-small"]
        [[upstream.same_model]]
        upstream = "eu"
        [[upstream.same_model]]
        upstream = "openrouter"
        model = "openai/text-embedding-3-small"

        [[upstream]]
        name = "eu"
        provider = "openai"
        base_url = "https://eu.api.openai.com/v1"
        models = ["eu/*"]

        [[upstream]]
        provider = "openrouter"
        models = ["*/*"]

        [[upstream]]
        base_url = "http://gpu:8000/v1"
        models = ["local-?"]
        """
    )
    assert [setting.name for setting in found] == ["openai", "small", "eu", "openrouter", "gpu"]
    assert found[1].same_model == (
        SameModel(upstream="eu"),
        SameModel(upstream="openrouter", model="openai/text-embedding-3-small"),
    )
    assert (found[2].base_url, found[2].provider) == ("https://eu.api.openai.com/v1", PROVIDERS["openai"])
    assert (found[4].provider, found[4].models) == (GENERIC, ("local-?",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[providers.a]\nkye = ["x"]',
            "[providers.a]: Object contains unknown field `kye`; accepted: like, base_url,",
        ),
        ('[providers.a]\nlike = "b"', "f.toml: [providers.a] like = 'b' is not a provider; accepted: generic, infron"),
        ('[providers.a]\nkey = ["x"]\nneutral = ["x"]', "f.toml: [providers.a] 'x' is in two classes; list it once"),
        (
            '[providers.a]\nneutral_headers = ["X-Api-Key"]',
            "f.toml: [providers.a] neutral_headers: 'x-api-key' authentica",
        ),
        (
            '[providers.a]\nneutral_headers = ["x y"]',
            "f.toml: [providers.a] neutral_headers: 'x y' is not the name of a",
        ),
        ('[providers.a]\nkey = ["input"]', "f.toml: [providers.a] 'input' is reserved; remove it"),
        ('[providers.openai]\nneutral = ["dimensions"]', "'dimensions' is known to affect the response, so it can't"),
        (
            '[providers.a]\nlike = "jina"\nneutral = ["late_chunking"]',
            "'late_chunking' is known to affect the response",
        ),
        (
            '[providers.jina]\nkey = ["late_chunking"]',
            "'late_chunking' is known to make items depend on each other, so it can't",
        ),
        (
            '[providers.a]\nlike = "opanai"',
            "f.toml: [providers.a] like = 'opanai' is not a provider; did you mean openai?",
        ),
        ('[providers.a]\nkey = "x"', "Expected `array`, got `str`"),
        (
            '[providers.a]\nkey = ["output_dtype"]',
            "'output_dtype' selects the encoding of vectors; use enc",
        ),
        (
            '[providers.a]\ncross_item = { encoding_format = "base64" }',
            "'encoding_format' selects the encoding of vectors; use enc",
        ),
        ('[providers.a]\nencoding = { x = ["int4"] }', "Invalid enum value 'int4'"),
        ("[providers.demo]", "[providers.demo] is built in; choose another name"),
        ("[providers.a]\nmax_items = 0", "Expected `int` >= 1"),
        ('[providers.a]\npath = "embeddings"', "Expected `str` matching regex"),
        ('[providers.a]\nbase_url = "h"', "'h' is not an upstream; accepted: a base URL as https://api.example.com/v1"),
        (
            '[providers.a]\ninputs = ["text", "pdf"]',
            "value 'pdf' - at `$.inputs[1]`; accepted: text, texts,",
        ),
        ('[providers."a b"]', "Expected `str` matching regex"),
    ],
)
def test_invalid_provider_tables_are_rejected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        rows(text)
    assert message in str(error.value)


def test_a_table_overrides_the_egress_options() -> None:
    flags = Egress(proxy=parse_proxy("http://all:3128"), ca=Path("all.pem"), cert=Path("c.pem"), cert_key=Path("k.pem"))
    own, plain, mixed = tables(
        """
        [[upstream]]
        provider = "openai"
        proxy = "http://u:c4nary@own:3128"
        ca = "own.pem"
        cert = "own-cert.pem"
        cert_key = "own-key.pem"

        [[upstream]]
        provider = "jina"
        models = ["jina*"]

        [[upstream]]
        base_url = "http://gpu:8000/v1"
        models = ["*"]
        proxy = "none"
        ca = "none"
        cert = "none"
        """,
        flags,
    )
    assert own.egress == Egress(
        proxy=parse_proxy("http://u:c4nary@own:3128"),
        ca=Path("own.pem"),
        cert=Path("own-cert.pem"),
        cert_key=Path("own-key.pem"),
    )
    assert "c4nary" not in repr(own)
    assert plain.egress == flags
    assert mixed.egress == DIRECT


def test_the_certificate_of_a_table_does_not_use_the_key_of_the_options() -> None:
    (own,) = tables('[[upstream]]\nprovider = "openai"\ncert = "both.pem"', Egress(cert=Path("c"), cert_key=Path("k")))
    assert own.egress == Egress(cert=Path("both.pem"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[[upstream]]\nmodel = "a"',
            "[[upstream]] 1: Object contains unknown field `model`; accepted: name, prov",
        ),
        (
            '[[upstream]]\nprovider = "opneai"',
            "f.toml: [[upstream]] provider 'opneai' is unknown; did you mean openai?",
        ),
        ('[[upstream]]\nprovider = "azure"', "provider 'azure' needs a base_url, as https://host/path"),
        ("[[upstream]]", "provider 'generic' needs a base_url"),
        ('[[upstream]]\nprovider = "openai"\nmodels = []', "Expected `array` of length >= 1"),
        (
            '[[upstream]]\nprovider = "openai"\n[[upstream]]\nprovider = "openai"\nmodels = ["a"]',
            "two [[upstream]] tables are named 'openai'",
        ),
        (
            '[[upstream]]\nprovider = "openai"\n[[upstream]]\nprovider = "jina"',
            "upstreams openai, jina have no models; only the default upstream may have none",
        ),
        (
            '[[upstream]]\nprovider = "openai"\n[[upstream.same_model]]\nupstream = "openai"',
            "upstream 'openai' has same_model 'openai', which is not the name of another [[upstream]] table;"
            " accepted: none yet",
        ),
        (
            '[[upstream]]\nprovider = "jina"\n[[upstream]]\nprovider = "openai"\nmodels = ["a*"]\n'
            '[[upstream.same_model]]\nupstream = "jina"\nmodel = "b"',
            "upstream 'openai' has the same model as 'b', so its models must be one exact name",
        ),
        (
            '[[upstream]]\nprovider = "openai"\nproxy = "u:s3cret@p:1"',
            "f.toml: [[upstream]] openai: proxy: '…@p:1' is not a forward proxy; accepted: http://host:port",
        ),
        ('[[upstream]]\nprovider = "openai"\ncert_key = "k.pem"', "[[upstream]] openai: cert_key needs cert"),
        ('[[upstream]]\nprovider = "openai"\nca = ""', "Expected `str` of length >= 1 - at `$.ca`"),
        (
            '[[upstream]]\nbase_url = "http://gpu/v1"\ncert = "c.pem"',
            "f.toml: [[upstream]] gpu: ca and cert need an https:// base_url",
        ),
    ],
)
def test_invalid_upstream_tables_are_rejected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tables(text)
    assert message in str(error.value)


def test_rate_limits_that_the_operator_knows() -> None:
    (setting,) = tables(
        """
        [[upstream]]
        provider = "openai"
        [[upstream.limits]]
        models = ["text-embedding-3-*"]
        requests_per_minute = 3000
        [[upstream.limits]]
        tokens_per_minute = 1e6
        """
    )
    assert setting.limits == (
        RateLimit(models=("text-embedding-3-*",), requests_per_minute=3000),
        RateLimit(models=("*",), tokens_per_minute=1e6),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models = ['m']", "needs requests_per_minute, tokens_per_minute or both"),
        ("requests_per_minute = 0", "requests_per_minute"),
        ("requests_per_second = 5", "requests_per_second"),
    ],
)
def test_rate_limits_that_say_nothing_are_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tables(f"[[upstream]]\nprovider = 'openai'\n[[upstream.limits]]\n{text}")
