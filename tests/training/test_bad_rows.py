"""What the trainer is handed is refused or tokenised as by `load_preferences`."""

from datasets import Dataset
from rows import good

from icrm_lib.training import ICRMConfig, ICRMTrainer


def test_the_trainer_reports_bad_rows_and_special_tokens_stay_text(base_model, tokenizer, tmp_path, caplog):
    closing = tokenizer.eos_token
    texts = [f"yes {closing} no", "yes", "\u200b", "yes", "no"]
    rows = [good(chosen=text, rejected="no") for text in texts]
    arguments = {"consistency_weight": 0.1, "weighting": "uniform", "sft_weight": 0.0, "max_length": 64}
    options = {"report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False}
    with caplog.at_level("WARNING", "icrm_lib.training.trainer"):
        trainer = ICRMTrainer(
            str(base_model),
            ICRMConfig(output_dir=str(tmp_path), **arguments, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    assert len(trainer.train_dataset) == 3
    assert "empty text in 'chosen' (line 3)" in caplog.text and "chosen equals rejected (line 5)" in caplog.text
    assert len({ids.count(tokenizer.eos_token_id) for ids in trainer.train_dataset["chosen_ids"]}) == 1
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    sizes = [len(row["chosen_ids"]) - row["prompt_length"] for row in trainer.train_dataset]
    assert batch["response_mask"].sum(1)[:3].tolist() == sizes
