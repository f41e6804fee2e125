"""No line of the kit runs what it reads, opens a shell, shows markup as it comes, or reports to a service."""

import ast
import json
import sys
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig

from icrm_lib.training.config import ICRMConfig

ROOT = Path(__file__).resolve().parents[2]


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


PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "torch.load", "pd.read_pickle"}
RUNNING |= {"joblib.load", "joblib.Memory"}  # its processes are no files


def faults(tree: ast.Module) -> list[str]:
    """What in a file could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in [*module, *(alias.name for alias in node.names)]}
            read = "joblib" in module and {alias.name for alias in node.names} & {"load", "Memory"}
            found += [ast.unparse(node)] * bool(tops & PICKLING or read)
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


def test_no_trainer_reports_to_a_service(tmp_path):
    """By default none does, and no file of the kit says otherwise."""
    for config in (TrainingArguments, ICRMConfig, DPOConfig, GRPOConfig):
        assert config(output_dir=str(tmp_path), use_cpu=True, bf16=False).report_to == []
    said = [ast.unparse(value) for tree in sources().values() for value in values_of(tree, "report_to")]
    assert len(said) > 3 and set(said) == {"'none'"}
