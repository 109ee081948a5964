"""The filter of generated frames: a true classifier class with random weights, whose bias says what it answers."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import PIL.Image
import pytest
import torch
from gradio.exceptions import Error
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import app
import tiny
from bokehdepth import hub
from bokehdepth.errors import InputError
from bokehdepth.space.content_filter import CLASSIFIER, load_content_filter
from visits import write_photo

BRIGHT, DARK = PIL.Image.new("RGB", (40, 30), "white"), PIL.Image.new("RGB", (40, 30), "black")


def write_classifier(folder: Path, *, bias: float, labels: tuple[str, ...] = ("normal", "NSFW"), by: float = 0) -> str:
    """Saves a classifier whose second logit is `bias`, and more by up to `by` for pictures that are brighter."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(
        ViTConfig(**sizes, image_size=32, patch_size=16, id2label=dict(enumerate(labels)))
    ).eval()
    size = {"height": 32, "width": 32}
    processor = ViTImageProcessorPil(size=size)
    with torch.no_grad():
        states = [
            model.vit(**processor(picture, return_tensors="pt")).last_hidden_state[0, 0] for picture in (DARK, BRIGHT)
        ]
        change = states[1] - states[0]
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.weight[1] = by * change / (change @ change)
        model.classifier.bias[1] = bias - model.classifier.weight[1] @ states[0]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_stack_with_a_flagged_frame_is_refused(tmp_path: Path) -> None:
    screened = load_content_filter(tiny.pipeline(), write_classifier(tmp_path, bias=-5, by=10))
    assert screened((DARK, DARK)) == [DARK, DARK]
    with pytest.raises(InputError, match="Frame 2 of 3 was flagged by the content filter, so the stack is not shown"):
        screened([DARK, BRIGHT, DARK])


@pytest.mark.parametrize("bias", [0, float("nan")])  # even odds, and a classifier that breaks while it is in use
def test_what_is_not_clear_is_refused(tmp_path: Path, bias: float) -> None:
    screened = load_content_filter(tiny.pipeline(), write_classifier(tmp_path, bias=0))
    screened._classifier.model.classifier.bias.data[1] += bias
    with pytest.raises(InputError, match="Frame 1 of 1"):
        screened([DARK])


def test_a_classifier_whose_weights_are_not_finite_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finite"):
        load_content_filter(tiny.pipeline(), write_classifier(tmp_path, bias=float("nan")))


def test_the_label_decides_among_many(tmp_path: Path) -> None:
    labels = "a", "nsfw", "b", "c", "d", "e", "f"  # the pipeline itself would return five of them
    screened = load_content_filter(tiny.pipeline(), write_classifier(tmp_path, bias=-5, labels=labels))
    assert screened([DARK]) == [DARK]


def test_the_run_record_names_the_filter(tmp_path: Path) -> None:
    screened = load_content_filter(tiny.pipeline(), write_classifier(tmp_path / "mine", bias=-5))
    assert screened.weights == {"content_filter": {"id": "mine", "revision": None}}


def test_a_classifier_with_a_head_of_random_numbers_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_classifier(tmp_path, bias=-5)
    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 of its tensors \(classifier.weight\)"):
        load_content_filter(tiny.pipeline(), folder)


def test_the_embedded_model_needs_no_filter() -> None:
    pipeline = hub.load_pipeline()
    assert load_content_filter(pipeline, "no/such") is list
    pipeline.transformer.register_to_config(head="picture")  # one that draws
    with pytest.raises(InputError, match="no/such"):
        load_content_filter(pipeline, "no/such")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda folder: None, "content filter '.*', which failed: "),
        (lambda folder: write_classifier(folder, bias=0, labels=("cat", "dog")), "labels are cat, dog, wanted one"),
        (lambda folder: (Path(write_classifier(folder, bias=0)) / "model.safetensors").write_bytes(b"{}"), "failed: "),
    ],
    ids=["none", "another-task", "damaged"],
)
def test_a_classifier_that_cannot_be_used_stops_the_start(tmp_path: Path, prepare, reason: str, monkeypatch) -> None:
    """The app with a FLUX base: its page says why, and has nothing that generates."""
    prepare(tmp_path / "classifier")
    shown: list[str] = []

    def launch(demo: app.gr.Blocks) -> None:
        shown.extend(getattr(block, "value", type(block).__name__) for block in demo.blocks.values())

    monkeypatch.setattr(hub, "load_pipeline", lambda *_, **__: tiny.pipeline())
    monkeypatch.setattr(app.gr.Blocks, "launch", launch)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "unused")
    monkeypatch.setenv("BOKEHDEPTH_MODEL", "released")
    monkeypatch.setenv("BOKEHDEPTH_CONTENT_FILTER", str(tmp_path / "classifier"))
    app.main(tmp_path)
    assert len(shown) == 1 and len(shown[0].splitlines()) == 2
    assert re.search(reason, html.unescape(shown[0]))


def test_without_a_connection_the_default_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=f"content filter '{CLASSIFIER}', which failed: .*(cache|offline|connect)"):
        load_content_filter(tiny.pipeline())


def test_the_app_takes_the_filter_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = str(write_photo(tmp_path / "photo.jpg"))
    refused: list[str] = []

    def launch(demo: app.gr.Blocks, **_: object) -> None:
        [generate] = [event.fn for event in demo.fns.values() if event.api_name == "generate_bokeh_stack"]
        with pytest.raises(Error) as error:
            generate(app.gr.Request(session_hash="visitor"), photo, [10.0], None, None, None, 1, 0)
        refused.append(error.value.message)

    monkeypatch.setattr(hub, "load_pipeline", lambda *_, **__: tiny.pipeline())
    monkeypatch.setattr(app.gr.Blocks, "launch", launch)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    monkeypatch.setenv("BOKEHDEPTH_MODEL", "released")
    monkeypatch.setenv("BOKEHDEPTH_CONTENT_FILTER", write_classifier(tmp_path / "classifier", bias=9))
    app.main(tmp_path)
    assert len(refused) == 1 and "Frame 1 of 1 was flagged by the content filter" in refused[0]


@pytest.mark.parametrize("flags", [True, False])
def test_the_page_and_the_endpoint_show_no_flagged_frame(tmp_path: Path, flags: bool) -> None:
    pipeline = tiny.pipeline()
    screened = load_content_filter(pipeline, write_classifier(tmp_path / "classifier", bias=9 if flags else -9))
    photo = str(write_photo(tmp_path / "photo.jpg"))
    do = app._handlers(pipeline, hub.EMBEDDED, [photo], tmp_path / "kept", screened)

    def new_folder() -> Path:
        (tmp_path / "mine").mkdir(exist_ok=True)
        return tmp_path / "mine"

    asked = photo, app.STRENGTH, [10.0, 20.0], 0, 1, 1, *[None] * 4, 0, None, app.METHODS[0], "Magma", True
    visits = (
        lambda: next(do.bokeh_depth(*asked, new_folder=new_folder)),
        lambda: next(do.show_example(0, "Magma", True, new_folder=new_folder)),
        lambda: do.generate_bokeh_stack(photo, [10.0, 20.0], steps=1, new_folder=new_folder),
    )
    for visit in visits:
        if flags:
            with pytest.raises(Error, match="Frame 1 of . was flagged by the content filter"):
                visit()
            assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "kept").exists()
        else:
            assert visit()
