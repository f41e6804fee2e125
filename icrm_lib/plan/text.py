"""A plan as text for a terminal."""

from typing import Any


def describe(plan: dict[str, Any]) -> str:
    """Return a plan as text for a terminal."""
    device, data = plan["device"], plan["data"]
    kind = "bfloat16, dense" if device["bf16"] else "float32"
    amount = f"{data['pairs_are']} {data['pairs']:,} pairs to train on"
    if data["problems"]:
        amount = f"about {data['problems']:,} problems, {amount}"
    about = [
        ("profile", f"{plan['profile']}, method {plan['method']}"),
        ("device", f"{device['name']}: {device['memory_gib']:.1f} GiB, {device['tflops']:.3g} TFLOP/s in {kind}"),
        ("", f"({device['source']})"),
        ("data", f"{data['source']}: {amount}"),
        ("", f"{data['tokens']:,} tokens a pair, its prompt counted twice ({data['tokens_are']})"),
    ]
    lines = [f"{label:<9}{text}" for label, text in about]
    lines += ["", *_table(plan["stages"]), ""]
    total = f"{_hours(plan['hours'])} in all"
    short = [stage["stage"] for stage in plan["stages"] if stage["fits"] != "yes"]
    where = f"; memory is short for {' and '.join(short)}" if short else "; everything fits"
    lines += [f"{total}{where} ({device['memory_gib']:.1f} GiB)", ""]
    kept = ", ".join(f"{count} {noun}" for noun, count in plan["artefacts"].items()) or "nothing yet"
    files = [*map(file_line, plan["files"]), f"runs/{plan['profile']}/artefacts: {kept}"]
    for label, texts in (("files", files), ("notes", plan["notes"])):
        lines += [f"{'' if i else label:<9}{text}" for i, text in enumerate(texts)]
    return "\n".join(lines)


def _table(found: list[dict[str, Any]]) -> list[str]:
    head = ("stage", "model", "parameters", "trained", "share", "tokens", "FLOPs", "batch", "peak", "time", "fits")
    rows = [head]
    for stage in found:
        share = f"{stage['trainable'] / stage['parameters']:.2%}" if stage["trainable"] else "-"
        rows.append(
            (
                stage["stage"],
                stage["model"].rpartition("/")[2],
                _count(stage["parameters"]),
                _count(stage["trainable"]) if stage["trainable"] else "-",
                share,
                _count(stage["tokens"]),
                f"{stage['flops']:.1e}",
                f"{stage['rows']}x{stage['row_tokens']}",
                _memory(stage["peak_gib"] * 2**30),
                _hours(stage["hours"]),
                stage["fits"],
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = (0, 1, len(head) - 1)
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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


def file_line(file: dict[str, Any]) -> str:
    """Say of a file of `files.needed_files` whether it is here, and how large it is."""
    size = f", {'' if file['exact'] else 'about '}{_memory(file['bytes'])}" if file["bytes"] else ""
    return f"{file['name']}: {'here' if file['here'] else 'to download'}{size}"
