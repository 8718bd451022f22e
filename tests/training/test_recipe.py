"""Recipes: those that come with the package, and what is refused."""

from __future__ import annotations

import pytest

from s2d.errors import InputError
from s2d.models.config import ModelConfig
from s2d.training.recipe import Recipe, load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.rounds[0].annotations == "keymasks"


def test_the_small_recipe_ends_on_dense_predictions_and_learns_scores():
    recipe = load_recipe("cpu-small")
    assert recipe.rounds[-1].annotations == "predictions"
    assert recipe.model.norm == "GN"
    assert recipe.loss.match_class == 0
    assert recipe.loss.class_loss == 2


def test_the_paper_recipes_say_the_papers_numbers():
    sparse = load_recipe("paper-sparse")
    assert sparse.model == ModelConfig()
    assert (sparse.loss.mask, sparse.loss.dice, sparse.loss.class_loss) == (5, 5, 0)
    assert sparse.loss.num_points == 160_000
    assert (sparse.teacher.momentum, sparse.teacher.threshold) == (0.999, 0.75)
    assert sparse.optimizer.learning_rate == 1e-6
    assert sparse.optimizer.clip_norm == 0.01
    assert sparse.rounds[0].steps == 32_000
    assert (sparse.clips.frames, sparse.clips.batch) == (3, 4)
    assert sparse.execution.precision == "fp16"
    for name in ("paper-dense", "paper-self"):
        dense = load_recipe(name)
        assert (dense.loss.class_loss, dense.loss.frames) == (2, "all")
    assert load_recipe("paper-dense").rounds[0].distill_from is None
    assert load_recipe("paper-self").rounds[0].distill_from == 0


def test_a_recipe_is_itself_and_a_file_is_read(tmp_path):
    recipe = load_recipe("cpu-small")
    assert load_recipe(recipe) is recipe
    file = tmp_path / "mine.toml"
    file.write_text('[model]\nnum_queries = 7\n[[rounds]]\nname = "a"\nannotations = "keymasks"\nsteps = 3\n')
    mine = load_recipe(file)
    assert isinstance(mine, Recipe)
    assert (mine.name, mine.model.num_queries, mine.rounds[0].steps) == ("mine", 7, 3)


def test_values_are_changed_by_their_names():
    changes = ["loss.num_points=12_544", "model.norm=GN", "clips.size=[96, 160]", "rounds.0.steps = 7", "seed=3"]
    changed = load_recipe("paper-sparse", changes)
    assert (changed.loss.num_points, changed.model.norm, changed.clips.size) == (12_544, "GN", (96, 160))
    assert (changed.rounds[0].steps, changed.seed) == (7, 3)
    assert changed.teacher == load_recipe("paper-sparse").teacher


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loss", "expected a change such as loss.num_points=1000, got 'loss'"),
        ("=3", "got '=3'"),
        ("rounds.5.steps=3", "got 'rounds.5.steps=3'"),
        ("rounds.first.steps=3", "got 'rounds.first.steps=3'"),
        ("seed.steps=3", "got 'seed.steps=3'"),
        ("loss.points=3", "got points"),
        ("loss.mask=much", "expected float for mask"),
        ("clips.decoder=vhs", "expected decoder to be one of"),
    ],
)
def test_changes_that_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        load_recipe("cpu-small", [change])


ROUND = '[[rounds]]\nname = "a"\nannotations = "keymasks"\nsteps = 3\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[model\n", "expected TOML"),
        ("speed = 3\n" + ROUND, "got speed"),
        ("[loss]\nmaks = 3\n" + ROUND, "got maks"),
        ("[loss]\nmask = 'much'\n" + ROUND, "expected float for mask"),
        ("[loss]\nframes = 'some'\n" + ROUND, "annotated or all"),
        ("[loss]\nbehaviour = 'odd'\n" + ROUND, "corrected or official"),
        ("[execution]\nprecision = 'fp8'\n" + ROUND, "fp32 or bf16 or fp16"),
        ("[clips]\ncrop = [0.5]\n" + ROUND, "expected 2 values for crop"),
        ("loss = 3\n" + ROUND, "expected a table for loss"),
        ("[model]\ndepth = 11\n" + ROUND, "depth"),
        ("seed = 1\n", "at least one round"),
        (ROUND.replace("3", "0"), "at least one step"),
        (ROUND.replace("keymasks", "predictions"), "expected keymasks for annotations of round a"),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        load_recipe(file)


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(InputError, match=r"cpu-small.*got cpu-large"):
        load_recipe("cpu-large")
