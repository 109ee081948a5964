"""A look at generated frames before they are shown: FLUX.1-Kontext-dev's licence asks for one. No torch at import.

The embedded model needs none of it: it blends blurred copies of the visitor's own photo and can draw nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    import PIL.Image
    from transformers import ImageClassificationPipeline

    from .pipeline_bokehdepth import BokehDepthPipeline

CLASSIFIER = "Falconsai/nsfw_image_detection"
"""Hub repository of the classifier that is taken unless another is named: a ViT-B/16, Apache-2.0."""

FLAGGED_LABEL = "nsfw"
FLAGGED_SCORE = 0.5
"""Least score of the label, in [0, 1], at which a frame is flagged: with two labels, the likelier one decides."""


class ContentFilter:
    """An image classifier that generated frames have to pass.

    Args:
        classifier: scores a list of pictures; one of its labels is `nsfw`, in any case.

    Raises:
        InputError: it has no such label.
    """

    def __init__(self, classifier: ImageClassificationPipeline) -> None:
        labels = [*classifier.model.config.id2label.values()]
        if FLAGGED_LABEL not in map(str.lower, labels):
            raise InputError(f"its labels are {', '.join(labels)}, wanted one named {FLAGGED_LABEL}.")
        self._classifier = classifier
        self._num_labels = len(labels)

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
        classifier: Hub repository or folder of an image-classification model with safetensors weights.

    Returns:
        A `ContentFilter`, or `list` for a base that can only blend blurred copies of the photo.

    Raises:
        InputError: the classifier cannot be loaded or has no label `nsfw`.
    """
    import transformers

    from .loading_bokehdepth import explain_hub_error
    from .modeling_mini_flux import MiniFluxTransformer2DModel

    base = pipeline.transformer
    if isinstance(base, MiniFluxTransformer2DModel) and base.config.head == "disks":
        return list
    try:
        options = {"device": pipeline.device, "model_kwargs": {"use_safetensors": True}}
        return ContentFilter(transformers.pipeline("image-classification", model=classifier, **options))
    except Exception as error:
        reason = explain_hub_error(error, classifier) or (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"Its frames must pass the content filter {classifier!r}, which failed: {reason}") from error
