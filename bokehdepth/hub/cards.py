"""Model and data cards: templates of `model_cards/`, filled from a file of facts, refused where one is missing.

Nothing is made up here: what nobody measured stands in no facts file, and without it there is no card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError

_UNFINISHED = re.compile(r"\{\{|\}\}|\{%|%\}|\[more information needed\]|\bTODO\b|\bTBD\b", re.IGNORECASE)
_MODEL_METADATA = ("license", "license_link", "library_name", "pipeline_tag", "tags", "model-index")
_REQUIRED_METADATA = {
    "pipeline": _MODEL_METADATA,
    "adapter": (*_MODEL_METADATA, "base_model"),
    "depth": _MODEL_METADATA,
    "dataset": ("license", "tags"),
    "space": ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"),
}
_FIXED_METADATA = {
    "pipeline": {"library_name": "diffusers", "pipeline_tag": "image-to-image"},
    "adapter": {"library_name": "diffusers", "pipeline_tag": "image-to-image"},
    "depth": {"library_name": "transformers", "pipeline_tag": "depth-estimation"},
}
_RESULT_KEYS = ("task", "dataset", "metric", "value", "control", "control_value", "command")


def read_facts(path: str | Path) -> dict[str, Any]:
    """Reads a file of facts.

    Args:
        path: YAML, or JSON, which is YAML too.

    Returns:
        The facts by name.

    Raises:
        InputError: there is no such file, or it holds no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"facts is {str(path)!r}, which is no file; wanted the facts that the card states.")
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"facts is {str(path)!r}, which is no YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(facts, dict) or not all(isinstance(name, str) for name in facts):
        raise InputError(f"facts is {str(path)!r}, which holds no names; wanted `name: value` lines.")
    return facts


def fill_card(template: str | Path, facts: Mapping[str, Any]) -> str:
    """Fills a template of `model_cards/`.

    Args:
        template: Markdown with Jinja placeholders `{{ name }}`; it may include its neighbours.
        facts: by name; a string is put in as it stands, without white space at its ends.

    Returns:
        The card.

    Raises:
        InputError: a fact that the template states is missing, or one has no value.
    """
    import jinja2

    template = Path(template)
    empty = sorted(name for name, value in facts.items() if value is None or not str(value).strip())
    if empty:
        raise InputError(f"facts must say something for every name, got nothing for {', '.join(empty)}.")
    # `ModelCard.from_template` leaves a missing fact out in silence and knows no includes.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), undefined=jinja2.StrictUndefined, trim_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    stripped = {name: value.strip() if isinstance(value, str) else value for name, value in facts.items()}
    try:
        return environment.get_template(template.name).render(stripped).rstrip() + "\n"
    except jinja2.UndefinedError as error:
        raise InputError(f"facts must have every fact that {template.name} states, got a gap: {error}.") from error


def check_card(card: str, kind: str, base_models: Sequence[str] = ()) -> dict[str, Any]:
    """Checks a finished card.

    Args:
        card: Markdown with its metadata block.
        kind: "pipeline", "adapter", "depth", "dataset" or "space".
        base_models: Hub repositories that the published weights need, which the card has to name.

    Returns:
        The metadata.

    Raises:
        InputError: a placeholder is left, or the metadata lack or contradict something.
    """
    from huggingface_hub import RepoCard

    left = _UNFINISHED.search(card)
    if left:
        raise InputError(f"card has {left[0]!r} left in it; wanted every fact filled in.")
    try:
        metadata = RepoCard(card, ignore_metadata_errors=True).data.to_dict()
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"card has metadata that is no YAML mapping ({' '.join(str(error).split())}).") from error
    missing = [name for name in _REQUIRED_METADATA[kind] if metadata.get(name) in (None, "", [])]
    if missing:
        raise InputError(f"card has metadata without {', '.join(missing)}; a {kind} card wants them.")
    for name, fixed in _FIXED_METADATA.get(kind, {}).items():
        if metadata[name] != fixed:
            raise InputError(f"card has {name} {metadata[name]!r}; wanted {fixed!r} for a {kind} card.")
    if metadata["license"] == "other" and not (metadata.get("license_name") and metadata.get("license_link")):
        raise InputError("card has license 'other' without license_name and license_link; wanted both.")
    named = metadata.get("base_model") or []
    named = [named] if isinstance(named, str) else named
    unnamed = [base for base in base_models if base not in named]
    if unnamed:
        raise InputError(
            f"card has base_model {named}; wanted {', '.join(unnamed)} among them, which the weights need."
        )
    if named and not metadata.get("base_model_relation"):
        raise InputError("card has base_model without base_model_relation; wanted adapter, finetune or quantized.")
    return metadata


def _evaluation(index: int, result: Any) -> Any:
    """A result as the Hub's metadata have it; it stands beside its control or not at all."""
    from huggingface_hub import EvalResult

    values = result if isinstance(result, dict) else {}
    missing = [key for key in _RESULT_KEYS if values.get(key) in (None, "")]
    if missing:
        raise InputError(f"results[{index}] lacks {', '.join(missing)}; wanted a value beside its control.")
    if not all(isinstance(result[key], int | float) for key in ("value", "control_value")):
        raise InputError(f"results[{index}] has a value that is no number; wanted what the command printed.")
    return EvalResult(
        task_type=result["task"],
        dataset_type="custom",
        dataset_name=result["dataset"],
        metric_type=result["metric"],
        metric_name=f"{result['metric']} ({result['control']}: {result['control_value']:g})",
        metric_value=result["value"],
        metric_args={"command": " ".join(result["command"].split())},
    )


def model_card(template: str | Path, facts: Mapping[str, Any], repository: str, **derived: Any) -> str:
    """Writes the card of a model.

    Args:
        template: of `model_cards/`.
        facts: with `title`, `metadata` (the Hub's names) and `results` (each with task, dataset, metric, value,
            control, control_value and command) among them.
        repository: that the card's examples load.
        **derived: further facts that are read off the model's files.

    Returns:
        The card, not yet checked against its kind.

    Raises:
        InputError: a fact is missing or incomplete.
    """
    from huggingface_hub import ModelCardData

    for name, kind in (("title", str), ("metadata", dict), ("results", list)):
        if not isinstance(facts.get(name), kind) or not facts[name]:
            raise InputError(f"`{name}` of the facts must be a filled {kind.__name__}, got {facts.get(name)!r}.")
    metadata = {name: value for name, value in facts["metadata"].items() if value not in (None, [])}
    results = [_evaluation(index, result) for index, result in enumerate(facts["results"])]
    front_matter = ModelCardData(**metadata, model_name=facts["title"], eval_results=results).to_yaml()
    return fill_card(template, {**facts, **derived, "repository": repository, "front_matter": front_matter})
