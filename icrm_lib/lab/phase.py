"""Records of the tabular stage: one a language of `phase.languages`, and what they predict for the neural stage."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import joblib
import torch

from icrm_lib import records, runtime
from icrm_lib.lab.artefacts import code_fingerprint
from icrm_lib.lab.cell import plain
from icrm_lib.phase import Sizes, phase_languages, predict, study_config, study_language


def run_languages(names: Iterable[str], *, workers: int = 1, fresh: bool = False) -> Iterator[str]:
    """Study languages that are not recorded, each with one thread, and write their records.

    Args:
        names: of `phase_languages`.
        workers: processes.
        fresh: also those that are recorded, with this code or with older one.

    Yields:
        the name of each that is now recorded, in the order in which they are finished.
    """
    waiting = [name for name in names if fresh or not is_finished(name)]
    yield from joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(
        joblib.delayed(_run)(name) for name in waiting
    )


def is_finished(name: str) -> bool:
    """Say whether a language is recorded with the sizes of today. Its code is in the record and may be older."""
    try:
        stored = records.read_json(record_path(name))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return stored == plain(study_config(phase_languages()[name], Sizes()))


def made_by_other_code(names: Iterable[str]) -> list[str]:
    """Return those of some recorded languages whose code was another."""
    code = _code()
    return [name for name in names if records.read_json(record_path(name))["code"] != code]


def write_prediction() -> Path:
    """Write `results/phase/prediction.json` from the records of all languages.

    Returns:
        its path.

    Raises:
        FileNotFoundError: a language has no record.
    """
    stored = {name: records.read_json(record_path(name)) for name in phase_languages()}
    summary = predict({name: record["metrics"] for name, record in stored.items()})
    codes = sorted({record["code"] for record in stored.values()})
    return records.write_json(_folder() / "prediction.json", plain({"code": codes, **summary}))


def record_path(name: str) -> Path:
    """Where a language's record lies."""
    return _folder() / "tabular" / f"{runtime.plain_name(name)}.json"


def _run(name: str) -> str:
    torch.set_num_threads(1)
    begin, language, sizes, code = time.perf_counter(), phase_languages()[name], Sizes(), _code()
    metrics = study_language(language, sizes)
    metrics["seconds"] = round(time.perf_counter() - begin, 1)
    record = {"config": study_config(language, sizes), "code": code, "environment": records.environment()}
    records.write_json(record_path(name), plain(record | {"metrics": metrics}), compact=True)
    return name


def _folder() -> Path:
    return runtime.project_root() / "results" / "phase"


def _code() -> str:
    return code_fingerprint("icrm_lib.phase.study")
