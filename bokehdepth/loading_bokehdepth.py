"""How `BokehDepthPipeline` comes from a repository, goes into a folder, and lets its weights be changed and moved."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

_MOVED = {
    "default_num_inference_steps": "num_inference_steps",
    "default_guidance_scale": "guidance_scale",
    "default_processing_area_px": "max_area",
}
"""What stood in model_index.json, by its name in the adapter's configuration."""


class HubError(ValueError):
    """The Hub did not give what was asked for; the message is one sentence that says why."""


def explain_hub_error(error: BaseException, repo_id: str) -> str | None:
    """What went wrong with the Hub, in one sentence.

    Args:
        error: what the client raised; errors that it was raised from are read too.
        repo_id: the repository that was asked for.

    Returns:
        A sentence, if need be in the client's own words; None where the error has nothing to do with the Hub.
    """
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    if any(isinstance(e, GatedRepoError) for e in chain):
        return f"{repo_id} is gated; accept its licence on its Hub page and log in with a token that reads it."
    answered = [e for e in chain if getattr(e, "response", None) is not None]
    if answered:
        return f"{repo_id} was refused by the Hub ({' '.join(str(answered[0]).split())})."
    if any(isinstance(e, OfflineModeIsEnabled | LocalEntryNotFoundError) for e in chain):
        return f"{repo_id} is not complete in the cache and the Hub is out of reach; load it once with a connection."
    return None


def fetch_repository(repo_id: str, **options: Any) -> str:
    """Fetches a repository without its code.

    Args:
        repo_id: `user/name`.
        **options: for `huggingface_hub.snapshot_download`.

    Returns:
        The folder in the cache.

    Raises:
        HubError: the Hub does not give it.
    """
    try:
        return snapshot_download(repo_id, ignore_patterns=["*.py"], **options)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise HubError(explain_hub_error(error, repo_id) or f"{repo_id} was not fetched ({said}).") from error


def _code_of(kind: type) -> str:
    """The code of a class, which in a repository or a saved folder is one file, and in the package several."""
    source = Path(inspect.getsourcefile(kind))
    if kind.__module__.startswith("bokehdepth."):
        return importlib.import_module("bokehdepth.hub.folder").joined_source(source)
    return source.read_text(encoding="utf-8")


def write_code(folder: Path, sources: Mapping[str, tuple[str, str]]) -> None:
    """Writes the code that a folder needs to load by itself: at its root, and beside the weights of each component.

    Args:
        folder: of a saved pipeline.
        sources: module name and code by component; those of the pipeline stand under "".
    """
    for part, (module, code) in sources.items():
        if part:  # transformers has saved files there that the code is joined from
            for old in (folder / part).glob("*.py"):
                old.unlink()
        for place in {folder, folder / part}:
            (place / f"{module}.py").write_text(code, encoding="utf-8")
    # `custom_pipeline=` takes this name.
    (folder / "pipeline.py").write_text(f"from .{sources[''][0]} import BokehDepthPipeline\n", encoding="utf-8")


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
            HubError: the Hub does not give it.
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
            module = f"{package}.{value[0]}"
            if importlib.util.find_spec(module):
                importlib.import_module(module)  # diffusers takes a module only once it is imported
                config[name] = [module, value[1]]
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes a folder that loads with and without this package, on disk and from the Hub.

        Args:
            save_directory: folder to write.
            push_to_hub: refused, since a repository also needs a card: `bokehdepth publish` writes both.
            **kwargs: as in diffusers.

        Raises:
            ValueError: push_to_hub is True, or the base's weights are gone: dropped by
                `bokehdepth.speed.bake_modulation`, or quantised with the adapter folded in.
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
        kinds = {"": type(self)}
        for name, value in index.items():
            if name in self.components and value[0] not in (None, "diffusers", "transformers"):
                kinds[name] = type(getattr(self, name))
        sources = {name: (kind.__module__.rpartition(".")[2], _code_of(kind)) for name, kind in kinds.items()}
        for name, kind in kinds.items():
            index[name or "_class_name"] = [sources[name][0], kind.__name__]
        write_code(folder, sources)
        (folder / self.config_name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
