"""Networks nobody wrote: whatever operators meet, a compact network is exact and costs what was predicted.

More of them: `python -m benchmarks.random_networks --cases 10000`.
"""

import random

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from random_networks import LEFT_OUT, RandomNet, Recipe, check, random_recipe, recipes, shrunk, vocabulary


@pytest.mark.parametrize("chunk", range(2))
def test_random_networks_are_pruned_exactly(chunk):
    @seed(chunk)
    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(recipes())
    def run(recipe):
        check(recipe)

    run()


ONCE_BROKEN = {
    "few random numbers, that drop the same under two seeds": Recipe(
        steps=(("conv", 0, 0, 3, 4), ("pool", 0, 0, 2, 0), ("Attention", 0, 0, 2, 0), ("Dropped", 2, 0, 2, 0)),
        dims=1,
        size=4,
    ),
    "a bias before a norm that nothing reaches": Recipe(
        steps=(("cbr", 0, 0, 3, 0), ("Residual", 0, 0, 2, 4)),
    ),
    "a branch of one channel dies beside one that lives": Recipe(
        steps=(
            ("conv", 0, 0, 2, 0), ("halves", 0, 0, 2, 1), ("Dropped", 0, 0, 2, 11), ("ConvNext", 3, 4, 6, 10),
            ("conv", 1, 0, 6, 4), ("computed_weight", 0, 4, 12, 5), ("CrossAttention", 2, 1, 11, 3),
        ),
    ),
    "a dead layer whose weight is used as data": Recipe(
        steps=(("Residual", 0, 0, 2, 0), ("SharedWeight", 0, 0, 2, 2), ("pad", 1, 0, 2, 0)),
    ),
    "what is written through a view, read under its first name": Recipe(
        steps=(("Inplace", 0, 0, 2, 11), ("CrossAttention", 0, 0, 2, 0)), realisation="indexed"
    ),
    "a literal that only breaks where another reader is dead": Recipe(
        steps=(
            ("conv", 0, 0, 7, 0), ("Concat", 0, 0, 2, 0), ("pad", 1, 0, 2, 9), ("Gate", 0, 0, 2, 1),
            ("conv", 1, 3, 13, 8), ("SqueezeExcite", 2, 3, 8, 4), ("Concat", 0, 2, 3, 6), ("Shuffle", 1, 0, 6, 9),
        ),
        seed=30,
    ),
    "a part is written, the whole is read": Recipe(
        steps=(
            ("Inplace", 0, 0, 2, 1), ("Inplace", 0, 0, 2, 0), ("conv", 0, 0, 2, 0), ("copies", 0, 0, 2, 0),
            ("Film", 3, 0, 2, 2),
        ),
        realisation="indexed",
    ),
    "a literal that half of the channels fit by luck": Recipe(
        steps=(
            ("conv", 0, 0, 6, 0), ("norm", 0, 0, 2, 0), ("to_vector", 0, 0, 2, 0), ("SqueezeExcite", 2, 0, 3, 0),
            ("Residual", 0, 2, 12, 10), ("LiteralView", 1, 4, 4, 5),
        ),
        size=4,
        seed=93,
    ),
    "attention whose kernel depends on widths": Recipe(
        steps=(
            ("SharedWeight", 0, 0, 2, 2), ("conv", 0, 0, 12, 0), ("Dense", 0, 0, 2, 0),
            ("CrossAttention", 1, 0, 12, 0),
        ),
    ),
    "an expansion that names the width": Recipe(
        steps=(("conv", 0, 0, 2, 0), ("LiteralView", 0, 0, 2, 7), ("Residual", 0, 0, 2, 0)), realisation="indexed"
    ),
    "a number of groups in an attribute, at a width where only outputs change": Recipe(
        steps=(("depthwise", 0, 0, 12, 4), ("Shuffle", 0, 0, 2, 8))
    ),
    "a channel made of an input's": Recipe(steps=(("copies", 0, 0, 2, 8), ("Dense", 0, 0, 2, 0))),
    "a single channel that is resized": Recipe(
        steps=(("cbr", 0, 0, 2, 0), ("halves", 0, 0, 2, 1), ("UNet", 0, 0, 2, 0), ("Add", 0, 1, 2, 0)),
        realisation="indexed",
    ),
    "attention that nothing reads": Recipe(
        steps=(("cbr", 0, 0, 2, 0), ("transposed", 0, 0, 2, 2), ("Attention", 1, 0, 2, 0)),
    ),
    "a width as a number, read only where whole sites are dead": Recipe(
        steps=(("conv", 0, 0, 2, 0), ("scalar", 0, 0, 2, 7), ("Film", 0, 0, 2, 0))
    ),
    "a width as a number, halved by the one channel that no trial closed": Recipe(
        steps=(
            ("SharedWeight", 0, 0, 2, 0), ("scalar", 0, 0, 2, 6), ("over_positions", 0, 0, 2, 0),
            ("LiteralSplit", 2, 1, 8, 4), ("TwiceCalled", 0, 4, 8, 9), ("to_vector", 3, 4, 11, 0),
        )
    ),
    "a width as a number, where one of two channels is shut by a ReLU": Recipe(
        steps=(
            ("conv", 0, 0, 2, 1), ("scalar", 0, 0, 2, 6), ("Film", 0, 0, 3, 5), ("preactivation", 0, 2, 2, 0),
        ),
        heads=(("map", 0),),
    ),
    "a width as a number, behind activations that are shut on the example": Recipe(
        steps=(
            ("conv", 0, 0, 4, 2), ("scalar", 0, 0, 2, 6), ("Film", 0, 0, 7, 0), ("TwiceCalled", 0, 0, 8, 6),
            ("Attention", 0, 1, 3, 10),
        ),
    ),
    "nothing left to blame at fewer channels": Recipe(
        steps=(
            ("cbr", 0, 0, 2, 0), ("Concat", 0, 0, 2, 0), ("Inplace", 0, 0, 2, 0), ("Gate", 3, 0, 2, 0),
            ("Mixer", 1, 0, 2, 0),
        )
    ),
    "a width as a number, wrong only where two sites of its stream are narrow": Recipe(
        steps=(("conv", 0, 0, 2, 0), ("scalar", 0, 0, 2, 6), ("Residual", 0, 0, 2, 0)), realisation="indexed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE_BROKEN)
def test_what_once_broke(name):
    check(ONCE_BROKEN[name])


def test_every_operator_of_the_vocabulary_fits_somewhere():
    never = set(vocabulary())
    for i in range(600):
        never -= set(RandomNet(random_recipe(random.Random(i).randint)).applied)
        if not never:
            break
    assert not never
    assert not LEFT_OUT.keys() & set(vocabulary())


def test_a_recipe_prints_as_the_line_that_makes_it():
    for i in range(20):
        recipe = random_recipe(random.Random(i).randint)
        assert eval(repr(recipe), {"Recipe": Recipe}) == recipe


def test_shrinking_leaves_the_step_that_fails():
    drawn = (random_recipe(random.Random(i).randint) for i in range(99))
    recipe = next(r for r in drawn if len(r.steps) > 4 and "norm" in [name for name, *_ in r.steps])
    small = shrunk(recipe, lambda r: "norm" in [name for name, *_ in r.steps], tries=1000)
    assert small == Recipe(steps=(("norm", 0, 0, 2, 0),), heads=small.heads)
    assert len(small.heads) == 1
