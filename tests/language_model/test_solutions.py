"""A tiny model draws solutions once."""

import json

from published import load, write_problems
from tiny import save_tiny
from transformers import AutoTokenizer

from icrm_lib.language_model.samples import sampler
from icrm_lib.preferences import LABEL_KEYS, tokenize_pairs
from icrm_lib.profiles import SampleSettings as Samples
from icrm_lib.tokenization import prepare_tokenizer


def test_a_tiny_model_draws_once_and_its_labels_reach_the_tokenised_pairs(tmp_path):
    save_tiny("qwen2", tmp_path / "model")
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "model"))
    samples = Samples(n=2, temperature=0.7, top_p=0.8, max_new_tokens=4)
    path = tmp_path / "samples.jsonl"
    draw = sampler(tmp_path / "model", tokenizer, samples, path, seed=0)
    pairs, reports = load("prm800k", write_problems(tmp_path), tmp_path / "made", draw=draw)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 40 and json.loads(lines[0])["settings"]["top_p"] == 0.8
    assert reports[1].notes[0].startswith("0 of 76 solutions right, 76 without a boxed answer")
    again, _ = load("prm800k", tmp_path, tmp_path / "again", draw=draw)
    assert again["train"][:] == pairs["train"][:] and len(path.read_text().splitlines()) == len(lines)
    tokenized, _ = tokenize_pairs(pairs["train"], tokenizer)
    assert tokenized["chosen_label"][:] == [0.0] * len(tokenized) and LABEL_KEYS[1] in tokenized.column_names
