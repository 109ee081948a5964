"""Folders as the Hub wants them (DESIGN.md, section 5), and their way there: all of a folder in one commit, or none.

Publishing works from a checkout of the project, where card templates, licence and the Space's page lie.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cards import check_card, model_card, read_facts
from .errors import InputError
from .files.atomic import staged
from .hub import EMBEDDED, EMBEDDED_FOLDER
from .loading_bokehdepth import explain_hub_error, joined_source, plain_name, write_code

KINDS = ("pipeline", "adapter", "depth", "dataset", "space")
PACKAGE = Path(__file__).parent
PROJECT = PACKAGE.parent
FACTS_NAME = "card.yaml"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TAG = re.compile(r"v?\d+(\.\d+)*([.-]?[a-z0-9]+)?")
_PART_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}
_SPACE_FILES = ("app.py", "requirements.txt", "README.md", "LICENSE")
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_BICUBIC = 3  # PIL's number


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Args:
        repository: `user/name`.
        repo_type: "model", "dataset" or "space".
        files: name and size in bytes of each file, by name.
        tag: that the commit got, if any.
        commit: its hash; None of a dry run.
    """

    repository: str
    repo_type: str
    files: tuple[tuple[str, int], ...]
    tag: str | None
    commit: str | None


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
        entries[name] = f"{plain_name(module)}.{kind}"
    return {**config, "auto_map": entries}


def _module_file(name: str) -> Path:
    path = PACKAGE / f"{plain_name(name)}.py"
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


def _image_processor(shorter_side_px: int, config: dict[str, Any]) -> dict[str, Any]:
    """Settings of transformers' image processor that come next to what the pipeline does itself."""
    colours = {name: config[name] for name in _IMAGENET if name in config}
    return {
        "image_processor_type": "DPTImageProcessorPil",
        "do_resize": True,
        "size": {"height": shorter_side_px, "width": shorter_side_px},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": config.get("patch_size") or 14,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": False,
        **_IMAGENET,
        **colours,
    }


def _build_pipeline(model: Path, folder: Path) -> dict[str, Any]:
    index = _read_json(model / "model_index.json")
    parts = {name: value for name, value in index.items() if isinstance(value, list) and name != "_class_name"}
    sources = {}
    for name, (library, _) in parts.items():
        if library is None:
            continue
        if not (model / name).is_dir():
            raise InputError(f"model is {str(model)!r} without the folder {name}, which its model_index.json names.")
        _place_part(model / name, folder / name)
        if library not in ("diffusers", "transformers"):
            sources[name] = _module_file(library)
    for picture in sorted((model / "examples").glob("*.jpg")):  # the card's
        _place(picture, folder / "examples" / picture.name)
    suffix = write_code(folder, PACKAGE / "pipeline_bokehdepth.py", sources, unique=True)
    for name, source in sources.items():
        index[name] = [f"{source.stem}{suffix}", index[name][1]]
    index["_class_name"] = [f"pipeline_bokehdepth{suffix}", "BokehDepthPipeline"]
    _write_json(folder / "model_index.json", index)
    if "depth_estimator" in sources:
        part = folder / "depth_estimator"
        config = _read_json(part / "config.json")
        (part / "config.json").unlink()
        _write_json(part / "config.json", _plain_auto_map(config))
        if not (part / "preprocessor_config.json").exists():
            _write_json(part / "preprocessor_config.json", _image_processor(_working_side_px(config), config))
    adapter = _read_json(folder / "bokeh_adapter" / "config.json") if "bokeh_adapter" in sources else {}
    return _pipeline_facts(index, adapter)


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
    in_pipeline = (model / "model_index.json").is_file()
    part = model / "depth_estimator" if in_pipeline else model
    config = _plain_auto_map(_read_json(part / "config.json"))
    loader = config["auto_map"].get("AutoModelForDepthEstimation")
    if loader is None:
        raise InputError(f"model is {str(part)!r}, whose config.json has no auto_map; wanted a saved depth model.")
    _place_part(part, folder)
    (folder / "config.json").unlink()
    # Whatever the weights are stored in: the depth-estimation task hands its output to NumPy, which knows no bfloat16.
    _write_json(folder / "config.json", {**config, "dtype": "float32"})
    source = _module_file(loader.partition(".")[0])
    (folder / source.name).write_text(joined_source(source), encoding="utf-8")
    if not (folder / "preprocessor_config.json").exists():
        if not _sizes_itself(config) and "processing_resolution" not in config:
            raise InputError(
                f"model is {str(part)!r} without preprocessor_config.json; wanted it, or processing_resolution in "
                "config.json, which says at what size the model works."
            )
        _write_json(folder / "preprocessor_config.json", _image_processor(_working_side_px(config), config))
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
        _fill(kind, model, folder, repository, facts, Path(project))
    return output


def _fill(
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
    if not _TAG.fullmatch(str(stated.get("version"))):
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


def list_files(folder: Path) -> tuple[tuple[str, int], ...]:
    """Names every file of a folder with its size in bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths)


# ---------------------------------------------------------------------- upload


def upload_folder(
    folder: Path,
    repository: str,
    *,
    repo_type: str = "model",
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
    message: str = "Publish",
) -> str:
    """Uploads a folder as the whole content of a repository: one commit, in which files that are no more are deleted.

    Contents that a broken upload had already brought are not sent again. Until the commit nothing of the repository
    changes, but for its creation.

    Args:
        folder: to upload.
        repository: `user/name`; created where it does not exist.
        repo_type: "model", "dataset" or "space".
        private: create it as private; one that exists and is public is refused.
        tag: name for the commit; refused where it exists.
        token: None takes the client's own.
        message: of the commit.

    Returns:
        The commit's hash.

    Raises:
        InputError: there is no token, or the Hub refuses; nothing was committed, or the sentence says so.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    token = token or get_token()
    if not token:
        raise InputError(
            "token is not there; wanted one with write access (`hf auth login`, or the variable HF_TOKEN)."
        )
    api = HfApi(token=token)
    where: dict[str, Any] = {"repo_id": repository, "repo_type": repo_type}
    try:
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise InputError("token can only read; wanted one with write access.")
        sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
        api.create_repo(**where, private=private or None, exist_ok=True, **sdk)
        info = api.repo_info(**where)
        if private and not info.private:
            raise InputError(f"{repository} exists and is public; wanted a private repository, or private left out.")
        taken = {ref.name for ref in api.list_repo_refs(**where).tags}
        local = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        operations: list[Any] = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in local]
        kept = {operation.path_in_repo for operation in operations} | {".gitattributes"}
        gone = [sibling.rfilename for sibling in info.siblings or [] if sibling.rfilename not in kept]
        operations += [CommitOperationDelete(name) for name in gone]
        if tag in taken:
            raise InputError(f"{repository} has a tag {tag} already; wanted a new version.")
        commit = api.create_commit(**where, operations=operations, commit_message=message, parent_commit=info.sha).oid
    except InputError:
        raise
    except Exception as error:
        sentence = _explain(error, repository)
        if sentence is None:
            raise
        raise InputError(f"{sentence} The repository's content is unchanged.") from error
    if tag is not None:
        try:
            api.create_tag(**where, tag=tag, revision=commit)
        except Exception as error:
            sentence = _explain(error, repository)
            if sentence is None:
                raise
            raise InputError(f"{sentence} The content is published as {commit[:8]}, its tag {tag} is not.") from error
    return commit


def _explain(error: Exception, repository: str) -> str | None:
    """One sentence on what the client raised while it uploaded; the client reports bad metadata as ValueError."""
    sentence = explain_hub_error(error, repository)
    if sentence is None and isinstance(error, ValueError):
        return f"{repository} was not published ({' '.join(str(error).split())})."
    return sentence


def publish(
    kind: str,
    model: str | Path | None,
    repository: str,
    *,
    facts: str | Path | None = None,
    private: bool = False,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    project: Path = PROJECT,
) -> Publication:
    """Builds the folder of a repository and uploads it.

    Args:
        kind: as in `build_folder`.
        model: likewise.
        repository: `user/name`.
        facts: likewise.
        private: as in `upload_folder`.
        tag: name for the commit; None takes `v` and the version that the facts state, of a model.
        token: as in `upload_folder`.
        dry_run: build and check the folder, ask the Hub nothing.
        project: as in `build_folder`.

    Returns:
        What was published, or would be.

    Raises:
        InputError: something is missing, or the Hub refuses.
    """
    if tag is not None and not _TAG.fullmatch(tag):
        raise InputError(f"tag is {tag!r}; wanted a version such as v0.1.0.")
    repo_type = kind if kind in ("dataset", "space") else "model"
    with tempfile.TemporaryDirectory(prefix="bokehdepth-publish-") as home:
        folder = Path(home)
        version = _fill(kind, model, folder, repository, facts, Path(project))
        if tag is None and version is not None:
            tag = f"v{version.removeprefix('v')}"
        files, commit = list_files(folder), None
        if not dry_run:
            commit = upload_folder(
                folder,
                repository,
                repo_type=repo_type,
                private=private,
                tag=tag,
                token=token,
                message=f"Publish {tag}" if tag else "Publish",
            )
    return Publication(repository, repo_type, files, tag, commit)
