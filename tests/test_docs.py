"""What the documentation names exists."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "deploy" / "README.md", ROOT / "grafana" / "README.md"]
_FILE = re.compile(r"`([\w./-]+\.(?:py|toml|sh))`")
_METHOD = re.compile(r"`([A-Z]\w+)\.([a-z_]\w*)`")
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


def _modules() -> set[str]:
    folder = ROOT / "proxy"
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if path.name != "__init__.py"}
    return paths - {"__main__.py"}


def _layout() -> dict[str, str]:
    """The rows of the table of modules."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([\w/]+\.py)`.*? \| (.*) \|$", text, re.MULTILINE))


def test_every_module_has_a_row() -> None:
    assert set(_layout()) == _modules()


def test_modules_that_are_said_to_be_pure_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (pure,) = [contract["source_modules"] for contract in contracts if contract["type"] == "forbidden"]
    prefixes = tuple(module.removeprefix("proxy.").replace(".", "/") for module in pure)
    contracted = {
        name for name in _modules() if name.startswith(tuple(f"{prefix}{end}" for prefix in prefixes for end in "./"))
    }
    assert {name for name, text in _layout().items() if text.endswith("(pure)")} == contracted
    docstrings = {
        name: ast.get_docstring(ast.parse((ROOT / "proxy" / name).read_text(encoding="utf-8"))) for name in _modules()
    }
    assert {name for name, text in docstrings.items() if "(pure)" in (text or "")} == contracted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_methods_that_a_page_names_exist(page: Path) -> None:
    names = set(_METHOD.findall(page.read_text(encoding="utf-8")))
    for owner, member in names:
        classes = [
            text for path in (ROOT / "proxy").rglob("*.py") if f"class {owner}" in (text := path.read_text("utf-8"))
        ]
        assert any(re.search(rf"\b{member}\b", text) for text in classes), f"{owner} has no {member}"
