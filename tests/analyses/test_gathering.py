"""Gathering of results: every number belongs to its task, recipe, seed, step and head."""

from types import SimpleNamespace

import claim2_not_depth_not_generalisation
import claim4_proximity
import claim5_blindness
import contrast
import numpy as np
import pytest
import xarray as xr
from lab import Lab
from settings import SEARCHED, SEEDS, candidates, setting

from attnprobe.statistics.directions import SUBSPACES
from attnprobe.training.loop import checkpoint_steps

SEED = {seed: number for number, seed in enumerate(SEEDS["quick"])}
RECIPES = ("supervised", "spt")


def code(config, step, head=0):
    """Return a number that encodes recipe, seed, step and head, and increases with step and head."""
    return 1000 * RECIPES.index(config.recipe) + 100 * SEED.get(config.seed, 9) + step / config.steps + 0.1 * head


class Coded(Lab):
    """Lab whose runs and measures return encoded numbers."""

    def train(self, configs):
        return {
            key: SimpleNamespace(
                config=config,
                metrics=[
                    {
                        **{f"{split}_accuracy": code(config, 0) for split in ("train", "test")},
                        "validation_accuracy": config.learning_rate,
                        "validation_loss": -config.steps,
                    }
                ],
            )
            for key, config in configs.items()
        }

    def measure(self, asked):
        return {key: self.result_of(request) for key, request in asked.items()}

    def result_of(self, request):
        values = np.array([[code(request.run.config, request.step, head) for head in range(2)]])
        heads = ("layer", "head")
        if request.measure == "interventions":
            edits = list(reversed(claim4_proximity.EDITS))
            changes = np.array([code(request.run.config, request.step, edits.index(edit)) for edit in edits])
            null = np.broadcast_to(changes / 2, (3, 1, len(edits)))
            found = {
                "all_accuracy_change": ("intervention", changes),
                "all_accuracy_change_null": (("draw", "null", "intervention"), null),
            }
            return xr.Dataset(found, {"intervention": edits})
        if request.measure == "positions":
            terms = np.stack([-values, values / 4])
            return xr.Dataset(
                {"proximity_contrast": (("term", *heads), terms)}, {"term": ["content-content", "position-position"]}
            )
        null = np.broadcast_to(values / 2, (2, 3, 1, 2))
        found = {
            "proximity_contrast": (heads, values),
            "proximity_contrast_null": (("null", "draw", *heads), null),
        }
        return xr.Dataset(found, {"null": ["initial", "permuted"]})


@pytest.fixture(scope="module")
def proximity():
    return claim4_proximity.study(Coded("quick"))


def test_claim_4_stores_contrasts_by_recipe_checkpoint_and_seed(proximity):
    for recipe in RECIPES:
        for seed in SEED:
            config = setting("pairs", recipe, seed, steps=400)
            for place, step in enumerate(checkpoint_steps(config)):
                at = {"task": "pairs", "recipe": recipe, "checkpoint": place, "seed": seed}
                largest = code(config, step, head=1)
                assert float(proximity["contrast"].sel(at)) == pytest.approx(largest)
                assert float(proximity["contrast_null"].sel(at)) == pytest.approx(largest / 2)
                assert float(proximity["contrast_position"].sel(at)) == pytest.approx(largest / 4)
                assert float(proximity["step_of"].sel(task="pairs", recipe=recipe, checkpoint=place)) == step


def test_claim_4_compares_the_ends_of_training_and_of_self_pretraining(proximity):
    spt = setting("pairs", "spt", 11, steps=400)
    switch = spt.pretrain_steps / spt.steps
    assert float(proximity["contrast_gain"].squeeze()) == pytest.approx(1000)
    assert float(proximity["contrast_grown"].squeeze()) == pytest.approx(switch)
    after = np.mean([code(setting("pairs", "spt", seed, steps=400), spt.pretrain_steps, 1) for seed in SEED])
    assert float(proximity["contrast_excess"].squeeze()) == pytest.approx(after / 2)
    assert float(proximity["contrast_by_task"].mean()) == pytest.approx(after / 2)
    assert (proximity["gain_by_task"] == 1000).all()


def test_claim_4_stores_edits_by_name_and_seed(proximity):
    for number, edit in enumerate(reversed(claim4_proximity.EDITS)):
        for seed in SEED:
            changed = code(setting("pairs", "spt", seed, steps=400), 1) // 1 + 1 + 0.1 * number
            one = proximity.sel(intervention=edit, task="pairs", seed=seed)
            assert float(one["edited"]) == pytest.approx(changed)
            assert float(one["edited_null"]) == pytest.approx(changed / 2)


def test_claim_2_repeats_the_supervised_search_at_the_largest_depth():
    requested = []

    class Watched(Coded):
        def train(self, configs):
            requested.append(list(configs.values()))
            return super().train(configs)

    found = claim2_not_depth_not_generalisation.study(Watched("quick"))
    *_, tried, chosen = requested
    assert {config.seed for config in tried} == {SEARCHED} and [config.learning_rate for config in tried] == [
        one[0] for one in candidates("supervised")[-2:]
    ]
    assert {config.model.n_layers for config in (*tried, *chosen)} == {2}
    assert {config.recipe for config in (*tried, *chosen)} == {"supervised"}
    best = max(tried, key=lambda config: (config.learning_rate, config.steps))
    assert {(config.learning_rate, config.steps, config.seed) for config in chosen} == {
        (best.learning_rate, best.steps, seed) for seed in SEED
    }
    assert float(found["searched_gain"]) == pytest.approx(1000)
    place = {"recipe": "spt", "size": 1000, "times": 0.5, "seed": 12}
    assert float(found["surface_test_accuracy"].sel(place)) == 1100
    assert found["searched_test_accuracy"].values.tolist() == [0, 100]


def test_contrasts_at_the_end_are_from_the_last_step_and_nan_without_a_run():
    axes = {"recipe": list(RECIPES), "seed": list(SEED)}
    configs = {(recipe, seed): setting("pairs", recipe, seed, steps=400) for recipe in RECIPES for seed in SEED}
    lab, last = Coded("quick"), ("spt", 12)
    runs = {key: run for key, run in lab.train(configs).items() if key != last}
    found = xr.Dataset(contrast.at_the_end(lab, runs, axes), axes)
    for (recipe, seed), config in configs.items():
        largest = np.nan if (recipe, seed) == last else code(config, config.steps, head=1)
        at = {"recipe": recipe, "seed": seed}
        assert float(found["contrast"].sel(at)) == pytest.approx(largest, nan_ok=True)
        assert float(found["contrast_null"].sel(at)) == pytest.approx(largest / 2, nan_ok=True)


def test_claim_5_stores_signals_by_task_stage_step_and_seed():
    directions, losses = list(claim5_blindness.DIRECTIONS), list(claim5_blindness.LOSSES)

    def result_with(number, of_losses):
        """Return a result with encoded numbers and its directions in another order."""
        shape = (len(of_losses), 1, 2, len(directions))
        along = np.arange(len(directions))[::-1] + 100.0 * np.array([losses.index(loss) for loss in of_losses])[:, None]
        snr = number + np.broadcast_to(along[:, None, None], shape)
        rest = ("loss", "layer", "head")
        shares = np.broadcast_to(number + np.arange(len(SUBSPACES)), (*shape[:3], len(SUBSPACES)))
        found = {
            "snr": ((*rest, "direction"), snr),
            "positive_share": ((*rest, "direction"), snr),
            "snr_null": (("null", "draw", *rest, "direction"), np.broadcast_to(snr, (1, 4, *shape))),
            "energy_share": ((*rest, "subspace"), shares),
            "energy_share_of_noise": ("subspace", np.ones(len(SUBSPACES))),
        }
        coordinates = {
            "loss": of_losses,
            "direction": directions[::-1],
            "null": ["permuted"],
            "subspace": list(SUBSPACES),
        }
        return xr.Dataset(found, coordinates, {"sequences": 64})

    tasks, seeds, stage = ("pairs", "bigrams"), (12, 11), claim5_blindness.STAGES[1]
    numbers = {(task, seed): 1e4 * (i + 1) + 1e3 * j for i, task in enumerate(tasks) for j, seed in enumerate(seeds)}
    measured = {
        (task, name, 0, seed): result_with(number + place / 2, list(of_losses))
        for (task, seed), number in numbers.items()
        for place, (name, of_losses) in enumerate(claim5_blindness.UNIFORM.items())
    }
    measured |= {
        (task, stage, step, seed): result_with(number + 500 + step, ["masked"])
        for (task, seed), number in numbers.items()
        for step in (30, 0)
    }
    measured |= {
        (*key[:1], other, *key[2:]): one
        for key, one in measured.items()
        if key[1] == stage
        for other in claim5_blindness.STAGES
    }
    variables = {**claim5_blindness.of_uniform(measured), **claim5_blindness.of_training(measured)}
    axes = {"task": tasks, "seed": seeds, "loss": losses, "direction": directions, "stage": claim5_blindness.STAGES}
    found = xr.Dataset(variables, {name: list(values) for name, values in axes.items()})
    for (task, seed), number in numbers.items():
        for place, direction in enumerate(directions):
            for offset, loss in ((0, "labels"), (200.5, "one masked"), (200, "masked")):
                at = {"task": task, "seed": seed, "loss": loss, "direction": direction}
                assert float(found["snr"].sel(at)) == pytest.approx(number + offset + place)
        for checkpoint, step in enumerate((0, 30)):
            at = {"task": task, "seed": seed, "stage": stage, "checkpoint": checkpoint}
            masked = number + 500 + step + 200 + directions.index(claim5_blindness.PROXIMITY)
            assert float(found["training_snr"].sel(at)) == pytest.approx(masked)
            assert float(found["training_step"].sel(task=task, stage=stage, checkpoint=checkpoint)) == step
