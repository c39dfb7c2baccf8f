"""Options: one list of them, read from plain values, written and read back; every mistake is named."""

import dataclasses
import re
import typing
from pathlib import Path

import numpy as np
import pytest
import yaml

from chipnet import ConfigError
from chipnet.errors import Problems
from chipnet.lab.config import Recipe, Request, recipe_for
from chipnet.lab.config_file import read_config, started_by, write_config
from chipnet.lab.fit import fitted, options
from chipnet.lab.layers import plain, request_from, typed, unused


def test_every_option_has_a_help_text_and_a_type_that_values_are_checked_against():
    for cls in (Request, Recipe):
        for name, (_, text, default) in options(cls).items():
            assert text or name in ("train", "prune", "finetune"), name
            assert default is not None or type(None) in typing.get_args(options(cls)[name][0]), name


def test_a_request_survives_yaml(tmp_path):
    recipe = dataclasses.replace(recipe_for("digits"), nesterov=False, limit=100, adamw_lr=1e-5)
    request = Request(
        "m:f", "digits", ["macs=0.3", "params=2M"], tmp_path, recipe, ignore=("a*", "type:Linear"), seed=7
    )
    write_config(tmp_path / "c.yaml", request)
    again = request_from(read_config(tmp_path / "c.yaml"))
    assert plain(again) == plain(request)
    # How a run was started is no option: what repeats it was started otherwise.
    assert started_by(tmp_path) is None
    write_config(tmp_path / "config.yaml", dataclasses.replace(request, command="chipnet prune '[b]' é"))
    assert started_by(tmp_path) == "chipnet prune '[b]' é"
    assert request_from(read_config(tmp_path / "config.yaml")).command == Request().command
    assert (again.recipe, again.ignore, again.seed) == (recipe, request.ignore, 7)
    assert set(plain(request)) == set(options(Request)) - {"overwrite"} | {"recipe"}


def test_later_layers_win_and_a_batch_size_scales_the_rates_of_its_layer():
    layers = (
        {"seed": 1, "data": "digits", "recipe": {"train_lr": 0.2, "prune": 4}},
        {"recipe": {"batch_size": 64}},
    )
    made = request_from(*layers)
    assert (made.seed, made.recipe.prune, made.recipe.train_lr, made.recipe.prune_lr) == (1, 4, 0.4, 0.1)
    assert (
        request_from({"data": "digits", "recipe": {"batch_size": 64, "train_lr": 0.2}}).recipe.train_lr == 0.2
    )
    assert request_from({"data": "mnist", "quick": True}).recipe == recipe_for("mnist", quick=True)


def test_numbers_as_yaml_reads_them():
    values = yaml.safe_load("{validation: 1e-1, recipe: {weight_decay: 1e-3, train_lr: 1}}")
    made = request_from(values)
    assert (made.validation, made.recipe.weight_decay, made.recipe.train_lr) == (0.1, 1e-3, 1.0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"sede": 1}, "there is no option 'sede'; did you mean 'seed'?"),
        ({"round-tow": 8}, "did you mean 'round_to'?"),
        (
            {"recipe": {"label_smooting": 0.1}},
            "no option 'recipe.label_smooting'; did you mean 'recipe.label_sm",
        ),
        ({"train_lr": 0.1}, "there is no option 'train_lr'; it belongs inside of recipe"),
        ({"recipe": {"seed": 1}}, "there is no option 'recipe.seed'; it belongs outside of recipe"),
        ({"zzzz": 1}, "there is no option 'zzzz'; known: "),
        ({"seed": "one"}, "seed must be a whole number, not 'one'"),
        ({"seed": True}, "seed must be a whole number, not True"),
        ({"validation": "much"}, "validation must be a number, not 'much'"),
        ({"recipe": {"nesterov": 1}}, "recipe.nesterov must be true or false, not 1"),
        ({"recipe": 5}, "recipe must be a mapping of options, not 5"),
        ({"ignore": 5}, "ignore must be a text or a list of texts, not 5"),
        ({"only": ["layer1", 5]}, "only must be a text or a list of texts, not ['layer1', 5]"),
        ({"realisation": "sparse"}, "realisation must be 'plain' or 'indexed', not 'sparse'"),
        ({"model": 5}, "model must be a text, not 5"),
        ({"recipe": {"limit": "all"}}, "recipe.limit must be a whole number, not 'all'"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, dict) else "",
)
def test_mistakes_are_named_with_the_fix(values, text):
    with pytest.raises(ConfigError) as caught:
        request_from(values, source="c.yaml")
    assert text in str(caught.value)
    assert str(caught.value).startswith("cannot use c.yaml:\n  - ")


def test_one_pattern_is_a_list_of_one():
    assert request_from({"ignore": "layer1", "only": ["a", "b"]}).ignore == ("layer1",)


def test_values_of_python_become_those_of_a_file(tmp_path):
    asked = Request(
        budget="macs=0.5",
        seed=np.int64(3),
        data_dir=tmp_path,
        ignore=["a", "b"],
        only="c",
        validation=np.float64(0.2),
    )
    write_config(tmp_path / "c.yaml", typed(asked, Problems()))
    made = request_from(read_config(tmp_path / "c.yaml"))
    assert (made.seed, made.data_dir, made.ignore, made.only) == (3, str(tmp_path), ("a", "b"), ("c",))
    problems = Problems()
    assert typed(Request(seed="a", compile="no", threads=2), problems) == Request(threads=2)
    with pytest.raises(ConfigError, match=r"^seed must be a whole number, not 'a'; compile must be true or"):
        problems.tell()


def test_all_mistakes_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        request_from({"sede": 1, "recipe": {"momentun": 0.5, "warmup": "x"}})
    assert str(caught.value).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"- a\n- b", "holds a list, not options"),
        (b"", "holds a NoneType, not options"),
        (b"seed: [1", "cannot read the config file"),
        (b"\xff\xfe\x00", "cannot read the config file"),
        (b"seed: 2020-13-45", "cannot read the config file"),
        (b"seed: 1\nmodel: a\nseed: 2", "the key 'seed' is in line 1 and again in line 3: keep one"),
        (b"recipe:\n  prune: 1\n  'prune': 2", "the key 'prune' is in line 2 and again in line 3"),
        (b"a:\n  - b: {c: 1, d: 2,\n     c: 3}", "the key 'c' is in line 2 and again in line 3"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, text):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        read_config(tmp_path / "c.yaml")


def test_a_key_of_a_merged_mapping_may_be_given_again(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {x: 4, 5: 6, '5': 7}")
    chained = "base: &base {x: 0}\ndeep: {deeper: {a: &a {<<: *base, x: 1}}}\nb: {<<: *a}"
    (tmp_path / "chained.yaml").write_text(chained)
    assert read_config(tmp_path / "chained.yaml") == yaml.safe_load(chained)
    assert read_config(tmp_path / "c.yaml") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 4, 5: 6, "5": 7},
    }


def test_a_repeated_run_gets_a_new_folder(tmp_path):
    assert unused(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert unused(tmp_path / "run") == tmp_path / "run-3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("&a\n<<: *a\nseed: 1\n", "inside of what it stands for"),
        ("seed: &a [*a]\n", "inside of what it stands for"),
        ("x: " + "[" * 3000 + "]" * 3000, "nested deeper than"),
        ("x:\n" + "".join(" " * k + "x:\n" for k in range(1, 300)), "nested deeper than"),
        (
            "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 9)),
            "stands for more than",
        ),
        ("# " + "x" * 2_000_000, "longer than"),
    ],
    ids=["merges itself", "holds itself", "deep flow", "deep block", "billion laughs", "long"],
)
def test_a_file_that_is_larger_than_it_looks_is_refused_at_once(text, said, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_config(path)
    assert len(str(error.value)) < 500 + len(str(path))


def test_aliases_of_what_is_whole_are_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2\n")
    assert read_config(path) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("changes", [{"train": 10**20}, {"batch_size": 10**11}, {"limit": 10**20}])
def test_sizes_that_are_slips_of_the_pen_are_refused(changes):
    with pytest.raises(ConfigError, match="must be at most"):
        Recipe(1, 1, 1).changed(changes)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"seed": 2**63}, "seed must be at most 9,223,372,036,854,775,807, not 9223372036854775808"),
        ({"round_to": 0}, "round_to must be at least 1, not 0"),
        ({"round_to": 10**5000}, "round_to must be at most 1,000,000,000, not a number of many digits"),
        ({"checkpoint_seconds": "nan"}, "checkpoint_seconds must be finite, not nan"),
        ({"mean": ["0.5", "x"]}, "mean must be a number or a list of numbers, not ['0.5', 'x']"),
        ({"std": True}, "std must be a number or a list of numbers, not True"),
        ({"recipe": {"prune": 0}}, "recipe.prune must be at least 1, not 0"),
        ({"recipe": {"train": None}}, "recipe.train must be a whole number, not None"),
        ({"recipe": {"warmup": "1"}}, "recipe.warmup must be below 1, not 1.0"),
        ({"recipe": {"clip": 0}}, "recipe.clip must be above 0, not 0"),
        ({"recipe": {"clip_spikes": 1}}, "recipe.clip_spikes must be above 1, or 0 for no clipping, not 1"),
        ({"recipe": {"momentum": 10**5000}}, "recipe.momentum must be a number, not a number of many digits"),
        (
            {"recipe": {"schedule": ["step"]}},
            "schedule must be 'one-cycle', 'cosine' or 'step', not ['step']",
        ),
    ],
)
def test_what_a_value_must_be_is_told_in_words(values, said):
    with pytest.raises(ConfigError) as caught:
        request_from(values)
    assert f"{said}\n" in f"{caught.value}\n"


@pytest.mark.parametrize("cls", [Request, Recipe])
def test_any_value_becomes_one_of_the_type_or_a_sentence(cls):
    values = [
        None,
        True,
        0,
        -1,
        10**5000,
        0.5,
        float("nan"),
        "",
        "a",
        b"a",
        [],
        ["a"],
        [1],
        {},
        {"a": 1},
        {"a"},
        1j,
    ]
    values += [np.int64(3), np.float32(0.5), np.bool_(True), np.zeros(2), 1j, Path("a")]
    for name in options(cls):
        for value in values:
            problems = []
            found = fitted(cls, {name: value}, "", problems)
            assert (list(found), len(problems)) in (([name], 0), ([], 1))
            assert all(re.fullmatch(rf"{name} must be (?!Input).*, not .*", text) for text in problems), (
                problems
            )


def test_numpy_numbers_in_a_recipe_are_written(tmp_path):
    made = Recipe(np.int64(1), np.int64(2), 3, train_lr=np.float32(0.5))
    write_config(tmp_path / "c.yaml", Request("m:f", "digits", "macs=0.5", tmp_path, made))
    assert request_from(read_config(tmp_path / "c.yaml")).recipe == made
