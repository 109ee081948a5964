"""The house's rules, read from the code: imports run one way, the library is silent, light doors stay light."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bokehdepth

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bokehdepth"

# A room may import from rooms of lower floors, and its own modules; no module imports in a circle.
FLOORS = [
    {"errors"},
    {"camera"},
    {"rendering"},
    {"files"},
    {"manifest", "models", "bracket_depth"},
    {"speed", "released"},
    {"hub"},
    {"tasks"},
    {"space", "cli"},
]
STANDALONE = {
    "weights_bokehdepth": set(),
    "modeling_bokeh_adapter": {"modeling_bokeh_attachment", "weights_bokehdepth"},
    "modeling_bokehdepth": {"weights_bokehdepth"},
    "modeling_efficientnet_lite": set(),
    "modeling_mini_flux": {"modeling_efficientnet_lite", "weights_bokehdepth"},
    "modeling_bokeh_attachment": set(),
    "processing_bokehdepth": set(),
    "loading_bokehdepth": set(),
    "modeling_unidepth_parts": set(),
    "modeling_bokehdepth_dav2": {"modeling_bokehdepth"},
    "modeling_bokehdepth_efficientnet": {"modeling_bokehdepth", "modeling_efficientnet_lite"},
    "modeling_bokehdepth_unidepth": {"modeling_bokehdepth", "modeling_unidepth_parts"},
    "sampling_bokehdepth": {"processing_bokehdepth"},
    "inputs_bokehdepth": {"processing_bokehdepth", "sampling_bokehdepth"},
    "pipeline_bokehdepth": {
        "inputs_bokehdepth",
        "processing_bokehdepth",
        "loading_bokehdepth",
        "sampling_bokehdepth",
        "weights_bokehdepth",
    },
}


def modules() -> dict[str, Path]:
    paths = [p for p in PACKAGE.rglob("*.py") if "mini" not in p.relative_to(PACKAGE).parts]
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in paths}


def own_imports(name: str, path: Path, at_import: bool = False) -> set[str]:
    """Modules of this package that a module imports, by their name inside the package."""
    known = set(modules())
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in tree.body if at_import else ast.walk(tree):
        if node in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parts = ["bokehdepth", *name.split(".")][: -node.level]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            else:
                base = node.module
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        found |= {n.removeprefix("bokehdepth.") for n in names if n.startswith("bokehdepth.")} & known
    return found - {name}


def room(name: str) -> str:
    """The room of a module, by its name inside the package."""
    head = name.split(".")[0]
    if re.fullmatch(r"(modeling|pipeline|sampling|inputs|processing|loading|weights)_\w+", head):
        return "models"
    return head


def floor(name: str) -> int:
    return next((i for i, rooms in enumerate(FLOORS) if room(name) in rooms), -1)


@pytest.mark.parametrize("name", sorted(set(modules()) - {"__init__", "__main__"}))
def test_rooms_import_only_from_lower_floors(name):
    assert floor(name) >= 0, f"{name} is in no room of FLOORS"
    for used in own_imports(name, modules()[name]) - {"__init__"}:
        if room(used) != room(name):
            assert floor(used) < floor(name), f"{name} ({room(name)}) imports {used} ({room(used)}), which is no lower"


def test_no_imports_in_a_circle():
    graph = {name: own_imports(name, path) - {"__init__"} for name, path in modules().items()}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", STANDALONE)
def test_hub_files_stand_alone(name):
    assert own_imports(name, modules()[name]) == STANDALONE[name]


def test_the_library_imports_none_of_its_users():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            roots = []
            if isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots = [node.module.split(".")[0]]
            assert not {"train", "datasets_scripts", "app", "gradio", "spaces"} & set(roots), name


def test_data_sets_need_no_training_and_training_only_their_scenes():
    for folder, refused in (("datasets_scripts", r"train\b"), ("train", r"datasets_scripts\.(?!scenes\b)")):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(rf"^\s*(from|import) {refused}", path.read_text(), re.MULTILINE), path


def test_the_library_is_silent_and_asks_no_environment():
    for name, path in modules().items():
        if name.split(".")[0] in ("cli", "__main__"):
            continue
        text = path.read_text()
        assert "argparse" not in text and "os.environ" not in text and "os.getenv" not in text, name
        calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
        assert not [c for c in calls if getattr(c.func, "id", "") == "print"], name


def test_every_public_name_is_there():
    assert set(bokehdepth._HOME) | {"__version__"} == set(bokehdepth.__all__)
    for name in bokehdepth.__all__:
        assert getattr(bokehdepth, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bokehdepth.nothing


@pytest.mark.parametrize(
    "module",
    [
        "bokehdepth",
        "bokehdepth.camera.lens",
        "bokehdepth.camera",
        "bokehdepth.files.stacks",
        "bokehdepth.cli",
        "bokehdepth.bracket_depth",
    ],
)
def test_light_modules_import_no_torch(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'gradio') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_requirements_repeat_the_project_file():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["demo"]}
    listed = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"}
    assert wanted <= listed
    assert not any(line.startswith("torchvision") for line in listed)


def test_readme_gives_the_command_that_ci_runs():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("<!-- test-command -->") == 1
    command = readme.split("<!-- test-command -->")[1].split("```")[1]
    assert "pytest" in command and ".[test]" in command
