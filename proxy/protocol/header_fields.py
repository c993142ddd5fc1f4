"""The tables of header fields whose meaning to a cache of vectors is documented (pure).

A neutral field is listed by its exact name, or by a prefix (``x-datadog-*``) that its system documents as its own. Each
row is below the document that it comes from. A word in a name ("metadata", "tags", "retry") never exempts a field: a
wrong exemption serves another model's vectors, a wrong omission costs hits.

`proxy.protocol.header_kinds` classifies fields by these tables, and by their names where no table has them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class FieldNames:
    exact: frozenset[str]
    prefixes: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.exact or name.startswith(self.prefixes)


def _parse_names(listed: Iterable[str]) -> FieldNames:
    """Space-separated names; a ``*`` at the end of a name makes it a prefix."""
    names = [name for row in listed for name in row.split()]
    return FieldNames(
        frozenset(name for name in names if not name.endswith("*")),
        tuple(name[:-1] for name in names if name.endswith("*")),
    )


# Trace contexts and other fields that clients and their tools add to each request. The baggage of Jaeger and
# OpenTracing (`uberctx-*`, `ot-baggage-*`) is omitted on purpose: the application chooses those names, so they can mean
# anything.
REQUEST_FIELDS = {
    "https://www.w3.org/TR/trace-context/": "traceparent tracestate",
    "https://www.w3.org/TR/baggage/": "baggage",
    "https://docs.datadoghq.com/tracing/trace_collection/trace_context_propagation/": "x-datadog-*",
    "https://github.com/openzipkin/b3-propagation": "b3 x-b3-*",
    "https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html": "x-amzn-trace-id",
    "https://cloud.google.com/trace/docs/trace-context": "x-cloud-trace-context",
    "https://github.com/census-instrumentation/opencensus-specs/blob/master/encodings/BinaryEncoding.md": (
        "grpc-trace-bin grpc-tags-bin"
    ),
    "https://develop.sentry.dev/sdk/telemetry/traces/": "sentry-trace",
    "https://www.jaegertracing.io/docs/1.18/client-libraries/#propagation-format": "uber-trace-id jaeger-debug-id",
    "https://opentelemetry.io/docs/specs/otel/context/api-propagators/": (
        "ot-tracer-traceid ot-tracer-spanid ot-tracer-sampled"
    ),
    "https://docs.newrelic.com/docs/distributed-tracing/concepts/how-new-relic-distributed-tracing-works/": (
        "newrelic x-newrelic-id x-newrelic-transaction x-newrelic-synthetics"
    ),
    "https://docs.dynatrace.com/docs/setup-and-configuration/test-automation/dynatrace-and-jmeter-integration": (
        "x-dynatrace-test"
    ),
    "https://pub.dev/documentation/dynatrace_flutter_plugin/latest/dynatrace_flutter_plugin/DynatraceAction/": (
        "x-dynatrace"
    ),
    "https://github.com/elastic/apm/blob/main/specs/agents/tracing-distributed-tracing.md": "elastic-apm-traceparent",
    "https://www.ibm.com/docs/en/obi/current?topic=monitoring-traces#tracing-headers": (
        "x-instana-t x-instana-s x-instana-l"
    ),
    "https://skywalking.apache.org/docs/main/next/en/api/x-process-propagation-headers-v3": "sw8 sw8-x sw8-correlation",
    "https://learning.postman.com/docs/getting-started/installation/settings/": "postman-token",
    "https://wicg.github.io/client-hints-infrastructure/": "sec-ch-*",
    "https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/": "idempotency-key",
    "https://www.mercadopago.com/developers/en/reference": "x-idempotency-key",
    "https://guides.rubyonrails.org/security.html#required-security-token": "x-csrf-token",
    "https://docs.djangoproject.com/en/stable/howto/csrf/": "x-csrftoken",
    "https://angular.dev/best-practices/security#httpclient-xsrf-csrf-security": "x-xsrf-token",
    "https://docs.litellm.ai/docs/proxy/request_headers": "x-litellm-spend-logs-metadata",
    # Hop-by-hop, so the upstream does not see them (§7.6.1).
    "https://www.rfc-editor.org/rfc/rfc9110#section-11.7": "proxy-authenticate proxy-authorization",
}

# Fields that service meshes, CDNs, clouds and load balancers in front of the proxy add, such as a client's location,
# retry count and start time. Envoy's and Linkerd's are listed one by one: others of theirs select the upstream
# (_SELECTORS).
PROXY_FIELDS = {
    "https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers": (
        "x-client-trace-id x-ot-span-context x-request-id x-envoy-downstream-service-cluster"
        " x-envoy-downstream-service-node x-envoy-external-address x-envoy-force-trace x-envoy-internal"
    ),
    "https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter": (
        "x-envoy-attempt-count x-envoy-decorator-operation x-envoy-expected-rq-timeout-ms"
        " x-envoy-hedge-on-per-try-timeout x-envoy-is-timeout-retry x-envoy-max-retries x-envoy-original-path"
        " x-envoy-retriable-header-names x-envoy-retriable-status-codes x-envoy-retry-grpc-on x-envoy-retry-on"
        " x-envoy-upstream-alt-stat-name x-envoy-upstream-rq-per-try-timeout-ms"
        " x-envoy-upstream-rq-timeout-alt-response x-envoy-upstream-rq-timeout-ms"
    ),
    "https://github.com/istio/proxy/blob/master/source/extensions/filters/http/peer_metadata/config.proto": (
        "x-envoy-peer-metadata x-envoy-peer-metadata-id"
    ),
    "https://api.linkerd.io/1.7.5/linkerd/index.html#http-headers": (
        "l5d-ctx-deadline l5d-ctx-trace l5d-reqid l5d-sample"
    ),
    "https://devcenter.heroku.com/articles/http-routing#heroku-headers": "x-request-start",
    "https://developers.cloudflare.com/fundamentals/reference/http-headers/": (
        "cdn-loop cf-connecting-ip cf-connecting-ipv6 cf-ew-via cf-ipcountry cf-pseudo-ipv4 cf-ray cf-visitor cf-worker"
        " true-client-ip"
    ),
    "https://developers.cloudflare.com/rules/transform/managed-transforms/reference/": (
        "cf-bot-score cf-ipcity cf-ipcontinent cf-iplatitude cf-iplongitude cf-ja3-hash cf-metro-code cf-postal-code"
        " cf-region cf-region-code cf-threat-score cf-timezone cf-verified-bot"
    ),
    # Without `cloudfront-viewer-cert-*`, which identify the client.
    "https://docs.aws.amazon.com/AmazonCloudFront/latest/DeveloperGuide/adding-cloudfront-headers.html": (
        "cloudfront-forwarded-proto cloudfront-viewer-address cloudfront-viewer-asn cloudfront-viewer-city"
        " cloudfront-viewer-country cloudfront-viewer-country-name cloudfront-viewer-country-region"
        " cloudfront-viewer-country-region-name cloudfront-viewer-header-count cloudfront-viewer-header-order"
        " cloudfront-viewer-http-version cloudfront-viewer-ja3-fingerprint cloudfront-viewer-ja4-fingerprint"
        " cloudfront-viewer-latitude cloudfront-viewer-longitude cloudfront-viewer-metro-code"
        " cloudfront-viewer-postal-code cloudfront-viewer-time-zone cloudfront-viewer-tls"
    ),
    "https://docs.aws.amazon.com/vpc-lattice/latest/ug/http-targets.html": (
        "x-amzn-lattice-network x-amzn-lattice-target"
    ),
    "https://www.fastly.com/documentation/reference/http/http-headers/": "fastly-client-ip fastly-ff fastly-ssl",
    "https://fly.io/docs/networking/request-headers/": "fly-client-ip fly-forwarded-port fly-region",
    "https://learn.microsoft.com/azure/frontdoor/front-door-http-headers-protocol": (
        "x-azure-clientip x-azure-fdid x-azure-ref x-azure-requestchain x-azure-socketip x-fd-healthprobe"
    ),
    "https://cloud.google.com/appengine/docs/standard/reference/request-headers": (
        "x-appengine-city x-appengine-citylatlong x-appengine-country x-appengine-region"
    ),
    "https://cloud.google.com/load-balancing/docs/https/custom-headers": "x-client-geo-location",
    "https://cloud.google.com/kubernetes-engine/docs/how-to/ingress-configuration": (
        "x-client-city x-client-citylatlong x-client-region"
    ),
    "https://developers.google.com/tag-platform/tag-manager/server-side/enable-region-specific-settings": (
        "x-gclb-country x-gclb-region"
    ),
    "https://vercel.com/docs/headers/request-headers": (
        "x-vercel-deployment-url x-vercel-forwarded-for x-vercel-id x-vercel-ip-city x-vercel-ip-continent"
        " x-vercel-ip-country x-vercel-ip-country-region x-vercel-ip-latitude x-vercel-ip-longitude"
        " x-vercel-ip-postal-code x-vercel-ip-timezone"
    ),
}

# Assertions: tokens and certificates by which a proxy in front identifies the client. They are renewed within minutes
# or for each request.
ASSERTION_FIELDS = {
    "https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-client-cert": (
        "x-forwarded-client-cert"
    ),
    "https://cloud.google.com/iap/docs/signed-headers-howto": "x-goog-iap-jwt-assertion",
    "https://docs.aws.amazon.com/elasticloadbalancing/latest/application/listener-authenticate-users.html": (
        "x-amzn-oidc-accesstoken x-amzn-oidc-data"
    ),
    # Without -Issuer and -Subject, which do not change when a certificate is renewed.
    "https://docs.aws.amazon.com/elasticloadbalancing/latest/application/mutual-authentication.html": (
        "x-amzn-mtls-clientcert-leaf x-amzn-mtls-clientcert-serial-number x-amzn-mtls-clientcert-validity"
    ),
    "https://developers.cloudflare.com/cloudflare-one/identity/authorization-cookie/application-token/": (
        "cf-access-jwt-assertion"
    ),
    "https://learn.microsoft.com/azure/app-service/configure-authentication-user-identities": (
        "x-ms-client-principal x-ms-token-aad-access-token x-ms-token-aad-id-token x-ms-token-google-access-token"
        " x-ms-token-google-id-token"
    ),
    "https://oauth2-proxy.github.io/oauth2-proxy/configuration/overview": (
        "x-auth-request-access-token x-forwarded-access-token"
    ),
    "https://www.pomerium.com/docs/capabilities/getting-users-identity": "x-pomerium-jwt-assertion",
    "https://goteleport.com/docs/enroll-resources/application-access/jwt/introduction/": "teleport-jwt-assertion",
    "https://techdocs.akamai.com/terraform/docs/g2oheader": "x-akamai-g2o-auth-data x-akamai-g2o-auth-sign",
}


class _Gateway(NamedTuple):
    """``source`` documents that ``neutral`` are for tracing, logging, accounting or caching."""

    source: str
    neutral: str


# LLM gateways. Any field with such a prefix may select the model, rewrite the text or name a fallback, except the
# fields listed. Timeouts and retries are not exempt, because a gateway asks another model when they are exhausted.
_GATEWAYS = {
    # `x-portkey-metadata` chooses the model by https://portkey.ai/docs/product/ai-gateway/conditional-routing
    "x-portkey-": _Gateway(
        "https://portkey.ai/docs/api-reference/inference-api/headers",
        "x-portkey-cache-force-refresh x-portkey-cache-namespace x-portkey-debug x-portkey-parent-span-id"
        " x-portkey-span-id x-portkey-span-name x-portkey-trace-id",
    ),
    # `x-tfy-metadata` is used for request routing
    "x-tfy-": _Gateway("https://www.truefoundry.com/docs/ai-gateway/request-headers", "x-tfy-logging-config"),
    # routes go by `cf-aig-metadata`, `cf-aig-request-timeout` triggers a fallback provider, `cf-aig-cache-key`
    # overrides the default key
    "cf-aig-": _Gateway(
        "https://developers.cloudflare.com/ai-gateway/glossary/",
        "cf-aig-collect-log cf-aig-custom-cost cf-aig-event-id cf-aig-log-id",
    ),
    "helicone-": _Gateway(
        "https://docs.helicone.ai/helicone-headers/header-directory",
        "helicone-cache-bucket-max-size helicone-cache-enabled helicone-cache-seed helicone-omit-request"
        " helicone-omit-response helicone-property-* helicone-ratelimit-policy helicone-request-id helicone-session-id"
        " helicone-session-name helicone-session-path helicone-user-id",
    ),
    "x-bf-": _Gateway(
        "https://docs.getbifrost.ai/providers/request-options",
        "x-bf-disable-content-logging x-bf-maxim-* x-bf-prom-* x-bf-store-raw-request-response",
    ),
}

# Fields that select what computes the vector although their names do not match the rule in `header_kinds`. The
# organization and project of OpenAI and Google select what a key has access to. NVIDIA loads images from the named
# assets. NemoRouter compresses the text and fills in templates. Keywords AI (now Respan) reads any of its parameters
# from a field, including `loadbalance_models` (https://docs.keywordsai.co/api-endpoints/integration/chat-completions).
# Those in the last line replace the destination: Envoy's (see its headers above), Linkerd's
# (https://linkerd.io/2/tasks/using-ingress/ and the page above) and Dapr's
# (https://docs.dapr.io/developing-applications/building-blocks/service-invocation/).
_SELECTORS = (
    "openai-organization openai-project x-goog-user-project extra-parameters nvcf-*",
    "x-nemo-compress x-nemo-prompt-* x-nr-compress x-nr-prompt-*",
    "x-data-keywordsai-params x-data-respan-params x-amzn-sagemaker-inference-component",
    "dapr-app-id dtab-local l5d-dst-override l5d-dtab x-envoy-original-dst-host",
)

# Fields that contain or sign a digest of the body (RFC 9530, which RFC 9421 signatures cover; AWS; AIGNE's components),
# so no other body can be sent with them.
SIGNATURES = frozenset(
    {
        "content-digest",
        "content-md5",
        "digest",
        "repr-digest",
        "x-amz-content-sha256",
        "x-component-sig",
    }
)

# Fields that contain the secret by which an upstream authenticates a client. Beside one of these an assertion is
# neutral. The names are exact: a field whose name only resembles a secret's (`x-bf-api-key` names a key) does not make
# an assertion neutral.
SECRETS = frozenset(
    {
        "api-key",
        "apikey",
        "authorization",
        "cf-aig-authorization",
        "helicone-auth",
        "ocp-apim-subscription-key",
        "x-api-key",
        "x-auth-token",
        "x-goog-api-key",
        "x-litellm-api-key",
        "x-portkey-api-key",
        "x-tfy-api-key",
    }
)

_NEUTRAL_ROWS = (
    *REQUEST_FIELDS.items(),
    *PROXY_FIELDS.items(),
    *((gateway.source, gateway.neutral) for gateway in _GATEWAYS.values()),
)
NEUTRAL = _parse_names(names for _, names in _NEUTRAL_ROWS)
ASSERTIONS = _parse_names(ASSERTION_FIELDS.values()).exact
VECTOR_AFFECTING = _parse_names((*_SELECTORS, "x-portkey-*"))
GATEWAY_PREFIXES = tuple(_GATEWAYS)


def document_of(name: str) -> str | None:
    """The document that says what a field of this name, in lower case, is for, if a table has it with its document."""
    rows = (*_NEUTRAL_ROWS, *ASSERTION_FIELDS.items())
    return next((document for document, names in rows if name in _parse_names([names])), None)
