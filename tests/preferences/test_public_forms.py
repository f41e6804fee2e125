"""Rows in the forms of public data sets: the pairs that they say, and how the report names them."""

import json

import pytest
from datasets import Dataset
from rows import assistant, good, user, write

from icrm_lib.preferences import load_preferences, preference_rows

ASK, BLUE, EGG = "Name a colour.", "Blue.", "Egg."
QUESTION = [user(ASK)]
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN = f"\n\nHuman: {ASK}\n\nAssistant:"
MANY = [user("Hi"), assistant("Hello!"), user(ASK)]


def sided(chosen, rejected, **more):
    return {"chosen": chosen, "rejected": rejected, **more}


def share(*said):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]


# name: row, prompt, words of the report's note ("" where it is the plain form), margin
FORMS = {
    "hh-rlhf": (sided(f"{HUMAN} {BLUE}", f"{HUMAN} {EGG}"), QUESTION, "transcripts", None),
    "hh-rlhf, empty prompt": (sided(f"{HUMAN} {BLUE}", f"{HUMAN} {EGG}", prompt=""), QUESTION, "transcripts", None),
    "hh-rlhf, prompt": (sided(f" {BLUE}", f" {EGG}", prompt=HUMAN), QUESTION, "transcripts", None),
    "hh-rlhf, several turns": (
        sided(*(f"\n\nHuman: Hi\n\nAssistant: Hello!{HUMAN} {reply}" for reply in (BLUE, EGG))),
        MANY,
        "transcripts",
        None,
    ),
    "system and user in a text": (
        sided(BLUE, EGG, prompt=f"System: Be brief.\n\nUser: {ASK}"),
        [SYSTEM, *QUESTION],
        "transcripts",
        None,
    ),
    "system": (good(system="Be brief."), [SYSTEM, *QUESTION], "", None),
    "system_prompt": (good(system_prompt="Be brief."), [SYSTEM, *QUESTION], "", None),
    "an empty system": (good(system=""), QUESTION, "", None),
    "the same system twice": (good(prompt=[SYSTEM, *QUESTION], system="Be brief."), [SYSTEM, *QUESTION], "", None),
    "orca": (sided(BLUE, EGG, system="Be brief.", question=ASK), [SYSTEM, *QUESTION], "", None),
    "alpaca": (sided(BLUE, EGG, instruction=ASK, input=""), QUESTION, "", None),
    "instruction and input": (good(input="In French."), [user(f"{ASK}\nIn French.")], "", None),
    "input alone": (sided(BLUE, EGG, input=ASK), QUESTION, "", None),
    "history": (good(history=[["Hi", "Hello!"]]), MANY, "", None),
    "history of messages": (good(history=MANY[:2]), MANY, "", None),
    "alpaca's list": ({"instruction": ASK, "output": [BLUE, EGG]}, QUESTION, "alpaca", None),
    "axolotl": (sided(assistant(BLUE), assistant(EGG), messages=QUESTION), QUESTION, "", None),
    "a reply as a message": (sided(assistant(BLUE), assistant(EGG), prompt=QUESTION), QUESTION, "", None),
    "OpenRLHF": (sided([*QUESTION, assistant(BLUE)], [*QUESTION, assistant(EGG)]), QUESTION, "", None),
    "ms-swift": ({"messages": [*QUESTION, assistant(BLUE)], "rejected_response": EGG}, QUESTION, "ms-swift", None),
    "ms-swift, messages": (
        {"messages": [*MANY, assistant(BLUE)], "rejected_messages": [*MANY, assistant(EGG)]},
        MANY,
        "ms-swift",
        None,
    ),
    "LLaMA-Factory's ShareGPT": (
        sided(
            {"from": "gpt", "value": BLUE}, {"from": "gpt", "value": EGG}, conversations=share(ASK), system="Be brief."
        ),
        [SYSTEM, *QUESTION],
        "",
        None,
    ),
    "ShareGPT conversations": (sided(share(ASK, BLUE), share(ASK, EGG)), QUESTION, "", None),
    "UltraFeedback binarized": (
        sided(
            *([*QUESTION, assistant(reply)] for reply in (BLUE, EGG)),
            prompt=ASK,
            messages=[*QUESTION, assistant(BLUE)],
            score_chosen=8.5,
            score_rejected=2,
            prompt_id="abc",
        ),
        QUESTION,
        "",
        6.5,
    ),
    "capybara": (
        sided(*([*MANY, assistant(r)] for r in (BLUE, EGG)), prompt=ASK, rating_chosen=5, rating_rejected=2),
        MANY,
        "",
        3.0,
    ),
    "all turns in one prompt": (
        sided(*([*MANY, assistant(r)] for r in (BLUE, EGG)), prompt=f"Hi\nHello!\n{ASK}"),
        MANY,
        "",
        None,
    ),
    "RewardBench": (good(chosen_model="a", rejected_model="b", subset="refusals", id=3), QUESTION, "", None),
    "content in parts": (good(prompt=[user([{"type": "text", "text": ASK}])]), QUESTION, "", None),
    "developer": (
        good(prompt=[{"role": "developer", "content": "Be brief."}, *QUESTION]),
        [SYSTEM, *QUESTION],
        "",
        None,
    ),
    "model": (good(prompt=[MANY[0], {"role": "model", "content": "Hello!"}, MANY[2]]), MANY, "", None),
    "prompter": (good(prompt=[{"role": "prompter", "content": ASK}]), QUESTION, "", None),
    "win and lose": ({"instruction": ASK, "response_w": BLUE, "response_l": EGG}, QUESTION, "response_w", None),
    "stack-exchange": ({"question": ASK, "response_j": BLUE, "response_k": EGG}, QUESTION, "response_j", None),
    "OpenRLHF, context_messages": (sided(BLUE, EGG, context_messages=MANY), MANY, "", None),
    "OffsetBias": ({"instruction": ASK, "output_1": EGG, "output_2": BLUE, "label": 2}, QUESTION, "OffsetBias", None),
    "SHP": (
        {
            "history": ASK,
            "human_ref_A": EGG,
            "human_ref_B": BLUE,
            "labels": 0,
            "score_A": 3,
            "score_B": 9,
            "domain": "x",
        },
        QUESTION,
        "SHP",
        None,
    ),
    "PKU-SafeRLHF": (
        {"prompt": ASK, "response_0": EGG, "response_1": BLUE, "better_response_id": 1, "safer_response_id": 0},
        QUESTION,
        "PKU-SafeRLHF (by better_response_id)",
        None,
    ),
    "HelpSteer 2": (
        {"prompt": ASK, "response_1": BLUE, "response_2": EGG, "preference_strength": -2, "preference_statement": "ok"},
        QUESTION,
        "HelpSteer 2",
        2.0,
    ),
    "HelpSteer 3": (
        {"context": MANY, "response1": EGG, "response2": BLUE, "overall_preference": 3, "domain": "x"},
        MANY,
        "HelpSteer 3",
        3.0,
    ),
    "Chatbot Arena": (
        {
            "conversation_a": [*QUESTION, assistant(EGG)],
            "conversation_b": [*QUESTION, assistant(BLUE)],
            "winner": "model_b",
            "model_a": "x",
            "model_b": "y",
            "question_id": "z",
            "language": "English",
        },
        QUESTION,
        "Chatbot Arena",
        None,
    ),
    "LMSYS's competition": (
        {
            "prompt": json.dumps(["Hi", ASK]),
            "response_a": json.dumps(["Hello!", BLUE]),
            "response_b": json.dumps(["Hello!", EGG]),
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        MANY,
        "LMSYS",
        None,
    ),
    "AlpacaFarm": (
        {"instruction": ASK, "input": "", "output_1": EGG, "output_2": BLUE, "preference": 2},
        QUESTION,
        "AlpacaFarm",
        None,
    ),
    "a winner by letter": ({"prompt": ASK, "answer_a": BLUE, "answer_b": EGG, "winner": "A"}, QUESTION, "winner", None),
    "WebGPT": (
        {"question": {"full_text": ASK, "id": "x"}, "answer_0": EGG, "answer_1": BLUE, "score_0": -0.5, "score_1": 0.5},
        QUESTION,
        "WebGPT",
        1.0,
    ),
    "summarize-from-feedback": (
        {
            "info": {"id": "x", "post": "I am blue.", "title": "Help", "subreddit": "mood"},
            "summaries": [{"text": EGG, "policy": "a"}, {"text": BLUE, "policy": "b"}],
            "choice": 1,
            "worker": "w",
            "extra": {"confidence": 8},
        },
        [user("SUBREDDIT: r/mood\n\nTITLE: Help\n\nPOST: I am blue.\n\nTL;DR:")],
        "summarize-from-feedback",
        None,
    ),
    "Nectar": (
        {"prompt": f"{HUMAN} ", "answers": [{"answer": EGG, "rank": 2.0, "model": "a"}, {"answer": BLUE, "rank": 1.0}]},
        QUESTION,
        "Nectar",
        None,
    ),
    "UltraFeedback": (
        {
            "instruction": ASK,
            "completions": [
                {"response": BLUE, "overall_score": 8, "critique": "good", "model": "a"},
                {"response": EGG, "overall_score": 3, "critique": "bad", "model": "b"},
            ],
        },
        QUESTION,
        "UltraFeedback",
        5.0,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_public_form_is_read_and_named(name, tmp_path):
    row, prompt, note, margin = FORMS[name]
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", row), strict=True)
    assert dataset["prompt"][:] == [prompt]
    assert (dataset["chosen"][:], dataset["rejected"][:]) == ([BLUE], [EGG])
    assert (dataset["margin"][0] if "margin" in dataset.column_names else None) == margin
    assert report.warnings == []
    notes = [line for line in report.notes if line.startswith("read as")]
    assert [note in line and ": 1 rows" in line for line in notes] == [True] * bool(note)
    if not note:
        assert report.notes == []
    again, _ = preference_rows(dataset)
    assert again["prompt"][:] == [prompt] and again["chosen"][:] == [BLUE]


SEVERAL = {
    "RewardBench 2": ({"prompt": ASK, "chosen": [BLUE], "rejected": [EGG, "Salt."]}, [(BLUE, EGG), (BLUE, "Salt.")]),
    "lists": ({"prompt": ASK, "chosen": [BLUE, "Red."], "rejected": [EGG]}, [(BLUE, EGG), ("Red.", EGG)]),
    "three ranks, two the same": (
        {"prompt": ASK, "answers": [{"answer": a, "rank": r} for a, r in ((BLUE, 1), (EGG, 2), ("Salt.", 2))]},
        [(BLUE, EGG), (BLUE, "Salt.")],
    ),
    "one of them bad": ({"prompt": ASK, "chosen": [BLUE], "rejected": [EGG, " "]}, [(BLUE, EGG)]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_rows_of_several_replies_give_every_pair(name, tmp_path):
    row, pairs = SEVERAL[name]
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", row))
    assert list(zip(dataset["chosen"], dataset["rejected"], strict=True)) == pairs and report.kept == len(pairs)
    assert dataset["line"][:] == [1] * len(pairs)
    if name == "one of them bad":
        assert report.notes == ["1 rows: pairs left out of several in a row: empty text in 'rejected'"]


TIES = {
    "equal scores": good(chosen_score=5, rejected_score=5.0),
    "equal texts of scores": good(chosen_score="5", rejected_score="5"),
    "margin 0": good(margin=0),
    "status": good(status="tie"),
    "winner": {"prompt": ASK, "response_a": BLUE, "response_b": EGG, "winner": "tie (bothbad)"},
    "strength 0": {"prompt": ASK, "response_1": BLUE, "response_2": EGG, "preference_strength": 0},
    "SHP": {"history": ASK, "human_ref_A": BLUE, "human_ref_B": EGG, "labels": 1, "score_A": 4, "score_B": 4},
    "choice null": {"info": {"post": "p"}, "summaries": [{"text": BLUE}, {"text": EGG}], "choice": None},
    "winner null": {"prompt": ASK, "response_a": BLUE, "response_b": EGG, "winner": None},
    "all ranks the same": {"prompt": ASK, "answers": [{"answer": BLUE, "rank": 1}, {"answer": EGG, "rank": 1}]},
    "both flags": {"prompt": ASK, "response_a": BLUE, "response_b": EGG, "winner_model_a": 0, "winner_model_b": 0},
}


@pytest.mark.parametrize("name", TIES)
def test_ties_are_left_out_and_counted(name, tmp_path):
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", good(), TIES[name]), strict=True)
    assert dataset["line"][:] == [1] and (report.kept, report.refused) == (1, 0)
    assert report.dropped == {"ties: neither reply is preferred": 1}
    assert "     1  ties: neither reply is preferred (left out)" in str(report)


def test_columns_are_left_out_when_named_and_counted_first(tmp_path):
    rows = [good(context="He is six."), good(prompt="Why?", context="")]
    rows += [good(prompt=[{**user("Who am I?"), "name": "Ada"}], images=["a.png"])]
    path = write(tmp_path / "a.jsonl", *rows)
    assert load_preferences(path)[1].refused == 2
    dataset, report = load_preferences(path, ignore=("context", "name", "images"))
    assert dataset["line"][:] == [1, 2, 3] and report.refused == 0
    lines = str(report).splitlines()
    assert "WARNING: text in 'context' of 1 rows is left out, as ignore= says" in lines[:3]
    assert "WARNING: text in 'images' of 1 rows is left out, as ignore= says" in lines[:3]
    assert preference_rows(Dataset.from_list(rows[:2]), ignore=("context",))[1].kept == 2


def test_a_named_column_is_not_read_even_if_it_belongs_to_the_prompt(tmp_path):
    path = write(tmp_path / "a.jsonl", good(system="Be brief."))
    dataset, report = load_preferences(path, ignore="system")
    assert dataset["prompt"][:] == [QUESTION] and report.warnings
    _, report = load_preferences(path, ignore=("nothere",))
    assert report.notes == ["ignore= names 'nothere', which held no text"]
    with pytest.raises(ValueError, match="ignore= names 'chosen', without which there is no pair"):
        load_preferences(path, ignore=("chosen",))


def test_remarks_about_the_replies_are_noted(tmp_path):
    _, report = load_preferences(write(tmp_path / "a.jsonl", good(feedback="The first one names a colour: good.")))
    assert report.notes == ["1 rows: remarks about the replies in 'feedback', which are not read"]


def test_scores_that_contradict_each_other_are_said(tmp_path):
    shp = {"history": ASK, "human_ref_A": BLUE, "human_ref_B": EGG, "labels": 1, "score_A": 2, "score_B": 9}
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", shp))
    assert dataset["chosen"][:] == [BLUE] and "1 rows: the scores contradict the verdict (kept)" in report.notes
    known = [{"response": EGG, "overall_score": 85.0, "fine-grained_score": 2.0}]
    known += [{"response": r, "overall_score": s, "fine-grained_score": s} for r, s in ((BLUE, 8.5), ("Salt.", 1.0))]
    known += [{"response": "Sand.", "overall_score": "N/A"}]
    dataset, report = load_preferences(write(tmp_path / "b.jsonl", {"instruction": ASK, "completions": known}))
    assert sorted(zip(dataset["chosen"], dataset["rejected"], strict=True)) == [(BLUE, "Salt."), (EGG, "Salt.")]
    notes = "\n".join(report.notes)
    assert "two scores of a pair of replies contradict each other" in notes and "a reply left out of several" in notes


def test_mostly_reversed_rows_are_announced_first(tmp_path):
    rows = [good(prompt=f"{i}?", chosen_score=i % 4, rejected_score=2.5) for i in range(8)]  # 6 of 8 lower
    _, report = load_preferences(write(tmp_path / "a.jsonl", *rows))
    assert str(report).splitlines()[0].startswith("WARNING: 6 of 8 rated pairs rate the chosen reply lower")
    ranks = [good(prompt=f"{i}?", chosen_rank=1, rejected_rank=2) for i in range(4)]
    assert load_preferences(write(tmp_path / "b.jsonl", *ranks))[1].warnings == []
    few = [good(prompt=f"{i}?", margin=1 if i else -1) for i in range(8)]
    _, report = load_preferences(write(tmp_path / "c.jsonl", *few))
    assert report.warnings == []
    assert report.notes == ["1 rows rate the chosen reply lower than the rejected one (kept)"]


CLEANED = {
    "end marks": (
        good(chosen="Blue.<|im_end|>", rejected="Egg.<|im_end|>"),
        "<|im_end|> taken off the end of both replies",
    ),
    "end marks and spaces": (
        good(chosen="Blue. </s>\n", rejected="Egg.</s>"),
        "</s> taken off the end of both replies",
    ),
    "two end marks": (
        good(chosen="Blue.<|endoftext|>", rejected="Egg.</s>"),
        "<|endoftext|> or </s> taken off the end of both replies",
    ),
    "the prompt once more": (
        good(chosen=f"{ASK} Blue.", rejected=f"{ASK}\nEgg."),
        "the prompt taken off the beginning of both replies",
    ),
}


@pytest.mark.parametrize("name", CLEANED)
def test_what_stands_on_both_replies_is_taken_off_and_counted(name, tmp_path):
    row, remark = CLEANED[name]
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", row))
    assert (dataset["chosen"][0], dataset["rejected"][0]) == (BLUE, EGG)
    assert report.notes == [f"1 rows: {remark}"]


KEPT = [
    good(chosen="Write [INST] before it.", rejected="What is <|im_start|>?"),
    good(prompt="What does <|im_start|> mean in a template?"),
    good(prompt="List two colours.", chosen="['blue', 'red']", rejected="['egg', 'salt']"),
    good(prompt="List a colour.", chosen="['blue']", rejected="An egg."),
    good(prompt="User: is a word. What kind of word?"),
    good(chosen="### Response: Blue.", rejected="Egg."),
    good(chosen="Name a colour. I cannot.", rejected="Egg."),
    good(chosen="Some <s>struck</s>", rejected="Egg."),
    good(chosen="Some <s>struck</s>", rejected="An <s>egg</s>"),
]


@pytest.mark.parametrize("row", KEPT, ids=range(len(KEPT)))
def test_texts_about_formats_are_kept_as_they_are(row, tmp_path):
    dataset, _ = load_preferences(write(tmp_path / "a.jsonl", row), strict=True)
    assert [dataset[key][0] for key in ("chosen", "rejected")] == [row["chosen"], row["rejected"]]
    assert dataset["prompt"][0] == [user(row["prompt"])]
