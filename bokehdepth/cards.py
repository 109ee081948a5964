"""Model and data cards: templates of `model_cards/`, filled from a file of facts, refused where one is missing.

Nothing is made up here: what nobody measured stands in no facts file, and without it there is no card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_UNFINISHED = re.compile(r"\{\{|\}\}|\{%|%\}|\[more information needed\]|\bTODO\b|\bTBD\b", re.IGNORECASE)

_WANTED_METADATA = {
    "pipeline": ("license", "license_link", "library_name", "pipeline_tag", "tags", "model-index"),
    "adapter": ("license", "license_link", "library_name", "pipeline_tag", "tags", "model-index", "base_model"),
    "depth": ("license", "license_link", "library_name", "pipeline_tag", "tags", "model-index"),
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


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip() or bool(_UNFINISHED.search(value))
    return value is None


def fill_card(template: str | Path, facts: Mapping[str, Any]) -> str:
    """Fills a template; every name that it asks for must be among the facts, and every fact must be asked for.

    Args:
        template: Markdown with Jinja placeholders `{{ name }}`; it may include its neighbours.
        facts: by name; a string is put in as it stands, without white space at its ends.

    Returns:
        The card.

    Raises:
        InputError: a fact is missing, empty or unfinished, or the template has no place for one.
    """
    import jinja2
    from jinja2 import meta

    template = Path(template)
    if not template.is_file():
        raise InputError(f"template is {str(template)!r}, which is no file; wanted a card of model_cards/.")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, autoescape=False,
    )  # fmt: skip
    wanted, queue, seen = set(), [template.name], set()
    while queue:
        name = queue.pop()
        seen.add(name)
        tree = environment.parse((template.parent / name).read_text(encoding="utf-8"))
        wanted |= meta.find_undeclared_variables(tree)
        queue += [other for other in meta.find_referenced_templates(tree) if other and other not in seen]
    missing = sorted(name for name in wanted if _is_missing(facts.get(name)))
    if missing:
        raise InputError(f"facts lacks {', '.join(missing)}; wanted every fact that {template.name} states.")
    unused = sorted(set(facts) - wanted)
    if unused:
        raise InputError(f"facts has {', '.join(unused)}, for which {template.name} has no place.")
    stripped = {name: value.strip() if isinstance(value, str) else value for name, value in facts.items()}
    try:
        return environment.get_template(template.name).render(stripped).rstrip() + "\n"
    except jinja2.UndefinedError as error:
        raise InputError(f"facts has a gap inside: {error}.") from error


def read_metadata(card: str) -> dict[str, Any]:
    """Reads the metadata block of a card.

    Raises:
        InputError: there is none, or it is no mapping.
    """
    found = _FRONT_MATTER.match(card)
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise InputError(f"card has metadata that is no YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(metadata, dict):
        raise InputError("card has no metadata; wanted a block of YAML between two lines `---` at its start.")
    return metadata


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
    metadata = read_metadata(card)
    left = _UNFINISHED.search(card)
    if left:
        raise InputError(f"card has {left[0]!r} left in it; wanted every fact filled in.")
    missing = [name for name in _WANTED_METADATA[kind] if metadata.get(name) in (None, "", [])]
    if missing:
        raise InputError(f"card has metadata without {', '.join(missing)}; a {kind} card wants them.")
    for name, wanted in _FIXED_METADATA.get(kind, {}).items():
        if metadata[name] != wanted:
            raise InputError(f"card has {name} {metadata[name]!r}; wanted {wanted!r} for a {kind} card.")
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
    if kind == "space" and len(metadata.get("short_description", "")) > 60:
        raise InputError("card has a short_description above 60 characters; the Hub takes up to 60.")
    return metadata


def _check_results(results: Any) -> list[dict[str, Any]]:
    if not isinstance(results, list) or not results:
        raise InputError("facts has no results; wanted one entry or more, each with the command that printed it.")
    for index, result in enumerate(results):
        given = result if isinstance(result, dict) else {}
        missing = [key for key in _RESULT_KEYS if _is_missing(given.get(key))]
        if missing:
            raise InputError(f"results[{index}] lacks {', '.join(missing)}; wanted a value beside its control.")
        if not all(isinstance(result[key], int | float) for key in ("value", "control_value")):
            raise InputError(f"results[{index}] has a value that is no number; wanted what the command printed.")
    return results


def model_metadata(title: str, metadata: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Writes a model card's metadata block, results included.

    Args:
        title: of the model.
        metadata: the Hub's names, such as license and tags; empty lists are left out.
        results: each with task (a Hub task), dataset, metric, value, control (its name), control_value and command.

    Returns:
        YAML lines without the `---` around them.

    Raises:
        InputError: a result is incomplete.
    """
    from huggingface_hub import EvalResult, ModelCardData

    entries = [
        EvalResult(
            task_type=result["task"],
            dataset_type="custom",
            dataset_name=result["dataset"],
            metric_type=result["metric"],
            metric_name=f"{result['metric']} ({result['control']}: {result['control_value']:g})",
            metric_value=result["value"],
            metric_args={"command": " ".join(result["command"].split())},
        )
        for result in _check_results(list(results))
    ]
    kept = {name: value for name, value in metadata.items() if value not in (None, [])}
    return ModelCardData(**kept, model_name=title, eval_results=entries).to_yaml()


def model_card(template: str | Path, facts: Mapping[str, Any], repository: str, **derived: Any) -> str:
    """Writes the card of a model.

    Args:
        template: of `model_cards/`.
        facts: with `title`, `metadata` and `results` among them.
        repository: that the card's examples load.
        **derived: further facts that are read off the model's files.

    Returns:
        The card, not yet checked against its kind.

    Raises:
        InputError: a fact is missing or has no place.
    """
    missing = [name for name in ("title", "metadata", "results") if _is_missing(facts.get(name))]
    if missing:
        raise InputError(f"facts lacks {', '.join(missing)}; wanted every fact that a model card states.")
    if not isinstance(facts["metadata"], dict):
        raise InputError("facts has metadata without names; wanted license, tags and the like.")
    clash = sorted(set(derived) & set(facts))
    if clash:
        raise InputError(f"facts has {', '.join(clash)}, which the model's own files say.")
    rest = {name: value for name, value in facts.items() if name != "metadata"}
    front_matter = model_metadata(facts["title"], facts["metadata"], facts["results"])
    return fill_card(template, {**rest, **derived, "repository": repository, "front_matter": front_matter})
