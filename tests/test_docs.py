"""What the documentation names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "deploy" / "README.md", ROOT / "grafana" / "README.md"]
_FILE = re.compile(r"`([\w./-]+\.(?:py|toml|sh))`")
_NAME_IN_FILE = re.compile(r"`(\w+)` in `([\w./]+\.py)`")
# Files of an operator's, in examples, and of aiohttp's.
EXAMPLES = {"proxy.toml", "web_protocol.py"}


def found(name: str) -> Path | None:
    return next((path for folder in (ROOT, ROOT / "proxy") if (path := folder / name).is_file()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    beside = {path.name for path in page.parent.iterdir()}
    missing = {
        name
        for name in _FILE.findall(text)
        if name not in EXAMPLES | beside and not name.startswith("/") and found(name) is None
    }
    # A list of modules of one package names its folder once.
    missing -= {name for name in missing if "/" not in name and list((ROOT / "proxy").rglob(name))}
    assert not missing
    for name, file in _NAME_IN_FILE.findall(text):
        path = found(file)
        assert path is not None
        assert name in path.read_text(encoding="utf-8"), f"{name} is not in {file}"
