import pytest
from multidict import CIMultiDict

from proxy.protocol import header_fields, headers, identities


def test_hop_by_hop_fields_are_not_forwarded() -> None:
    given = CIMultiDict(
        [
            ("Connection", "keep-alive, X-Hop"),
            ("connection", "x-other"),
            ("Keep-Alive", "timeout=5"),
            ("Transfer-Encoding", "chunked"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Proxy-Authorization", "Basic x"),
            ("X-Hop", "1"),
            ("X-Other", "1"),
            ("Authorization", "Bearer k"),
            ("Accept", "a"),
            ("Accept", "b"),
        ]
    )
    assert list(headers.end_to_end(given).items()) == [
        ("Authorization", "Bearer k"),
        ("Accept", "a"),
        ("Accept", "b"),
    ]


def test_host_content_length_and_expect_are_not_forwarded() -> None:
    given = CIMultiDict({"Host": "proxy", "Content-Length": "5", "Expect": "100-continue", "X-Custom": "1"})
    assert dict(headers.to_upstream(given)) == {"X-Custom": "1"}


def test_identity_does_not_depend_on_the_order_or_case_of_names() -> None:
    one = CIMultiDict([("Authorization", "Bearer k"), ("Accept", "x"), ("API-Key", "a"), ("OpenAI-Project", "p")])
    other = CIMultiDict([("openai-project", "p"), ("api-key", "a"), ("authorization", "Bearer k"), ("User-Agent", "u")])
    assert identities.identity(one) == identities.identity(other)
    assert identities.identity(one) == (
        [("api-key", "a"), ("authorization", "Bearer k")],
        [("openai-project", "p")],
        False,
    )


@pytest.mark.parametrize(
    "name",
    [
        "Azureml-Model-Deployment",
        "X-MS-Model-Mesh-Model-Name",
        "X-AI-EG-Model",
        "X-LiteLLM-Tags",
        "Helicone-OpenAI-Api-Base",
        "Helicone-Target-Url",
        "X-Portkey-Config",
        "X-Portkey-Virtual-Key",
        "X-Portkey-Azure-Deployment-Id",
        "X-Portkey-Aws-Secret-Access-Key",
        "X-Target-Backend",
        "NVCF-Input-Asset-References",
        "OpenAI-Project",
        "X-Portkey-Metadata",
        "X-Portkey-Request-Timeout",
        "X-Portkey-Retry-Count",
        "X-TFY-Metadata",
        "X-TFY-Guardrails",
        "CF-AIG-Metadata",
        "CF-AIG-Request-Timeout",
        "Helicone-Fallbacks",
        "Helicone-Token-Limit-Exception-Handler",
        "X-BF-EH-OpenAI-Organization",
        "X-Data-Keywordsai-Params",
        "X-Any-Metadata",
        "X-Envoy-Original-Dst-Host",
        "L5d-Dst-Override",
        "Dtab-Local",
        "Dapr-App-Id",
        "X-Amzn-SageMaker-Inference-Component",
        "X-Envoy-Ip-Tags",
        "X-Region",
        "Uberctx-Region",
    ],
)
def test_routing_fields_are_vector_affecting(name: str) -> None:
    assert identities.identity(CIMultiDict({name: "v"})) == ([], [(name.lower(), "v")], False)


@pytest.mark.parametrize("name", ["X-Portkey-Api-Key", "X-Provider-Api-Key", "X-Model-Token", "X-Target-Authorization"])
def test_a_routing_credential_is_a_credential_and_is_not_forwarded_with_the_proxys_key(name: str) -> None:
    given = CIMultiDict({name: "v"})
    assert identities.identity(given) == ([(name.lower(), "v")], [], False)
    assert not headers.without_credentials(given)


@pytest.mark.parametrize(
    "name",
    [
        "X-Stainless-Runtime",
        "X-Stainless-Read-Timeout",
        "X-Stainless-Retry-Count",
        "X-Request-Id",
        "X-Client-Request-Id",
        "Traceparent",
        "X-Amzn-Trace-Id",
        "X-Cloud-Trace-Context",
        "X-Datadog-Parent-Id",
        "X-Forwarded-For",
        "X-Real-IP",
        "Via",
        "User-Agent",
        "Accept-Encoding",
        "HTTP-Referer",
        "X-Title",
        "Helicone-Property-Session",
        "X-Portkey-Trace-Id",
        "X-Portkey-Cache-Namespace",
        "X-TFY-Logging-Config",
        "CF-AIG-Event-Id",
        "X-BF-Maxim-Tags",
        "X-LiteLLM-Spend-Logs-Metadata",
        "Idempotency-Key",
        "Connection",
    ],
)
def test_fields_that_differ_in_every_call_are_neutral(name: str) -> None:
    assert identities.identity(CIMultiDict({name: "v"})) == ([], [], False)


@pytest.mark.parametrize("document", [*header_fields.REQUEST_FIELDS, *header_fields.PROXY_FIELDS], ids=str)
def test_documented_neutral_fields_are_neutral(document: str) -> None:
    assert document.startswith("https://")
    names = {**header_fields.REQUEST_FIELDS, **header_fields.PROXY_FIELDS}[document].split()
    given = CIMultiDict({name.replace("*", "any-region"): "v" for name in names})
    assert identities.identity(given) == ([], [], False)
    assert headers.without_credentials(given) == given


ASSERTIONS = [name for names in header_fields.ASSERTION_FIELDS.values() for name in names.split()]


@pytest.mark.parametrize("name", ASSERTIONS)
@pytest.mark.parametrize("secret", ["Authorization", "API-Key", "X-Goog-Api-Key"])
def test_assertions_are_neutral_beside_a_secret(name: str, secret: str) -> None:
    given = CIMultiDict({secret: "k", name: "v"})
    assert identities.identity(given) == ([(secret.lower(), "k")], [], False)


@pytest.mark.parametrize("name", ASSERTIONS)
@pytest.mark.parametrize("other", ["X-Tenant-Id", "X-BF-Api-Key", "X-Goog-Authenticated-User-Id", "Cookie"])
def test_assertions_are_credentials_without_a_secret(name: str, other: str) -> None:
    credentials = identities.identity(CIMultiDict({other: "v", name: "v"})).credentials
    assert (name, "v") in credentials
    assert credentials == sorted(credentials)


@pytest.mark.parametrize("name", ASSERTIONS)
def test_assertions_are_not_forwarded_with_the_proxys_key(name: str) -> None:
    assert not headers.without_credentials(CIMultiDict({name: "v"}))


def test_the_operators_names_take_precedence() -> None:
    given = CIMultiDict({"X-Datadog-Tags": "t", "X-Portkey-Metadata": "m", "X-Tenant-Id": "a", "Authorization": "k"})
    said = identities.identity(given, frozenset({"x-datadog-tags"}), frozenset({"x-portkey-metadata", "x-tenant-id"}))
    assert said == ([("authorization", "k")], [("x-datadog-tags", "t")], False)


@pytest.mark.parametrize("name", ["X-Tenant-Id", "X-Consumer-Username", "X-Auth-Request-User", "X-Remote-User"])
def test_cookies_are_credentials_beside_an_unproven_name(name: str) -> None:
    given = CIMultiDict({name: "u", "Cookie": "c"})
    assert identities.identity(given).credentials == sorted([(name.lower(), "u"), ("cookie", "c")])


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "X-Custom-Token", "X-Auth", "X-My-Pat", "Api-Secret"])
def test_cookies_are_neutral_beside_a_proof(name: str) -> None:
    given = CIMultiDict({name: "u", "Cookie": "c", "X-Tenant-Id": "t"})
    assert identities.identity(given).credentials == sorted([(name.lower(), "u"), ("x-tenant-id", "t")])


def test_cookies_are_credentials_if_the_only_other_is_declared_neutral() -> None:
    given = CIMultiDict({"X-Forwarded-User": "u", "Cookie": "c"})
    assert identities.identity(given, neutral_headers=frozenset({"x-forwarded-user"})).credentials == [("cookie", "c")]


def test_key_headers_are_vector_affecting() -> None:
    given = CIMultiDict({"X-User": "v", "Authorization": "k", "X-Pool": "a"})
    assert identities.identity(given, frozenset({"x-user"})) == ([("authorization", "k")], [("x-user", "v")], False)
    assert identities.identity(given) == ([("authorization", "k")], [], False)


@pytest.mark.parametrize("fields", [{"Repr-Digest": "x"}, {"Authorization": "AWS4-HMAC-SHA256 Credential=a"}])
def test_a_signature_of_the_body_is_noticed(fields: dict[str, str]) -> None:
    assert identities.identity(CIMultiDict(fields)).is_signed


def test_repeated_credentials_keep_their_order() -> None:
    both = CIMultiDict([("Authorization", "a"), ("Authorization", "b")])
    turned = CIMultiDict([("Authorization", "b"), ("Authorization", "a")])
    assert identities.identity(both)[0] == [("authorization", "a"), ("authorization", "b")]
    assert identities.identity(both) != identities.identity(turned)


@pytest.mark.parametrize(
    "name",
    ["Authorization", "api-key", "X-Goog-Api-Key", "x-litellm-api-key", "X-Auth-Token", "apikey", "x-portkey-api-key",
     "X-Secret", "X-Amz-Security-Token", "cf-access-jwt-assertion", "x-amzn-oidc-data", "X-Forwarded-Client-Cert",
     "x-ms-client-principal", "X-Forwarded-User", "X-Tenant-Id", "x-consumer-id", "x-bf-vk",
     "X-SSL-Client-S-DN", "X-Forwarded-Email", "X-Forwarded-Preferred-Username", "X-PAT", "Ocp-Apim-Subscription-Key",
     "x-subscriptionkey", "X-Routing-Key", "x-correlation-key", "Uberctx-Tenant"],
)  # fmt: skip
def test_names_of_credentials(name: str) -> None:
    assert identities.identity(CIMultiDict({name: "v"})) == ([(name.lower(), "v")], [], False)


@pytest.mark.parametrize(
    "name",
    ["Idempotency-Key", "X-Stainless-Lang", "traceparent", "User-Agent", "x-portkey-trace-id", "Proxy-Authorization",
     "X-Request-Id", "Content-Length", "x-author", "x-request-token-count", "x-csrf-token", "X-CSRFToken",
     "x-vercel-proxy-signature", "signature-input", "Postman-Token", "X-Forwarded-For"],
)  # fmt: skip
def test_names_that_are_no_credentials(name: str) -> None:
    assert identities.identity(CIMultiDict({name: "v"})) == ([], [], False)


def test_cookies_are_credentials_only_without_others() -> None:
    assert identities.identity(CIMultiDict({"Cookie": "AWSALB=1"})) == ([("cookie", "AWSALB=1")], [], False)
    both = CIMultiDict({"Cookie": "AWSALB=1", "Authorization": "k"})
    assert identities.identity(both) == ([("authorization", "k")], [], False)


def test_fields_that_are_not_forwarded_do_not_count() -> None:
    given = CIMultiDict({"Connection": "azureml-model-deployment", "azureml-model-deployment": "blue"})
    assert identities.identity(given) == ([], [], False)


@pytest.mark.parametrize("name", ["Content-Digest", "Digest", "content-md5", "X-Amz-Content-Sha256", "x-component-sig"])
def test_a_signature_of_the_body_allows_no_other_body(name: str) -> None:
    assert identities.identity(CIMultiDict({name: "v"})).is_signed


@pytest.mark.parametrize(
    "name",
    ["X-Portkey-Config", "x-portkey-provider", "Helicone-Target-Url", "OpenAI-Project", "X-Goog-User-Project"],
)
def test_fields_that_select_the_model_are_vector_affecting(name: str) -> None:
    assert identities.identity(CIMultiDict({name: "v"})) == ([], [(name.lower(), "v")], False)
