"""What the code imports is named in pyproject.toml, and what is named has an upper bound."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = packages_distributions()
OWN = {"bokehdepth", "train", "datasets_scripts", "app"}
# Which extras a part of the project is installed with.
PARTS = {
    "bokehdepth": (),
    "app.py": ("demo",),
    "bokehdepth/space": ("demo",),
    "train": ("train", "eval"),
    "datasets_scripts": ("data", "train"),
}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {plain(Requirement(line).name) for line in lines}


def is_named(module: str, extras: tuple[str, ...]) -> bool:
    root = module.split(".")[0]
    if root in sys.stdlib_module_names or root in OWN:
        return True
    return bool({plain(name) for name in DISTRIBUTIONS.get(root, [root])} & named(*extras))


def files(part: str) -> list[Path]:
    """The Python files of a part, without those of a part inside it."""
    if part.endswith(".py"):
        return [ROOT / part]
    inner = [ROOT / other for other in PARTS if other.startswith(f"{part}/")]
    paths = sorted((ROOT / part).rglob("*.py"))
    return [path for path in paths if not any(path.is_relative_to(folder) for folder in inner)]


@pytest.mark.parametrize("part", PARTS)
def test_every_import_is_named(part):
    for path in files(part):
        relative = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                assert is_named(module, PARTS[part]), f"{relative} imports {module}"


def test_every_library_of_an_extra_is_named_there():
    found = []
    for part in PARTS:
        for path in files(part):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load_extra":
                    module, extra = (argument.value for argument in node.args[:2])
                    found.append(module)
                    assert is_named(module, (extra,)), f"{path.name} wants {module} of {extra}"
    assert len(found) > 4


def test_every_requirement_has_an_upper_bound():
    lines = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    for requirement in map(Requirement, lines):
        bounded = any(clause.operator in ("<", "==") for clause in requirement.specifier)
        assert bounded or requirement.name == PROJECT["name"], requirement
