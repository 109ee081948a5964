"""Captions as prompt embeddings: encoded once by the base's text encoders, kept in files, read by data workers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import write_file
from bokehdepth.pipeline_bokehdepth import DEFAULT_PROMPT

Encode = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""A text to its embeddings (N_text, C) and (C,)."""


class Prompts:
    """A folder of encoded captions.

    Args:
        folder: of the cache.
        source: name of the text encoders, so that those of two bases do not meet.
        tokens: length of an embedding.
    """

    def __init__(self, folder: str, source: str, tokens: int) -> None:
        self.folder, self.source, self.tokens = Path(os.path.expandvars(folder)), source, tokens

    def path(self, text: str | None) -> Path:
        """File of a text; None is the constant prompt of editing."""
        name = f"{self.source}\n{self.tokens}\n{DEFAULT_PROMPT if text is None else text}"
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"

    def missing(self, texts: Iterable[str]) -> list[str | None]:
        """Texts that are not encoded yet, each once, the constant and the empty prompt among them."""
        return [text for text in dict.fromkeys([None, "", *texts]) if not self.path(text).exists()]

    def fill(self, texts: Iterable[str | None], encode: Encode) -> None:
        """Encodes texts and writes them, each whole or not at all."""
        for text in texts:
            embeds, pooled = encode(DEFAULT_PROMPT if text is None else text)
            tensors = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
            data = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
            write_file(self.path(text), lambda file, data=data: file.write(data), overwrite=True)

    def look_up(self, text: str | None) -> dict[str, torch.Tensor]:
        """prompt_embeds (N_text, C) and pooled_prompt_embeds (C,) of an encoded text.

        Raises:
            InputError: it was never encoded.
        """
        path = self.path(text)
        if not path.is_file():
            raise InputError(f"caption is {text!r}, which is not in {self.folder}; wanted an encoded one.")
        return load_file(path)
