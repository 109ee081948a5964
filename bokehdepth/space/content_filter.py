"""A look at generated frames before they are shown: FLUX.1-Kontext-dev's licence asks for one. No torch at import.

The embedded model needs none of it: it blends blurred copies of the visitor's own photo and can draw nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import PIL.Image
    from transformers import ImageClassificationPipeline

    from ..pipeline_bokehdepth import BokehDepthPipeline

CLASSIFIER = "Falconsai/nsfw_image_detection"
"""Hub repository of the classifier that is taken unless another is named: a ViT-B/16, Apache-2.0. No commit of it has
been audited, so it names none: the newest is loaded, and the run record says which that was."""

FLAGGED_LABEL = "nsfw"
FLAGGED_SCORE = 0.5
"""Least score of the label, in [0, 1], at which a frame is flagged: with two labels, the likelier one decides."""


class ContentFilter:
    """An image classifier that generated frames have to pass.

    Args:
        classifier: scores a list of pictures; one of its labels is `nsfw`, in any case.
        name: what the run record calls it.
        revision: commit that it was loaded at, where it is known.

    Attributes:
        weights: for the run record, as `hub.weights_record` returns that of models.

    Raises:
        InputError: it has no such label.
    """

    def __init__(self, classifier: ImageClassificationPipeline, name: str, revision: str | None = None) -> None:
        labels = [*classifier.model.config.id2label.values()]
        if FLAGGED_LABEL not in map(str.lower, labels):
            raise InputError(f"its labels are {', '.join(labels)}, wanted one named {FLAGGED_LABEL}.")
        self._classifier = classifier
        self._num_labels = len(labels)
        self.weights = {"content_filter": {"id": name, "revision": revision}}

    def __call__(self, frames: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
        """Returns the frames as they are.

        Args:
            frames: of one photo, RGB, of any size.

        Raises:
            InputError: one is flagged. The others show the same scene, so none of the stack is to be shown.
        """
        frames = list(frames)
        for number, scores in enumerate(self._classifier(frames, top_k=self._num_labels), 1):
            score = next(found["score"] for found in scores if found["label"].lower() == FLAGGED_LABEL)
            if not score < FLAGGED_SCORE:  # a score that is no number flags too
                raise InputError(
                    f"Frame {number} of {len(frames)} was flagged by the content filter, so the stack is not shown; "
                    "wanted another photo."
                )
        return frames


def load_content_filter(pipeline: BokehDepthPipeline, classifier: str = CLASSIFIER) -> Callable[[Sequence], list]:
    """Loads what a pipeline's frames have to pass, on the pipeline's device.

    Args:
        pipeline: with its base.
        classifier: folder of an image-classification model with safetensors weights, or its Hub repository, with
            `@` and a commit where it is to be that one.

    Returns:
        A `ContentFilter`, or `list` for a base that can only blend blurred copies of the photo.

    Raises:
        InputError: the classifier cannot be loaded, lacks weights, or has no label `nsfw`.
    """
    import transformers

    from ..loading_bokehdepth import explain_hub_error
    from ..modeling_mini_flux import MiniFluxTransformer2DModel
    from ..weights_bokehdepth import check_weights

    base = pipeline.transformer
    if isinstance(base, MiniFluxTransformer2DModel) and base.config.head == "disks":
        return list
    folder = Path(classifier)
    source, _, revision = (classifier, "", "") if folder.is_dir() else classifier.partition("@")
    options = {"revision": revision} if revision else {}
    try:
        model, info = transformers.AutoModelForImageClassification.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, **options
        )
        # A head of random numbers would let everything pass, or nothing.
        check_weights(source, model, info["missing_keys"], info["unexpected_keys"])
        processor = transformers.AutoImageProcessor.from_pretrained(source, **options)
        scores = transformers.pipeline(
            "image-classification", model=model, image_processor=processor, device=pipeline.device
        )
        commit = getattr(model.config, "_commit_hash", None) or revision or None
        return ContentFilter(scores, folder.resolve().name if folder.is_dir() else source, commit)
    except Exception as error:
        reason = explain_hub_error(error, classifier) or (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"Its frames must pass the content filter {classifier!r}, which failed: {reason}") from error
