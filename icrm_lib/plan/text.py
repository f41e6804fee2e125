"""A plan as text for a terminal."""

from typing import Any

import pandas as pd


def describe(plan: dict[str, Any]) -> str:
    """Return a plan of `make_plan` as text for a terminal."""
    device, data = plan["device"], plan["data"]
    memory, kind = f"{device['memory_gib']:.1f} GiB", "bfloat16, dense" if device["bf16"] else "float32"
    problems = f"about {data['problems']:,} problems, " if data["problems"] else ""
    short = [stage["stage"] for stage in plan["stages"] if stage["fits"] != "yes"]
    where = f"memory is short for {' and '.join(short)}" if short else "everything fits"
    kept = ", ".join(f"{count} {noun}" for noun, count in plan["artefacts"].items()) or "nothing yet"
    lines = [
        f"profile  {plan['profile']}, method {plan['method']}",
        f"device   {device['name']}: {memory}, {device['tflops']:.3g} TFLOP/s in {kind}",
        f"         ({device['source']})",
        f"data     {data['source']}: {problems}{data['pairs_are']} {data['pairs']:,} pairs to train on",
        f"         {data['tokens']:,} tokens a pair, its prompt counted twice ({data['tokens_are']})",
        "",
        pd.DataFrame([_row(stage) for stage in plan["stages"]]).to_string(index=False),
        "",
        f"{_hours(plan['hours'])} in all; {where} ({memory})",
        "",
    ]
    files = [*map(file_line, plan["files"]), f"runs/{plan['profile']}/artefacts: {kept}"]
    for label, texts in (("files", files), ("notes", plan["notes"])):
        lines += [f"{'' if i else label:<9}{text}" for i, text in enumerate(texts)]
    return "\n".join(lines)


def _row(stage: dict[str, Any]) -> dict[str, str]:
    trained = stage["trainable"]
    return {
        "stage": stage["stage"],
        "model": stage["model"].rpartition("/")[2],
        "parameters": _count(stage["parameters"]),
        "trained": _count(trained) if trained else "-",
        "share": f"{trained / stage['parameters']:.2%}" if trained else "-",
        "tokens": _count(stage["tokens"]),
        "FLOPs": f"{stage['flops']:.1e}",
        "batch": f"{stage['rows']}x{stage['row_tokens']}",
        "peak": _memory(stage["peak_gib"] * 2**30),
        "time": _hours(stage["hours"]),
        "fits": stage["fits"],
    }


def file_line(file: dict[str, Any]) -> str:
    """Say of a file of `files.needed_files` whether it is here, and how large it is."""
    size = f", {'' if file['exact'] else 'about '}{_memory(file['bytes'])}" if file["bytes"] else ""
    return f"{file['name']}: {'here' if file['here'] else 'to download'}{size}"


def _count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _memory(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"
