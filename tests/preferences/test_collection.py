"""Any number of rows in a file, known prompts left out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from published import VAL, rated, write_lines

from icrm_lib.preferences import load_preferences
from icrm_lib.preferences.loading import collect_preferences
from icrm_lib.rows import file_rows


def test_rows_on_disk_are_those_in_memory(tmp_path):
    rows = [{"prompt": f"q{i % 900}", "chosen": "a", "rejected": f"b{i % 7}", "margin": i + 1} for i in range(2500)]
    rows[4]["source"] = "somewhere"
    write_lines(tmp_path / "rows.jsonl", rows)
    memory, report = load_preferences(tmp_path / "rows.jsonl")
    disk, same = collect_preferences("rows.jsonl", file_rows(tmp_path / "rows.jsonl"), file=tmp_path / "rows.arrow")
    assert report == same and memory[:] == disk[:] and memory.features == disk.features
    assert [file["filename"] for file in disk.cache_files] == [str(tmp_path / "rows.arrow")]
    assert disk["source"][4] == "somewhere" and disk["margin"][2499] == 2500


def test_carried_numbers_must_be_there_and_known_prompts_stay_out():
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "weight": i} for i in range(3)] + [
        {"prompt": "q3", "chosen": "a", "rejected": "b"}
    ]
    first, _ = collect_preferences("first", enumerate(rows[:1], 1))
    dataset, report = collect_preferences(
        "rows", enumerate(rows, 1), carry=["weight"], without={"first": set(first["prompt_id"])}
    )
    assert dataset["weight"][:] == [1.0, 2.0]
    assert report.notes == ["1 rows left out: their prompt is in first"]
    assert [refusal.reason for refusal in report.refusals] == ["missing key 'weight'"]


PEAK = """
import re, sys
from pathlib import Path
from icrm_lib.preferences.paper import load_recipe
from icrm_lib.profiles import DataSettings
for files in sys.argv[1:]:
    pairs, _ = load_recipe("unified-feedback", DataSettings(files=files), files + "/made")
    print(len(pairs["train"]), re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_eight_times_the_rows_take_no_more_memory(tmp_path):
    row = json.dumps(rated("NUMBER", 1, 0)) + "\n"
    for count in (4_000, 34_000):
        files = tmp_path / str(count)
        write_lines(files / "val.jsonl", VAL)
        with open(files / "train.jsonl", "w") as file:
            file.writelines(row.replace("NUMBER", f"t{i}") for i in range(count))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "4000"), str(tmp_path / "34000")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, few_peak, many, many_peak = map(int, done.stdout.split())
    assert (few, many) == (4_000, 34_000)
    # 5 MiB for hashes, their order and mapped pages; as Python objects 30,000 rows take 60 MiB.
    assert (many_peak - few_peak) / 1024 < 16, (few_peak, many_peak)
