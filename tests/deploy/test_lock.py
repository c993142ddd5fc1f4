"""What the container installs is what pyproject.toml asks for, and pinned by hash."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "deploy" / "requirements.lock").read_text(encoding="utf-8")
_ENTRY = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[\w.]+)(?: ; [^\\\n]+)?(?: \\\n +--hash=sha256:[0-9a-f]{64})+$", re.MULTILINE
)


def locked() -> dict[str, str]:
    return {canonicalize_name(entry["name"]): entry["version"] for entry in _ENTRY.finditer(LOCK)}


def declared() -> list[Requirement]:
    """With the extra that the image has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["fast"]]]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_what_the_project_needs_is_locked(requirement: Requirement) -> None:
    assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)]), "make lock"


@pytest.mark.parametrize("python", ["3.11.4", "3.12.0", "3.13.0", "3.14.0"])
def test_what_these_need_is_locked(python: str) -> None:
    """As far as it is installed here."""
    here = {"python_full_version": python, "python_version": python.rpartition(".")[0], "sys_platform": "linux"}
    extras: dict[str, set[str]] = {
        canonicalize_name(requirement.name): requirement.extras | {""} for requirement in declared()
    }
    for name in locked():
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for requirement in needed:
            marker = requirement.marker
            if marker is None or any(marker.evaluate(here | {"extra": extra}) for extra in extras.get(name, {""})):
                assert canonicalize_name(requirement.name) in locked(), f"{name} needs {requirement}"


def test_the_lock_has_nothing_but_hashed_pins() -> None:
    rest = _ENTRY.sub("", LOCK)
    assert [line for line in rest.splitlines() if line and not line.lstrip().startswith("#")] == []
    assert not re.search(r"://|(?<!\w)[/~]", LOCK)
