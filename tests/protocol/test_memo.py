from proxy.protocol.memo import memoized


def test_results_for_short_texts_are_cached() -> None:
    worked_out: list[str] = []

    @memoized(max_length=3)
    def length(text: str, more: int = 0) -> int:
        worked_out.append(text)
        return len(text) + more

    for text, expected in (("abc", 3), ("abc", 3), ("abcd", 4), ("abcd", 4)):
        assert length(text) == expected
    assert length("abc", 1) == 4
    assert worked_out == ["abc", "abcd", "abcd", "abc"]
