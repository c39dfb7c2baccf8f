"""Exports: each loads in its own runtime and computes what the network does; what does not leaves no file."""

import copy
import json

import onnx
import onnxruntime
import pytest
import timm
import torch
from command import chipnet_
from torch import nn

import chipnet
from chipnet import ConfigError, ExportError
from chipnet.formats import export
from chipnet.formats.fold import fold_norms
from chipnet.formats.runtimes.base import Format
from chipnet.lab.models import get_model
from chipnet.lab.runs.folder import Run
from chipnet.program.inputs import Inputs
from chipnet.program.names import canonical_names

HERE = ["onnx", "torch-export", "torchscript"]


class Net(nn.Module):
    """conv a -> norm -> relu -> conv b -> norm, added to conv c (read twice, so its norm must stay) -> fc"""

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 7, 3, padding=1, bias=False), nn.BatchNorm2d(7)
        self.b, self.norm_b = nn.Conv2d(7, 5, 1), nn.BatchNorm2d(5, affine=False)
        self.c, self.norm_c = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)
        self.up, self.norm_up = nn.ConvTranspose2d(5, 11, 2, stride=2), nn.BatchNorm2d(11)
        self.fc = nn.Linear(11, 4)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 3)
                if module.affine:
                    nn.init.normal_(module.weight)
                    nn.init.normal_(module.bias)
        self.eval()

    def forward(self, x):
        c = self.c(x)
        y = self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))) + self.norm_c(c) * torch.sigmoid(c)
        return self.fc(self.norm_up(self.up(y)).mean((2, 3)))


def folded(network, *inputs):
    program = torch.export.export(network, inputs)
    return fold_norms(network, program)


def test_norms_fold_where_that_is_exact_and_only_there():
    network, x = Net().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = copy.deepcopy(network.state_dict())
    small, count = folded(network, x)
    assert count == 3
    assert type(small) is Net
    kinds = [type(getattr(small, f"norm_{name}")) for name in ("a", "b", "c", "up")]
    assert kinds == [nn.Sequential, nn.Sequential, nn.BatchNorm2d, nn.Sequential]
    assert torch.allclose(small(x), network(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_norms_of_timm_leave_their_activation():
    norm = timm.layers.BatchNormAct2d(5)
    norm.running_mean.normal_()
    network = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), norm).double().eval()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    small, count = folded(network, x)
    assert count == 1
    assert torch.allclose(small(x), network(x), rtol=1e-12, atol=1e-12)
    assert (small(x) == 0).any()


def test_a_convolution_that_is_called_twice_keeps_its_norms():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.two(self.conv(self.one(self.conv(x))))

    assert folded(Twice().eval(), torch.randn(2, 3, 4, 4))[1] == 0


def test_a_weight_with_two_names_keeps_its_norms():
    network = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    ).eval()
    network[2].weight = network[0].weight
    assert canonical_names(network)["2.weight"] == "0.weight"
    assert folded(network, torch.randn(2, 3, 4, 4))[1] == 0


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is")
@pytest.mark.parametrize("realisation", ["plain", "indexed"])
@pytest.mark.parametrize("format", HERE)
def test_compact_networks_go_through_every_format(tmp_path, realisation, format):
    network, x = get_model("resnet8", 10, 1).eval(), torch.randn(6, 1, 8, 8)
    structure = chipnet.Structure(network, x[:1], realisation=realisation)
    mask = structure.harden(torch.rand(structure.gates, dtype=torch.float64), "macs=0.25")
    plan = structure.plan(mask)
    assert (len(plan.remaps) > 0) == (realisation == "indexed")
    small = chipnet.compact(network, plan)
    path = tmp_path / "net.any"
    done = chipnet.export(small, path, x, format=format)
    assert (done.folded, done.batches, done.size) == (9, (6, 1), path.stat().st_size)
    assert done.difference <= 1e-5 * done.scale
    run = export.FORMATS[format].load(path)
    other = torch.randn(5, 1, 8, 8)  # a batch size that nothing was traced or checked with
    torch.testing.assert_close(run(Inputs.of(other))[0], small(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["preresnet20", "vgg11-bn-cifar"])
def test_onnx_agrees_to_1e_4_for_compact_networks_of_the_zoo(tmp_path, name):
    network, x = get_model(name, 10, 3).eval(), torch.randn(3, 3, 32, 32)
    structure = chipnet.Structure(network, x[:1])
    mask = structure.harden(torch.rand(structure.gates, dtype=torch.float64), "macs=0.05")
    done = chipnet.export(chipnet.compact(network, structure.plan(mask)), tmp_path / "net.onnx", x)
    assert done.difference <= 1e-4 * done.scale
    assert done.folded > 0


def test_float64_and_several_inputs_by_name(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, left, right, *, scale):
            return {"sum": self.one(left) + self.two(right), "scaled": self.one(left) * scale}

    inputs = {"left": torch.randn(7, 3), "right": torch.randn(7, 5), "scale": torch.tensor([2.0])}
    done = chipnet.export(Two().double(), tmp_path / "net.pt2", {k: v.double() for k, v in inputs.items()})
    assert done.difference <= 1e-12
    assert chipnet.export(Two(), tmp_path / "net.onnx", inputs).batches == (7, 1)


# -- what is refused --------------------------------------------------------------------------------------


class Batched(nn.Module):
    """Works for one batch size, and not in a way that export can see: the rows are counted in Python."""

    def forward(self, x):
        return x.reshape(x.shape[0], -1) * torch.arange(int(x.shape[0])).reshape(-1, 1)[:2]


def test_a_mismatch_is_an_error_and_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "net.pt2"
    path.write_text("older")
    right = export.FORMATS["torch-export"]

    def load(file):
        run = right.load(file)
        return lambda inputs: [y + 0.01 for y in run(inputs)]

    monkeypatch.setitem(export.FORMATS, "torch-export", Format(right.suffix, right.write, load))
    with pytest.raises(ExportError, match=r"outputs differ by 0\.01"):
        chipnet.export(Net(), path, torch.randn(2, 3, 6, 6))
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_fixed_batch_is_named_and_can_be_asked_for(tmp_path):
    with pytest.raises(ExportError, match="dynamic_batch=False"):
        chipnet.export(Batched(), tmp_path / "net.onnx", torch.randn(2, 3, 4))
    assert not list(tmp_path.iterdir())
    done = chipnet.export(Batched(), tmp_path / "net.onnx", torch.randn(2, 3, 4), dynamic_batch=False)
    assert done.batches == (2,)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("net.tar", {}, "the suffix of .* names no format: onnx"),
        ("net.onnx", {"format": "tflite"}, "unknown format 'tflite'"),
        ("net.pt2", {"opset": 18}, "opset belongs to ONNX"),
    ],
)
def test_requests_that_cannot_be_used(tmp_path, name, options, said):
    with pytest.raises(ConfigError, match=said):
        chipnet.export(Net(), tmp_path / name, torch.randn(2, 3, 6, 6), **options)


# -- the command ------------------------------------------------------------------------------------------


def test_an_opset_that_cannot_be_written_is_refused(run_folder, tmp_path):
    done = chipnet_("export", run_folder, "--output", tmp_path / "net.onnx", "--opset", "1", "--images", "16")
    assert done.exit_code == 2 and "in opset 1, only in 18. Leave opset out" in done.stderr
    assert not list(tmp_path.iterdir())
    for arguments in (("--opset", "0"), ("--images", "0"), ("--static-batch", "0")):
        done = chipnet_("export", run_folder, *arguments)
        assert done.stderr == f"error: {arguments[0]} must be at least 1, not 0.\n"


def test_the_command_writes_onnx_with_metadata_and_opset(run_folder, tmp_path):
    out = tmp_path / "small.onnx"
    done = chipnet_("export", run_folder, "--output", out, "--opset", "18", "--images", "16")
    assert done.exit_code == 0, done.output
    assert "9 batch norms folded; loaded again, batches of 16 and 1: outputs differ by" in done.stdout
    assert [(o.domain, o.version) for o in onnx.load(out).opset_import] == [("", 18)]
    session = onnxruntime.InferenceSession(out)
    card = json.loads(session.get_modelmeta().custom_metadata_map["chipnet"])
    result = Run.open(run_folder).result
    assert card["labels"] == list("0123456789")
    assert card["budget"] == {"macs": 0.25}
    assert card["costs"]["compact"]["macs"] == result["compact"]["macs"]
    assert card["accuracy"]["compact"] == result["compact"]["accuracy"]
    assert card["preprocessing"]["image_size"] == 8
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]


def test_the_file_and_its_card_classify_raw_images_as_the_run_did(run_folder, tmp_path):
    """What the card says of preprocessing is all that is needed: from bytes to the run's own accuracy."""
    out, run = tmp_path / "small.onnx", Run.open(run_folder)
    chipnet.export(run.compact(), out, run.images(8), metadata=run.card())
    session = onnxruntime.InferenceSession(out)
    how = json.loads(session.get_modelmeta().custom_metadata_map["chipnet"])["preprocessing"]
    test = run.data().test
    mean, std = (torch.tensor(how[k]).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    logits = session.run(None, {"input": ((test.images * how["scale"] - mean) / std).numpy()})[0]
    accuracy = 100 * (torch.from_numpy(logits).argmax(1) == test.labels).float().mean().item()
    assert accuracy == pytest.approx(run.result["compact"]["accuracy"], abs=1e-4)


def test_the_command_refuses_in_one_line(run_folder, tmp_path):
    for arguments, said in (
        ((tmp_path,), "result.json does not exist. Give the folder of a finished run"),
        ((run_folder, "--format", "tflite"), "unknown format 'tflite'; known: onnx, torch-export"),
        ((run_folder, "--data-dir", "/nowhere"), "digits is part of scikit-learn and takes no --data-dir"),
    ):
        done = chipnet_("export", *arguments)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr


@pytest.mark.filterwarnings("ignore")  # executorch warns about itself when it is imported
def test_executorch(run_folder, tmp_path):
    arguments = ("export", run_folder, "--format", "executorch", "--output", tmp_path / "small.pte")
    try:
        import executorch.runtime  # noqa: F401
    except ImportError:
        done = chipnet_(*arguments)
        assert (done.exit_code, list(tmp_path.iterdir())) == (2, [])
        assert "pip install chipnet[executorch]" in done.stderr
        pytest.skip("executorch is not installed; the refusal was tested")
    done = chipnet_(*arguments, "--images", "16")
    assert done.exit_code == 0, done.output
    assert "batches of 16 and 1" in done.stdout


# -- folding ----------------------------------------------------------------------------------------------


def normed(norm):
    """A norm whose numbers all matter."""
    for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.uniform_(0.3, 3) if name == "running_var" else tensor.normal_()
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_norm_folds_into_every_convolution(transposed, dims, groups, bias, affine):
    layer = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    extra = {"output_padding": 1} if transposed else {"dilation": 2}
    conv = layer(4, 8, 3, 2, 1, groups=groups, bias=bias, **extra)
    network = nn.Sequential(conv, normed(getattr(nn, f"BatchNorm{dims}d")(8, affine=affine))).double().eval()
    x = torch.randn(2, 4, *[5] * dims, dtype=torch.float64)
    small, count = folded(network, x)
    assert count == 1
    assert torch.allclose(small(x), network(x), rtol=1e-12, atol=1e-12)


class NotFolded(nn.Module):
    """conv -> norm, in a way that does not fold."""

    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.norm = how, nn.Conv2d(3, 5, 1), normed(nn.BatchNorm2d(5))
        if how == "batch statistics":
            self.norm = nn.BatchNorm2d(5, track_running_stats=False)

    def train(self, mode=True):
        super().train(mode)
        if self.how == "training":
            self.norm.train()
        return self

    def forward(self, x):
        conv, norm = self.conv, self.norm
        if self.how == "bias computed":
            y = nn.functional.conv2d(x, conv.weight, conv.bias * 2)
        elif self.how == "no bias":
            y = nn.functional.conv2d(x, conv.weight)
        else:
            y = conv(x)
        if self.how == "norm by hand":
            z = nn.functional.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        elif self.how == "weight computed":
            z = nn.functional.batch_norm(y, norm.running_mean, norm.running_var, norm.weight * 2, norm.bias)
        else:
            z = norm(y)
        if self.how == "two readers":
            return z + y
        return norm(z) if self.how == "norm twice" else z


HOW = ["batch statistics", "training", "bias computed", "no bias", "norm by hand", "weight computed"]


@pytest.mark.parametrize("how", [*HOW, "two readers", "norm twice"])
def test_a_norm_stays_where_folding_is_not_exact(how, tmp_path):
    network, x = NotFolded(how).double().eval(), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    small, count = folded(network, x)
    assert count == 0
    if how != "training":  # which changes its statistics in every call
        assert torch.equal(small(x), network(x))
        chipnet.export(network, tmp_path / "net.pt2", x)


def test_linear_layers_keep_their_norms(tmp_path):
    network = nn.Sequential(nn.Linear(3, 5), normed(nn.BatchNorm1d(5))).eval()
    assert chipnet.export(network, tmp_path / "net.pt2", torch.randn(4, 3)).folded == 0


class Tail(nn.Module):
    def __init__(self, tail):
        super().__init__()
        self.fc, self.tail = nn.Linear(3, 5), tail

    def forward(self, x):
        return self.tail(self.fc(x))


def test_masked_logits_go_and_what_cannot_be_compared_does_not(tmp_path):
    mask = torch.tensor([0.0, 0.0, -torch.inf, 0.0, torch.inf])
    path = tmp_path / "net.pt2"
    assert chipnet.export(Tail(lambda y: y + mask), path, torch.randn(4, 3)).scale < 100
    before = path.read_bytes()
    for tail, said in (
        (lambda y: y * torch.nan, "output 0 of the network has no finite number"),
        (lambda y: (y, y + torch.inf), "output 1 of the network has no finite number"),
        (lambda y: y[:, :0], "no numbers that could be compared"),
    ):
        with pytest.raises(ExportError, match=said):
            chipnet.export(Tail(tail), path, torch.randn(4, 3))
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="there is no folder"):
        chipnet.export(Tail(torch.relu), tmp_path / "no" / "net.pt2", torch.randn(4, 3))
    with pytest.raises(ConfigError, match="metadata must be JSON values"):
        chipnet.export(Tail(torch.relu), path, torch.randn(4, 3), metadata={"a": torch.ones(1)})
    with pytest.raises(
        ExportError, match=r"capturing the network failed: .*Check first that the network runs"
    ):
        chipnet.export(Tail(torch.relu), path, torch.randn(4, 7))
