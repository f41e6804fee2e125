"""Nothing that is read runs: no pickle, no foreign code, no shell, no path out, no live markup, no network in smoke."""

import ast
import html.parser
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import papermill.translators
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, TrainingArguments
from trl import DPOConfig, GRPOConfig

from icrm_lib import records, runtime
from icrm_lib.cli import run
from icrm_lib.heatmaps.figure import Row, token_heatmap_html
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.methods import method_settings
from icrm_lib.profiles import DataSettings, GeneratorSettings, Profile, RewardModelSettings
from icrm_lib.report import tables
from icrm_lib.report.evidence import load_cells
from icrm_lib.reward_model.head import add_mlp_head, load_adapter
from icrm_lib.reward_model.model import RewardModel, TokenReward
from icrm_lib.reward_model.value_head import load_value_head
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.fit import train_reward_model

ROOT = Path(__file__).resolve().parents[1]
MINE = Profile("mine", data=DataSettings(preferences="own.jsonl"), generator=GeneratorSettings(kind="base"))


# Pickles -----------------------------------------------------------------------------------------------------


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


@pytest.fixture
def sprung(tmp_path):
    """The folder that is there when something ran."""
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists()


@pytest.fixture(scope="module")
def kinds(base_model, tokenizer, tmp_path_factory):
    """One folder for each way to keep a model."""
    top = tmp_path_factory.mktemp("kinds")

    def start():
        return AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)

    shutil.copytree(base_model, top / "model")
    RewardModel(add_mlp_head(start(), 8), tokenizer).save_pretrained(top / "mlp")
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear", modules_to_save=["score"])
    RewardModel(get_peft_model(start(), lora), tokenizer).save_pretrained(top / "adapter", adapter_only=True)
    return top


def pickled(folder: Path, name: str, target: Path, sprung: Path) -> Path:
    """Copy a model with a trap in place of its weights."""
    shutil.copytree(folder, target)
    for file in target.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": Trap(sprung)}, target / name)
    return target


def test_the_trap_works(tmp_path):
    torch.save(Trap(tmp_path / "caught"), tmp_path / "trap.bin")
    torch.load(tmp_path / "trap.bin", weights_only=False)
    assert (tmp_path / "caught").is_dir()


@pytest.mark.parametrize(
    ("kind", "load"),
    [
        ("model", load_causal_lm),
        ("model", RewardModel.from_pretrained),
        ("mlp", RewardModel.from_pretrained),
        ("adapter", RewardModel.from_pretrained),
        ("adapter", lambda path: load_adapter(str(path), num_labels=1)),
        ("adapter", load_causal_lm),  # transformers itself looks for an adapter, too
        ("adapter", load_value_head),
        ("model", load_value_head),
        ("model", lambda path: Workspace(MINE, base_model=path).base_model),
        ("adapter", lambda path: Workspace(MINE, base_model=path).base_model),
    ],
)
def test_pickled_weights_are_refused_with_the_remedy(kinds, kind, load, tmp_path, sprung):
    name = "adapter_model.bin" if kind == "adapter" else "pytorch_model.bin"
    with pytest.raises(ValueError, match=rf"{name}.*pickles, which may run any code.*(save_pretrained|save_file)"):
        load(pickled(kinds / kind, name, tmp_path / "pickled", sprung))


def test_pickles_beside_something_safe_are_refused(kinds, tmp_path, sprung):
    """An adapter whose base model is pickled; and a value head in safetensors on an adapter or a base that is not."""
    base = pickled(kinds / "model", "pytorch_model.bin", tmp_path / "base", sprung)
    adapter = shutil.copytree(kinds / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    head = {"v_head.summary.weight": torch.ones(1, 32)}
    on_adapter = pickled(kinds / "adapter", "adapter_model.bin", tmp_path / "on_adapter", sprung)
    save_file(head, on_adapter / "value_head.safetensors")
    save_file(head, base / "value_head.safetensors")
    asks = replace(MINE, generator=replace(MINE.generator, model=str(base)))
    for load in (
        lambda: RewardModel.from_pretrained(adapter),
        lambda: load_adapter(str(adapter), num_labels=1),
        lambda: load_value_head(on_adapter, base_model=kinds / "model"),
        lambda: load_value_head(base, base_model=base),
        lambda: Workspace(asks, base_model="a/b").generator,
    ):
        with pytest.raises(ValueError, match="_model.bin.*pickles, which may run any code.*save_pretrained"):
            load()


@pytest.mark.parametrize("method", ["bt", "frozen_mlp"])
def test_training_starts_from_no_pickle(kinds, method, tokenizer, pairs, tmp_path, sprung):
    base = pickled(kinds / "model", "pytorch_model.bin", tmp_path / "base", sprung)
    settings = method_settings(RewardModelSettings(), method)
    with pytest.raises((ValueError, OSError), match="safetensors"):
        train_reward_model(base, tokenizer, pairs, settings, folder=tmp_path / "run", seed=0)


# A trainer's checkpoint holds optimizer.pt, scheduler.pt and rng_state.pth, which transformers (under FSDP accelerate)
# writes and reads, here with the unpickler that makes tensors and numbers only. training_args.bin is written beside
# them and read by nobody. The kit resumes from its own runs/ alone.
@pytest.mark.parametrize("module", ["transformers/trainer.py", "accelerate/utils/fsdp_utils.py"])
def test_what_a_resumed_training_reads_makes_tensors_only(module):
    package, _, inside = module.partition("/")
    calls = calls_of(Path(sys.modules[package].__file__).parent / inside)
    loads = [call for name, call in calls if name == "torch.load"]
    assert loads
    for call in loads:
        assert [k.value.value for k in call.keywords if k.arg == "weights_only"] == [True], ast.unparse(call)


# Code that would run what it reads -----------------------------------------------------------------------------


def sources() -> dict[str, ast.Module]:
    """Name -> syntax of the library, the benchmarks and the notebooks' code cells."""
    paths = [*(ROOT / "icrm_lib").rglob("*.py"), *(ROOT / "bench").glob("*.py"), ROOT / "conftest.py"]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return {name: ast.parse(text) for name, text in texts.items()}  # `!command` and `%magic` are no Python: an error


def calls_of(source: Path | ast.Module) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) for every call of a file."""
    tree = ast.parse(source.read_text(encoding="utf-8")) if isinstance(source, Path) else source
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def values_of(tree: ast.Module, name: str) -> list[ast.expr]:
    """What is given for a name, as an argument or in a dictionary."""
    pairs = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs += [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
        elif isinstance(node, ast.Call):
            pairs += [(keyword.arg, keyword.value) for keyword in node.keywords]
    return [value for key, value in pairs if key == name]


PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "torch.load", "pd.read_pickle"}


def faults(tree: ast.Module) -> list[str]:
    """What in a file could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in [*module, *(alias.name for alias in node.names)]}
            found += [ast.unparse(node)] * bool(tops & PICKLING)
    for option in ("shell", "allow_pickle", "trust_remote_code"):
        # `trust_remote_code=args.trust_remote_code` passes on what a person set by that name.
        values = {ast.unparse(value) for value in values_of(tree, option)} - {"False", "args.trust_remote_code"}
        found += [f"{option}={value}" for value in values]
    for name, call in calls_of(tree):
        first = call.args[0] if call.args else None
        found += [name] * (name.endswith("to_html") and "escape=False" in ast.unparse(call))
        found += [name] * (name in RUNNING or name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"))
        if name.startswith("subprocess.") and isinstance(first, ast.Constant | ast.JoinedStr | ast.BinOp):
            found.append(ast.unparse(call))  # text: a list has no shell in it
        if name in ("HTML", "Markdown", "display.HTML") and not ast.unparse(first).startswith(
            ("token_heatmap_html(", "to_markdown(")
        ):
            found.append(ast.unparse(call))  # markup that nobody escaped
    return found


@pytest.mark.parametrize(("name", "tree"), sources().items(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_file_runs_what_it_reads(name, tree):
    assert faults(tree) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "os.system('ls')",
        "subprocess.run(['ls'], shell=True)",
        "subprocess.run(f'ls {path}')",
        "yaml.load(text)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "options = {'trust_remote_code': trust}",
        "HTML(response)",
        "frame.to_html(escape=False)",
    ],
)
def test_a_fault_is_found(code):
    assert faults(ast.parse(code))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_plain_values(path):
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict) and "trust_remote_code: true" not in text


# Code of others ------------------------------------------------------------------------------------------------


def with_code(folder: Path, target: Path, sprung: Path, **changes: str) -> Path:
    """Copy a model with a Python file that its configurations say is to be run."""
    shutil.copytree(folder, target)
    code = "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast"
    (target / "code.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n{code}\n")
    models = dict.fromkeys(("AutoModelForCausalLM", "AutoModelForSequenceClassification"), "code.LlamaForCausalLM")
    for name, auto_map in (
        ("config.json", {"AutoConfig": "code.LlamaConfig", **models}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "code.PreTrainedTokenizerFast"]}),
    ):
        file = target / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": auto_map} | changes))
    return target


@pytest.mark.parametrize(
    "load",
    [
        load_causal_lm,
        RewardModel.from_pretrained,
        lambda path: load_value_head(path / "head", base_model=path),
        lambda path: Workspace(MINE, base_model=path).tokenizer,
    ],
    ids=["load_causal_lm", "RewardModel", "load_value_head", "Workspace.tokenizer"],
)
def test_a_folders_own_code_is_not_run(base_model, load, tmp_path, sprung, monkeypatch):
    """Of a known kind, transformers' own code is taken; of another one, the folder is refused, and nobody is asked."""
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    for name, changes in (("known", {}), ("unknown", {"model_type": "mine", "tokenizer_class": "Mine"})):
        folder = with_code(base_model, tmp_path / name, sprung, **changes)
        (folder / "head").mkdir()
        save_file({"v_head.summary.weight": torch.ones(1, 32)}, folder / "head/value_head.safetensors")
        if changes:
            with pytest.raises(ValueError, match="custom code"):
                load(folder)
        else:
            load(folder)


def test_a_chat_template_reaches_nothing(base_model, tmp_path, sprung):
    folder = shutil.copytree(base_model, tmp_path / "model")
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(sprung) + "') }}"
    (folder / "chat_template.jinja").write_text(reach + "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(Exception, match="unsafe|safely"):
        talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        RewardModel.from_pretrained(folder).score([talk])


# Paths ---------------------------------------------------------------------------------------------------------

OUTSIDE = ("../x", "../../x", "a/../../x", "a/b", "/tmp/x", "..", ".", "", "x\0y")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project; afterwards nothing lies outside of it, nor in it outside of what a run writes."""
    root = tmp_path / "deep" / "project"
    root.mkdir(parents=True)
    monkeypatch.setattr(runtime, "project_root", lambda start=None: root)
    monkeypatch.chdir(root)
    yield root
    inside = {path for name in ("results", "runs", "figures") for path in (root / name).rglob("*")}
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= inside


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_leads_to_no_other_folder(project, name):
    frame = pd.DataFrame({"method": ["m"], "measure": ["a"], "mean": [1.0], "low": [1.0], "high": [1.0]})
    frame = frame.assign(seeds=1, best=False)
    for write in (
        lambda: records.write_record("noun", name, {}, {}),
        lambda: records.read_record("noun", name),
        lambda: Workspace(replace(MINE, name=name), base_model="scratch"),
        lambda: tables.write(tables.Table(name, "t", "p", {}, {}), frame, project / "figures"),
        lambda: tables.tables_folder(name),
        lambda: load_cells(name),
        lambda: load_cells("lab", purpose=name),
    ):
        with pytest.raises(ValueError, match="must stay in its folder; use a name without slashes"):
            write()
    if name not in ("", ".", ".."):  # those make the files ".json", "..json"
        with pytest.raises(ValueError, match="must stay in its folder"):
            records.write_record(name, "lab", {}, {})
        with pytest.raises(ValueError, match="must stay in its folder"):
            _ = Cell("icrm", 0, changes=((name, 1.0),)).name
    for part in ("method", "generator"):
        with pytest.raises(ValueError, match=f"unknown {part}"):
            Cell(**{"method": "icrm", "seed": 0, part: name})


@pytest.mark.parametrize(
    "source", ["../../x.jsonl", "/etc/../x.jsonl", "a/../../b", "../..", "..", "owner/..", "a\\..\\b.json", "~/x.jsonl"]
)
def test_data_of_any_name_are_recorded_inside_results(project, source):
    path = Workspace(MINE, preferences=source, base_model="scratch").write_record("noun", {})
    assert path.parent == project / "results" / "mine" and path.is_file()


@pytest.mark.parametrize("arguments", [["--profile", "../x"], ["--only", "../../x"], ["--only", "/tmp/x.ipynb"]])
def test_the_runner_takes_known_names_only(arguments, capsys):
    assert run.main(arguments, root=ROOT) == 2
    assert "did you mean" in (error := capsys.readouterr().err) or "known:" in error


@pytest.mark.parametrize(
    "value", ['"; import os #', "'''", '\\"); x = (', "a\nimport os", "{% raw %}", "\u2028import os"]
)
def test_a_parameter_stays_a_value(value):
    code = papermill.translators.PythonTranslator.codify({"NAME": value, "LIST": [value], "MAP": {value: value}})
    body = ast.parse(code).body
    assert [ast.literal_eval(line.value) for line in body] == [value, [value], {value: value}]


# Markup --------------------------------------------------------------------------------------------------------

MARKUP = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='a()'>",
    "</style></div>&lt;b&gt;",
    "' style='x",
    "a|b_c%$\\",
)


class Page(html.parser.HTMLParser):
    """Collects a page's elements, their attributes and its text."""

    def __init__(self, source: str):
        super().__init__()
        self.elements, self.attributes, self.values, self.text = set(), set(), [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", MARKUP)
def test_text_in_a_heatmap_stays_text(text):
    tokens = {text: [TokenReward(text, 0, len(text), 1.0), TokenReward("", 0, 0, 0.0)]}
    page = Page(token_heatmap_html(tokens, rows=[Row(text, {text: [0.1, 0.2]})], title=text))
    assert page.elements == {"div", "b", "br", "span", "small"} and page.attributes == {"style", "title"}
    assert page.text.count(text) == 3 and all(text in value for value in page.values)


@pytest.mark.parametrize("text", MARKUP)
def test_text_in_a_table_stays_text(text):
    rows = [{"method": m, "measure": text, "mean": 0.5, "low": 0.4, "high": 0.6, "best": True} for m in (text, "plain")]
    frame, table = pd.DataFrame(rows).assign(seeds=2), tables.Table("t", text, text, {}, {})
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(tables.to_markdown(table, frame)))
    structure = {"h2", "p", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    assert page.elements <= structure and page.text.count(text) == 4 and page.attributes == set()
    latex = tables.to_latex(table, frame)
    assert latex.count(tables._latex(text)) == 3 and "<script" not in latex
    assert "<script" not in pd.DataFrame({text: [text]})._repr_html_()  # how a notebook shows a frame


# Shell ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("verb", ["run", "plan", "evidence", "refresh"])
@pytest.mark.parametrize("value", ['"; touch x; "', "`touch x`", "$(touch x)", "$(shell touch x)", "a' b", "04,05"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_make_passes_a_value_on_as_it_is(verb, value, by, tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    (tmp_path / ".venv/bin").touch()
    takes = {"plan": ["PROFILE"], "refresh": ["ONLY"]}.get(verb, ["ONLY", "PROFILE"])
    typed = dict.fromkeys(takes, value)
    arguments = [f"{name}={text}" for name, text in typed.items()] if by == "argument" else []
    environment = os.environ | (typed if by == "environment" else {})
    done = subprocess.run(
        ["make", "-s", verb, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not (tmp_path / "x").exists(), done.stderr
    assert done.stdout.splitlines().count(value) == len(typed)


# Network -------------------------------------------------------------------------------------------------------

# Python's sockets reach this machine and nothing else; every attempt is noted. (Kernels are spoken to on loopback.
# What a compiled library opens by itself is not seen.)
NO_NETWORK = """
import os, socket

def refuse(what):
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{what}\\n")
    raise OSError(f"no network in this test: {what}")

def here(address):
    return not isinstance(address, tuple) or str(address[0]) in ("localhost", "::1", "0.0.0.0", "") or str(
        address[0]).startswith("127.")

def guarded(function, where):
    def call(*args, **kwargs):
        address = kwargs.get("host", args[where] if len(args) > where else None)
        if address is not None and not here(address if isinstance(address, tuple) else (address,)):
            refuse(f"{function.__name__} {address}")
        return function(*args, **kwargs)
    return call

class Guarded(socket.socket):
    def connect(self, address):
        return super().connect(address) if here(address) else refuse(f"connect {address}")
    def connect_ex(self, address):
        return super().connect_ex(address) if here(address) else refuse(f"connect_ex {address}")
    def sendto(self, data, *rest):
        return super().sendto(data, *rest) if here(rest[-1]) else refuse(f"sendto {rest[-1]}")

socket.socket = Guarded
socket.getaddrinfo = guarded(socket.getaddrinfo, 0)
socket.gethostbyname = guarded(socket.gethostbyname, 0)
socket.create_connection = guarded(socket.create_connection, 0)
"""
PIPELINE = """
from icrm_lib.lab.workspace import Workspace
from icrm_lib.reward_model.model import RewardModel
from icrm_lib.language_model.causal import load_causal_lm
from tiny import micro
workspace = Workspace(micro(reward_model={"save_steps": 1}), folder="artefacts")
model = workspace.reward_model("icrm")
print(model.score(workspace.conversations("test")["chosen"]).shape)
load_causal_lm(workspace.base_model)
"""
SET_BY_TESTS = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "CI")


def without_network(command: list[str], folder: Path, **more: str) -> tuple[subprocess.CompletedProcess, str]:
    """Run a command with nothing but the kit's own settings; returns what it tried to reach, too."""
    (folder / "guard").mkdir(exist_ok=True)
    (folder / "guard/sitecustomize.py").write_text(NO_NETWORK)
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_TESTS}
    path = os.pathsep.join([str(folder / "guard"), str(ROOT), str(ROOT / "tests")])
    environment |= {"PYTHONPATH": path, "ATTEMPTS": str(folder / "attempts"), "HF_HOME": str(folder / "hub"), **more}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done, (folder / "attempts").read_text() if (folder / "attempts").exists() else ""


def test_the_guard_works(tmp_path):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    done, attempts = without_network([sys.executable, "-c", code], tmp_path)
    assert done.returncode and "192.0.2.1" in attempts
    code = "import urllib.request; urllib.request.urlopen('http://example.org')"
    assert "example.org" in without_network([sys.executable, "-c", code], tmp_path)[1]


@pytest.mark.slow
def test_the_pipeline_asks_nobody(tmp_path):
    """In one's own code: no hub switched off, nothing set but what the package sets when it is imported."""
    done, attempts = without_network([sys.executable, "-c", PIPELINE], tmp_path)
    assert (done.returncode, attempts) == (0, ""), done.stderr[-2000:]
    assert "(8,)" in done.stdout


@pytest.mark.slow
def test_a_notebook_of_smoke_asks_nobody(tmp_path):
    for name in ("pyproject.toml", "icrm_lib", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks/02_preferences.ipynb", tmp_path / "notebooks")
    done, attempts = without_network([sys.executable, "-m", "icrm_lib.cli.run", "--only", "02"], tmp_path)
    assert (done.returncode, attempts) == (0, ""), done.stderr[-2000:]
    assert (tmp_path / "runs/smoke/02_preferences.ipynb").is_file()


@pytest.mark.parametrize("profile", ["smoke", "lab"])
def test_a_model_of_the_hub_is_not_asked_for(profile, tmp_path):
    code = f"from icrm_lib.cli.run import prepare_environment; prepare_environment({profile!r})\n"
    code += "import huggingface_hub; huggingface_hub.hf_hub_download('owner/model', 'config.json')"
    done, attempts = without_network([sys.executable, "-c", code], tmp_path)
    assert done.returncode and attempts == "" and "offline" in done.stderr.lower()


TELEMETRY = "import os, {first}; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"


@pytest.mark.parametrize(
    ("first", "more", "off"),
    [
        ("icrm_lib", {}, "True"),
        ("huggingface_hub.constants, icrm_lib", {}, "True"),
        ("icrm_lib", {"HF_HUB_DISABLE_TELEMETRY": "0"}, "False"),
    ],
)
def test_telemetry_is_off_unless_asked_for(first, more, off, tmp_path):
    done, _ = without_network([sys.executable, "-c", TELEMETRY.format(first=first)], tmp_path, **more)
    assert done.stdout.strip() == off


def test_no_trainer_reports_to_a_service(tmp_path):
    """By default none does, and no file of the kit says otherwise."""
    for config in (TrainingArguments, ICRMConfig, DPOConfig, GRPOConfig):
        assert config(output_dir=str(tmp_path), use_cpu=True, bf16=False).report_to == []
    said = [ast.unparse(value) for tree in sources().values() for value in values_of(tree, "report_to")]
    assert len(said) > 3 and set(said) == {"'none'"}
