"""`--push-to-hub` of both trainers: a card filled from the run, then `bokehdepth.hub.publish`."""

from __future__ import annotations

import dataclasses
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import write_file
from bokehdepth.hub.cards import read_facts
from bokehdepth.hub.publish import publish
from train.config import Stage1Config, Stage2Config

logger = logging.getLogger("train.publish")
RESULTS_NAME = "results.yaml"
"""In the run's output: a list `results` of evaluations, each with task, dataset, metric, value, control, control_value
and command, which a card states before the training's own numbers."""
_TASKS = {"stage1": "image-to-image", "stage2": "depth-estimation"}
_LIBRARIES = {"stage1": "diffusers", "stage2": "transformers"}


def check(cfg: Stage1Config | Stage2Config) -> None:
    """Refuses, before a run begins, what could not be published after it."""
    if cfg.card is None:
        raise InputError("card is missing in the configuration; wanted it with --push-to-hub.")


def facts_of(cfg: Stage1Config | Stage2Config, command: str) -> dict[str, Any]:
    """What a model's card states: settings and numbers of the run, and the words of `cfg.card`.

    Args:
        cfg: of the run that is done.
        command: that printed its numbers.

    Returns:
        Facts as `bokehdepth.hub.cards` wants them.

    Raises:
        InputError: the run has no log, or no card.
    """
    check(cfg)
    stage, output = ("stage1" if isinstance(cfg, Stage1Config) else "stage2"), Path(cfg.output)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    if not losses:
        raise InputError(f"output is {cfg.output!r}, whose log has no loss; wanted a run that is done.")
    record = json.loads((output / "model" / "training.json").read_text())
    first, last = losses[0], losses[-1]
    data = cfg.pool.folder if cfg.pool is not None else ", ".join(cfg.manifests.files)
    given = read_facts(output / RESULTS_NAME)["results"] if (output / RESULTS_NAME).is_file() else []
    trained = {
        "task": _TASKS[stage],
        "dataset": f"training data: {Path(data).name}",
        "metric": f"training loss up to step {last['step']}",
        "value": last["loss"],
        "control": f"the same up to step {first['step']}",
        "control_value": first["loss"],
        "command": command,
    }
    card, base = cfg.card, cfg.base.path
    metadata: dict[str, Any] = {
        "license": card.license,
        "license_name": card.license_name,
        "license_link": card.license_link,
        "library_name": _LIBRARIES[stage],
        "pipeline_tag": _TASKS[stage],
        "datasets": card.datasets,
        "tags": ["bokeh", "depth-estimation", "depth-from-defocus"],
    }
    if base:
        metadata |= {"base_model": [base], "base_model_relation": "adapter" if stage == "stage1" else "finetune"}
    settings = yaml.safe_dump(_settings(cfg), sort_keys=False, allow_unicode=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "accelerate"))
    rows = "\n".join(f"| {name} | {value} |" for name, value in record.items())
    return {
        "title": card.title,
        "version": card.version,
        "metadata": metadata,
        "results": [*given, trained],
        "summary": card.summary,
        "parts": f"| | |\n|---|---|\n{rows}",
        "training_data": card.training_data,
        "evaluation": "The training's own loss says that it learned, not how good it is; evaluations stand above it "
        "where the run has any.",
        "limits": card.limits,
        "licences": card.licences,
        "reproduction": f"```bash\n{command}\n```\n\nwith {packages} and this:\n\n```yaml\n{settings}```",
    }


def _settings(cfg: Stage1Config | Stage2Config) -> dict[str, Any]:
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(cfg).items() if k != "card"}))


def push(cfg: Stage1Config | Stage2Config, model: Path, repository: str, command: str, **options: Any) -> None:
    """Writes `card.yaml` into the run's output and publishes the model with the card made from it.

    Args:
        cfg: of the run that is done.
        model: that it saved.
        repository: `user/name`.
        command: that trained it.
        **options: further ones of `bokehdepth.hub.publish.publish`.

    Raises:
        InputError: as `facts_of` and `publish` say.
    """
    text = yaml.safe_dump(facts_of(cfg, command), sort_keys=False, allow_unicode=True)
    facts = write_file(Path(cfg.output) / "card.yaml", lambda file: file.write(text.encode()), overwrite=True)
    kind = "depth" if isinstance(cfg, Stage2Config) else "adapter" if cfg.base.path else "pipeline"
    publication = publish(kind, model, repository, facts=facts, **options)
    logger.info("%s: %d files, commit %s", publication.repository, len(publication.files), publication.commit)
