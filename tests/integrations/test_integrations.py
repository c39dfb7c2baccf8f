"""Every example runs: trains, prunes, compacts, fine-tunes. The callbacks against a plain loop."""

import importlib.util
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import chipnet
from chipnet import ChipNetError, ConfigError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")  # of other people's trainers


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classification", {"epochs": 1, "limit": 160}),
        ("segmentation", {"steps": 12}),
        ("detection", {"steps": 12}),
        ("regression", {"steps": 20}),
    ],
)
def test_examples(name, options, capsys):
    assert isinstance(example(name).main(**options), nn.Module)
    assert "%" in capsys.readouterr().out


def test_own_loop(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["own_loop.py", "--epochs", "1", "--images", "200"])
    runpy.run_path(str(EXAMPLES / "own_loop.py"), run_name="__main__")
    assert "fine-tuned: " in capsys.readouterr().out


def test_every_example_is_run_here():
    run = {"own_loop", "classification", "segmentation", "detection", "regression"}
    run |= {"accelerate_loop", "lightning_trainer", "transformers_trainer"}
    assert {p.stem for p in EXAMPLES.glob("*.py")} == run


def test_accelerate():
    pytest.importorskip("accelerate")
    small = example("accelerate_loop").main(epochs=2, images=128)
    assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 2)


def test_lightning(tmp_path):
    module, callback = example("lightning_trainer").main(epochs=2, images=128)
    assert module.model is callback.compact
    assert sum(p.numel() for p in module.model.parameters()) == callback.plan.compact.params
    chipnet.save(module.model, callback.plan, tmp_path / "small.safetensors")
    again = chipnet.load(
        lambda: example("lightning_trainer").Classifier().model, tmp_path / "small.safetensors"
    )
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.eval()(x), module.model.eval()(x))


def plain(module, loader, epochs, accumulate):
    """What the callback must do, written out: masks and weights after soft pruning."""
    network = module.model
    optimizer = module.configure_optimizers()
    steps = epochs * len(loader) // accumulate
    pruner = chipnet.Pruner(network, torch.zeros(1, 1, 8, 8), "macs=0.4", steps=steps)
    module.train()
    for _ in range(epochs):
        for i, batch in enumerate(loader):
            (module.training_step(batch, i) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                loss = pruner.loss()
                if loss.requires_grad:
                    loss.backward()
                optimizer.step()
                pruner.step()
                optimizer.zero_grad()
    return pruner.harden()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_lightning_callback_is_the_plain_loop(accumulate):
    import copy

    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    from chipnet.integrations.lightning import PruningCallback

    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 8)
    loader = DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=16)
    module = example("lightning_trainer").Classifier()
    twin = copy.deepcopy(module)
    callback = PruningCallback("macs=0.4", x[:1], network="model")
    trainer = lightning.Trainer(
        max_epochs=3, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, loader)
    plan = plain(twin, loader, 3, accumulate)
    assert callback.plan == plan
    torch.testing.assert_close(module.model.state_dict(), chipnet.compact(twin.model, plan).state_dict())


def test_a_lightning_fit_that_continues_from_a_checkpoint_has_the_same_masks(tmp_path):
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    from chipnet.integrations.lightning import PruningCallback

    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 8)
    loader = DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=16)
    start = example("lightning_trainer").Classifier().state_dict()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }

    class Saving(lightning.pytorch.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    plans = []
    for checkpoint in (None, tmp_path / "half.ckpt"):
        module = example("lightning_trainer").Classifier()
        module.load_state_dict(start)
        callback = PruningCallback("macs=0.4", x[:1], network="model")
        callbacks = [callback] if checkpoint else [callback, Saving()]
        trainer = lightning.Trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=False, **quiet)
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=False)
        plans.append(callback.plan)
    assert plans[0] == plans[1]


def test_mistakes_with_callbacks():
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    from chipnet.integrations.lightning import PruningCallback

    x = torch.randn(16, 1, 8, 8)
    loader = DataLoader(TensorDataset(x, torch.zeros(16, dtype=torch.long)), batch_size=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
             "enable_model_summary": False, "accelerator": "cpu"}  # fmt: skip
    module = example("lightning_trainer").Classifier()
    with pytest.raises(ConfigError, match=r"Classifier has no module 'net'; it has model\."):
        lightning.Trainer(max_epochs=1, callbacks=[PruningCallback("macs=0.4", x, "net")], **quiet).fit(
            module, loader
        )

    class Stopping(lightning.pytorch.Callback):
        def on_train_batch_end(self, trainer, *rest):
            trainer.should_stop = True

    with pytest.raises(ChipNetError, match=r"training stopped after 2 of the 6 steps of soft pruning"):
        callbacks = [PruningCallback("macs=0.4", x[:1], "model"), Stopping()]
        lightning.Trainer(max_epochs=3, min_epochs=1, callbacks=callbacks, **quiet).fit(module, loader)


def test_transformers(tmp_path):
    pytest.importorskip("transformers")
    made = example("transformers_trainer")
    callback = made.main(epochs=2, images=64)
    assert type(callback.compact) is made.ResNetForImageClassification
    assert sum(p.numel() for p in callback.compact.parameters()) == callback.plan.compact.params
    chipnet.save(callback.compact, callback.plan, tmp_path / "small.safetensors")


def test_a_transformers_training_that_continues_ends_with_the_same_bits(tmp_path):
    """From its last checkpoint, in a new trainer with a new callback; also where that lies in another folder."""
    pytest.importorskip("transformers")
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from chipnet.integrations.transformers import FILE, PruningCallback

    made = example("transformers_trainer")
    data = made.Noise(64)
    config = made.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
    )

    class Stopping(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    def train(folder, *others, resume=None, **options):
        torch.manual_seed(0)
        callback = PruningCallback("macs=0.5", {"pixel_values": data.x[:1]})
        arguments = TrainingArguments(
            str(tmp_path / folder), num_train_epochs=4, per_device_train_batch_size=16, learning_rate=1e-2,
            report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", save_strategy="steps",
            save_steps=3, **options,
        )  # fmt: skip
        model = made.ResNetForImageClassification(config)
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback, *others])
        trainer.train(resume_from_checkpoint=resume)
        return callback

    whole = train("whole")
    with pytest.raises(ChipNetError, match="training stopped after 6 of the 16 steps"):
        train("half", Stopping())
    half = tmp_path / "half" / "checkpoint-6"
    assert sorted(p.name for p in half.parent.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    for again in (
        train("half", resume=True),
        train("elsewhere", resume=str(half), resume_from_checkpoint=str(half)),
    ):
        assert again.plan == whole.plan
        state, expected = again.compact.state_dict(), whole.compact.state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    with pytest.raises(ConfigError, match=r"the masks' state is not in .*nowhere.checkpoint-6"):
        train("nowhere", resume=str(half))
    (half / FILE).unlink()
    with pytest.raises(ConfigError, match="must have been saved with this callback"):
        train("half", resume=str(half))
