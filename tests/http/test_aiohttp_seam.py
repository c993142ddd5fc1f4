"""aiohttp's private names are used in two modules only, and are checked when the proxy starts."""

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import http_parser
from packaging.requirements import Requirement

import proxy
from proxy.errors import ConfigError
from proxy.http import aiohttp_seam as server_seam
from proxy.upstream import aiohttp_seam as client_seam
from tests.conftest import StartProxy
from tests.deploy.test_lock import locked

SEAMS = {server_seam.__name__, client_seam.__name__}
_BY_STRING = {"getattr", "setattr", "delattr", "hasattr", "attrgetter", "methodcaller"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined_in(tree: ast.AST) -> set[str]:
    """The private attributes that a source gives to its classes and objects."""
    names = set[str]()
    for node in ast.walk(tree):
        match node:
            case (
                ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store())
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ):
                names.add(name)
            case ast.ClassDef(body=body):
                names |= {target.id for target in _class_variables(body)}
                names |= {str(it.value) for line in body for it in _slots(line)}
    return {name for name in names if is_private(name)}


def _class_variables(body: list[ast.stmt]) -> Iterator[ast.Name]:
    for line in body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        yield from (target for target in targets if isinstance(target, ast.Name))


def _slots(line: ast.stmt) -> Iterator[ast.Constant]:
    match line:
        case ast.Assign(targets=[ast.Name(id="__slots__")], value=ast.Tuple(elts=elements)):
            yield from (it for it in elements if isinstance(it, ast.Constant))


@functools.cache
def names_of_aiohttp() -> set[str]:
    sources = Path(aiohttp.__file__).parent.rglob("*.py")
    return set().union(*(defined_in(ast.parse(path.read_text(encoding="utf-8"))) for path in sources))


@functools.cache
def inherited(cls: type) -> set[str]:
    """The private names that a class has from aiohttp's, if it has any of these as a base."""
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "aiohttp"]
    return set().union(*(defined_in(tree_of(base)) for base in bases))


def own_names(tree: ast.AST) -> set[str]:
    """The private names of a source's own classes, whose methods may use them on other objects of their class."""
    return set().union(*(defined_in(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)))


def tree_of(thing: type) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def used_on_others(tree: ast.AST) -> set[str]:
    """The private names that are used of objects other than ``self`` and ``cls``."""
    used = set[str]()
    for node in ast.walk(tree):
        match node:
            case (
                ast.Attribute(value=ast.Name(id="self" | "cls"))
                | ast.Attribute(value=ast.Call(func=ast.Name(id="super")))
            ):
                continue
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.Call(func=ast.Name(id=function) | ast.Attribute(attr=function), args=arguments):
                if function in _BY_STRING:
                    used |= {it.value for it in arguments if isinstance(it, ast.Constant) and isinstance(it.value, str)}
    return {name for name in used if is_private(name)}


def used_on_self(cls: type) -> set[str]:
    tree = tree_of(cls)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in used if is_private(name)} | defined_in(tree)


def modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(proxy.__path__, "proxy.")]
    return sorted(name for name in found if not name.endswith("__main__"))


@pytest.mark.parametrize("name", sorted({*modules()} - SEAMS))
def test_no_other_module_uses_a_private_name_of_aiohttp(name: str) -> None:
    module = importlib.import_module(name)
    tree = ast.parse(inspect.getsource(module))
    assert (used_on_others(tree) - own_names(tree)) & names_of_aiohttp() == set()
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == name and (names := inherited(cls)):
            assert used_on_self(cls) & names == set(), cls


def test_the_rule_finds_what_it_forbids() -> None:
    assert {"_waiter", "_upgraded", "_messages", "_conns", "_retry_connection", "_make_request", "_kwargs"} <= (
        names_of_aiohttp()
    )
    assert inherited(server_seam.AiohttpConnection) >= {*server_seam.PRIVATE_NAMES, "_paused"}
    assert used_on_others(ast.parse("a.b._conns = getattr(c, '_kwargs'); self._x; super()._y; d._z()._w")) == {
        "_conns", "_kwargs", "_z", "_w",
    }  # fmt: skip
    source = "class A:\n    def f(self, a):\n        self._x = a._y = 1\ndef _g(): pass"
    assert own_names(ast.parse(source)) == {"_x"}


def test_each_private_name_is_checked_at_start() -> None:
    assert used_on_self(server_seam.AiohttpConnection) == {*server_seam.PRIVATE_NAMES}
    used = used_on_others(ast.parse(inspect.getsource(client_seam)))
    assert used == {name for names in client_seam.PRIVATE_NAMES.values() for name in names}


GONE = ("_gone",)


@pytest.mark.parametrize(
    ("seam", "names", "owner"),
    [
        (server_seam, GONE, "RequestHandler"),
        (client_seam, {aiohttp.ClientSession: GONE}, "ClientSession"),
        (client_seam, {aiohttp.BaseConnector: GONE}, "BaseConnector"),
    ],
    ids=["server", "session", "connector"],
)
async def test_a_proxy_does_not_start_if_a_name_is_missing(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, seam: object, names: object, owner: str
) -> None:
    monkeypatch.setattr(seam, "PRIVATE_NAMES", names)
    expected = f"aiohttp {aiohttp.__version__} is not supported: its {owner} has no _gone; install the version"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        await start_proxy()


def test_one_version_of_aiohttp_is_accepted_and_it_is_the_locked_one() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = map(Requirement, project["dependencies"])
    (pin,) = (it.specifier for it in requirements if it.name == "aiohttp")
    assert str(pin) == f"=={aiohttp.__version__}" == f"=={locked()['aiohttp']}"


def test_the_lenient_parser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server_seam.require_strict_parser()
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(ConfigError, match="AIOHTTP_NO_EXTENSIONS"):
        server_seam.require_strict_parser()


def test_a_proxy_without_the_strict_parser_does_not_start() -> None:
    command = [sys.executable, "-m", "proxy", "serve", "--port", "0", "--admin-port", "0", "--store", "memory:"]
    run = subprocess.run(
        command, env=os.environ | {"AIOHTTP_NO_EXTENSIONS": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "aiohttp is installed without its C parser" in run.stdout + run.stderr
