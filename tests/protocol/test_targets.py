import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocol import targets
from proxy.protocol.targets import PathModel


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("/v1/embeddings/", "/v1/embeddings"),
        ("//v1///embeddings//", "/v1/embeddings"),
        ("/v1/%65%4Dbed%64ings", "/v1/eMbeddings"),
        ("/%7eu/%2d%2E%5f%39", "/~u/-._9"),
        ("/v1%2Fembeddings", "/v1%2Fembeddings"),
        ("/v1/a%20b%25%3F%23%5C%41", "/v1/a%20b%25%3F%23%5CA"),
        ("/v1/%2565", "/v1/%2565"),
        ("/v1/%6", "/v1/%6"),
        ("/V1/Embeddings", "/V1/Embeddings"),
        ("/", "/"),
        ("//", "/"),
    ],
)
def test_only_what_means_the_same_everywhere_is_normalized(path: str, same: str) -> None:
    assert targets.normalized(path) == same


@given(st.text())
def test_a_normalized_path_is_that_of_its_own(path: str) -> None:
    once = targets.normalized("/" + path)
    if "%" not in once:  # %2565 becomes %65 in one step, which is another path
        assert targets.normalized(once) == once
    assert once.startswith("/")
    assert "//" not in once


UNRESERVED = string.ascii_letters + string.digits + "-._~"


@given(st.lists(st.tuples(st.sampled_from(UNRESERVED + "/"), st.sampled_from(["{}", "%{:02x}", "%{:02X}"]))))
def test_percent_encoding_of_unreserved_characters_makes_no_difference(letters: list[tuple[str, str]]) -> None:
    path = "/" + "".join(letter for letter, _ in letters)
    written = "/" + "".join(
        letter if form == "{}" or letter == "/" else form.format(ord(letter)) for letter, form in letters
    )
    assert targets.normalized(written) == targets.normalized(path)


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("/a/b/c/./../../g", "/a/g"),  # RFC 3986 §5.2.4
        ("/../../a", "/a"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a//../b", "/a/b"),
        ("/.upstream/..a/...", "/.upstream/..a/..."),
        ("", "/"),
    ],
)
def test_dot_segments_are_removed_as_clients_remove_them(path: str, resolved: str) -> None:
    assert targets.without_dot_segments(path) == resolved


@pytest.mark.parametrize("path", ["/v1/../embeddings", "/.", "/v1/./embeddings", "/v1/.."])
def test_dot_segments_are_found(path: str) -> None:
    assert targets.has_dot_segments(path)
    assert not targets.has_dot_segments(path.replace(".", "a."))


@pytest.mark.parametrize(
    ("reference", "there"),
    [
        ("x", "http://h:1/a/x"),
        ("/x?y#z", "http://h:1/x?y#z"),
        ("?y", "http://h:1/a/b?y"),
        ("#z", "http://h:1/a/b?q#z"),
        ("../x//y/", "http://h:1/x//y/"),
        ("//g/x", "http://g/x"),
        ("https://g", "https://g/"),
        ("https://g/a/../x", "https://g/x"),
        ("mailto:x", "mailto:x"),
    ],
)
def test_references_are_resolved(reference: str, there: str) -> None:
    found = targets.resolve("http://h:1/a/b?q", reference)
    mark = "//" if found.authority else ""
    assert f"{found.scheme}:{mark}{found.authority}{found.path}{found.query}{found.fragment}" == there


@pytest.mark.parametrize(
    "url", ["http://h", "HTTP://H:80/x", "http://h:/x", "http://u:p@h/x?y", "http://[::1]", "http://[::1]:80"]
)
def test_an_origin_is_scheme_host_and_port(url: str) -> None:
    host = "[::1]" if "[" in url else "h"
    assert targets.resolve(url, "").origin == ("http", host, 80)


@given(st.text())
def test_any_text_is_parsed_as_a_reference(reference: str) -> None:
    assert targets.resolve("https://h/a", reference).origin
    assert targets.resolve("https://h/a", reference).address.isascii()


def test_neither_query_nor_user_of_a_location_is_logged() -> None:
    assert targets.resolve("https://h/", "https://u:secret@g:1/ü?code=secret#secret").address == "https://g:1/?"


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("/openai/deployments/ada/embeddings?api-version=1", PathModel("ada", is_deployment=True)),
        ("/aoai//openai/deployments/a%20b/embeddings/", PathModel("a b", is_deployment=True)),
        ("/v1/engines/text-embedding-ada-002/embeddings", PathModel("text-embedding-ada-002", is_deployment=False)),
        ("/engines/BAAI/bge-m3/embeddings", PathModel("BAAI/bge-m3", is_deployment=False)),
        ("/engines/BAAI%2Fbge-m3/embeddings", PathModel("BAAI/bge-m3", is_deployment=False)),
        ("/v1/engin%65s/m/embeddings", PathModel("m", is_deployment=False)),
        ("/engines/v1/embeddings", None),  # Docker Model Runner
        ("/engines/llama.cpp/v1/embeddings", None),
        ("/v1/engines/embeddings", None),
        ("/v1/engines/m/completions", None),
        ("/v1/embeddings", None),
    ],
)
def test_models_in_embeddings_paths(target: str, named: PathModel | None) -> None:
    assert targets.parse_path_model(target) == named


@given(st.text(min_size=1).filter(lambda name: not name.startswith("v")), st.sampled_from(["deployments", "engines"]))
def test_the_model_in_a_path_is_replaced(name: str, where: str) -> None:
    target = targets.with_path_model(f"/openai/{where}/old/embeddings?api-version=1", name)
    found = targets.parse_path_model(target)
    assert found is not None
    assert (found.name, target.partition("?")[2]) == (name, "api-version=1")


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("/v1beta/models/gemini-embedding-001:batchEmbedContents", "gemini-embedding-001"),
        ("/v1/projects/p/locations/l/publishers/google/models/text-embedding-005:predict", "text-embedding-005"),
        ("/model/amazon.titan-embed-text-v2:0/invoke", "amazon.titan-embed-text-v2:0"),
        ("/model/cohere.embed-english-v3/invoke", "cohere.embed-english-v3"),
        ("/hf-inference/models/BAAI/bge-m3/pipeline/feature-extraction", "BAAI/bge-m3"),
        ("/pipeline/feature-extraction/BAAI/bge-m3", "BAAI/bge-m3"),
        ("/openai/deployments/dep/embeddings/extra", "dep"),
        ("/models/embeddings", None),  # Azure AI Inference: the body names it
        ("/models/images/embeddings", None),
        ("/v2/embed", None),
        ("/v1/embeddings", None),
    ],
)
def test_models_in_the_paths_of_other_apis(target: str, model: str | None) -> None:
    assert targets.model_in_path(target) == model


CARRY_TEXTS = [
    "/v2/embed",  # Cohere
    "/api/embed",  # Ollama
    "/api/embeddings",
    "/embed",  # TEI
    "/embed_all",
    "/embed_sparse",
    "/embedding",  # llama.cpp
    "/pooling",  # vLLM
    "/v1beta/models/gemini-embedding-001:embedContent",
    "/v1beta/models/gemini-embedding-001:batchEmbedContents",
    "/v1beta/models/gemini-embedding-001:asyncBatchEmbedContent",
    "/v1/multimodalembeddings",  # Voyage
    "/v1/contextualizedembeddings",
    "/v1/multi-vector",  # Jina
    "/model/amazon.titan-embed-text-v2:0/invoke",  # Bedrock
    "/pipeline/feature-extraction/BAAI/bge-m3",  # Hugging Face
    "/api/v1/services/embeddings/text-embedding/text-embedding",  # DashScope
    "/ml/v1/text/embeddings",  # watsonx
    "/foo/v1/embeddings",
    "/v1/Embeddings",
    "/v1%2Fembeddings",
    "/v1/%2565mbeddings",
    "/v1\\embeddings",
    "/v1/embeddings;v=1",
    "/v1/embeddings/.",
    "/v1/embeddings/x/..",
    "/v1/../v1/embeddings",
]


@pytest.mark.parametrize("target", CARRY_TEXTS)
def test_paths_of_embeddings_calls(target: str) -> None:
    assert targets.is_embeddings_like(target)


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/files", "/v1/embedded", "/v1/x?next=/v1/embeddings"])
def test_paths_of_other_calls(target: str) -> None:
    assert not targets.is_embeddings_like(target)


@pytest.mark.parametrize(
    ("target", "logged"),
    [
        ("/api/v0/embeddings?key=secret", "/api/v0/embeddings"),
        ("/sk-secret/v1/embeddings", "/…/v1/embeddings"),
        ("/v1beta/models/secret:embedContent", "/v1beta/models/…"),
        ("/v1/embeddings\nFAKE", "/v1/…"),
        ("/api" * 100 + "/embed", "/api" * 7 + "/embed"),
    ],
)
def test_a_path_is_logged_without_possible_secrets(target: str, logged: str) -> None:
    assert targets.loggable_path(target) == logged
