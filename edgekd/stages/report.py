"""Write one page with every number of a run and the file it comes from; reads artefacts, changes none."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd import console
from edgekd.bench import comparing
from edgekd.bench import results as results_files
from edgekd.bench.results import Results
from edgekd.bench.rows import Row, SkippedRow
from edgekd.models import artefacts
from edgekd.run import curve
from edgekd.run.directory import Record, RunDir, canonical_json, digest, write_json, write_text
from edgekd.run.left_out import LeftOut, read_whole
from edgekd.schema import many, number, text, written
from edgekd.stages import plots
from edgekd.text import visible


def run(run_dir: RunDir) -> dict[str, Any]:
    """Publish report/report.json and report/report.html; return the summary."""
    left_out = LeftOut()
    summary = collect(run_dir, left_out)
    written = page(run_dir, summary, left_out)
    with run_dir.publish("report") as (folder, record):
        write_json(folder / "report.json", summary)
        write_text(folder / "report.html", written)
        record |= {"stage": "report", "version": 1, "key": digest(summary), "recipe_slice": {}, "inputs": {}}
    return summary


def _read(path: Path) -> Any:
    return read_whole(path, dict) if path.is_file() else None


def _distillation(run_dir: RunDir) -> dict[str, Any] | None:
    """Return the summary of a distillation, if there is one that can be written."""
    found = curve.summary(run_dir) if run_dir.stage("distill").exists() else None
    canonical_json(found).encode()
    return found


def collect(run_dir: RunDir, left_out: LeftOut | None = None) -> dict[str, Any]:
    """Gather what the stages wrote; what does not exist yet, or cannot be read, is None.

    `left_out` is told what cannot be read, as are people; its sentences stand in the summary under that name.
    """
    left_out = left_out or LeftOut()
    export, eval_folder = run_dir.stage("export"), run_dir.stage("eval")
    ledger = left_out.unless(_read, run_dir.ledger_file) or {}
    bench = left_out.unless(_local, run_dir)
    agreement = left_out.unless(_read, export / "agreement.json")
    files = sorted(export.glob("*.onnx"), key=lambda path: artefacts.precision_rank(path.name))
    sizes = {path.name: path.stat().st_size for path in files}
    found = sorted(eval_folder.glob("[!.]*.json"), key=lambda path: path.stat().st_mtime_ns)
    evaluations = {path.stem: left_out.unless(_evaluation, path) for path in found}
    rows = bench.results if bench is not None and _measured_these(run_dir) else None
    verdict = None if rows is None else left_out.unless(_verdict, rows, run_dir, left_out)
    latency = written(rows)
    return {
        "run": run_dir.name,
        "data_free": run_dir.data_free(),
        "real_images_read": ledger.get("real_images_read"),
        "teacher": left_out.unless(_read, run_dir.stage("teacher") / "teacher.json"),
        "distillation": left_out.unless(_distillation, run_dir),
        "selection": left_out.unless(_selection, run_dir.stage("select") / "selection.json"),
        "size_bytes": sizes,
        "parity": left_out.unless(_read, export / "parity.json"),
        "agreement": None if agreement is None else agreement.get("chain"),
        "latency": latency,
        "verdict": verdict,
        "devices": _devices(run_dir, left_out),
        "warnings": [] if bench is None else list(bench.warnings),
        "evaluations": evaluations,
        "artefacts": _artefacts(run_dir, sizes, latency, left_out),
        "left_out": left_out.sentences,
    }


def _local(run_dir: RunDir) -> Results | None:
    file = run_dir.stage("bench") / "local" / "results.json"
    return results_files.read_results(file) if file.is_file() else None


def _verdict(rows: Sequence[Row | SkippedRow], run_dir: RunDir, left_out: LeftOut) -> str | None:
    return next(iter(comparing.verdicts(rows, run_dir, left_out).values()), None)


def _evaluation(path: Path) -> Any:
    return comparing.fitting(path, accuracy=comparing.ACCURACY)


def _selection(path: Path) -> Any:
    """Read what select chose, as far as the report shows it."""
    shown = {"chosen": text(300), "reason": text(20_000), "candidates": many(_candidate, 1000)}
    return comparing.fitting(path, **shown) if path.is_file() else None


def _candidate(value: Any, place: str) -> None:
    text(300)(value["name"], f"{place}.name")
    number(0, 1)(value["agreement"], f"{place}.agreement")


def _devices(run_dir: RunDir, left_out: LeftOut) -> dict[str, Any]:
    """Return what was measured elsewhere, by target, where it was of the files that are exported now."""
    found = {folder.name: left_out.unless(_device, run_dir, folder, left_out) for folder in comparing.targets(run_dir)}
    return {name: results for name, results in found.items() if results is not None}


def _device(run_dir: RunDir, folder: Path, left_out: LeftOut) -> dict[str, Any] | None:
    if folder.name == "local" or not _measured_these(run_dir, folder):
        return None
    results = results_files.read_results(folder / "results.json")
    verdicts = comparing.verdicts(results.results, run_dir, left_out)
    file = folder / "environment.json"
    environment = results_files.read_environment(file) if file.is_file() else None
    names = ("board", "cpu_model", "gpus", "tensorrt", "jetson")
    machine = {name: written(getattr(environment, name, None)) for name in names}
    return {**written(results), "verdicts": verdicts, "machine": machine}


def _measured_these(run_dir: RunDir, folder: Path | None = None) -> bool:
    """Return whether the latencies are of the files that are exported now: here of all, on a device of what it ran."""
    bench, export = Record.read(folder or run_dir.stage("bench") / "local"), Record.read(run_dir.stage("export"))
    if bench is None or export is None:
        return False
    exported = {f"export/{k}": v for k, v in export.outputs.items() if k.endswith(".onnx")}
    measured = {k: v for k, v in bench.inputs.items() if k.endswith(".onnx")}
    if folder is None:
        return exported.items() <= measured.items()
    return bool(measured) and measured.items() <= exported.items()


def _artefacts(
    run_dir: RunDir,
    sizes: dict[str, int],
    latency: list[dict[str, Any]] | None,
    left_out: LeftOut,
) -> list[dict[str, Any]]:
    """Return one row per artefact: accuracy, size, latency, and how often it leaves the file before it in the chain."""
    accuracy = left_out.unless(comparing.accuracies, run_dir) or {}
    shares = left_out.unless(comparing.shares, run_dir) or {}
    names = ["teacher", "student", *sizes] if accuracy or sizes else []
    rows = []
    for name in names:
        measured = next((r for r in latency or [] if r["artefact"] == name), None)
        rows.append(
            {
                "artefact": name,
                "accuracy": accuracy.get(name),
                "size_bytes": sizes.get(name),
                "synthetic_agreement": shares.get(name),
                "p50_ms": None if measured is None else measured.get("p50_ms"),
                "p99_ms": None if measured is None else measured.get("p99_ms"),
                "note": "" if measured is None else measured.get("skipped") or measured.get("note") or "",
            }
        )
    return rows


def _cell(value: float | None, form: str, scale: float = 1.0) -> str:
    return "–" if value is None else form.format(value * scale)


COLUMNS = ("artefact", "accuracy", "agreement (synthetic)", "size kB", "p50 ms", "p99 ms", "note")


def table(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of artefacts as text, a row each."""
    return [
        (
            row["artefact"],
            _cell(row["accuracy"], "{:.2f} %", 100),
            _cell(row["synthetic_agreement"], "{:.2f} %", 100),
            _cell(row["size_bytes"], "{:.0f}", 1e-3),
            _cell(row["p50_ms"], "{:.3f}"),
            _cell(row["p99_ms"], "{:.3f}"),
            row["note"],
        )
        for row in summary["artefacts"]
    ]


def print_summary(summary: dict[str, Any]) -> None:
    """Print the table of artefacts."""
    console.print_table(COLUMNS, table(summary))


LATENCY = ("artefact", "runtime", "batch", "threads", "p50 ms", "p95 ms", "p99 ms", "per s", "kB", "note")


def latency_rows(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return bench's rows as text."""
    rows: list[tuple[str, ...]] = []
    for row in results:
        if row.get("skipped"):
            rows.append((row["artefact"], row["runtime"], *["–"] * 7, row["skipped"]))
            continue
        numbers = [f"{row[name]:.3f}" for name in ("p50_ms", "p95_ms", "p99_ms")]
        size = f"{row['size_bytes'] / 1000:.0f}"
        shape = (str(row["batch"]), str(row["threads"]))
        note = row.get("note") or ""
        rows.append((row["artefact"], row["runtime"], *shape, *numbers, f"{row['throughput_per_s']:.0f}", size, note))
    return rows


def print_latency(results: list[dict[str, Any]]) -> None:
    """Print bench's rows."""
    console.print_table(LATENCY, latency_rows(results))


NUMERICS = ("artefact", "precision", "largest difference", "allowed", "clear answers that differ", "as here")
ENERGY = ("artefact", "runtime", "W gross", "W idle", "W net", "mJ gross", "mJ net", "rails", "from")


def numerics_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return how the logits of a device differ from the host's, as text."""
    return [
        (
            one["artefact"],
            one["precision"],
            "not finite" if one["max_difference"] is None else f"{one['max_difference']:.2g}",
            f"{one['tolerance']:g}",
            f"{one['wrong_answers']} of {one['clear']}",
            "yes" if one["passed"] else "NO",
        )
        for one in results.get("numerics", [])
    ]


def energy_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the energy of a run of each artefact on a device, as text."""
    return [
        (
            one["artefact"],
            one["runtime"],
            *(f"{one[name]:.2f}" for name in ("gross_w", "idle_w", "net_w", "gross_mj_per_run", "net_mj_per_run")),
            one["rails"],
            f"{one['source']} every {one['period_s']:g} s",
        )
        for one in results.get("energy", [])
    ]


def print_device(results: dict[str, Any]) -> None:
    """Print what is known of a device besides its latencies."""
    if results.get("numerics"):
        console.print_table(NUMERICS, numerics_rows(results))
    if results.get("energy"):
        console.print_table(ENERGY, energy_rows(results))
    if results.get("energy_note"):
        console.say(f"energy   {results['energy_note']}")


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}th,td{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}figure{margin:1em 0}code{background:#f4f4f4;padding:0 .2em}"""


def page(run_dir: RunDir, summary: dict[str, Any], left_out: LeftOut | None = None) -> str:
    """Return report.html: self-contained, every section with the file its numbers come from."""
    count = summary["real_images_read"]
    origin = f"Made from no real image; real images read for numbers only: {count}"
    if not summary["data_free"]:
        origin = f"Made from REAL IMAGES, which set INT8 ranges: NOT data-free; real images read in all: {count}"
    parts = [f"<h1>{_html(summary['run'])}</h1>", f"<p>{origin} (<code>run.json</code>).</p>"]
    if summary["artefacts"]:
        files = "<code>eval/</code>, <code>export/agreement.json</code>, <code>bench/local/results.json</code>"
        parts += ["<h2>Artefacts</h2>", _html_table(COLUMNS, table(summary)), f"<p>From {files}.</p>"]
    if summary["verdict"]:
        parts.append(f"<p><b>{_html(summary['verdict'])}</b></p>")
    parts += [f"<p>Warning: {_html(warning)}</p>" for warning in summary["warnings"]]
    for target, results in summary["devices"].items():
        parts += _device_section(target, results)
    for title, picture, source in plots.pictures(run_dir, left_out):
        parts += [
            f"<h2>{_html(title)}</h2>",
            f"<figure>{picture}</figure>",
            f"<p>From <code>{_html(source)}</code>.</p>",
        ]
    if summary["selection"]:
        chosen = summary["selection"]
        parts.append(f"<h2>Selection</h2><p>{_html(chosen['chosen'])}: {_html(chosen['reason'])}.</p>")
        rows = [(c["name"], f"{c['agreement']:.2%}") for c in chosen["candidates"]]
        parts.append(_html_table(("candidate", "synthetic agreement (not accuracy)"), rows))
    parts += [f"<p>{_html(sentence)}</p>" for sentence in summary["left_out"]]
    title = _html(summary["run"])
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return head + "\n".join(parts) + "</html>\n"


def _device_section(target: str, results: dict[str, Any]) -> list[str]:
    folder = f"bench/{target}"
    parts = [f"<h2>On {_html(target)}</h2>", _html_table(LATENCY, latency_rows(results["results"]))]
    parts += [f"<p><b>{_html(sentence)}</b></p>" for sentence in results["verdicts"].values()]
    parts += [f"<p>Warning: {_html(warning)}</p>" for warning in results["warnings"]]
    for columns, rows in ((NUMERICS, numerics_rows(results)), (ENERGY, energy_rows(results))):
        parts += [_html_table(columns, rows)] if rows else []
    if results.get("energy_note"):
        parts.append(f"<p>Energy: {_html(results['energy_note'])}</p>")
    facts = [(name, json.dumps(value)) for name, value in results["machine"].items() if value]
    parts += [_html_table(("machine", ""), facts)] if facts else []
    return [*parts, f"<p>From <code>{_html(folder)}/</code>.</p>"]


def _html(words: str) -> str:
    """Return text for a page: neither markup nor a terminal's control characters, should one print the page."""
    return html.escape(visible(words))


def _html_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{_html(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
