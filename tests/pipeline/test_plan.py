"""The plan is measured on throwaway networks and leaves the run as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toy
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import MachineError
from edgekd.models import footprint
from edgekd.pipeline import plan
from edgekd.pipeline.plan import CostPlan
from edgekd.run.directory import RunDir
from edgekd.stopping import Stop
from edgekd.synthesis.networks.vae import VAE
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext, student_step

PARTS = {"generator": 1e9, "student": 2e9, "replay": 1e9}
COST = CostPlan(
    steps=2000,
    seconds_per_step=0.25,
    peak_memory_bytes=3 << 30,
    device="cpu",
    threads=2,
    precision="fp32",
    flops_by_part=PARTS,
    parameters={"student": 10, "generator": 20},
    machine_peak_flops=64e9,
)


def test_a_plan_is_one_line_and_one_object() -> None:
    assert COST.sentence() == "cpu, fp32, 2 threads, 250 ms a step, about 8 min 20 s, 3.0 GiB memory"
    assert COST.to_json() == {
        "steps": 2000,
        "seconds_per_step": 0.25,
        "flops_per_step": 4e9,
        "flops_by_part": PARTS,
        "parameters": {"student": 10, "generator": 20},
        "machine_peak_flops": 64e9,
        "utilisation": 0.25,
        "eta_seconds": 500.0,
        "peak_memory_bytes": 3 << 30,
    }
    assert COST.with_steps(4).eta_seconds == 1.0
    assert COST.steps == 2000


def test_measuring_leaves_the_run_and_the_global_generators_alone(teacher_file: Path, ingested: RunDir) -> None:
    before = {p: sha256_of(p) for p in ingested.path.rglob("*") if p.is_file()}
    state = torch.get_rng_state()
    cost = plan.measure_cost(ingested, toy.toy_recipe(teacher_file, precision="fp32"), Stop())
    assert {p: sha256_of(p) for p in ingested.path.rglob("*") if p.is_file()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert (cost.steps, cost.device, cost.threads, cost.precision) == (12, "cpu", 1, "fp32")
    assert 1e-4 < cost.seconds_per_step < 5
    assert cost.peak_memory_bytes > 50 << 20
    assert all(flops > 0 for flops in cost.flops_by_part.values())
    assert 0 < cost.utilization < 1


@pytest.mark.parametrize("least", [1, 8])
def test_whole_periods_are_timed_with_replay_at_work(
    least: int, teacher_file: Path, ingested: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    real = student_step

    def watched(state: State, context: StepContext) -> dict[str, torch.Tensor]:
        logged = real(state, context)
        seen.append((state.step % 3, "agreement_replay" in logged))
        return logged

    monkeypatch.setattr(plan, "student_step", watched)
    wanted = toy.toy_recipe(teacher_file, method={"replay": {"start": 0.9}, "vae": {"gate": 0.5}})
    plan.measure_cost(ingested, wanted, Stop(), least_steps=least)
    periods = seen[3 + len(seen) % 3 :]  # before them a period warms up and single steps are counted
    assert [offset for offset, _ in periods] == [0, 1, 2] * (len(periods) // 3)
    assert len(periods) >= 3 * 3, "three are timed at least"
    assert len(periods) >= least
    assert all(replayed for _, replayed in periods)


def test_the_rehearsal_of_the_vae_counts_too(teacher_file: Path, ingested: RunDir) -> None:
    def flops(rehearsed: int) -> float:
        recipe = toy.toy_recipe(teacher_file, method={"vae": {"gate": 0.0, "rehearsed": rehearsed}})
        return plan.measure_cost(ingested, recipe, Stop()).flops_by_part["replay"]

    assert flops(8) > 1.2 * flops(0)


def test_student_and_replay_are_told_apart_where_every_step_trains_the_vae(
    teacher_file: Path, ingested: RunDir
) -> None:
    def flops(period: int) -> dict[str, float]:
        method = {"generator": {"period": period}, "vae": {"updates": 1, "gate": 0.0}, "replay": {"start": 0.0}}
        return plan.measure_cost(ingested, toy.toy_recipe(teacher_file, method=method), Stop()).flops_by_part

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


def test_consolidation_counts_with_its_share_of_the_steps(teacher_file: Path, ingested: RunDir) -> None:
    def flops(start: float) -> dict[str, float]:
        method = {"consolidation": {"start": start}, "vae": {"gate": 0.0}, "replay": {"start": 0.0}}
        return plan.measure_cost(ingested, toy.toy_recipe(teacher_file, method=method), Stop()).flops_by_part

    whole, quarter = flops(1.0), flops(0.25)
    assert set(quarter) == {*whole, "consolidation"}
    for name, expected in whole.items():
        assert quarter[name] == pytest.approx(0.25 * expected, rel=0.01)
    assert quarter["consolidation"] == pytest.approx(0.75 * whole["student"], rel=0.01)


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
