"""Networks and runs that several test files read."""

import gc

import pytest


@pytest.fixture(autouse=True)
def _imported_modules_are_no_garbage() -> None:
    """A run collects garbage between its phases. What Python would look through then is nearly all PyTorch's: it is
    taken out of that once it is imported."""
    if len(gc.get_objects()) > 100_000:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def run_quarter(tmp_path_factory):
    """Makes finished runs: resnet8, one epoch a phase (two of pruning) on 160 digits, with changes."""
    from chipnet.lab.train import Recipe, Request, prepare, run

    def make(**changes):
        recipe = Recipe(1, 2, 1, batch_size=32, train_lr=0.05, prune_lr=0.05, limit=160, limit_test=60)
        out = tmp_path_factory.mktemp("runs") / "quarter"
        fields = {"accelerator": "cpu", "command": "chipnet prune", **changes}
        run(prepare(Request("resnet8", "digits", "macs=0.25", out, recipe, **fields)))
        return out

    return make


@pytest.fixture(scope="session")
def run_folder(run_quarter):
    """A finished run of the default method. Read it, never write into it."""
    return run_quarter()


@pytest.fixture
def request_for(tmp_path):
    """Makes requests for short runs of `tiny_net`, with changes."""
    from tiny import TINY

    from chipnet.lab.train import Request

    def make(**changes):
        fields = {
            "model": "tiny:tiny_net",
            "data": "digits",
            "budget": "macs=0.5",
            "out": tmp_path / "run",
            "recipe": TINY,
            "accelerator": "cpu",
            "command": "chipnet prune",
        }
        return Request(**{**fields, **changes})

    return make


@pytest.fixture
def no_training(monkeypatch):
    """A step of training is an error."""

    def train(*args, **kwargs):
        raise AssertionError("training has started")

    monkeypatch.setattr("chipnet.lab.loop.train_step", train)
