"""Rows that several test files build."""

import json

import numpy as np
from datasets import Dataset

from icrm_lib.preferences import preference_rows


def draw(language, n, seed=0):
    """n responses: (rows of token ids, starts, texts)."""
    rng, rows, starts, texts = np.random.default_rng(seed), [], [], []
    for prompt in rng.choice(language.prompts, n):
        text = language.sample_responses(str(prompt), 1, rng)[0]
        chat = [{"role": "user", "content": str(prompt)}, {"role": "assistant", "content": text}]
        render = language.tokenizer.apply_chat_template
        starts.append(len(render(chat[:1], add_generation_prompt=True, return_dict=False)))
        rows.append(render(chat, return_dict=False))
        texts.append(text)
    return rows, starts, texts


def language_pairs(language, count):
    """Pairs of the testbed as `load_preferences` gives them."""
    rows = language.preference_pairs(count, np.random.default_rng(0))
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    return preference_rows(Dataset.from_list(rows))[0]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def good(**changes):
    return {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Egg.", **changes}


def as_line(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def write(path, *rows):
    """Write rows, or lines as bytes, to a file of JSON lines; returns its path."""
    path.write_bytes(b"\n".join(map(as_line, rows)))
    return path
