"""What a run starts from: how much there is to train on, what it downloads, and what is here already."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import CacheNotFound, HfApi, constants, scan_cache_dir

from icrm_lib import runtime
from icrm_lib.language_model import smollm2
from icrm_lib.plan.machine import MADE_HERE
from icrm_lib.preferences import preference_rows, tokenize_pairs
from icrm_lib.preferences.paper import PRM800K, RECIPES, SHARES, SKYWORK, UNIFIED_FEEDBACK
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language
from icrm_lib.tokenization import prepare_tokenizer

SAMPLED_PAIRS = 64  # of the testbed, to learn how long its pairs are
# Rows with different ratings, pairs, and problems (Lightman et al. 2023), as published; all about.
PUBLISHED = {UNIFIED_FEEDBACK.name: 848_000, SKYWORK.name: 77_000, PRM800K.name: 12_000}


def expected_data(profile: Profile) -> dict[str, Any]:
    """Return how much there is to train on.

    Returns:
        `source`, as in `data: preferences` of the profile; `problems` to sample solutions for, 0 without; `pairs` to
        train on; `tokens` of a pair, prompt counted twice; `pairs_are` and `tokens_are`, how well they are known.
    """
    data, problems, pairs = profile.data, 0, profile.data.train_pairs
    tokens, tokens_are = data.expected_tokens, "as the profile expects"
    pairs_are = "about" if data.preferences in RECIPES else "at most"
    if data.preferences == "testbed":
        pairs_are, tokens, tokens_are = "exactly", _testbed_tokens(profile), f"mean of {SAMPLED_PAIRS} pairs"
    elif not tokens:
        tokens, tokens_are = 2 * data.max_length, "at most; set data: expected_tokens"
    if data.preferences == "prm800k":
        problems = PUBLISHED[PRM800K.name]
        pairs = round(problems * SHARES[0]) * (profile.samples.n // 2)
    elif data.preferences in RECIPES:
        pairs = PUBLISHED[UNIFIED_FEEDBACK.name] // data.stride
        if SKYWORK in RECIPES[data.preferences]:
            pairs += PUBLISHED[SKYWORK.name] * 9 // 10
    return {
        "source": data.preferences,
        "problems": problems,
        "pairs": min(pairs, data.train_pairs),
        "tokens": tokens,
        "pairs_are": pairs_are,
        "tokens_are": tokens_are,
    }


def _testbed_tokens(profile: Profile) -> int:
    language = Language(**asdict(profile.language))
    rows = language.preference_pairs(SAMPLED_PAIRS, np.random.default_rng(0))
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    rows, _ = preference_rows(Dataset.from_list(rows))
    pairs, _ = tokenize_pairs(rows, prepare_tokenizer(language.tokenizer), max_length=profile.data.max_length)
    return round(sum(len(ids) for side in ("chosen_ids", "rejected_ids") for ids in pairs[side]) / len(pairs))


def needed_files(profile: Profile, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the models and data sets of a run.

    Returns:
        of each `name`; `kind` ("model" or "dataset"); `here`, whether it need not be downloaded; `bytes`, None where
        unknown; `exact`, False where these are two a parameter.
    """
    published: dict[str, int] = {}
    for stage in stages:  # what is trained is made here, and a reward model leaves the LM head out
        weights = stage["parameters"] - stage["trainable"]
        published[stage["model"]] = max(weights, published.get(stage["model"], 0))
    files = [hub_file(name, "model", 2 * count) for name, count in published.items() if name not in MADE_HERE]
    source = profile.data.preferences
    for origin in RECIPES.get(source, ()):
        files.append(_data_file(origin.name, profile.data.files, hub=not origin.url))
    if source != "testbed" and source not in RECIPES:
        files.append(_data_file(source, "", hub=True))
    return files


def _data_file(name: str, folder: str, *, hub: bool) -> dict[str, Any]:
    here = runtime.resolve_path(folder or name).exists()
    if hub and not here:
        return hub_file(name, "dataset", None)
    return {"name": folder if here and folder else name, "kind": "dataset", "here": here, "bytes": None, "exact": False}


def hub_file(name: str, kind: str, about: int | None) -> dict[str, Any]:
    """Return the entry of a model or data set that is a local path or a repository of the hub.

    Args:
        name: path or hub id.
        kind: "model" or "dataset".
        about: bytes, where the hub does not say.
    """
    entry = {"name": name, "kind": kind, "here": True, "bytes": None, "exact": False}
    if name == smollm2.NAME:
        return entry | {"here": smollm2.folder().is_dir(), "bytes": smollm2.PACKAGE_BYTES, "exact": True}
    if runtime.resolve_path(name).exists():
        return entry
    try:
        repositories = [r for r in scan_cache_dir().repos if (r.repo_id, r.repo_type) == (name, kind)]
    except CacheNotFound:
        repositories = []
    ends = (".safetensors",) if kind == "model" else (".parquet", ".jsonl", ".json", ".arrow", ".gz")
    names = [file.file_name for r in repositories for revision in r.revisions for file in revision.files]
    if any(file.endswith(ends) for file in names):
        return entry | {"bytes": repositories[0].size_on_disk, "exact": True}
    size = None if constants.HF_HUB_OFFLINE else _published_size(name, kind)
    return entry | {"here": False, "bytes": size or about, "exact": size is not None}


def _published_size(name: str, kind: str) -> int | None:
    """Bytes of a repository's weights or tables, as the hub says; None when it cannot be asked."""
    try:
        info = HfApi().repo_info(name, repo_type=kind, files_metadata=True, timeout=10)
    except Exception:  # whatever keeps the hub from answering, the plan does without
        return None
    wanted = [file for file in info.siblings if kind == "dataset" or file.rfilename.endswith(".safetensors")]
    return sum(file.size or 0 for file in wanted) or None


def artefacts(profile: Profile) -> dict[str, int]:
    """Return how many artefacts of each noun `runs/<profile>/artefacts` holds, whatever settings made them."""
    folder = runtime.project_root() / "runs" / profile.name / "artefacts"
    return dict(sorted(Counter(Path(path.stem).stem.rpartition("-")[0] for path in folder.glob("*-*")).items()))
