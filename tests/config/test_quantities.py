import pytest

from proxy.config import quantities
from proxy.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("512MiB", 512 * 1024**2),
        ("1.5 GiB", 3 * 1024**3 // 2),
        ("2gb", 2 * 10**9),
        ("1 B", 1),
    ],
)
def test_a_size_is_a_number_with_a_unit(text: str, size: int) -> None:
    assert quantities.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "9" * 400, "1 TiBs", "1e9", "12 bananas", "MiB"])
def test_invalid_sizes_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a size; accepted: .*512MiB"):
        quantities.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("30d", 30 * 86400), ("1.5h", 5400), ("1500ms", 1.5), ("None", None)]
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: float | None) -> None:
    assert quantities.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "999ms", "-5s", "3 fortnights", "36501d"])
def test_invalid_durations_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="none"):
        quantities.parse_duration(text)
