"""Cards: filled from facts, refused where one is missing, and the embedded model's is the one that its facts give."""

import re

import pytest
from huggingface_hub import ModelCard

from bokehdepth.errors import InputError
from bokehdepth.hub import EMBEDDED_FOLDER
from bokehdepth.hub.cards import check_card, fill_card, model_card, read_facts
from bokehdepth.hub.folder import PROJECT, embedded_card
from doors import examples

PIPELINE = PROJECT / "model_cards" / "pipeline.md"
DERIVED = {"base_model_id": False, "max_bokeh_strength": "30"}


@pytest.fixture
def facts():
    return read_facts(EMBEDDED_FOLDER / "card.yaml")


def test_the_embedded_card_is_made_from_its_facts():
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    assert card == embedded_card(), "write it anew: (EMBEDDED_FOLDER / 'README.md').write_text(embedded_card())"


def test_each_result_of_the_metadata_stands_in_the_evaluation(facts):
    """The tables of the text hold what the commands printed; a number in the metadata has to be one of them."""
    numbers = set(re.findall(r"\d+\.\d+", facts["evaluation"]))
    for result in facts["results"]:
        for key in ("value", "control_value"):
            digits = 3 if result["task"] == "depth-estimation" else 2
            assert f"{result[key]:.{digits}f}" in numbers, result
        program = result["command"].split()[2]
        assert program in facts["evaluation"]


def test_the_client_reads_the_metadata(facts):
    data = ModelCard(embedded_card()).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("diffusers", "image-to-image", "apache-2.0")
    assert len(data.eval_results) == len(facts["results"])
    first = data.eval_results[0]
    assert first.metric_value == facts["results"][0]["value"]
    assert first.metric_args["command"] == facts["results"][0]["command"]
    assert data.base_model is None


def test_a_card_says_what_a_card_has_to():
    card = embedded_card()
    headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert headings == ["Use", "Bokeh strength", "What it is", "Training data", "Evaluation",
                        "Limits and failure cases",
                        "Licences", "Making it again", "Citation"]  # fmt: skip
    assert "2512.12425" in card and "radius_px = K * (width / 512)" in card
    assert len(examples(card)) == 2


@pytest.mark.parametrize("name", ["title", "version", "summary", "parts", "training_data", "evaluation", "limits",
                                  "licences", "reproduction", "metadata", "results"])  # fmt: skip
@pytest.mark.parametrize("gap", ["absent", None, "  "])
def test_a_missing_fact_is_refused_by_name(facts, name, gap):
    if gap == "absent":
        del facts[name]
    else:
        facts[name] = gap
    with pytest.raises(InputError, match=name):
        model_card(PIPELINE, facts, "a/b", **DERIVED)


@pytest.mark.parametrize("gap", ["[More Information Needed]", "TODO", "{{ limits }}"])
def test_an_unfinished_fact_is_refused(facts, gap):
    with pytest.raises(InputError, match="card has .* left in it"):
        check_card(model_card(PIPELINE, {**facts, "limits": gap}, "a/b", **DERIVED), "pipeline")


@pytest.mark.parametrize("key", ["value", "control", "control_value", "command", "dataset"])
def test_a_result_without_its_control_or_command_is_refused(facts, key):
    del facts["results"][2][key]
    with pytest.raises(InputError, match=rf"results\[2\] lacks {key}"):
        model_card(PIPELINE, facts, "a/b", **DERIVED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"license": None}, "without license"),
        ({"license_link": None}, "without license_link"),
        ({"tags": []}, "without tags"),
        ({"license": "other"}, "without license_name"),
        ({"pipeline_tag": "depth-estimation"}, "pipeline_tag 'depth-estimation'; wanted 'image-to-image'"),
        ({"base_model": ["a/b"]}, "without base_model_relation"),
    ],
)
def test_wrong_metadata_is_refused(facts, change, message):
    facts["metadata"] |= change
    with pytest.raises(InputError, match=message):
        check_card(model_card(PIPELINE, facts, "a/b", **DERIVED), "pipeline")


def test_a_base_that_the_weights_need_has_to_be_named(facts):
    card = model_card(PIPELINE, facts, "a/b", base_model_id="x/base", max_bokeh_strength="30")
    assert "pipe.load_base_model()  # x/base" in card
    with pytest.raises(InputError, match="wanted x/base among them"):
        check_card(card, "pipeline", ["x/base"])
    facts["metadata"] |= {"base_model": ["x/base"], "base_model_relation": "adapter"}
    card = model_card(PIPELINE, facts, "a/b", base_model_id="x/base", max_bokeh_strength="30")
    assert check_card(card, "pipeline", ["x/base"])["base_model"] == ["x/base"]


@pytest.mark.parametrize("template", sorted(path.name for path in (PROJECT / "model_cards").glob("[a-z]*.md")))
def test_every_template_refuses_to_be_filled_with_nothing(template):
    with pytest.raises(InputError, match="facts must have every fact"):
        fill_card(PROJECT / "model_cards" / template, {})


def test_facts_may_be_json_and_must_be_names(tmp_path):
    (tmp_path / "facts.json").write_text('{"title": "x"}')
    assert read_facts(tmp_path / "facts.json") == {"title": "x"}
    for text in ("- a", "a: [", "3: x"):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(InputError, match="facts is "):
            read_facts(tmp_path / "wrong.yaml")
    with pytest.raises(InputError, match="which is no file"):
        read_facts(tmp_path / "none.yaml")


def test_metadata_that_is_none_is_refused():
    for text in ("# title", "---\n- a\n---\n", "---\na: [\n---\n"):
        with pytest.raises(InputError, match="metadata"):
            check_card(text, "dataset")
