"""Curl command lines, as people paste them."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.explain.curl import is_curl, parse_curl
from proxy.explain.http_request import HTTPRequest, UnreadableRequest, target_of
from proxy.explain.shell_words import split_words

FILES = {"body.json": b'{"model":\n"m"}\n', "-": b"stdin", "fields": b"X-A: 1\r\nX-B: 2\n"}


def parse(command: str) -> HTTPRequest:
    return parse_curl(command, FILES.__getitem__)


def test_the_command_of_the_documentation() -> None:
    request = parse(
        "curl https://api.openai.com/v1/embeddings \\\n"
        '  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        '  -d \'{"input": "The food", "model": "m"}\'\n'
        "echo done\n"
    )
    assert (request.method, request.target) == ("POST", "/v1/embeddings")
    assert request.body == b'{"input": "The food", "model": "m"}'
    assert dict(request.headers) == {
        "Authorization": "Bearer $OPENAI_API_KEY",
        "Content-Type": "application/json",
        "Accept": "*/*",
    }
    assert request.notes == ("a shell variable of the command was taken literally; keys depend on its value",)


def test_the_command_that_browsers_copy() -> None:
    request = parse(
        "curl 'http://h:8080/v1/embeddings?api-version=1' -X 'POST' -H 'accept: */*' --compressed --insecure -sS -m5 "
        '--data-raw $\'{"input":"it\\\'s \\u00e9\\n!"}\' | jq .data'
    )
    assert request.target == "/v1/embeddings?api-version=1"
    assert request.body.decode() == '{"input":"it\'s \u00e9\n!"}'
    assert request.headers["Accept-Encoding"] == "gzip, deflate"
    assert request.notes == ()


@pytest.mark.parametrize(
    ("options", "body", "headers"),
    [
        ("-d a -d b", b"a&b", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("--json '{}'", b"{}", {"Content-Type": "application/json", "Accept": "application/json"}),
        ("-d @body.json", b'{"model":"m"}', {}),
        ("--data-binary @body.json", b'{"model":\n"m"}\n', {}),
        ("--data-raw @body.json", b"@body.json", {}),
        ("-d@-", b"stdin", {}),
        ("-d x -u me:pw", b"x", {"Authorization": "Basic bWU6cHc="}),
        ("-d x --oauth2-bearer sk", b"x", {"Authorization": "Bearer sk"}),
        ("-d x -b a=b -A agent -e ref", b"x", {"Cookie": "a=b", "User-Agent": "agent", "Referer": "ref"}),
        ("-d x -H @fields", b"x", {"X-A": "1", "X-B": "2"}),
        ("-d x -H 'X-Empty;'", b"x", {"X-Empty": ""}),
        ("-d x -o out --max-time=3 -w '%{http_code}' --url http://other/", b"x", {}),
        ("-sSLd x", b"x", {}),
    ],
)
def test_options_of_curl_make_the_body_and_the_header_fields(
    options: str, body: bytes, headers: dict[str, str]
) -> None:
    request = parse(f"curl {options} http://h/v1/embeddings")
    assert request.body == body
    assert headers == {name: request.headers[name] for name in headers}


def test_a_removed_field_is_not_sent() -> None:
    request = parse("curl http://h/v1/embeddings -d x -H 'Content-Type:' -H 'accept:'")
    assert dict(request.headers) == {}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("curl -d x", "the curl command has no URL"),
        ("curl http://h/", "the curl command sends no body; accepted: one with -d, --data-raw or --json"),
        ("curl http://h/ -F a=b", "curl's option -F sends no JSON body"),
        ("curl http://h/ --data-urlencode a", "curl's option --data-urlencode sends no JSON body"),
        ("curl http://h/ -d", "curl's option -d has no value"),
        ("curl http://h/ -d 'x", "a quote that is not closed, at character 19"),
        ("curl http://h/ -_ x", "curl's option -_ is not known here"),
    ],
)
def test_what_can_not_be_explained(command: str, message: str) -> None:
    with pytest.raises(UnreadableRequest) as raised:
        parse(command)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "is_it"), [(" $ curl -d x h", True), ("curl\nh", True), ("curly", False), ("", False)]
)
def test_what_is_a_command(text: str, *, is_it: bool) -> None:
    assert is_curl(text) is is_it


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_words_that_a_shell_would_quote_come_back(words: list[str]) -> None:
    assert split_words(" ".join(map(shlex.quote, words))) == words


@given(st.text(st.sampled_from("ab '\"\\$|;&>\n\t{}")))
def test_any_text_is_split_or_refused(text: str) -> None:
    try:
        words = split_words(text)
    except UnreadableRequest:
        return
    assert all(type(word) is str for word in words)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h:1/v1/embeddings?a=b#c", "/v1/embeddings?a=b"),
        ("h/v1/embeddings", "/v1/embeddings"),
        ("/v1/embeddings", "/v1/embeddings"),
        ("http://h", "/"),
        ("http://h?a=b", "/?a=b"),
    ],
)
def test_the_target_is_what_curl_would_send(url: str, target: str) -> None:
    assert target_of(url) == target
