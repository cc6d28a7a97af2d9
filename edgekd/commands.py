"""What the verbs do: resolve run and recipe, run the stages that need it, say what came out."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd import console, machine, pipeline
from edgekd import recipe as recipe_module
from edgekd.errors import UsageError
from edgekd.recipe import Recipe
from edgekd.rundir import RunDir, command_line, read_json
from edgekd.stages import artefacts, curve, plan
from edgekd.stages import eval as evaluation
from edgekd.stages import report as reporting
from edgekd.stopping import Stop, graceful

RUNS = Path("runs")
PERIOD_STEPS_FOR_MINUTES = 20
LARGE_SIDE_PX, MANY_CLASSES = 128, 200

Changes = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Flags that are in no recipe: they steer this one command."""

    max_seconds: float | None = None
    data: Path | None = None
    fresh: bool = False
    json: bool = False
    yes: bool = False


def combine(*parts: Changes) -> Changes:
    """Lay the changes of several groups of flags over one another."""
    combined: Changes = {}
    for part in parts:
        combined = recipe_module.merge(combined, part)
    return combined


def _given(**values: Any) -> Changes:
    return {name: value for name, value in values.items() if value not in (None, "", False, ())}


def _table(name: str, values: Changes) -> Changes:
    return {name: values} if values else {}


def teacher_flags(arch: str, input_shape: str, accept_mapping: bool, trust_pickle: bool) -> Changes:
    """Return the recipe changes of the teacher's flags."""
    given = _given(arch=arch, input=input_shape, accept_mapping=accept_mapping, trust_pickle=trust_pickle)
    return _table("teacher", given)


def pixel_flags(normalize: str, mean: str, std: str, classes: str) -> Changes:
    """Return the recipe changes of the normalisation's flags."""
    values = _given(normalize=normalize, mean=_numbers("--mean", mean), std=_numbers("--std", std), classes=classes)
    if normalize and not mean:
        values |= {"mean": (), "std": ()}
    return _table("pixels", values)


def distill_flags(
    student: str,
    steps: int | None,
    minutes: float | None,
    method: str,
    seed: int | None,
    device: str,
    threads: int | None,
) -> Changes:
    """Return the recipe changes of distillation's flags."""
    return combine(
        _given(seed=seed),
        _table("student", _given(name=student)),
        _table("method", _given(preset=method, steps=steps, minutes=minutes)),
        _table("machine", _given(device=device, threads=threads)),
    )


def export_flags(int8: bool | None, target: str, uint8_input: bool | None) -> Changes:
    """Return the recipe changes of export's flags; a flag not given keeps its value."""
    values = _given(target=target)
    values |= {} if int8 is None else {"int8": int8}
    values |= {} if uint8_input is None else {"uint8_input": uint8_input}
    return _table("export", values)


def bench_flags(batch: str, threads: str, seconds: float | None) -> Changes:
    """Return the recipe changes of bench's flags."""
    batches = tuple(int(n) for n in _numbers("--batch", batch))
    counts = tuple(int(n) for n in _numbers("--threads", threads))
    return _table("bench", _given(batch=batches, threads=counts, min_seconds=seconds))


def set_flags(assignments: list[str] | None) -> Changes:
    """Return the recipe changes of all --set flags."""
    return combine(*(recipe_module.assignment(text) for text in assignments or ()))


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"{flag} takes numbers separated by commas, not {text!r}.") from None


def named_run(name: str) -> RunDir:
    """Return the run of a name under runs/, or of a path."""
    return RunDir(Path(name) if "/" in name or Path(name, "recipe.toml").is_file() else RUNS / name)


def find_run(name: str, needed: str) -> RunDir:
    """Return the named run, or the newest one that has what the verb needs; say which in the first line."""
    if name:
        run = named_run(name)
    else:
        run = pipeline.newest_run(RUNS, needed)
        console.say(f"run      {run.path}")
    pipeline.open_recipe(run)
    return run


@contextmanager
def at_work(run: RunDir, options: Options) -> Iterator[Stop]:
    """Hold the run's lock and turn signals into requests."""
    with run.lock(), graceful(options.max_seconds) as stop:
        if options.fresh:
            pipeline.start_afresh(run)
        run.note_command(command_line())
        yield stop


def _wanted(run: RunDir, flags: Changes) -> Recipe:
    """Return the run's recipe, or a new one, with the flags applied."""
    if run.recipe_file.is_file():
        return recipe_module.with_changes(recipe_module.load_resolved(run.recipe_file), flags)
    preset = flags.get("method", {}).get("preset")
    base = recipe_module.parse({"method": {"preset": preset}} if preset else {}, origin="flags")
    return recipe_module.with_changes(base, flags)


# --- verbs ----------------------------------------------------------------------------------------------------------


def distill(teacher: Path, name: str, flags: Changes, options: Options, *, dry_run: bool) -> None:
    """Ingest, distill and select."""
    student = flags.get("student", {}).get("name") or recipe_module.StudentTable().name
    run = named_run(name or f"{teacher.stem}-{student.replace('/', '-').replace(':', '-')}")
    flags = combine(flags, {"teacher": {"file": str(teacher)}})
    with at_work(run, options) as stop:
        recipe = pipeline.adopt(run, _wanted(run, flags))
        pipeline.advance(run, recipe, ("ingest",), stop=stop)
        recipe, cost = _planned(run, recipe, stop)
        _opening(run, recipe, cost)
        _expectation(run, options)
        if dry_run:
            _dry_run(cost, options)
            return
        pipeline.advance(run, recipe, ("distill", "select"), stop=stop, distill=_accuracy(run, options))
        result = curve.summary(run)
        if options.data is not None:
            evaluation.run(run, recipe, options.data)
    if options.json:
        console.print_json(result)
    console.closing(
        f"{run.stage('select')}/student.safetensors",
        curve.headline(result),
        f"edgekd export {run.name} --int8",
    )


def ingest(teacher: Path | None, name: str, flags: Changes, options: Options) -> None:
    """Read a teacher, or change the pixel metadata of a run."""
    if teacher is None and not name:
        raise UsageError("ingest takes a TEACHER, or --run NAME to set the normalisation of a run.")
    run = named_run(name or f"{teacher.stem if teacher else ''}")
    if teacher is not None:
        flags = combine(flags, {"teacher": {"file": str(teacher)}})
    else:
        pipeline.open_recipe(run)
    with at_work(run, options) as stop:
        recipe = pipeline.adopt(run, _wanted(run, flags))
        pipeline.advance(run, recipe, ("ingest",), stop=stop)
    description = read_json(run.stage("teacher") / "teacher.json")
    if options.json:
        console.print_json({"run": run.name, **description, **read_json(run.stage("teacher") / "pixels.json")})
    probe = description["probe"]
    console.closing(
        f"{run.stage('teacher')}/teacher.json",
        f"{description['arch']}, {description['classes']} classes, {probe['parameters']:,} parameters, "
        f"{probe['macs']:,} MACs",
        f"edgekd distill {recipe.teacher.file} --run {run.name}",
    )


def run_recipe(path: Path, name: str, flags: Changes, options: Options) -> None:
    """Run every stage of a recipe."""
    file = path if path.is_file() else recipe_module.recipes_folder() / f"{path}.toml"
    loaded = recipe_module.load(file if file.is_file() else path)
    loaded = _beside(loaded, file.parent)
    wanted = recipe_module.with_changes(loaded, flags)
    run = named_run(name or wanted.name or file.stem)
    with at_work(run, options) as stop:
        if run.recipe_file.is_file():
            kept = recipe_module.load_resolved(run.recipe_file)
            if not wanted.method.steps:
                wanted = recipe_module.with_changes(wanted, {"method": {"steps": kept.method.steps}})
        recipe = pipeline.adopt(run, wanted)
        pipeline.advance(run, recipe, ("ingest",), stop=stop)
        recipe, cost = _planned(run, recipe, stop)
        _opening(run, recipe, cost)
        extras = {"distill": _accuracy(run, options)}
        pipeline.advance(run, recipe, ("distill", "select", "export", "bench"), stop=stop, **extras)
        data = Path(recipe.eval.data) if recipe.eval.data else options.data
        evaluated = None
        if data is not None:
            stop.raise_if_requested("the run before eval")
            evaluated = evaluation.run(run, recipe, data)
        summary = reporting.run(run)
    if options.json:
        console.print_json(summary)
    else:
        reporting.print_summary(summary)
    headline = summary["verdict"] or "no latency measured"
    if evaluated is not None:
        headline = f"accuracy {evaluated['accuracy']['student']:.2%} on {evaluated['images']} images; {headline}"
    console.closing(f"{run.stage('report')}/report.html", headline, f"edgekd status {run.name}")


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """Resolve the paths in a recipe against the recipe's folder."""
    changes: Changes = {}
    for table, key in (("teacher", "file"), ("eval", "data"), ("pixels", "classes"), ("student", "weights")):
        value = getattr(getattr(recipe, table), key)
        if value and not Path(value).is_absolute() and (folder / value).exists():
            changes = combine(changes, {table: {key: str(folder / value)}})
    return recipe_module.with_changes(recipe, changes)


def select(name: str, options: Options) -> None:
    """Choose the final student."""
    run = find_run(name, "distill")
    with at_work(run, options) as stop:
        recipe = pipeline.open_recipe(run)
        pipeline.require(run, recipe, "distill")
        pipeline.advance(run, recipe, ("select",), stop=stop)
    selection = read_json(run.stage("select") / "selection.json")
    if options.json:
        console.print_json({"run": run.name, **selection})
    best = next(c for c in selection["candidates"] if c["name"] == selection["chosen"])
    headline = f"{selection['chosen']}: {best['agreement']:.2%} synthetic agreement (not accuracy)"
    console.closing(f"{run.stage('select')}/student.safetensors", headline, f"edgekd export {run.name} --int8")


def export(name: str, flags: Changes, options: Options) -> None:
    """Write the ONNX files."""
    run = find_run(name, "select")
    with at_work(run, options) as stop:
        recipe = pipeline.adopt(run, recipe_module.with_changes(pipeline.open_recipe(run), flags))
        pipeline.require(run, recipe, "select")
        pipeline.advance(run, recipe, ("export",), stop=stop)
    folder = run.stage("export")
    chain = read_json(folder / "agreement.json")["chain"]
    files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx"))}
    if options.json:
        console.print_json({"run": run.name, "size_bytes": files, "agreement": chain})
    else:
        rows = [(link, f"{value['share']:.2%}", str(value["clear"])) for link, value in chain.items()]
        console.print_table(("synthetic agreement (not accuracy)", "same answer", "decided samples"), rows)
    sizes = ", ".join(f"{file} {size / 1000:.0f} kB" for file, size in files.items())
    console.closing(f"{folder}/", sizes, f"edgekd bench {run.name}")


def bench(name: str, flags: Changes, options: Options) -> None:
    """Measure latency, of a run's files or of one ONNX file."""
    from edgekd.stages import bench as benching

    if name.endswith(".onnx"):
        file = Path(name)
        table = recipe_module.with_changes(recipe_module.parse({}, origin="flags"), flags).bench
        with graceful(options.max_seconds) as stop:
            results, _ = benching.compare([file], table, stop)
        shown = {"run": None, **results}
        written, following = "nothing (a file without a run)", f"edgekd bench {name} --batch 1,8"
    else:
        run = find_run(name, "export")
        with at_work(run, options) as stop:
            recipe = pipeline.adopt(run, recipe_module.with_changes(pipeline.open_recipe(run), flags))
            pipeline.require(run, recipe, "export")
            pipeline.advance(run, recipe, ("bench",), stop=stop)
        shown = {"run": run.name, **read_json(run.stage("bench") / "local" / "results.json")}
        written, following = f"{run.stage('bench')}/local/results.json", f"edgekd report {run.name}"
    if options.json:
        console.print_json(shown)
    else:
        reporting.print_latency(shown["results"])
    for warning in shown["warnings"]:
        console.warn(warning)
    console.closing(written, "; ".join(shown["verdicts"].values()), following)


def evaluate(name: str, data: Path | None, options: Options) -> None:
    """Measure accuracy on real images."""
    run = find_run(name, "ingest")
    with at_work(run, options):
        recipe = pipeline.open_recipe(run)
        folder = data or (Path(recipe.eval.data) if recipe.eval.data else None)
        if folder is None:
            raise UsageError("eval needs --data DIR, a folder with one subfolder of images per class.")
        pipeline.require(run, recipe, "ingest")
        result = evaluation.run(run, recipe, folder)
    if options.json:
        console.print_json({key: result[key] for key in ("run", "images", "accuracy")})
    else:
        rows = [(artefact, f"{value:.2%}") for artefact, value in result["accuracy"].items()]
        console.print_table((f"accuracy on {result['images']} images", "top-1"), rows)
    headline = ", ".join(f"{artefact} {value:.2%}" for artefact, value in list(result["accuracy"].items())[:2])
    console.closing(f"{run.stage('eval')}/{result['data']}.json", headline, f"edgekd report {run.name}")


def status(name: str, options: Options) -> None:
    """Show the state of every stage; works while the run is busy."""
    run = find_run(name, "ingest")
    recipe = pipeline.open_recipe(run)
    stages: list[dict[str, Any]] = []
    for stage in pipeline.STAGES.values():
        reason = pipeline.reason_to_run(stage, run, recipe)
        state = "done" if reason is None else "stale" if pipeline.intact(stage, run) else "open"
        stages.append({"stage": stage.name, "state": state, "reason": reason})
    last = run.events("train")[-1:]
    step = last[0]["step"] if last else None
    result = {"run": run.name, "stages": stages, "step": step, "steps": recipe.method.steps or None}
    if options.json:
        console.print_json(result)
    else:
        rows = [(entry["stage"], entry["state"], entry["reason"] or "") for entry in stages]
        console.print_table(("stage", "state", "why"), rows)
    open_stages = [entry["stage"] for entry in stages if entry["state"] != "done"]
    following = pipeline.STAGES[open_stages[0]].command if open_stages else f"edgekd report {run.name}"
    console.closing("nothing", f"{len(stages) - len(open_stages)} of {len(stages)} stages done", following)


def report(name: str, options: Options) -> None:
    """Write the report; works while the run is busy."""
    run = find_run(name, "ingest")
    summary = reporting.run(run)
    if options.json:
        console.print_json(summary)
    else:
        reporting.print_summary(summary)
    headline = summary["verdict"] or "no latency measured yet"
    console.closing(f"{run.stage('report')}/report.html", headline, f"edgekd status {run.name}")


def prune(name: str, options: Options) -> None:
    """Remove what is as sensitive as the teacher."""
    run = find_run(name, "export")
    with at_work(run, options):
        recipe = pipeline.open_recipe(run)
        pipeline.require(run, recipe, "export")
        removed = pipeline.prune(run)
    if options.json:
        console.print_json({"run": run.name, "removed": removed})
    console.closing("nothing", f"removed {', '.join(removed) or 'nothing: already pruned'}", f"edgekd bench {run.name}")


def doctor(options: Options) -> None:
    """Say what this machine can do."""
    from edgekd.stages import doctor as checks

    findings = checks.examine()
    if options.json:
        console.print_json(findings)
    else:
        console.print_table(("check", "finding"), [(k, str(v)) for k, v in findings["facts"].items()])
    for problem in findings["problems"]:
        console.warn(problem)
    console.closing("nothing", f"{len(findings['problems'])} problems", "edgekd distill TEACHER")


def recipes(copy: str, check: Path | None, options: Options) -> None:
    """List, copy or check recipes."""
    folder = recipe_module.recipes_folder()
    shipped = {path.stem: path for path in sorted(folder.glob("*.toml"))}
    methods = recipe_module.presets()
    if check is not None:
        resolved = recipe_module.load(check)
        if options.json:
            console.print_json(resolved.model_dump(mode="json"))
        else:
            sys.stdout.write(recipe_module.to_toml(resolved))
        console.closing("nothing", f"{check} is valid", f"edgekd run {check}")
        return
    if copy:
        source = shipped.get(copy) or methods.get(copy)
        if source is None:
            raise UsageError(f"there is no recipe {copy!r} (known: {', '.join([*shipped, *methods])}).")
        target = Path(source.name)
        if target.exists():
            raise UsageError(f"{target} exists already; move it away first.")
        shutil.copyfile(source, target)
        console.closing(str(target), f"a copy of {copy}", f"edgekd recipes --check {target}")
        return
    listing = {
        "recipes": {name: _first_comment(path) for name, path in shipped.items()},
        "methods": {name: _first_comment(path) for name, path in methods.items()},
    }
    if options.json:
        console.print_json(listing)
    else:
        rows = [(f"{kind[:-1]} {name}", text) for kind, entries in listing.items() for name, text in entries.items()]
        console.print_list(rows)
    following = "edgekd run quickstart"
    console.closing("nothing", f"{len(shipped)} recipes, {len(methods)} method presets", following)


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


# --- what the verbs share ---------------------------------------------------------------------------------------------


def _planned(run: RunDir, recipe: Recipe, stop: Stop) -> tuple[Recipe, plan.Plan | None]:
    """Fix the number of steps in recipe.toml once; measure the cost unless the work is done or under way."""
    description = artefacts.describe(run)
    started = run.stage("distill").exists()
    cost = None
    if not started or not recipe.method.steps:
        least = PERIOD_STEPS_FOR_MINUTES if recipe.method.minutes else 1
        cost = plan.measure(run, recipe, stop, least_steps=least)
    steps = recipe.method.steps
    if not steps and recipe.method.minutes:
        assert cost is not None
        steps = max(1, math.floor(60 * recipe.method.minutes / cost.seconds_per_step))
    steps = steps or recipe.method.steps_for(description.pixels, description.classes)
    if steps != recipe.method.steps:
        recipe = pipeline.adopt(run, recipe_module.with_changes(recipe, {"method": {"steps": steps}}))
    if cost is not None and cost.steps != steps:
        cost = plan.with_steps(cost, steps)
    return recipe, cost


def _opening(run: RunDir, recipe: Recipe, cost: plan.Plan | None) -> None:
    """Print the five opening lines."""
    data = read_json(run.stage("teacher") / "teacher.json")
    assumed = [f"{a['what']} {a['value']} assumed ({a['flag']})" for a in data["assumptions"]]
    shape = "x".join(map(str, data["input_shape"]))
    description = artefacts.describe(run)
    size = artefacts.student_complexity(recipe, description)
    method = recipe.method
    todo = "done or under way" if cost is None else plan.sentence(cost)
    console.opening(
        [
            ("run", str(run.path)),
            ("teacher", f"{data['arch']}, {data['probe']['parameters']:,} parameters, {data['probe']['macs']:,} MACs"),
            ("input", "; ".join([f"{shape}, {data['classes']} classes", *assumed])),
            ("student", f"{recipe.student.name}, {size.parameters:,} parameters, {size.macs:,} MACs"),
            ("plan", f"{method.preset}, {method.steps} steps, {todo}"),
        ]
    )


def _expectation(run: RunDir, options: Options) -> None:
    """State the published expectation for large images or many classes, and ask for consent."""
    description = artefacts.describe(run)
    if max(description.input_shape[1:]) < LARGE_SIDE_PX and description.classes < MANY_CLASSES:
        return
    text = (
        "from 128 pixels or 200 classes on, expect less: published results for ImageNet, ResNet-50 to MobileNetV2, "
        "reach about 43 % top-1 after days of GPU."
    )
    if options.yes:
        console.warn(text)
    elif sys.stdin.isatty():
        if not console.confirm(f"{text} Go on?"):
            raise UsageError("stopped before training.")
    else:
        raise UsageError(f"{text} Give --yes to go on.")


def _dry_run(cost: plan.Plan | None, options: Options) -> None:
    if cost is None:
        raise UsageError("the run is done or under way; --dry-run plans new runs (choose another --run).")
    if options.json:
        console.print_json(plan.to_json(cost))
    console.closing("nothing but the teacher", plan.sentence(cost), "the same command without --dry-run")


def _accuracy(run: RunDir, options: Options) -> Changes:
    """Return distill's extra argument: the measure of accuracy on --data, for numbers only."""
    if options.data is None:
        return {}
    machine.use_threads(pipeline.open_recipe(run).machine.threads)
    return {"accuracy": evaluation.load_images(run, options.data).network_accuracy}
