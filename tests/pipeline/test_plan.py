"""The plan is measured on throwaway networks and leaves the run as it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toy
from edgekd import recipe
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import MachineError, StoppedEarly
from edgekd.models import footprint
from edgekd.pipeline import cost, plan
from edgekd.pipeline.cost import Cost
from edgekd.pipeline.plan import CostPlan
from edgekd.recipe import Recipe
from edgekd.run.cards.events import TrainEvent
from edgekd.run.directory import RunDir
from edgekd.stopping import Stop
from edgekd.synthesis.networks.vae import VAE
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, student_step

PARTS = {
    "generator": Cost(0.0625, {torch.float32: 1e9}),
    "student": Cost(0.125, {torch.float32: 1.5e9, torch.bfloat16: 0.5e9}),
    "replayed": Cost(0.0625, {torch.float32: 1e9}),
}
COST = CostPlan(
    steps=2000,
    cost_by_part=PARTS,
    waits=True,
    warmup=Cost(1.0, {torch.float32: 4e9}),
    peak_memory_bytes=3 << 30,
    device="cpu",
    threads=2,
    precision="fp32",
    parameters={"student": 10, "generator": 20},
    machine_peak_flops=64e9,
    input_shape=(3, 32, 32),
    starts_from_teacher=False,
)


def test_a_plan_is_one_line_and_one_object() -> None:
    assert COST.sentence() == (
        "cpu, fp32, 2 threads, 250 ms a step, about 8 min 21 s (6 min 16 s if replay never begins), 3.0 GiB memory"
    )
    assert "never" not in replace(COST, waits=False).sentence()
    assert COST.to_json() == {
        "steps": 2000,
        "seconds_per_step": 0.25,
        "flops_per_step": 4e9,
        "flops_by_part": {"generator": 1e9, "student": 2e9, "replayed": 1e9},
        "parameters": {"student": 10, "generator": 20},
        "machine_peak_flops": 64e9,
        "utilisation": 0.25,
        "eta_seconds": 501.0,
        "eta_seconds_without_replay": 376.0,
        "macs": 4002e9,
        "macs_without_replay": 3002e9,
        "peak_memory_bytes": 3 << 30,
        "expectation": None if COST.expectation is None else COST.expectation.model_dump(mode="json"),
    }
    assert COST.with_steps(4).eta_seconds == 2.0
    assert COST.steps == 2000
    assert COST.steps_within(60) == 236
    assert COST.steps_within(0.5) == 1


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each kind of update as few times as a plan may."""
    monkeypatch.setattr(cost, "_LEAST_S", 0.0)


def flops_by_part(run: RunDir, recipe: Recipe) -> dict[str, float]:
    """Return the FLOPs a step that a plan counts for each part."""
    cost = plan.measure_cost(run, recipe, Stop())
    return {part: sum(each.flops.values()) for part, each in cost.cost_by_part.items()}


def test_measuring_leaves_the_run_and_the_global_generators_alone(teacher_file: Path, ingested: RunDir) -> None:
    before = {p: sha256_of(p) for p in ingested.path.rglob("*") if p.is_file()}
    state = torch.get_rng_state()
    cost = plan.measure_cost(ingested, toy.toy_recipe(teacher_file, precision="fp32"), Stop())
    assert {p: sha256_of(p) for p in ingested.path.rglob("*") if p.is_file()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (cost.steps, cost.device, cost.threads, cost.precision) == (12, "cpu", 1, "fp32")
    assert 1e-4 < cost.seconds_per_step < 5
    assert cost.peak_memory_bytes > 50 << 20
    assert all(sum(part.flops.values()) > 0 for part in cost.cost_by_part.values())
    assert 0 < cost.utilization < 1


@pytest.mark.parametrize("least", [1, 8])
def test_each_kind_of_update_is_timed_several_times(
    least: int, teacher_file: Path, ingested: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: Counter[tuple[bool, bool]] = Counter()
    real = student_step

    def watched(state: State, context: StepContext) -> dict[str, torch.Tensor]:
        logged = real(state, context)
        kinds["agreement_replay" in logged, "replay_pixel" in logged] += 1
        return logged

    monkeypatch.setattr(plan, "student_step", watched)
    wanted = toy.toy_recipe(teacher_file, method={"replay": {"start": 0.9}, "vae": {"gate": 0.5}})
    plan.measure_cost(ingested, wanted, Stop(), least_steps=least)
    assert kinds.pop((True, True)) == 2, "the step that takes the most memory is made, too"
    assert set(kinds) == {(False, False), (False, True), (True, False)}
    assert all(count > max(3, least) for count in kinds.values()), "counted once, then timed"


@pytest.mark.parametrize(
    ("gate", "share"),
    [
        *((0.0, (0.5, 0.0)), (1.0, (0.0, 0.0))),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in ((0.0, (0.0, 0.0)), (1.0, (0.5, 0.0)))),
    ],
)
def test_the_macs_of_a_plan_are_those_that_the_run_executes(
    gate: float, share: tuple[float, float], teacher_file: Path, tmp_path: Path
) -> None:
    method = {
        "steps": 12,
        "replay": {"start": 0.25},
        "vae": {"gate": gate},
        "generator": {"warmup": 2},
        "procedural": {"share": share},
        "consolidation": {"start": 0.75},
    }
    recipe = toy.toy_recipe(teacher_file, method=method)
    run = toy.advance(tmp_path / "toy", recipe, ("ingest",))
    cost = plan.measure_cost(run, recipe, Stop())
    last = toy.advance(run.path, recipe, ("distill",)).last_logged(TrainEvent)
    assert last is not None
    # The first update of the VAE has nothing to rehearse, and the shares of procedural images are whole images.
    planned = cost.macs if gate == 0 else cost.macs_without_replay
    assert planned == pytest.approx(last.macs, rel=0.05)
    assert cost.macs > cost.macs_without_replay


def test_the_rehearsal_of_the_vae_counts_too(teacher_file: Path, ingested: RunDir) -> None:
    def flops(rehearsed: int) -> float:
        recipe = toy.toy_recipe(teacher_file, method={"vae": {"gate": 0.0, "rehearsed": rehearsed}})
        return flops_by_part(ingested, recipe)["replay"]

    assert flops(8) > 1.2 * flops(0)


def test_student_and_replay_are_told_apart_where_every_step_trains_the_vae(
    teacher_file: Path, ingested: RunDir
) -> None:
    def flops(period: int) -> dict[str, float]:
        method = {"generator": {"period": period}, "vae": {"updates": 1, "gate": 0.0}, "replay": {"start": 0.0}}
        return flops_by_part(ingested, toy.toy_recipe(teacher_file, method=method))

    every, second = flops(1), flops(2)
    assert every["student"] == second["student"]
    assert every["replay"] == pytest.approx(2 * second["replay"], rel=0.01)
    assert every["generator"] == pytest.approx(2 * second["generator"], rel=0.01)


def test_the_networks_that_are_trained_are_counted(teacher_file: Path, ingested: RunDir) -> None:
    cost = plan.measure_cost(ingested, toy.toy_recipe(teacher_file), Stop())
    assert list(cost.parameters) == ["student", "generator", "encoder", "decoder"]
    assert (
        cost.parameters["student"]
        == footprint.build_with_footprint(toy.STUDENT, input_shape=toy.SHAPE, classes=4, seed=0)[1].parameters
    )
    without = toy.toy_recipe(teacher_file, method={"replay": {"source": "none"}})
    assert list(plan.measure_cost(ingested, without, Stop()).parameters) == ["student", "generator"]


def test_generator_and_replay_count_with_the_share_of_the_steps_they_learn_in(
    teacher_file: Path, ingested: RunDir
) -> None:
    def flops(start: float) -> dict[str, float]:
        method = {"consolidation": {"start": start}, "vae": {"gate": 0.0}, "replay": {"start": 0.0}}
        return flops_by_part(ingested, toy.toy_recipe(teacher_file, method=method))

    whole, quarter = flops(1.0), flops(0.25)
    assert set(quarter) == set(whole) == {"generator", "student", "replay", "replayed"}
    for part, share in {"generator": 0.25, "replay": 0.25, "student": 1, "replayed": 1}.items():
        assert quarter[part] == pytest.approx(share * whole[part], rel=0.01)


def test_what_was_timed_before_a_stop_is_not_timed_again(teacher_file: Path, tmp_path: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    run = toy.advance(tmp_path / "toy", wanted, ("ingest",))
    kept: list[set[str]] = []
    while len(kept) < 20:
        try:
            cost = plan.measure_cost(run, wanted, Stop(0.0))
            break
        except StoppedEarly:
            planning = run.ledger().planning
            assert planning is not None
            kept.append(set(planning.costs))
    assert [len(names) for names in kept] == [*range(1, len(kept) + 1)], "each call measured one thing more"
    assert kept[2] == {"all", "generator", "warmup"}
    whole = plan.measure_cost(run, recipe.with_changes(wanted, {"seed": 2}), Stop())
    assert {p: sum(c.flops.values()) for p, c in cost.cost_by_part.items()} == {
        p: sum(c.flops.values()) for p, c in whole.cost_by_part.items()
    }
    assert cost.peak_memory_bytes > 0
    with pytest.raises(StoppedEarly):
        plan.measure_cost(run, recipe.with_changes(wanted, {"seed": 3}), Stop(0.0))


def test_too_little_memory_names_the_largest_batch_that_fits(
    teacher_file: Path, ingested: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = student_step

    def hungry(state: State, context: StepContext) -> dict[str, torch.Tensor]:
        if context.recipe.method.student.batch_size > 20:
            raise torch.OutOfMemoryError("out of memory")
        return real(state, context)

    monkeypatch.setattr(plan, "student_step", hungry)
    wanted = toy.toy_recipe(teacher_file, method={"student": {"batch_size": 64}})
    with pytest.raises(MachineError, match=r"batches of 64; a batch of 16 fits: --set method.student.batch_size=16"):
        plan.measure_cost(ingested, wanted, Stop())


def test_a_machine_too_small_for_any_batch_is_told(
    teacher_file: Path, ingested: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starving(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(plan, "student_step", starving)
    with pytest.raises(MachineError, match="not even a batch of 8 fits"):
        plan.measure_cost(ingested, toy.toy_recipe(teacher_file), Stop())


def test_the_named_batch_is_one_the_recipe_accepts(teacher_file: Path, ingested: RunDir) -> None:
    wanted = toy.toy_recipe(teacher_file, method={"student": {"batch_size": 16}})
    assert wanted.method.vae.novel <= 16
    assert VAE.from_table(wanted.method.vae, toy.SHAPE, batchnorm=True, upsamplings=0).latent == 6
