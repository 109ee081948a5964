"""``bokehdepth convert``: released checkpoints into folders of ours, or questions put to them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import add_talk_options, available_device, device_name, whole_number
from .talk import EXIT_DONE, EXIT_FAILED, logger, quiet_libraries, say, write_json


def add_convert(commands: Any) -> None:
    """Add ``convert`` to the commands of a parser."""
    parser = commands.add_parser(
        "convert",
        help="turn a released checkpoint into a folder that from_pretrained reads",
        description="Reads bokeh_lora.bin, UDv2_dsfa_release.pth or DAV2_dsfa_release.pth of fogradio/BokehDepth, the "
        "adapter of atfortes/BokehDiffusion, or a UniDepthV2, and writes a folder with safetensors and an account of "
        "every tensor. A file with a tensor too many, too few or of another shape is refused. The weights keep their "
        "licence, which is printed.",
        epilog="Examples: bokehdepth convert bokeh_lora.bin -o adapter; bokehdepth convert UDv2.pth --audit",
    )
    parser.add_argument("checkpoint", metavar="FILE", type=Path, help="released file, or a folder with one")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same name")
    parser.add_argument(
        "--audit",
        action="store_true",
        help="write nothing; print the commit and checksum to pin, then check keys, which parts and whether K were "
        "trained, and whether the stack moves the depth",
    )
    parser.add_argument(
        "--base",
        metavar="ID_OR_FOLDER",
        help="with --audit of an adapter: load this FLUX.1 base too, and ask which way K reaches the picture",
    )
    parser.add_argument(
        "--device", type=device_name, default="auto", help="with --base: as in `bokehdepth run` (default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the written weights")
    parser.add_argument("--rank", metavar="N", type=whole_number(1), help="LoRA rank of an adapter (default: 128)")
    parser.add_argument(
        "--dsfa-heads", metavar="N", type=whole_number(1), help="attention heads of DSFA (default: 8, the release's)"
    )
    parser.add_argument(
        "--double-scaled-space",
        action=argparse.BooleanOptionalAction,
        help="scale DSFA's space attention twice, as the release's use_sdpa does (default: UniDepth yes, Depth "
        "Anything no)",
    )
    parser.add_argument(
        "--double-scaled-backbone",
        action="store_true",
        help="fold a second scale into Depth Anything's attention, as the release's use_sdpa does on CUDA",
    )
    parser.set_defaults(handler=convert)
    add_talk_options(parser)


def convert(arguments: argparse.Namespace) -> int:
    """Convert or audit what the arguments name.

    Returns:
        0; 1 if an audited file is not what it claims to be.

    Raises:
        InputError: The file cannot be used, or the arguments do not go together.
    """
    if arguments.audit == (arguments.output is not None):
        raise InputError("--output and --audit are " + ("both" if arguments.audit else "not") + " given; wanted one.")
    if arguments.base is not None and not arguments.audit:
        raise InputError(f"--base is {arguments.base!r}; wanted it with --audit.")
    options = {
        "rank": arguments.rank,
        "alpha": None if arguments.rank is None else float(arguments.rank),
        "dsfa_num_heads": arguments.dsfa_heads,
        "double_scaled_space": arguments.double_scaled_space,
        "double_scaled_backbone": arguments.double_scaled_backbone or None,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if arguments.audit:
        return _audit(arguments, options)
    import torch

    from ..released.convert import convert_checkpoint

    report = convert_checkpoint(
        arguments.checkpoint,
        arguments.output,
        dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
        overwrite=arguments.overwrite,
        **options,
    )
    if arguments.json:
        write_json(asdict(report))
        return EXIT_DONE
    lines = [
        f"{report.kind}: {report.tensors} tensors, {report.parameters:,} values, all converted",
        f"{len(report.dead)} of them change no output",
        *report.notes,
        f"licence: {report.licence}",
    ]
    say("\n".join(lines))
    logger.info("written to %s.", arguments.output)
    return EXIT_DONE


def _audit(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from ..loading_bokehdepth import HubError
    from ..released.audit import audit_checkpoint

    try:
        with quiet_libraries(arguments.verbose, show_progress=False):
            device = available_device(arguments.device)
            findings = audit_checkpoint(arguments.checkpoint, arguments.base, device=device, **options)
    except HubError as error:
        raise InputError(str(error)) from error
    if arguments.json:
        write_json({"findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            values = (f"      {name}: {value:.4g}" for name, value in finding.values.items())
            say("\n".join([f"{'ok ' if finding.ok else 'BAD'} {finding.question}: {finding.says}", *values]))
    return EXIT_DONE if all(finding.ok for finding in findings) else EXIT_FAILED
