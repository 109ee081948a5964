"""Where models come from: the embedded one, a folder, or the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch

    from ..pipeline_bokehdepth import BokehDepthPipeline

EMBEDDED = "embedded"
RELEASED = "released"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "mini"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(model: str | Path = EMBEDDED) -> str:
    """Turns a model's name into what `from_pretrained` takes.

    Args:
        model: "embedded", a folder with a model_index.json, or a Hub repository `user/name`; "released", the authors'
            weights, stands for itself.

    Raises:
        InputError: it is none of these.
    """
    if str(model) == RELEASED:
        return RELEASED
    if str(model) == EMBEDDED:
        return str(EMBEDDED_FOLDER)
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"model is {model}, a folder without model_index.json; wanted a saved pipeline.")
        return str(folder)
    if folder.exists() or not _REPOSITORY.fullmatch(str(model)) or str(model).startswith("."):
        raise InputError(
            f"model is {model}; wanted {EMBEDDED!r}, the folder of a saved pipeline, or a Hub repository user/name."
        )
    return str(model)


def load_pipeline(
    model: str | Path = EMBEDDED,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    with_base: bool = True,
) -> BokehDepthPipeline:
    """Loads a pipeline with its base, ready to run.

    Args:
        model: as in `resolve_model`.
        device: where it runs.
        dtype: of all weights; None is float32 on the CPU and bfloat16 elsewhere.
        revision: of a Hub repository; of "released", see `released.checkpoint.parse_revisions`.
        with_base: fetch a base that has a repository of its own; depth needs none.

    Raises:
        InputError: the model cannot be found, is incomplete, or its base refuses access.
    """
    import torch

    from ..loading_bokehdepth import HubError
    from ..pipeline_bokehdepth import BokehDepthPipeline
    from ..released.checkpoint import REVISIONS
    from ..weights_bokehdepth import WeightsError

    source = resolve_model(model)
    if source == RELEASED:
        from ..released.checkpoint import parse_revisions
        from ..released.pipeline import load_released

        revisions = None if revision is None else parse_revisions(revision)
        try:
            return load_released(device=device, dtype=dtype, revisions=revisions, with_base=with_base)
        except (HubError, WeightsError) as error:
            raise InputError(str(error)) from error
    device = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        pipeline = BokehDepthPipeline.from_pretrained(source, dtype=dtype, **options)
        if with_base and pipeline.transformer is None and pipeline.config.base_model_id is not None:
            pipeline.load_base_model(dtype=dtype, revision=REVISIONS.get(pipeline.config.base_model_id))
    except (HubError, WeightsError) as error:
        raise InputError(str(error)) from error
    except Exception as error:  # diffusers, transformers and safetensors each have kinds of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"model is {model}, which cannot be loaded ({reason[:300]}); wanted the folder of a saved pipeline, whole."
        ) from error
    return pipeline.to(device)


def weights_record(
    model: str | Path, revision: str | None = None, with_base: bool = True
) -> dict[str, dict[str, str | None]]:
    """Names the weights for a run record.

    Args:
        model: as in `resolve_model`.
        revision: that was asked for, as in `load_pipeline`.
        with_base: that was asked for.

    Returns:
        `{"pipeline": {"id", "revision"}}`: of a repository its name, and its commit where the cache tells it; of
        local weights the folder's last name, since records are shared, and a checksum of all their safetensors files,
        or None where these are above 1 GiB. A base that has a repository of its own stands beside it as `base`. Of
        "released" the same for `base`, `adapter` and `depth`.
    """
    source = resolve_model(model)
    if source == RELEASED:
        return _released_record(revision, with_base)
    if not Path(source).is_dir():
        from huggingface_hub import try_to_load_from_cache

        index = try_to_load_from_cache(source, "model_index.json", revision=revision)
        commit = _cached_commit(source, "model_index.json", revision)
        base = _base_record(Path(index)) if with_base and isinstance(index, str) else {}
        return {"pipeline": {"id": source, "revision": commit}, **base}
    base = _base_record(Path(source, "model_index.json")) if with_base else {}
    name = EMBEDDED if str(model) == EMBEDDED else Path(model).resolve().name
    paths = sorted(Path(source).rglob("*.safetensors"))
    if sum(path.stat().st_size for path in paths) > 2**30:
        return {"pipeline": {"id": name, "revision": None}, **base}
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(source).as_posix().encode())
        digest.update(path.read_bytes())
    return {"pipeline": {"id": name, "revision": f"sha256:{digest.hexdigest()}"}, **base}


def _base_record(index: Path) -> dict[str, dict[str, str | None]]:
    """`{"base": {"id", "revision"}}` of the base that a pipeline fetches; empty where it brings its own."""
    values = json.loads(index.read_text(encoding="utf-8"))
    base = values.get("base_model_id")
    if base is None or values.get("transformer", [None])[0] is not None:
        return {}
    if Path(base).is_dir():
        return {"base": {"id": Path(base).resolve().name, "revision": None}}
    from ..released.checkpoint import BASE_CONFIG, REVISIONS

    return {"base": {"id": base, "revision": _cached_commit(base, BASE_CONFIG, REVISIONS.get(base))}}


def _cached_commit(repository: str, filename: str, revision: str | None) -> str | None:
    """Commit at which the cache holds a file of a repository; what was asked for where it holds none."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, filename, revision=revision)
    return Path(path).parents[filename.count("/")].name if isinstance(path, str) else revision


def _released_record(revision: str | None, with_base: bool) -> dict[str, dict[str, str | None]]:
    """Repository and cached commit of each released part."""
    from ..released.checkpoint import (
        ADAPTER,
        BASE_CONFIG,
        BASE_MODEL,
        DEPTH_MODELS,
        REVISIONS,
        Source,
        parse_revisions,
    )

    wanted = {**REVISIONS, **({} if revision is None else parse_revisions(revision))}
    parts = {"base": Source(BASE_MODEL, BASE_CONFIG), "adapter": ADAPTER} if with_base else {}
    record = {}
    for name, source in {**parts, "depth": DEPTH_MODELS["unidepth"]}.items():
        commit = _cached_commit(source.repo_id, source.filename, wanted[source.repo_id])
        record[name] = {"id": source.repo_id, "revision": commit}
    return record
