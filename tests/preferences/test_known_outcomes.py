"""Single responses with outcomes, two in a row: each stands in one row, and training is on their mean cross-entropy."""

import numpy as np
import pytest
from datasets import Dataset
from rows import assistant, user

from icrm_lib.preferences import load_spans, tokenize_outcomes
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.reward_model import RewardModel
from icrm_lib.tokenization import tokenize_conversation


def responses(*rows):
    """Rows of (number of words in the prompt, response, outcome)."""
    made = [
        {"prompt": [user("Why? " * words)], "response": text, "outcome": float(right), "line": at}
        for at, (words, text, right) in enumerate(rows, 1)
    ]
    return Dataset.from_list(made)


def test_every_response_stands_in_one_row_beside_one_with_a_prompt_like_its_own(tokenizers):
    given = responses(
        (3, "Blue.", 0), (9, "Red, I think.", 1), (3, "Egg.", 1), (9, "Nothing.", 1), (10, "So it is.", 0)
    )
    tokens, report = tokenize_outcomes(given, tokenizers["llama3"])
    columns = {"chosen_ids", "rejected_ids", "prompt_length", "chosen_label", "rejected_label", "line"}
    assert set(tokens.column_names) == columns
    alone = [tokenize_conversation(tokenizers["llama3"], [*r["prompt"], assistant(r["response"])]) for r in given]
    stand = [ids for row in tokens for ids in (row["chosen_ids"], row["rejected_ids"])]
    assert sorted(stand) == sorted(row.input_ids for row in alone[:4])
    assert tokens["line"][:] == [3, 2]  # the right one of two is the chosen one
    assert tokens["chosen_label"][:] == [1, 1] and tokens["rejected_label"][:] == [0, 1]
    assert tokens["prompt_length"][:] == [alone[0].prompt_length, alone[1].prompt_length]
    assert report.kept == 4 and list(report.dropped.values()) == [1] and not report.notes


def test_prompts_that_differ_leave_out_the_beginning_of_a_response(tokenizers):
    given = responses((3, "Blue, or red, or nothing at all.", 0), (4, "Egg.", 1))
    tokens, report = tokenize_outcomes(given, tokenizers["llama3"])
    starts = [tokenize_conversation(tokenizers["llama3"], [*r["prompt"], assistant("a")]).prompt_length for r in given]
    assert starts[1] > starts[0] and tokens["prompt_length"][:] == [starts[1]]
    assert report.notes[0].startswith(f"{starts[1] - starts[0]} tokens at the beginning of responses")
    far = responses((3, "Blue.", 0), (90, "Egg.", 1), (90, "No.", 0))
    tokens, report = tokenize_outcomes(far, tokenizers["llama3"])
    assert tokens["line"][:] == [2] and list(report.dropped.values()) == [1]
    with pytest.raises(ValueError, match="no two responses to put into a row"):
        tokenize_outcomes(far.select([0, 1]), tokenizers["llama3"])


def test_what_does_not_fit_is_refused_by_line_and_the_report_goes_on(tokenizers):
    given = responses((3, "Blue.", 0), (3, "So it goes on. " * 40, 1), (3, "Egg.", 1))
    before = Report("a.json", kept=3, refusals=[Refusal("a.json", 4, "bad", "mend it")], dropped={"ties": 2})
    tokens, report = tokenize_outcomes(given, tokenizers["llama3"], max_length=40, report=before)
    assert [(r.line, r.reason) for r in report.refusals] == [(2, "reply too long"), (4, "bad")]
    assert report.kept == 2 and report.dropped == {"ties": 2} and before.dropped == {"ties": 2}
    assert max(map(len, [*tokens["chosen_ids"][:], *tokens["rejected_ids"][:]])) <= 40


def test_outcomes_and_columns_that_are_none(tokenizers, tmp_path):
    with pytest.raises(ValueError, match="line 2 has the outcome 0.5"):
        tokenize_outcomes(responses((3, "a", 1), (3, "b", 0.5)), tokenizers["llama3"])
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "response": "b", "spans": []}')
    with pytest.raises(ValueError, match="no column 'outcome'"):
        tokenize_outcomes(load_spans(path)[0], tokenizers["llama3"])


def test_training_starts_from_the_mean_cross_entropy_of_the_responses(base_model, tokenizer, tmp_path):
    from icrm_lib.training import ICRMConfig, ICRMTrainer

    rows = [(1 + i // 2, f"Answer {i}.", i % 3 == 0) for i in range(8)]
    given = responses(*rows)
    tokens, _ = tokenize_outcomes(given, tokenizer, max_length=None)
    assert len(tokens) == 4
    settings = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    config = ICRMConfig(
        output_dir=str(tmp_path / "run"),
        loss="outcome",
        consistency_weight=0.0,
        sft_weight=0.0,
        max_steps=1,
        per_device_train_batch_size=4,
        logging_steps=1,
        max_length=None,
        gradient_checkpointing=False,
        **settings,
    )
    trainer = ICRMTrainer(str(base_model), config, train_dataset=tokens, processing_class=tokenizer)
    trainer.model.save_pretrained(tmp_path / "start")
    trainer.processing_class.save_pretrained(tmp_path / "start")
    talks = [[*row["prompt"], assistant(row["response"])] for row in given]
    scores = RewardModel.from_pretrained(tmp_path / "start").score(talks).astype(float)
    right = np.array(given["outcome"][:])
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(np.mean(np.logaddexp(0, scores) - right * scores), abs=1e-4)
