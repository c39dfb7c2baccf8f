"""Bad inputs and what they say: `docs/errors.md` is made from this table and compared with it.

UPDATE=1 pytest tests/test_errors.py     # writes docs/errors.md anew
"""

import os
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from tiny import TINY, TinyNet
from torch import nn

import chipnet
from chipnet import BudgetError, CaptureError, ChipNetError, ConfigError, LoadError, PlanError
from chipnet._util.lock import only_writer
from chipnet.errors import Mistakes
from chipnet.graph import rules
from chipnet.lab.config_file import read_config
from chipnet.lab.data import Batches, TensorImages, load_data
from chipnet.lab.layers import request_from
from chipnet.lab.models import get_model, load_weights
from chipnet.lab.runs.folder import Run, refuse_code
from chipnet.lab.train import Recipe, Request, evaluate, prepare
from chipnet.methods.schedules import Linear

DOC = Path(__file__).resolve().parents[1] / "docs" / "errors.md"


def run(**changes):
    fields = {"model": "tiny:tiny_net", "data": "digits", "budget": "macs=0.5", "out": "RUN",
              "recipe": TINY, "accelerator": "cpu"}  # fmt: skip
    return lambda: prepare(Request(**{**fields, **changes}))


X, Y = torch.zeros(4, 1, 6, 6), torch.arange(4)
BATCHES = [(X, Y)] * 2
LOADERS = {}


def given():
    return LOADERS["now"]


def loaders(train, validation=BATCHES, recipe=Recipe(1, 1, 1)):  # noqa: B008 (frozen)
    def call():
        sys.modules["test_errors"].LOADERS["now"] = train, validation
        run(data="test_errors:given", recipe=recipe)()

    return call


def config(**values):
    return lambda: request_from(values, source="my.yaml")


def recipe(**values):
    return lambda: Recipe(**{"train": 1, "prune": 1, "finetune": 1, **values})


def pruner(budget="macs=0.5", steps=5, example=None, **options):
    return lambda: chipnet.Pruner(
        TinyNet(10, 1),
        torch.zeros(1, 1, 8, 8) if example is None else example,
        budget,
        steps=steps,
        **options,
    )


def file(name, content=b""):
    def write():
        Path(name).write_bytes(content)
        return name

    return write


def loading(write):
    return lambda: chipnet.load(lambda: TinyNet(10, 1), write())


def other_network():
    model = TinyNet(10, 1)
    plan = chipnet.Pruner(model, torch.zeros(1, 1, 8, 8), "macs=0.5", steps=1).harden()
    chipnet.save(chipnet.compact(model, plan), plan, "small.safetensors")
    chipnet.load(lambda: TinyNet(7, 1), "small.safetensors")


def beside_structure(model=None, **options):
    dense = TinyNet(10, 1)
    return lambda: chipnet.Pruner(
        model or dense, chipnet.Structure(dense, torch.zeros(1, 1, 8, 8)), "macs=0.5", steps=1, **options
    )


def with_nan():
    model = TinyNet(10, 1)
    next(model.parameters()).data.fill_(float("nan"))
    chipnet.Pruner(model, chipnet.Structure(TinyNet(10, 1), torch.zeros(1, 1, 8, 8)), "macs=0.5", steps=1)


def state_of_another():
    pruner(budget="params=0.5")().load_state_dict(pruner()().state_dict())


def plan_of_another():
    plan = chipnet.Pruner(TinyNet(10, 1), torch.zeros(1, 1, 8, 8), "macs=0.5", steps=1).harden()
    chipnet.compact(TinyNet(10, 3), plan)


def broken_images():
    os.makedirs("C/cat")
    for i in range(20):
        file(f"C/cat/{i}.jpg", b"no image")()
    load_data("image-folder", "C").check_files()


def written_by_another():
    with only_writer(Path("D")), only_writer(Path("D")):
        pass


def locked():
    layer = nn.Linear(3, 2)
    layer.lock = threading.Lock()
    return nn.Sequential(layer)


def images(**changes):
    fields = {
        "images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8),
        "labels": torch.zeros(4, dtype=torch.int64),
    }
    return lambda: TensorImages(**{**fields, **changes})


def with_structure(do):
    """What `do` says of a small network and its structure."""

    def call():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        do(net, chipnet.Structure(net, torch.ones(1, 3)))

    return call


def diverged(net, structure):
    nn.init.constant_(net[0].weight, float("nan"))
    structure.plan([1] * 6)


def unverifiable(net, structure):
    chipnet.compact(net, structure.plan([1] * 6), torch.full((1, 3), float("nan"))[:0])


def saving(path):
    return lambda: chipnet.Masks({"norm": 11}, {"norm": [0]}, "Net", "plain").save(path)


def damaged_masks(budget="", kept=(0, 1)):
    def load():
        chipnet.Masks({"norm": 11}, {"norm": kept}, "Net", "plain", budget).save("m.json")
        chipnet.Masks.load("m.json")

    return load


CASES = [
    # what is wrong, how, the error, a part of its text
    ("a network that does not exist", run(model="resnet9000"), ConfigError, "There is no network 'resnet9000'"),
    ("a module that does not exist", run(model="nowhere:net"), ConfigError, "there is no module 'nowhere'"),
    ("a function that the module has not", run(model="tiny:nett"), ConfigError, "'nett'"),
    ("a network that cannot be captured", run(model="tiny:not_exportable"), CaptureError,
     "could not be captured"),
    ("a network that returns no logits", run(model="tiny:features"), ConfigError, "needs logits [1, 10]"),
    ("a data set that does not exist", run(data="digitz"), ConfigError, "Close names: digits"),
    ("a data set without its folder", run(data="cifar10"), ConfigError, "cifar10 needs data_dir"),
    ("a data folder that does not exist", run(data="cifar10", data_dir="/nowhere"), ConfigError, "does not exist"),
    ("a data folder that is empty", lambda: (os.mkdir("E"), run(data="mnist", data_dir="E")()), ConfigError,
     "E is empty"),
    ("an image folder without classes", lambda: (os.makedirs("F/train"), os.mkdir("F/val"),
     run(data="image-folder", data_dir="F")()), ConfigError, "has no class folders"),
    ("shards that are no shards", lambda: (os.mkdir("W"), file("W/train-0.tar", b"x")(),
     run(data="wds", data_dir="W")()), ConfigError, "train-0.tar is not a readable .tar file"),
    ("a loader that is used up", loaders(iter(BATCHES)), ConfigError, "which can be gone through once"),
    ("a loader of unknown length", loaders(lambda epoch: BATCHES), ConfigError, "without len(), and the schedules"),
    ("a loader of something else", loaders([{"images": X, "labels": Y}]), ConfigError,
     "it is a dict, not (images, labels)"),
    ("a loader of bytes", loaders([(X.byte(), Y)]), ConfigError, "images must be floating point [B, C, H, W]"),
    ("images of another size", loaders(BATCHES, [(X[..., :5, :5], Y)]), ConfigError,
     "images are [1, 5, 5], and those of the first training batch [1, 6, 6]"),
    ("labels that no class has", loaders([(X, Y - 1)] * 2), ConfigError,
     "labels run from -1 to 2, and they start at 0"),
    ("loaders of other batches than the run's", loaders(BATCHES, recipe=Recipe(1, 1, 1, batch_size=32)),
     ConfigError, "gives batches of 4 images, and the run's are 32"),
    ("a limit on no images", run(recipe=Recipe(1, 1, 1, limit=1)), ConfigError, "limit must be at least 2, not 1"),
    ("a validation part of all images", run(validation=1.0), ConfigError, "validation is a fraction"),
    ("a budget of nothing", run(budget="macs=0"), BudgetError, "nothing would remain"),
    ("a budget above everything", run(budget="macs=1.5"), BudgetError, "above 1"),
    ("a budget of an unknown kind", run(budget="watts=0.5"), BudgetError, "unknown kind 'watts'"),
    ("a budget without a kind", run(budget="0.5"), BudgetError, "does not say what it limits"),
    ("a budget that is no number", run(budget="macs=half"), BudgetError, "not a number"),
    ("a budget of more than anything", run(budget="macs=1e9999"), BudgetError, "above 10**18"),
    ("a budget that no network meets", run(budget="macs=0.0001"), BudgetError, "smallest reachable"),
    ("a method that does not exist", run(method="chip"), ConfigError, "unknown method 'chip'"),
    ("a setting that the method has not", run(method="chipnet:flor=0"), ConfigError, "did you mean 'floor'?"),
    ("no training and no weights", run(recipe=recipe(train=0)()), ConfigError, "there is nothing to prune"),
    ("new weights and no training", run(model="resnet8", no_train=True), ConfigError,
     "resnet8 begins with new weights: give --weights FILE"),
    ("a method of training without training", run(no_train=True, method="fisher"), ConfigError,
     "--no-train trains nothing: leave out --method."),
    ("images to look at while training", run(images=64), ConfigError, "leave it out, or add --no-train"),
    ("weights that do not exist", run(weights="/nowhere.pt"), ConfigError, "/nowhere.pt does not exist"),
    ("weights of another network", lambda: (chipnet.surgery.storage.save_weights(TinyNet(7, 1), "w.safetensors"),
     run(weights="w.safetensors")()), ConfigError, "do not fit this TinyNet"),
    ("an unknown realisation", run(realisation="sparse"), ConfigError, "'plain' or 'indexed', not 'sparse'"),
    ("a pattern that matches nothing", run(ignore=("layer9*",)), CaptureError, "matches no module"),
    ("a pattern that is none", run(ignore=5), ConfigError, "ignore must be a text or a list of texts, not 5"),
    ("a negative seed", run(seed=-1), ConfigError, "seed must be at least 0"),
    ("a network that would never end", run(model="wrn-9999994-1"), ConfigError, "the depth of wrn-9999994-1"),
    ("no threads", run(threads=0), ConfigError, "threads must be at least 1, not 0"),
    ("no run folder", run(out=""), ConfigError, "--out is missing"),
    ("a run that says nothing", lambda: prepare(Request()), ConfigError,
     "--model, --data, --budget and --out are missing. For example: chipnet prune --model resnet8"),
    ("several mistakes", run(budget="macs=1.5", threads=0), Mistakes,
     "above 1; a fraction is what remains, 0.25 keeps a quarter; for an absolute count write"),
    ("a run folder that is a file", lambda: run(out=file("f")())(), ConfigError, "is a file. Give a folder"),
    ("a run folder that cannot be made", lambda: run(out=file("g")() + "/run")(), ConfigError,
     "cannot write to the output folder"),
    ("a run folder with a NUL in its name", run(out="a\0b"), ConfigError,
     "cannot write to the output folder 'a\\x00b' (embedded null byte)"),
    ("a run folder with too long a name", run(out="x" * 300), ConfigError, "(File name too long)"),
    ("a run folder of nobody", run(out="~nobody-of-that-name/run"), ConfigError,
     "cannot write to the output folder ~nobody-of-that-name/run"),
    ("a finished run", lambda: (os.mkdir("D"), file("D/result.json", b"{}")(), run(out="D")()), ConfigError,
     "holds a finished run"),
    ("a stopped run", lambda: (os.mkdir("S"), file("S/checkpoint.pt")(), run(out="S")()), ConfigError,
     "Continue it with: chipnet prune --resume S"),
    ("an unknown accelerator", run(accelerator="abacus"), ConfigError, "unknown accelerator 'abacus'"),
    ("an unknown precision", run(precision="8-true"), ConfigError, "unknown precision '8-true'"),
    ("float16 on a CPU", run(precision="16-mixed"), ConfigError, "16-mixed needs a CUDA device"),
    ("a result that is damaged", lambda: (os.mkdir("D"), file("D/result.json", b"{}")(), Run.open("D")), LoadError,
     "result.json is damaged: it lacks model, data"),
    ("a run whose network is code that it names", lambda: refuse_code("nets:make", "network", Path("runs/a")),
     LoadError, "code is not run because a folder names it"),
    ("a run that another process writes", written_by_another, ConfigError, "another process writes a run into D"),
    ("image files that cannot be read", broken_images, ConfigError, "20 of 20 image files cannot be read: "),
    ("means for other channels", lambda: load_data("digits", mean=(0.5, 0.5)), ConfigError,
     "mean has 2 numbers, and the images have 1 channel"),
    ("TrivialAugment of images in memory", lambda: load_data("digits", augment="trivial"), ConfigError,
     "for image files that are decoded"),
    ("a strategy that cuts up weights", run(strategy="fsdp"), ConfigError, "no whole channels to prune"),
    ("all of no GPUs", run(devices=-1), ConfigError, "devices -1 takes all GPUs, and there is none"),
    ("synchronised norms on a CPU", run(sync_batch_norm=True), ConfigError, "sync_batch_norm needs CUDA"),
    ("a batch larger than the data", run(recipe=recipe(batch_size=512, limit=160)()), ConfigError,
     "a batch of 512 is more than the 160 training images"),
    ("checkpoints every 0 steps", run(checkpoint_steps=0), ConfigError, "checkpoint_steps must be at least 1"),
    ("checkpoints every -1 seconds", run(checkpoint_seconds=-1), ConfigError,
     "checkpoint_seconds must be at least 0, not -1"),
    ("checkpoints every nan seconds", run(checkpoint_seconds=float("nan")), ConfigError,
     "checkpoint_seconds must be finite, not nan"),
    ("a misspelt option", config(sede=1), ConfigError, "did you mean 'seed'?"),
    ("a misspelt key of the recipe", config(recipe={"label_smooting": 0.1}), ConfigError,
     "did you mean 'recipe.label_smoothing'?"),
    ("a key of the recipe outside of it", config(train_lr=0.1), ConfigError, "it belongs inside of recipe"),
    ("an option of a wrong type", config(seed="one"), ConfigError, "seed must be a whole number, not 'one'"),
    ("a config file that does not exist", lambda: read_config("no.yaml"), ConfigError, "there is no config file"),
    ("a key that a config file gives twice", lambda: read_config(file("k.yaml", b"seed: 1\nseed: 2")()),
     ConfigError, "the key 'seed' is in line 1 and again in line 2: keep one"),
    ("a config file that is a list", lambda: read_config(file("l.yaml", b"- a")()), ConfigError, "holds a list"),
    ("a batch of one image", recipe(batch_size=1), ConfigError, "batch_size must be at least 2, not 1"),
    ("a learning rate that is not finite", recipe(train_lr=float("nan")), ConfigError,
     "train_lr must be finite, not nan"),
    ("label smoothing of everything", recipe(label_smoothing=1.0), ConfigError,
     "label_smoothing must be below 1, not 1.0"),
    ("distillation beyond the loss", recipe(distill=2.0), ConfigError, "distill must be at most 1, not 2.0"),
    ("a temperature of 0", recipe(temperature=0.0), ConfigError, "temperature must be above 0"),
    ("gradients clipped to nothing", recipe(clip=0.0), ConfigError, "clip must be above 0"),
    ("gradients shorter than usual clipped", recipe(clip_spikes=0.5), ConfigError, "clip_spikes must be above 1"),
    ("AdamW at the rate of SGD", recipe(optimizer="adamw"), ConfigError, "0.1 are SGD's: give AdamW others"),
    ("a schedule that does not exist", recipe(schedule="linear"), ConfigError, "'one-cycle', 'cosine' or 'step'"),
    ("a pruner without steps", pruner(steps=0), ConfigError, "steps must be at least 1, got 0"),
    ("steps that are a text", pruner(steps="10"), ConfigError, "steps must be a whole number, got '10'"),
    ("a seed that is a text", pruner(seed="a"), ConfigError, "seed must be a whole number, got 'a'"),
    ("a seed below 0", pruner(seed=-1), ConfigError, "seed must be at least 0, got -1"),
    ("a seed of too many bits", pruner(seed=2**63), ConfigError, "seed must be at most 9,223,372,036,854,775,807"),
    ("an ignore that is no pattern", pruner(ignore=5), ConfigError,
     "ignore takes patterns and classes of modules, not 5: 'layer1.*'"),
    ("widths in halves", pruner(round_to=2.5), ConfigError, "round_to must be a whole number, got 2.5"),
    ("a rule for what is no operator", lambda: rules.rule("mul"), ConfigError,
     "is no operator: a rule is for one such as torch.ops.mylib.scale"),
    ("a second rule for an operator", lambda: rules.rule(torch.ops.aten.add), ConfigError,
     "the operator aten.add has a rule already"),
    ("a network that cannot be copied", lambda: chipnet.Structure(locked(), torch.zeros(1, 3)), CaptureError,
     "'0.lock' (of type lock)"),
    ("a network without memory", lambda: chipnet.Pruner(nn.Linear(3, 2, device="meta"), torch.zeros(1, 3),
     "macs=0.5", steps=2), CaptureError, "to_empty(device='cpu')"),
    ("a network of lazy modules", lambda: chipnet.Structure(nn.LazyLinear(2), torch.zeros(1, 3)), CaptureError,
     "Run it once before"),
    ("a network from torch.export", lambda: chipnet.Structure(torch.export.export(nn.Linear(3, 2),
     (torch.zeros(1, 3),)).module(), torch.zeros(1, 3)), CaptureError, "give the nn.Module that was exported"),
    ("example inputs of no images", pruner(example=torch.zeros(0, 1, 8, 8)), CaptureError, "a batch of nothing"),
    ("example inputs of a wrong shape", pruner(example=torch.zeros(1, 3, 8, 8)), CaptureError,
     "could not be captured"),
    ("a network with nothing to prune",
     lambda: chipnet.Pruner(nn.Linear(3, 2), torch.zeros(1, 3), "macs=0.5", steps=1), CaptureError,
     "can be pruned"),
    ("options given with a ready structure", beside_structure(min_channels=8), ConfigError,
     "a Structure is given, and min_channels too"),
    ("the structure of another network", beside_structure(TinyNet(10, 3)), ConfigError,
     "this Structure was made of another network than the model"),
    ("weights that are NaN", with_nan, ChipNetError, "weights of this TinyNet are NaN or infinite: stem.weight"),
    ("a state of another pruner", state_of_another, ConfigError, "budget was macs=0.5, and is params=0.5"),
    ("a mask in place of a plan", with_structure(lambda net, s: chipnet.compact(net, s.plan([1] * 6).mask)),
     PlanError, "plan must be a chipnet.Plan, not a tuple"),
    ("a state dict in place of a network", lambda: chipnet.Structure(TinyNet(10, 1).state_dict(), X), CaptureError,
     "model must be a network, an object of torch.nn.Module, not an OrderedDict"),
    ("a plan for another network", plan_of_another, PlanError, "this plan was made for another network"),
    ("a mask of scores", with_structure(lambda net, s: s.plan(torch.full((6,), 0.4))), PlanError,
     "the mask must hold 0 and 1 (or False and True), and it holds 0.4"),
    ("a mask of another length", with_structure(lambda net, s: s.plan([1] * 5)), PlanError,
     "the mask has shape (5,); this network has 6 gates"),
    ("a mask that is a text", with_structure(lambda net, s: s.plan("110")), PlanError, "it is a str"),
    ("scores that are not finite", with_structure(lambda net, s: s.harden([float("nan")] * 6, "macs=0.5")),
     PlanError, "6 of 6 scores are NaN or infinite"),
    ("weights that are not finite", with_structure(diverged), PlanError,
     "weights of this Sequential are NaN or infinite: 0.weight: 18 of 18 numbers"),
    ("outputs that cannot be compared", with_structure(unverifiable), PlanError,
     "cannot be verified: there is no finite number to compare in any output"),
    ("a compact file that does not exist", lambda: chipnet.load(nn.Identity, "no.safetensors"), LoadError,
     "does not exist"),
    ("a compact file that is empty", loading(file("e.safetensors")), LoadError, "is empty"),
    ("a compact file that is something else", loading(file("x.safetensors", b"hello, world")), LoadError,
     "is not a safetensors file"),
    ("a compact file of another network", other_network, LoadError, "was saved from a TinyNet"),
    ("a factory that is a network", lambda: chipnet.load(TinyNet(10, 1), loading_file()), LoadError,
     "give a callable that builds the dense network"),
    ("a file in a folder that does not exist", saving("runs/small.safetensors"), ConfigError, "mkdir -p runs"),
    ("a folder in place of a file", saving("."), ConfigError, "it is a folder"),
    ("masks that do not exist", lambda: chipnet.Masks.load("no.json"), LoadError, "cannot read masks from no.json"),
    ("masks of channels that are not there", damaged_masks(kept=[0, 99]), LoadError,
     "site 'norm': kept holds 99, and its channels are 0 to 10"),
    ("masks with a budget that is none", damaged_masks(budget="hello"), LoadError,
     "the masks in m.json are damaged: cannot use the budget 'hello'"),
    ("images that are no bytes", images(images=torch.zeros(4, 1, 8, 8)), ConfigError, "images must be uint8"),
    ("more labels than images", images(labels=torch.zeros(5, dtype=torch.int64)), ConfigError,
     "there are 4 images and 5 labels"),
    ("negative labels", images(labels=torch.full((4,), -1)), ConfigError, "labels start at 0, not -1"),
    ("means that do not fit the channels", lambda: Batches(images()(), 2, shuffle=False, mean=(0.5, 0.5)),
     ConfigError, "have 1 channel, but there are 2 means"),
    ("a split that does not exist", lambda: load_data("digits").loader("dev", 8), ConfigError, "no split 'dev'"),
    ("an evaluation without images", lambda: evaluate(nn.Linear(2, 2), []), ChipNetError, "there are no images"),
    ("progress in steps", lambda: Linear(0.0, 1.0)(17), ConfigError, "pass step / total_steps"),
    ("weights that are no weights", lambda: load_weights(get_model("resnet8", 10, 1), file("t.pt", b"text")()),
     ConfigError, "t.pt"),
]  # fmt: skip


def loading_file():
    model = TinyNet(10, 1)
    plan = chipnet.Pruner(model, torch.zeros(1, 1, 8, 8), "macs=0.5", steps=1).harden()
    chipnet.save(chipnet.compact(model, plan), plan, "ok.safetensors")
    return "ok.safetensors"


SAID: dict[str, str] = {}


@pytest.mark.parametrize(("what", "call", "error", "text"), CASES, ids=[case[0] for case in CASES])
def test_bad_inputs(what, call, error, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    assert text in message
    SAID[what] = f"| {what} | `{error.__name__}` | {_shown(message.replace(str(tmp_path), '...'))} |"


def test_the_table_in_the_docs_is_this_one():
    """By input, type and the asserted text: the rest of a message may differ between versions of PyTorch."""
    assert len(CASES) == len({case[0] for case in CASES}) >= 40
    if os.environ.get("UPDATE"):
        DOC.write_text(
            "\n".join([HEAD, "| input | error | what it says |", "|---|---|---|", *SAID.values(), ""])
        )
    rows = [line.split(" | ", 2) for line in DOC.read_text().splitlines() if line.startswith("| ")][1:]
    assert [(r[0][2:], r[1]) for r in rows] == [(what, f"`{error.__name__}`") for what, _, error, _ in CASES]
    for (*_, said), (what, _, _, text) in zip(rows, CASES, strict=True):
        assert _shown(text) in said, (
            f"{what}: write docs/errors.md anew: UPDATE=1 pytest tests/test_errors.py"
        )


HEAD = """# Errors

Every error that chipnet raises on purpose is a `ChipNetError`; bad values are a `ValueError` as well. The command
line prints one line for each mistake and exits with 2 before any training, with 1 during it. This table is made by
`tests/test_errors.py`, which asserts the type and the text of each; long messages are cut here.
"""


def _shown(text: str) -> str:
    """The message, short enough for a table, without what differs between machines."""
    text = " ".join(text.split())
    text = re.sub(r"(/tmp|/private|/var)[^ ,;)']*", "...", text)
    text = text if len(text) <= 220 else text[:217] + "..."
    return text.replace("|", "\\|").replace("<", "&lt;")
