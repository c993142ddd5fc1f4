"""The words of one command of a POSIX shell, as it was pasted (pure).

`shlex` does not know ``$'…'``, in which browsers quote what they copy as curl.
"""

import re

from proxy.explain.http_request import UnreadableRequest

_END = frozenset("|;&><")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|([0-7]{1,3})|(.))", re.DOTALL)
_ANSI = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b", "E": "\x1b"}
# A piece of a word: plain, escaped, or in quotes of three kinds.
_PIECE = re.compile(
    r"""(?P<plain>[^\s'"\\$|;&><]+)
      | (?P<continued>\\\r?\n)
      | \\(?P<escaped>.)
      | \$'(?P<ansi>(?:[^'\\]|\\.)*)'
      | '(?P<single>[^']*)'
      | "(?P<double>(?:[^"\\]|\\.)*)"
      | (?P<dollar>\$)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED_IN_DOUBLE = re.compile(r'\\(\r?\n|["\\$`])')


def split_words(command: str) -> list[str]:
    """The words up to the end of the command. Variables stay as they are written. Raises `UnreadableRequest`."""
    words: list[str] = []
    word: str | None = None
    position = 0
    while position < len(command):
        letter = command[position]
        if letter.isspace() or letter in _END:
            if word is not None:
                words.append(word)
            word = None
            if letter in _END or (letter == "\n" and words):
                break
            position += 1
            continue
        match = _PIECE.match(command, position)
        if match is None:
            raise UnreadableRequest(f"a quote that is not closed, at character {position + 1}")
        position = match.end()
        if match["continued"] is None:
            word = (word or "") + _unquoted(match)
    return words if word is None else [*words, word]


def _unquoted(piece: "re.Match[str]") -> str:
    if piece["ansi"] is not None:
        return _ESCAPE.sub(_ansi_letter, piece["ansi"])
    if piece["double"] is not None:
        return _ESCAPED_IN_DOUBLE.sub(lambda match: "" if "\n" in match[1] else match[1], piece["double"])
    return next(text for name in ("plain", "escaped", "single", "dollar") if (text := piece[name]) is not None)


def _ansi_letter(match: "re.Match[str]") -> str:
    for digits, base in ((match[1], 16), (match[2], 16), (match[3], 8)):
        if digits:
            return chr(int(digits, base))
    return _ANSI.get(match[4], match[4])
