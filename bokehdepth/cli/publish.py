"""``bokehdepth publish``: a model, a data set or the Space, with its card, to the Hub. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import add_talk_options
from .talk import EXIT_DONE, logger, say, write_json

_MODEL_KINDS = ("pipeline", "adapter", "depth", "dataset")


def add_publish(commands: Any) -> None:
    """Add ``publish`` to the commands of a parser."""
    parser = commands.add_parser(
        "publish",
        help="upload a model, a data set or the Space, with its card, to the Hub",
        description="Builds the folder of a Hub repository, with code and card, and uploads it in one commit. What a "
        "card states comes from a file of facts; where one is missing nothing is published. Needs a checkout of the "
        "project, and for an upload a token (`hf auth login` or HF_TOKEN).",
        epilog="Example: bokehdepth publish runs/model --repo me/bokehdepth --private --dry-run",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="'embedded', or the folder of a saved model or data set"
    )
    parser.add_argument("--repo", metavar="USER/NAME", required=True, help="repository; created if it is not there")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--kind",
        choices=_MODEL_KINDS,
        default="pipeline",
        help="what to publish: the pipeline, its adapter or depth model alone, or a data set (default: %(default)s)",
    )
    what.add_argument("--space", action="store_true", help="publish the project's page as a Space in place of a model")
    parser.add_argument(
        "--facts",
        metavar="FILE",
        type=Path,
        help="YAML or JSON that the card is filled from (default: MODEL/card.yaml)",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--tag", metavar="TAG", help="name of the commit (default: v and the version of the facts)")
    parser.add_argument(
        "--dry-run", action="store_true", help="build and check the folder, list its files, ask no Hub"
    )
    parser.set_defaults(handler=publish)
    add_talk_options(parser)


def publish(arguments: argparse.Namespace) -> int:
    """Publish what the arguments name.

    Returns:
        The exit code 0.

    Raises:
        InputError: something is missing, or the Hub refuses.
    """
    from ..hub import publish as publishing

    if arguments.space and arguments.model is not None:
        raise InputError(f"MODEL is {arguments.model!r}; wanted none with --space.")
    if not arguments.space and arguments.model is None:
        raise InputError("MODEL is missing; wanted 'embedded', a folder, or --space.")
    with _quiet_client(arguments.verbose):
        done = publishing.publish(
            "space" if arguments.space else arguments.kind,
            arguments.model,
            arguments.repo,
            facts=arguments.facts,
            private=arguments.private,
            tag=arguments.tag,
            dry_run=arguments.dry_run,
        )
    total = sum(size for _, size in done.files)
    if arguments.json:
        files = [{"name": name, "bytes": size} for name, size in done.files]
        write_json({**vars(done), "files": files, "total_bytes": total})
        return EXIT_DONE
    lines = [f"{size:>12}  {name}" for name, size in done.files]
    say("\n".join([*lines, f"{total:>12}  bytes in {len(done.files)} files"]))
    if done.commit is None:
        logger.info("dry run; nothing was uploaded to %s.", done.repository)
    else:
        logger.info("published %s at commit %s%s.", done.repository, done.commit, f" as {done.tag}" * bool(done.tag))
    return EXIT_DONE


@contextmanager
def _quiet_client(verbose: bool) -> Iterator[None]:
    """Keep the client's remarks on its retries away from the user, who gets one sentence at the end."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    if not verbose:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
