"""The scripts in bench/: each runs, at sizes that say nothing, and writes what the table reads."""

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from icrm_lib import records, runtime
from icrm_lib.language_model.causal import padded

BENCHMARKS = runtime.project_root() / "bench"
SIZES = {"hidden": 32, "layers": 1, "vocabulary": 600, "pairs": 2, "length": 32}
TINY = {
    "frozen_layers": {"hidden": 32, "layers": 2, "frozen": 1, "vocabulary": 600, "pairs": 2, "rounds": 1},
    "generator_cache": {**SIZES, "rounds": 1, "grown": 50, "grown_rounds": 1},
    "growth": {**SIZES, "steps": 1, "most_length": 64, "most_pairs": 2, "most_vocabulary": 2000, "most_data": 1000},
    "method_cost": {**SIZES, "steps": 3, "most_methods": 2},
    "padding": {"hidden": 32, "layers": 1, "vocabulary": 600, "pairs": 2, "batches": 5, "rounds": 1},
    "prefix_sharing": {"hidden": 32, "layers": 1, "vocabulary": 600, "pairs": 2, "rounds": 1},
    "scoring": {"hidden": 32, "layers": 1, "prompts": 2, "responses": 2, "prompt": 16, "response": 8, "rounds": 1},
    "training_step": {**SIZES, "rounds": 2, "memory_rounds": 1},
}
APART = ("rewardbench_package", "gpu", "common", "table", "plan_memory")  # not run by `TINY`


@pytest.fixture
def module(monkeypatch):
    """Import a script as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture(scope="module")
def new_project(tmp_path_factory):
    """Return a function that makes a folder that looks like the project, so that no record of it is overwritten."""

    def make():
        folder = tmp_path_factory.mktemp("project")
        (folder / "icrm_lib").mkdir()
        (folder / "bench").mkdir()
        (folder / "pyproject.toml").touch()
        return folder

    return make


@pytest.fixture(scope="module")
def project(new_project):
    """Where all scripts of `TINY` write."""
    return new_project()


def run(script, options, folder):
    """Run a script as `python bench/<script>.py` would, its processes in this one; return what it prints."""
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path.insert(0, str(BENCHMARKS))
    sys.argv = [script, *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())]
    common = importlib.import_module("common")
    common.in_own_process = lambda function, *args: function(*args)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    return printed.getvalue()


@pytest.fixture(scope="module")
def printed(project):
    """What every script prints; each has a process of its own, forked from one that has the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["icrm_lib.training.fit", "icrm_lib.figures"])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = {script: pool.submit(run, script, options, project) for script, options in TINY.items()}
        return {script: job.result() for script, job in jobs.items()}


def test_every_script_is_run_here():
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert set(TINY) | set(APART) == scripts


@pytest.mark.slow
@pytest.mark.parametrize("script", TINY)
def test_a_script_prints_the_record_that_it_writes(script, printed, project):
    record = json.loads((project / "results" / "bench" / f"{script}.json").read_text(encoding="utf-8"))
    assert json.loads(printed[script]) == record
    assert record["config"] == TINY[script] | record["config"]
    assert record["metrics"]


@pytest.mark.slow
def test_the_table_finds_every_number(printed, project, module, monkeypatch):
    monkeypatch.chdir(project)
    table = module("table")
    rows = [row for row in table.ROWS if row.record not in APART]
    assert {row.record for row in rows} <= set(TINY)
    missing = {row.what for row in rows if not row.cells()[1]}
    assert missing <= {"padding, pandalm", "padding, alpaca_eval"}  # where there are no such files


@pytest.mark.slow
def test_growth_draws_a_figure(printed, project):
    assert (project / "results" / "bench" / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_script_for_gpus_runs_without_one(project):
    options = ["--shape", "tiny", "--pairs=1", "--length=32", "--steps=2"]
    environment = os.environ | {"PYTHONPATH": str(runtime.project_root()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, BENCHMARKS / "gpu.py", *options]
    subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)
    (path,) = (project / "results" / "gpu").glob("*.json")
    shape = json.loads(path.read_text(encoding="utf-8"))["metrics"]["tiny"]
    assert shape["icrm, shared"]["tflop"] < 0.8 * shape["icrm"]["tflop"]  # half of each row is the prompt
    for kind in ("bt", "icrm", "icrm + sft", "icrm, shared", "icrm + sft, shared"):
        assert {"tokens_per_second", "utilisation", "peak_gib", "time_ratio"} <= set(shape[kind])
    # The text term's floating point operations are counted: 4 N V H of them, N tokens of the chosen responses.
    text = (shape["icrm + sft"]["tflop"] - shape["icrm"]["tflop"]) * 1e12 / (4 * 1000 * 64)
    assert text == pytest.approx(round(text)) and 8 <= round(text) <= 16


@pytest.fixture
def measured(new_project, monkeypatch):
    """Return a function that writes a record into an otherwise empty project, the working directory."""
    monkeypatch.chdir(new_project())
    return lambda script, **metrics: records.write_json(f"results/bench/{script}.json", {"metrics": metrics})


@pytest.mark.parametrize(
    ("name", "goal", "cells"),
    [
        ("fast", {"most": 1.05}, ("1.05 [0.9, 1.1]", "≤ 1.05", "met")),
        ("slow", {"most": 1.05}, ("1.05 [1, 2]", "≤ 1.05", "missed")),
        ("big", {"least": 5}, ("5", "≥ 5", "met")),
        ("big", {"least": 5.1}, ("5", "≥ 5.1", "missed")),
        ("band", {"least": 8, "most": 11}, ("8.9", "8 to 11", "met")),
        ("band", {"least": 9, "most": 11}, ("8.9", "9 to 11", "missed")),
        ("free", {}, ("3 [2, 4]", "", "")),
        ("absent", {"most": 1}, ("", "≤ 1", "not measured")),
    ],
)
def test_a_row_says_whether_its_goal_is_met(name, goal, cells, module, measured):
    values = {"fast": [1.05, 0.9, 1.1], "slow": [1.0501, 1, 2], "big": 5, "band": 8.9, "free": [3, 2, 4]}
    measured("made_up", deep=values)
    assert module("table").Row("what", "made_up", f"deep.{name}", **goal).cells() == ("what", *cells)


def test_the_table_is_written_where_it_stands(module, measured, monkeypatch, capsys):
    page = Path("bench/README.md")
    page.write_text("# Before\n\n<!-- table -->\nold\n<!-- end of table -->\n\nAfter\n", encoding="utf-8")
    measured("plan_memory", ratio=[1.006, 1.004, 1.011])
    table = module("table")
    monkeypatch.setattr(sys, "argv", ["table.py", "--write"])
    table.main()
    printed, written = capsys.readouterr().out, page.read_text(encoding="utf-8")
    assert written == f"# Before\n\n<!-- table -->\n{printed}<!-- end of table -->\n\nAfter\n"
    assert "| plan's peak memory / measured | 1.01 [1, 1.01] | 0.95 to 1.05 | met |\n" in printed
    assert printed.count("not measured") == len(table.ROWS) - 1
    table.main()
    assert page.read_text(encoding="utf-8") == written


def test_the_table_of_the_page_is_that_of_the_records(module):
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    lines = [f"| {' | '.join(row.cells())} |" for row in module("table").ROWS]
    assert [line for line in lines if "not measured" not in line and line not in page] == []


@pytest.fixture
def reference(module, tmp_path):
    """The re-enacted reference with weights that all differ, and a batch of two pairs of different lengths."""
    module("common").small_llama(16, 1, 50, 12).save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    rows = [rng.integers(10, 50, size).tolist() for size in (12, 9, 8, 11)]
    ids, attended = padded(rows, 0).values()
    mask = attended.bool() & (torch.arange(12) >= torch.tensor([3, 5, 3, 5])[:, None])

    def make(lean):
        torch.manual_seed(1)
        model = module("training_step").Reference(str(tmp_path), lean=lean).eval()
        with torch.no_grad():
            for weight in (*model.policy.parameters(), *model.heads, model.value_head.weight):
                weight += 0.3 * torch.randn_like(weight)
        return model

    return make, (ids, attended, mask)


def naive_loss(model, ids, attended, mask, scale):
    """The formulas in the docstring of `Reference`, number by number; returns L and the new S."""
    with torch.no_grad():
        p = model.generator(input_ids=ids, attention_mask=attended).logits.double().softmax(-1).numpy()
        outputs = model.policy(input_ids=ids, attention_mask=attended, output_hidden_states=True)
        hidden = outputs.hidden_states[-1].double().numpy()
    head = model.heads[0].detach().double().numpy()
    value = model.value_head
    rewards = hidden @ value.weight[0].detach().double().numpy() + float(value.bias.detach())
    pairs, length = len(ids) // 2, ids.shape[1]
    u = np.empty((2 * pairs, length))
    for row in range(2 * pairs):
        partner = sum(rewards[(row + pairs) % (2 * pairs)]) / length
        for t in range(length):
            s = 1 / (1 + np.exp(partner - rewards[row, t]))
            u[row, t] = s if row < pairs else 1 - s
    ell = weight = count = 0.0
    for row in range(2 * pairs):
        for t in range(length - 1):
            if mask[row, t] and mask[row, t + 1]:
                w = 2 * p[row, t, ids[row, t + 1]]
                here, after = np.log(u[row, t] + 1e-6), np.log(u[row, t + 1] + 1e-6)
                ell -= w * (here * u[row, t + 1] + u[row, t] * after) / 2
                weight += w * (u[row, t] + u[row, t + 1]) / 2
                count += 1
    scale = 0.95 * scale + 0.05 * weight / count
    loss = 0.1 * ell / count / scale
    for pair in range(pairs):
        chosen, rejected = (rewards[row, int(attended[row].sum()) - 1] for row in (pair, pair + pairs))
        loss += 0.9 * np.log1p(np.exp(rejected - chosen)) / pairs
        answers = [t for t in range(length) if mask[pair, t]]
        for t in answers:
            logits = hidden[pair, t - 1] @ head.T
            loss += (np.log(np.exp(logits).sum()) - logits[ids[pair, t]]) / len(answers) / pairs
    return loss, scale


@pytest.mark.parametrize("lean", [True, False])
def test_the_reference_computes_its_formula(reference, lean):
    make, batch = reference
    model = make(lean)
    scale = 0.5
    for _ in range(2):  # the second time from another S
        want, scale = naive_loss(model, *batch, scale)
        assert float(model(*batch)) == pytest.approx(want, rel=1e-5)
        assert float(model.scale) == pytest.approx(scale, rel=1e-5)


def test_the_reference_scales_the_gradient_of_its_text_loss(reference):
    model = reference[0](False)
    hidden = torch.randn(2, 3, 16, requires_grad=True)
    logits = model.text_logits(hidden)
    torch.testing.assert_close(logits, hidden @ model.heads[0].T)
    logits.sum().backward()
    torch.testing.assert_close(hidden.grad, 0.001 * model.heads[0].sum(0).expand_as(hidden))
    torch.testing.assert_close(model.heads[0].grad, hidden.detach().sum((0, 1)).expand(50, 16))


def test_the_reference_trains_lora_and_first_head_only(reference):
    make, batch = reference
    model = make(False)
    model(*batch).backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert {"heads.0", "value_head.weight", "value_head.bias"} < moved
    assert not [name for name in moved if "lora" not in name and name.split(".")[0] == "policy"]
    assert not moved & {"heads.1", "heads.2"} and not [name for name in moved if name.startswith("generator")]
