"""How `BokehDepthPipeline` comes from a repository, goes into a folder, and lets its weights be changed and moved.

The file stands alone, since a Hub repository carries it verbatim.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

_PIPELINE_NAMES = (
    "pipeline_bokehdepth",
    "inputs_bokehdepth",
    "sampling_bokehdepth",
    "processing_bokehdepth",
    "loading_bokehdepth",
    "weights_bokehdepth",
)
"""The pipeline's code, of which the first file imports the others."""

_EXPORTS = ("BokehDepthPipeline", "InputChecks", "PhotoMemory", "BokehDepthOutput", "HubLoading", "CheckedPipeline")
_MOVED = {
    "default_num_inference_steps": "num_inference_steps",
    "default_guidance_scale": "guidance_scale",
    "default_processing_area_px": "max_area",
}
"""What stood in model_index.json, by its name in the adapter's configuration."""
_RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)
_SUFFIX = re.compile(r"_[0-9a-f]{8}$")


class HubError(ValueError):
    """The Hub did not give what was asked for; the message is one sentence that says why."""


def explain_hub_error(error: BaseException, repo_id: str) -> str | None:
    """What went wrong with the Hub, in one sentence.

    Args:
        error: what the client raised; errors that it was raised from are read too.
        repo_id: the repository that was asked for.

    Returns:
        A sentence, or None where the error has nothing to do with the Hub.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    response = next((e.response for e in chain if isinstance(e, HfHubHTTPError) and e.response is not None), None)
    status = None if response is None else response.status_code
    said = "" if response is None else response.headers.get("X-Error-Message", "")

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) and not isinstance(e, LocalEntryNotFoundError) for e in chain)

    if met(GatedRepoError):
        return f"{repo_id} is gated; accept its licence on its Hub page and log in with a token that reads it."
    if status == 401 and "Invalid credentials" in said:
        return f"{repo_id} was refused (401), since the token is not valid; log in again with `hf auth login`."
    if met(RevisionNotFoundError):
        return f"{repo_id} has no such revision on the Hub; wanted a branch, a tag or a commit of it."
    if met(RepositoryNotFoundError):
        return f"{repo_id} is not on the Hub, or is private and the token does not read it ({status})."
    if met(EntryNotFoundError):
        return f"{repo_id} lacks a file that was asked for; wanted a complete repository."
    if status in (401, 403):
        return f"{repo_id} was refused ({status}: {said or 'no reason given'}); wanted a token with that right."
    if status == 429:
        return f"{repo_id} was refused for now (429, too many requests); try again in a few minutes."
    if status is not None and status >= 500:
        return f"{repo_id} met a failure of the Hub ({status}); nothing is wrong here, try again later."
    if status is not None:
        return f"{repo_id} was refused by the Hub ({status}: {said or 'no reason given'})."
    texts = " ".join(f"{type(e).__name__} {e}" for e in chain)
    if "RemoteProtocolError" in texts or "ReadError" in texts or "Consistency check failed" in texts:
        return f"{repo_id} was cut off, since the Hub closed the connection in the middle of a file; try again."
    if met(OfflineModeIsEnabled):
        return f"{repo_id} is not complete in the cache and the client is offline; load it once with a connection."
    if any(isinstance(e, LocalEntryNotFoundError) for e in chain) or "ConnectError" in texts or "Timeout" in texts:
        return f"{repo_id} is not complete in the cache and the Hub cannot be reached; check the connection."
    return None


def _is_intact(path: Path, etag: str) -> bool:
    """Whether a file's content has the checksum that the Hub names it by: SHA-256, or git's SHA-1 of small files."""
    if len(etag) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == etag


def fetch_repository(repo_id: str, **options: Any) -> str:
    """Fetches a repository without its code, and checks what was fetched against the Hub's checksums.

    The client compares sizes alone. Files that were in the cache before are not read again, and where the file system
    has no symbolic links the cache keeps no checksums to compare with.

    Args:
        repo_id: `user/name`.
        **options: for `huggingface_hub.snapshot_download`.

    Returns:
        The folder in the cache.

    Raises:
        HubError: the Hub does not give it, or a file arrived damaged; that file is not kept.
    """
    cache = Path(options.get("cache_dir") or constants.HF_HUB_CACHE)
    blobs = cache / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    before = set(os.listdir(blobs)) if blobs.is_dir() else set()
    try:
        folder = snapshot_download(repo_id, ignore_patterns=["*.py"], **options)
    except Exception as error:
        sentence = explain_hub_error(error, repo_id)
        if sentence is None:
            raise
        raise HubError(sentence) from error
    damaged = []
    for path in Path(folder).rglob("*"):
        etag = Path(os.readlink(path)).name if path.is_symlink() else ""
        if len(etag) in (40, 64) and etag not in before and not _is_intact(path, etag):
            damaged.append(path.relative_to(folder).as_posix())
            path.resolve().unlink()
            path.unlink()
    if damaged:
        raise HubError(
            f"{repo_id} arrived damaged (wrong checksum of {', '.join(sorted(damaged))}); nothing of it is kept, try "
            "again."
        )
    return folder


def plain_name(module: str) -> str:
    """A module's name in the package, of its name in a repository."""
    return _SUFFIX.sub("", module)


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
        The file as it is where it imports none; else the docstring, every import of a library, then the definitions.

    Raises:
        ValueError: two of the files define the same name, or a name is imported under another one.
    """
    files = _needed(source)
    if len(files) == 1:
        return source.read_text(encoding="utf-8")
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
                elif any(alias.asname for alias in node.names):
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
    return "\n\n\n".join([docstring + "\n\n" + "\n".join(heads), *bodies]) + "\n"


def write_code(folder: Path, pipeline_source: Path, components: dict[str, Path], unique: bool = False) -> str:
    """Writes the code that a folder needs to load by itself: at its root, and beside the weights of each component.

    diffusers keeps one module for each file name, whatever repository it comes from: a second repository would run, in
    part, the code of the first. With `unique` the names end in a checksum of all the code, so that other code is
    another module.

    Args:
        folder: of a saved pipeline.
        pipeline_source: the pipeline's own file, with the files that it imports beside it.
        components: component name -> the file of its class, for classes that are not diffusers' or transformers'.
        unique: append the checksum; otherwise files keep the names of their sources.

    Returns:
        What stands behind the name of every module: "_" and the checksum, or what the sources have there.
    """
    old = pipeline_source.stem.removeprefix(_PIPELINE_NAMES[0])
    sources = [pipeline_source.with_name(f"{name}{old}.py") for name in _PIPELINE_NAMES]
    suffix = old
    if unique:
        digest = hashlib.sha256()
        for path in sources:
            digest.update(path.read_bytes())
        for source in sorted(set(components.values())):
            digest.update(joined_source(source).encode())
        suffix = f"_{digest.hexdigest()[:8]}"
    for name, source in zip(_PIPELINE_NAMES, sources, strict=True):
        text = source.read_text(encoding="utf-8")
        text = _RELATIVE_IMPORT.sub(lambda found: f"from .{plain_name(found[1])}{suffix} import", text)
        (folder / f"{name}{suffix}.py").write_text(text, encoding="utf-8")
    # `custom_pipeline=` takes this name; a file that another needs is only found when it is named here too.
    exports = zip(_PIPELINE_NAMES, _EXPORTS, strict=True)
    (folder / "pipeline.py").write_text("".join(f"from .{name}{suffix} import {what}\n" for name, what in exports))
    for component, source in components.items():
        text = joined_source(source)
        for path in _needed(source)[:-1]:  # transformers has saved them beside the weights
            (folder / component / path.name).unlink(missing_ok=True)
        # transformers' classes find the plain name, in a module of their own for each repository and commit.
        for name in {source.stem, f"{plain_name(source.stem)}{suffix}" if unique else source.stem}:
            for place in (folder, folder / component):
                (place / f"{name}.py").write_text(text, encoding="utf-8")
    return suffix


class HubLoading:
    """The loading and saving half of `BokehDepthPipeline`, over diffusers' own."""

    _base_components: Iterable[str]

    def load_base_model(
        self, base_model_id: str | None = None, with_text_encoders: bool = False, **kwargs: Any
    ) -> None:
        """Loads the base components that are None from their own repository, which may ask for a licence.

        Args:
            base_model_id: None takes the configured one.
            with_text_encoders: also load the text encoders, which only other prompts need.
            **kwargs: for `FluxKontextPipeline.from_pretrained`, such as `dtype` (the pipeline's own unless given),
                `revision`, `token`. Without a `device_map` what is loaded goes to the pipeline's device.

        Raises:
            ValueError: no base is named.
            HubError: the Hub does not give it.
            WeightsError: its weights are not whole and finite.

        Example:
            >>> pipe.load_base_model(dtype=torch.bfloat16)
        """
        from diffusers import FluxKontextPipeline

        modules = [part for part in self.components.values() if hasattr(part, "parameters")]
        if modules and not {"dtype", "torch_dtype"} & kwargs.keys():
            kwargs["dtype"] = self.dtype
        base_model_id = base_model_id or self.config.base_model_id
        if base_model_id is None:
            raise ValueError("base_model_id is None; wanted a Hub repository or a folder of a FluxKontextPipeline.")
        text = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        present = {name: getattr(self, name) for name in self._base_components if getattr(self, name) is not None}
        skipped = {} if with_text_encoders else dict.fromkeys(name for name in text if name not in present)
        try:
            base = FluxKontextPipeline.from_pretrained(base_model_id, **present, **skipped, **kwargs)
        except Exception as error:
            sentence = explain_hub_error(error, base_model_id)
            if sentence is None:
                raise
            raise HubError(sentence) from error
        device, fetched = self._execution_device, [name for name in self._base_components if name not in present]
        self.register_modules(**{name: getattr(base, name) for name in self._base_components})
        self.check_parts(fetched)
        for name in fetched:
            if hasattr(getattr(self, name), "parameters") and "device_map" not in kwargs:
                getattr(self, name).to(device)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Makes a pipeline on another one's components, each in its own precision.

        Args:
            pipeline: a `FluxKontextPipeline`, or a pipeline of ours.
            **kwargs: components in place of the other pipeline's, `base_model_id`, and `dtype` to convert all.

        Raises:
            TypeError: there is no such component.

        Example:
            >>> pipe = BokehDepthPipeline.from_pipe(kontext, bokeh_adapter=adapter, depth_estimator=depth_model)
        """
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        parts = {name: kwargs.pop(name, getattr(pipeline, name, None)) for name in cls._optional_components}
        base_model_id = kwargs.pop("base_model_id", pipeline.config.get("base_model_id"))
        made = cls(**parts, base_model_id=base_model_id, **kwargs)
        if dtype is not None:
            made.to(dtype=dtype)
        return made

    # ------------------------------------------------------------------ what changes weights, or where they lie

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, into the base's own weights.

        Raises:
            ValueError: modulation is baked, or the folded base was quantised.
        """
        self._open_weights("load_lora_weights")
        super().load_lora_weights(*args, **kwargs)

    def fuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, into the base's own weights.

        Raises:
            ValueError: modulation is baked, or the folded base was quantised.
        """
        self._open_weights("fuse_lora")
        super().fuse_lora(*args, **kwargs)

    def unfuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, out of the base's own weights.

        Raises:
            ValueError: modulation is baked, or the folded base was quantised.
        """
        self._open_weights("unfuse_lora")
        super().unfuse_lora(*args, **kwargs)

    def _open_weights(self, method: str) -> None:
        """Brings the base's own weights back before a method of diffusers changes them."""
        if getattr(getattr(self.transformer, "time_text_embed", None), "is_baked", False):
            raise ValueError(f"transformer has its modulation baked; wanted restore_modulation() before {method}().")
        if self.bokeh_adapter is not None and self.bokeh_adapter.transformer is self.transformer:
            self.bokeh_adapter.unfold()

    @contextmanager
    def _base_alone(self) -> Iterator[None]:
        """The transformer folded, since it cannot be while its weights lie elsewhere, and without the processors.

        These stay on the device with their adapter, which no hook moves.
        """
        both = self.transformer is not None and self.bokeh_adapter is not None
        if both:
            self.bokeh_adapter.prepare(self.transformer)
        with self.bokeh_adapter.lent_back() if both else nullcontext():
            yield

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, with the adapter folded first."""
        with self._base_alone():
            super().enable_model_cpu_offload(*args, **kwargs)

    def _residents(self) -> list[str]:
        """Components that read weights of their layers themselves, which no hook would bring."""
        return ["bokeh_adapter", *(["depth_estimator"] if hasattr(self.depth_estimator, "infer") else [])]

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, with the adapter folded first, which stays on the device, as some depth models do."""
        self._exclude_from_cpu_offload = self._residents()
        with self._base_alone():
            super().enable_sequential_cpu_offload(*args, **kwargs)

    def enable_group_offload(self, *args: Any, exclude_modules: Any = None, **kwargs: Any) -> None:
        """As in diffusers, with the adapter folded first, which stays on the device, as some depth models do."""
        excluded = [exclude_modules] if isinstance(exclude_modules, str) else list(exclude_modules or ())
        with self._base_alone():
            super().enable_group_offload(*args, exclude_modules=[*excluded, *self._residents()], **kwargs)

    # ------------------------------------------------------------------ folders

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Fetches a repository's weights and configuration, not its code, since the installed class is in use.

        Raises:
            HubError: the Hub does not give it, or a file arrived damaged.
        """
        accepted = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        options = {name: kwargs[name] for name in accepted if kwargs.get(name) is not None}
        return fetch_repository(pretrained_model_name, **options)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Reads model_index.json with the file names of custom classes turned into installed modules."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for old, new in _MOVED.items():
            if old in config:
                raise ValueError(
                    f"model_index.json of {pretrained_model_name_or_path} has {old}, which bokeh_adapter/config.json "
                    f"must hold as {new}; move it, or load the folder with the version that wrote it."
                )
        package = __name__.rpartition(".")[0]
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        for name, value in config.items():
            if not (isinstance(value, list) and len(value) == 2 and str(value[0]).startswith("modeling_")):
                continue
            for module in (f"{package}.{value[0]}", f"{package}.{plain_name(value[0])}"):
                if importlib.util.find_spec(module):
                    importlib.import_module(module)  # diffusers takes a module only once it is imported
                    config[name] = [module, value[1]]
                    break
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes a folder that loads with and without this package, on disk and from the Hub.

        Args:
            save_directory: folder to write.
            push_to_hub: refused, since a repository also needs a card: `bokehdepth publish` writes both.
            **kwargs: as in diffusers.

        Raises:
            ValueError: push_to_hub is True, or the base's weights are gone: dropped by
                `bokehdepth.acceleration.bake_modulation`, or quantised with the adapter folded in.
        """
        if push_to_hub:
            raise ValueError("push_to_hub is True; wanted False, then `bokehdepth publish` on the saved folder.")
        if getattr(getattr(self.transformer, "time_text_embed", None), "is_baked", False):
            raise ValueError("transformer has its modulation baked; wanted restore_modulation() before saving.")
        sealed = None if self.bokeh_adapter is None else self.bokeh_adapter.sealed
        if sealed is not None:
            raise ValueError(f"`transformer` must hold the base's own weights to be saved, got {sealed} folded ones.")
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        index = json.loads((folder / self.config_name).read_text())
        own = Path(inspect.getsourcefile(type(self)))
        index["_class_name"] = [own.stem, type(self).__name__]
        sources = {}
        for name, value in index.items():
            if not isinstance(value, list) or value[0] in (None, own.stem, "diffusers", "transformers"):
                continue
            sources[name] = Path(inspect.getsourcefile(type(getattr(self, name))))
            index[name] = [sources[name].stem, value[1]]
        write_code(folder, own, sources)
        (folder / self.config_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
