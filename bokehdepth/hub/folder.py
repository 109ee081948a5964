"""Folders as the Hub wants them (DESIGN.md, section 5): weights, the code that loads them, and a card.

They are built from a checkout of the project, where card templates, licence and the Space's page lie.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.atomic import staged
from ..loading_bokehdepth import write_code
from .cards import check_card, model_card, read_facts
from .load import EMBEDDED, EMBEDDED_FOLDER

KINDS = ("pipeline", "adapter", "depth", "dataset", "space")
PACKAGE = Path(__file__).parents[1]
PROJECT = PACKAGE.parent
FACTS_NAME = "card.yaml"
TAG = re.compile(r"v?\d+(\.\d+)*([.-]?[a-z0-9]+)?")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PART_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}
_RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)
_SPACE_FILES = ("app.py", "requirements.txt", "README.md", "LICENSE")
_APART = """

# diffusers runs a file of this name from another repository in the same module; what is defined here keeps its names.
if __name__.startswith("diffusers_modules."):
    import sys
    import types

    sys.modules[__name__] = types.ModuleType(__name__)
    sys.modules[__name__].__dict__.update(globals())
"""


# ---------------------------------------------------------------------- code


def _needed(source: Path) -> list[Path]:
    """A file of code behind the files beside it that it imports, directly or through another one."""
    found: list[Path] = []
    for name in _RELATIVE_IMPORT.findall(source.read_text(encoding="utf-8")):
        found += [path for path in _needed(source.with_name(f"{name}.py")) if path not in found]
    return [*found, source]


def joined_source(source: Path) -> str:
    """The code of a file and of those beside it that it imports, as one file.

    diffusers fetches one file for each component of a pipeline, and not the files that this one imports.

    Args:
        source: file whose relative imports all stand at its top and rename nothing.

    Returns:
        The docstring, every import of a library, the definitions, and lines that keep two repositories apart.

    Raises:
        ValueError: two of the files define the same name, or a name is imported under another one.
    """
    files = _needed(source)
    if len(files) == 1:
        return source.read_text(encoding="utf-8") + _APART
    imports: dict[str, str] = {}
    bodies, defined, docstring = [], {}, ""
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for index, node in enumerate(ast.parse(text).body):
            span = slice(node.lineno - 1, node.end_lineno)
            is_docstring = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if is_docstring:
                docstring = "\n".join(lines[span])
            elif isinstance(node, ast.Import | ast.ImportFrom):
                if not getattr(node, "level", 0):
                    imports.setdefault(ast.unparse(node), "\n".join(lines[span]))
                elif any(alias.asname not in (None, alias.name) for alias in node.names):
                    raise ValueError(f"{path.name} imports {ast.unparse(node)}; wanted names as they are.")
            else:
                targets = node.targets if isinstance(node, ast.Assign) else [node]
                for name in {getattr(target, "id", getattr(target, "name", None)) for target in targets} - {None}:
                    if name in defined:
                        raise ValueError(f"{path.name} and {defined[name]} both define {name}; wanted one of them.")
                    defined[name] = path.name
                continue
            lines[span] = [""] * len(lines[span])
        bodies.append("\n".join(lines).strip("\n"))
    heads = sorted(imports.values(), key=lambda text: not text.startswith("from __future__"))
    return "\n\n\n".join([docstring + "\n\n" + "\n".join(heads), *bodies]) + "\n" + _APART


# ---------------------------------------------------------------------- folders


def _place(source: Path, target: Path) -> None:
    """Puts a file into a folder, as a link where the file system allows, since weights are large."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def check_links(folder: Path) -> None:
    """Refuses a folder to be published that has symbolic links to what lies outside of it.

    Args:
        folder: all of it is looked at.

    Raises:
        InputError: a link leads out of the folder, or nowhere.
    """
    home = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(home)):
            raise InputError(
                f"model has {path.relative_to(folder).as_posix()!r}, a symbolic link that leaves the folder; wanted "
                "the file itself."
            )


def _check_is_finished(model: Path) -> None:
    """Refuses a model whose training left a record that says that it is not the one of its end."""
    path = model / "training.json"
    record = _read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise InputError(f"model has a training.json that is a {type(record).__name__}; wanted a record.")
    if record.get("step") != record.get("of") and "held_out_loss" not in record:
        raise InputError(
            f"model is {str(model)!r}, of step {record.get('step')} of {record.get('of')} of its training; wanted "
            "that of the end, which --resume latest writes."
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"model is {str(path.parent)!r}, a folder without {path.name}; wanted a saved model.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"model has a {path.name} that is no JSON ({error}).") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _place_part(source: Path, target: Path) -> None:
    """Puts one component's configuration and weights into a folder; code is added later from the package."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(source.rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts or path.suffix in (".py", ".md"):
            continue
        if path.suffix not in _PART_SUFFIXES:
            raise InputError(f"model has {str(path)!r}; wanted safetensors weights, JSON and tokenizer files alone.")
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "numpy"):
                    pass
            except SafetensorError as error:
                raise InputError(f"model has damaged weights, {str(path)!r} ({error}).") from error
        _place(path, target / path.relative_to(source))


def _plain_auto_map(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the package's names of its code, whatever repository it was loaded from before."""
    entries = {}
    for name, value in config.get("auto_map", {}).items():
        module, _, kind = value.rpartition("--")[2].partition(".")
        entries[name] = f"{module}.{kind}"
    return {**config, "auto_map": entries}


def _module_file(name: str) -> Path:
    path = PACKAGE / f"{name}.py"
    if not name.startswith("modeling_") or not path.is_file():
        raise InputError(f"model has a part of {name!r}, which is no module of bokehdepth; wanted a class of its own.")
    return path


def _working_side_px(config: dict[str, Any]) -> int:
    """Shorter side at which a depth model works: what it says, or the middle of the areas that it takes."""
    if not _sizes_itself(config):
        return config["processing_resolution"]
    # Any side in between keeps photos of every aspect in the range of areas; a photo of 3 : 2 has the one area.
    low, high = config.get("pixels_min"), config.get("pixels_max")
    area = config["area_px"] / 1.5 if low is None else (low * high / config["aspect_max"]) ** 0.5
    return config["patch_size"] * max(1, round(area**0.5 / config["patch_size"]))


def _sizes_itself(config: dict[str, Any]) -> bool:
    """Whether a depth model brings photos to its own size (its class has `infer`)."""
    return "pixels_min" in config or "area_px" in config


def write_image_processor(folder: Path, side_px: int, config: Mapping[str, Any]) -> None:
    """Writes the settings of transformers' image processor that come next to what the pipeline does itself.

    Args:
        folder: of a depth model.
        side_px: shorter side at which it works.
        config: of the model.
    """
    settings = {
        "image_processor_type": "DPTImageProcessorPil",
        "do_resize": True,
        "size": {"height": side_px, "width": side_px},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": config.get("patch_size") or 14,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": False,
        "image_mean": config.get("image_mean", (0.485, 0.456, 0.406)),
        "image_std": config.get("image_std", (0.229, 0.224, 0.225)),
    }
    _write_json(folder / "preprocessor_config.json", settings)


def _build_pipeline(model: Path, folder: Path) -> dict[str, Any]:
    index = _read_json(model / "model_index.json")
    sources = {"": ("pipeline_bokehdepth", joined_source(PACKAGE / "pipeline_bokehdepth.py"))}
    for name, value in index.items():
        if name == "_class_name" or not isinstance(value, list) or value[0] is None:
            continue
        if not (model / name).is_dir():
            raise InputError(f"model is {str(model)!r} without the folder {name}, which its model_index.json names.")
        _place_part(model / name, folder / name)
        if value[0] not in ("diffusers", "transformers"):
            sources[name] = (value[0], joined_source(_module_file(value[0])))
    for picture in sorted((model / "examples").glob("*.jpg")):  # the card's
        _place(picture, folder / "examples" / picture.name)
    write_code(folder, sources)
    index["_class_name"] = ["pipeline_bokehdepth", "BokehDepthPipeline"]
    _write_json(folder / "model_index.json", index)
    if "depth_estimator" in sources:
        _settle_depth(folder / "depth_estimator")
    adapter = _read_json(folder / "bokeh_adapter" / "config.json") if "bokeh_adapter" in sources else {}
    return _pipeline_facts(index, adapter)


def _settle_depth(folder: Path, **changes: Any) -> dict[str, Any]:
    """Writes the settings that transformers reads beside a depth model's weights; returns the configuration."""
    config = _plain_auto_map(_read_json(folder / "config.json")) | changes
    (folder / "config.json").unlink()  # a link to the model's own file
    _write_json(folder / "config.json", config)
    if not (folder / "preprocessor_config.json").exists():
        if not _sizes_itself(config) and "processing_resolution" not in config:
            raise InputError(
                f"model is a {config.get('model_type')} without preprocessor_config.json; wanted it, or "
                "processing_resolution in config.json, which says at what size the model works."
            )
        write_image_processor(folder, _working_side_px(config), config)
    return config


def _pipeline_facts(index: dict[str, Any], adapter: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline's own files say for its card: the base to be fetched (False for none) and the largest K."""
    base, strength = index.get("base_model_id") or False, adapter.get("max_bokeh_strength", 30.0)
    return {"base_model_id": base, "max_bokeh_strength": f"{strength:g}"}


def _build_adapter(model: Path, folder: Path) -> dict[str, Any]:
    part = model / "bokeh_adapter" if (model / "model_index.json").is_file() else model
    config = _read_json(part / "config.json")
    if config.get("_class_name") != "BokehAdapter":
        raise InputError(f"model is a {config.get('_class_name')}; wanted a saved BokehAdapter.")
    _place_part(part, folder)
    (folder / "config.json").unlink()
    source = _module_file("modeling_bokeh_adapter")
    _write_json(folder / "config.json", {**config, "auto_map": {"AutoModel": f"{source.stem}.BokehAdapter"}})
    (folder / source.name).write_text(joined_source(source), encoding="utf-8")
    return {"max_bokeh_strength": f"{config['max_bokeh_strength']:g}"}


def _build_depth(model: Path, folder: Path) -> dict[str, Any]:
    part = model / "depth_estimator" if (model / "model_index.json").is_file() else model
    _place_part(part, folder)
    # Whatever the weights are stored in: the depth-estimation task hands its output to NumPy, which knows no bfloat16.
    config = _settle_depth(folder, dtype="float32")
    loader = config["auto_map"].get("AutoModelForDepthEstimation")
    if loader is None:
        raise InputError(f"model is {str(part)!r}, whose config.json has no auto_map; wanted a saved depth model.")
    source = _module_file(loader.partition(".")[0])
    (folder / source.name).write_text(joined_source(source), encoding="utf-8")
    unit = "metres along the optical axis" if config["depth_estimation_type"] == "metric" else "relative disparity"
    return {"max_bokeh_strength": f"{config['bokeh_strength_max']:g}", "depth_unit": unit}


def _build_dataset(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise InputError(f"model is {str(source)!r}, which is no folder; wanted a data set's folder.")
    for path in sorted(source.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts):
            _place(path, folder / path.relative_to(source))
    if not (folder / "README.md").is_file():
        raise InputError(f"model is {str(source)!r} without README.md; wanted the data card that its build writes.")


def _build_space(project: Path, folder: Path) -> None:
    for name in _SPACE_FILES:
        _place(_project_file(project, name), folder / name)
    package = _project_file(project, "bokehdepth/__init__.py").parent
    check_links(package)
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            _place(path, folder / path.relative_to(project))


def _project_file(project: Path, name: str) -> Path:
    if not (project / name).is_file():
        raise InputError(f"project is {str(project)!r} without {name}; publishing wants a checkout of the project.")
    return project / name


def build_folder(
    kind: str,
    model: str | Path | None,
    output: str | Path,
    *,
    repository: str,
    facts: str | Path | None = None,
    project: Path = PROJECT,
) -> Path:
    """Writes the folder of a repository, card and code included; it appears whole or not at all.

    Args:
        kind: "pipeline", "adapter" (of a pipeline or by itself), "depth" (likewise), "dataset" or "space".
        model: "embedded" or the folder of a saved model or data set; a Space takes none.
        output: folder to write, which must not exist.
        repository: `user/name`, which the card's examples load.
        facts: file of what the card states; None takes `card.yaml` of the model's folder. A data set brings its
            card, a Space that of the project.
        project: checkout with card templates, LICENSE and the Space's page.

    Returns:
        The folder.

    Raises:
        InputError: something is missing, damaged or contradictory.
    """
    output = Path(output)
    if output.exists():
        raise InputError(f"output is {str(output)!r}, which exists; wanted a new folder.")
    with staged(output) as folder:
        fill_folder(kind, model, folder, repository, facts, Path(project))
    return output


def fill_folder(
    kind: str, model: str | Path | None, folder: Path, repository: str, facts: str | Path | None, project: Path
) -> str | None:
    """Fills an empty folder for `build_folder`; returns the version that a model's facts state."""
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; wanted {', '.join(KINDS)}.")
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"repository is {repository!r}; wanted user/name.")
    if (kind == "space") != (model is None):
        raise InputError(f"model is {model}; wanted a model or data set, and none for a Space.")
    if model is not None and str(model) != EMBEDDED and Path(model).is_dir():
        check_links(Path(model))
    if kind not in ("dataset", "space"):
        return _build_model(kind, model, folder, repository, facts, project)
    if facts is not None:
        raise InputError(f"facts is {str(facts)!r}; wanted none, since a {kind} brings its own card.")
    if kind == "dataset":
        _build_dataset(Path(model), folder)
    else:
        _build_space(project, folder)
    check_card((folder / "README.md").read_text(encoding="utf-8"), kind)
    return None


def _build_model(
    kind: str, model: str | Path, folder: Path, repository: str, facts: str | Path | None, project: Path
) -> str:
    home = EMBEDDED_FOLDER if str(model) == EMBEDDED else Path(model)
    if not home.is_dir():
        raise InputError(f"model is {str(model)!r}, which is no folder; wanted a saved model.")
    _check_is_finished(home)
    template = _project_file(project, f"model_cards/{kind}.md")
    stated = read_facts(home / FACTS_NAME if facts is None else facts)
    if not TAG.fullmatch(str(stated.get("version"))):
        raise InputError(f"facts has version {stated.get('version')!r}; wanted numbers such as 0.1.0.")
    build = {"pipeline": _build_pipeline, "adapter": _build_adapter, "depth": _build_depth}[kind]
    derived = build(home, folder)
    card = model_card(template, stated, repository, **derived)
    metadata = check_card(card, kind, [base for base in [derived.get("base_model_id")] if base])
    (folder / "README.md").write_text(card, encoding="utf-8")
    own = metadata["license"] == "apache-2.0"
    # The project's licence is that of the code; weights may have another.
    _place(_project_file(project, "LICENSE"), folder / ("LICENSE" if own else "LICENSE-CODE"))
    return str(stated["version"])


def embedded_card() -> str:
    """Makes the card that lies in the package beside the embedded model, from the facts beside it.

    Raises:
        InputError: there is no checkout, or a fact is missing.
    """
    index = _read_json(EMBEDDED_FOLDER / "model_index.json")
    adapter = _read_json(EMBEDDED_FOLDER / "bokeh_adapter" / "config.json")
    template = _project_file(PROJECT, "model_cards/pipeline.md")
    facts = read_facts(EMBEDDED_FOLDER / FACTS_NAME)
    return model_card(template, facts, "<user>/bokehdepth-mini", **_pipeline_facts(index, adapter))
