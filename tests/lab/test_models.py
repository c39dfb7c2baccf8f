"""Networks by name: parameter counts from hand formulas, shapes, names, and weights from files."""

import os
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chipnet.errors import ConfigError
from chipnet.lab.models import get_model, list_models, load_weights

# -------------------------------------------------------- parameter counts, by formula and as published


def conv(kernel, inputs, outputs):
    return kernel * kernel * inputs * outputs


def bn(channels):
    return 2 * channels


def linear(inputs, outputs):
    return inputs * outputs + outputs


def resnet_count(n, k=1):
    """Stem; per stage n blocks of two 3x3 convolutions; a 1x1 shortcut with BN where the shape changes."""
    total, inputs = conv(3, 3, 16) + bn(16), 16
    for width in (16 * k, 32 * k, 64 * k):
        total += conv(3, inputs, width) + (2 * n - 1) * conv(3, width, width) + 2 * n * bn(width)
        if inputs != width:
            total += conv(1, inputs, width) + bn(width)
        inputs = width
    return total + linear(inputs, 10)


def wrn_count(n, k):
    """As above, but a block's first BN has the width of its input; no BN on shortcuts, one at the end."""
    total, inputs = conv(3, 3, 16), 16
    for width in (16 * k, 32 * k, 64 * k):
        total += conv(3, inputs, width) + (2 * n - 1) * conv(3, width, width)
        total += bn(inputs) + (2 * n - 1) * bn(width)
        if inputs != width:
            total += conv(1, inputs, width)
        inputs = width
    return total + bn(inputs) + linear(inputs, 10)


def preresnet_bottleneck_count(n):
    total, inputs = conv(3, 3, 16), 16
    for width in (16, 32, 64):
        for position in range(n):
            total += bn(inputs) + conv(1, inputs, width)
            total += bn(width) + conv(3, width, width)
            total += bn(width) + conv(1, width, 4 * width)
            if position == 0:
                total += conv(1, inputs, 4 * width)
            inputs = 4 * width
    return total + bn(inputs) + linear(inputs, 10)


# name, exact count with 10 classes, published count in millions (None where the papers give none)
COUNTS = [
    ("resnet8", resnet_count(1), None),
    ("resnet20", 272_474, 0.27),
    ("resnet20", resnet_count(3), 0.27),
    ("resnet32", resnet_count(5), 0.46),
    ("resnet56", resnet_count(9), 0.85),
    ("resnet110", resnet_count(18), 1.7),
    ("preresnet20", wrn_count(3, 1), 0.27),
    ("preresnet56", wrn_count(9, 1), 0.85),
    ("preresnet164", preresnet_bottleneck_count(18), 1.7),
    ("wrn-16-2", wrn_count(2, 2), 0.7),
    ("wrn-28-10", 36_479_194, 36.5),
    ("wrn-28-10", wrn_count(4, 10), 36.5),
    ("wrn-40-2", wrn_count(6, 2), 2.2),
    ("wrn-26-12", resnet_count(4, 12), None),
    # torchvision's counts for 10 classes, less the 7x7 stem, plus the 3x3 one
    ("resnet50-cifar", 23_528_522 - conv(7, 3, 64) + conv(3, 3, 64), 23.5),
    ("resnet101-cifar", 42_520_650 - conv(7, 3, 64) + conv(3, 3, 64), 42.5),
    # 3,504,872 for 1,000 classes (3.4 M in the paper), less 990 rows of 1,280 weights and a bias
    ("mobilenetv2-cifar", 3_504_872 - 990 * 1281, 2.2),
    # 14,714,688 in the 13 convolutions with biases, which are 4,224 channels in all
    ("vgg16-cifar", 14_714_688 + linear(512, 10), 14.7),
    ("vgg16-bn-cifar", 14_714_688 - 4_224 + bn(4_224) + linear(512, 10), 14.7),
]


@pytest.mark.parametrize(("name", "count", "millions"), COUNTS)
def test_parameter_count(name, count, millions):
    with torch.device("meta"):
        model = get_model(name)
    assert sum(p.numel() for p in model.parameters()) == count
    if millions is not None:
        assert count / 1e6 == pytest.approx(millions, rel=0.03)


# ------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("name", list_models())
def test_output_shape_on_meta(name):
    with torch.device("meta"):
        model = get_model(name, num_classes=7, in_channels=1)
        assert model(torch.empty(2, 1, 32, 32)).shape == (2, 7)
        assert model(torch.empty(2, 1, 28, 28)).shape == (2, 7)
        assert model.eval()(torch.empty(1, 1, 8, 8)).shape == (1, 7)


@pytest.mark.parametrize(
    "name", ["resnet8", "preresnet20", "wrn-10-1", "mobilenetv2-cifar", "vgg11-bn-cifar"]
)
def test_trains_and_every_parameter_gets_a_gradient(name):
    model = get_model(name, num_classes=5, in_channels=1)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert torch.isfinite(loss)
    missing = [key for key, p in model.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "module", "size"),
    [
        ("resnet20", "stages", 8),
        ("preresnet20", "stages", 8),
        ("wrn-16-2", "stages", 8),
        ("resnet50-cifar", "stages", 4),
        ("mobilenetv2-cifar", "blocks", 4),
        ("vgg16-cifar", "features", 2),
    ],
)
def test_last_feature_map_of_a_32_pixel_image(name, module, size):
    with torch.device("meta"):
        model = get_model(name)
        shapes = []
        getattr(model, module).register_forward_hook(lambda _, __, out: shapes.append(out.shape[2:]))
        model(torch.empty(2, 3, 32, 32))
    assert shapes == [(size, size)]


def test_he_initialisation_counts_groups():
    model = get_model("mobilenetv2-cifar")
    depthwise = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 576)
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_same_seed_same_weights():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(get_model("resnet8").state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


# -------------------------------------------------------------------------------------------- names


def test_list_is_sorted_and_everything_on_it_can_be_built():
    assert list(list_models()) == sorted(set(list_models()))
    assert {"resnet20", "wrn-26-12", "preresnet164", "vgg16-bn-cifar"} <= set(list_models())


@pytest.mark.parametrize("spelling", ["WRN_16_2", "wrn-16-2", " Wrn-16_2 "])
def test_case_and_underscore_do_not_matter(spelling):
    assert get_model(spelling).fc.in_features == 128


@pytest.mark.parametrize("depth", ["27", "4", "2"])
def test_impossible_wrn(depth):
    with pytest.raises(ConfigError, match=r"6n \+ 4 \(10, 16, 22, 28"):
        get_model(f"wrn-{depth}-2")


@pytest.mark.parametrize("name", ["tv/resnet18", "torchvision/resnet18", "ResNet18"])
def test_torchvision(name):
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = get_model(name, num_classes=7)
    assert type(model).__module__ == "torchvision.models.resnet"
    assert model.fc.out_features == 7


@pytest.mark.parametrize("name", ["googlenet", "tv/inception_v3"])
def test_torchvision_with_auxiliary_heads_returns_one_tensor(name):
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        assert get_model(name, num_classes=7)(torch.empty(2, 3, 96, 96)).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["tv/resnet18", "tv/mobilenet_v2", "tv/vgg11", "tv/densenet121", "tv/googlenet"]
)
@pytest.mark.parametrize("channels", [1, 5])
def test_torchvision_with_other_channels(name, channels):
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        plain, model = get_model(name), get_model(name, in_channels=channels)
        assert model(torch.empty(2, channels, 64, 64)).shape == (2, 10)
    old, new = (next(m for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (plain, model))
    for key in ("out_channels", "kernel_size", "stride", "padding"):
        assert getattr(old, key) == getattr(new, key), key
    assert (old.bias is None) == (new.bias is None)


def test_network_without_a_convolution(monkeypatch):
    models = pytest.importorskip("torchvision.models")
    monkeypatch.setattr(models, "get_model", lambda *_, **__: nn.Linear(3, 3))
    with pytest.raises(
        ConfigError, match=r"tv/resnet18 has no convolution.*1 input channels.*module:callable"
    ):
        get_model("tv/resnet18", in_channels=1)


@pytest.mark.parametrize("name", ["timm/resnet18", "resnet18d"])
def test_timm(name):
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = get_model(name, num_classes=7, in_channels=1)
        assert model(torch.empty(2, 1, 64, 64)).shape == (2, 7)
    assert type(model).__module__ == "timm.models.resnet"


def test_timm_unknown_tag():
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=r"timm cannot build 'resnet18.no_such_tag'"):
        get_model("timm/resnet18.no_such_tag")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet21", "resnet20"),
        ("tv/resnt18", "tv/resnet18"),
        ("timm/resnt18d", "timm/resnet18d"),
        ("vgg16cifar", "vgg16-cifar"),
    ],
)
def test_unknown_name_lists_close_ones(name, close):
    pytest.importorskip("torchvision")
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="There is no network") as raised:
        get_model(name)
    assert close in str(raised.value)
    assert "mypackage.nets:MyNet" in str(raised.value)


def test_without_torchvision_and_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("chipnet.lab.models.registry._installed", lambda package: False)
    assert get_model("resnet8").fc.out_features == 10
    with pytest.raises(ConfigError, match="not searched: torchvision, timm"):
        get_model("resnet18")
    with pytest.raises(ConfigError, match="pip install torchvision"):
        get_model("tv/resnet18")
    with pytest.raises(ConfigError, match="pip install timm"):
        get_model("timm/resnet18")


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("wrn-9999994-1", {}, "the depth of wrn-9999994-1 must be at most 2,000, not 9999994"),
        ("WRN_16_9999", {}, "wrn-16-9999 has about 19,.* parameters, and at most 1,000,000,000 are built"),
        (f"wrn-{'9' * 5000}-1", {}, "its depth has 5,000 digits"),
        (f"wrn-16-{'9' * 5000}", {}, "its width has 5,000 digits"),
        ("wrn-²-1", {}, "There is no network 'wrn-²-1'"),
        ("resnet8", {"num_classes": 10**10}, "num_classes must be at most 1,000,000, not 10000000000"),
        ("tv/resnet18", {"in_channels": 10**10}, "in_channels must be at most 10,000, not 10000000000"),
        ("os:abort", {"num_classes": 10**5000}, "num_classes must be at most .* not a number of many digits"),
    ],
)
def test_sizes_are_bounded_before_anything_is_built(name, sizes, said):
    with pytest.raises(ConfigError, match=said):
        get_model(name, **sizes)


@pytest.mark.parametrize("option", ["num_classes", "in_channels"])
def test_sizes_below_one(option):
    with pytest.raises(ConfigError, match=rf"{option} must be at least 1, not 0"):
        get_model("resnet8", **{option: 0})


# -------------------------------------------------------------------------------- module:callable

NETS = """
import torch
calls = []
def both(num_classes, in_channels=3): calls.append((num_classes, in_channels)); return torch.nn.Linear(1, 1)
def neither(): calls.append(()); return torch.nn.Linear(1, 1)
def anything(**options): calls.append(options); return torch.nn.Linear(1, 1)
class Holder:
    both = staticmethod(both)
wrong = lambda: 5
number = 5
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "my_nets_for_test.py").write_text(NETS)
    (tmp_path / "my_broken_nets_for_test.py").write_text("import no_such_package_at_all")
    monkeypatch.chdir(tmp_path)  # found by the working directory alone, as a console script needs it
    yield
    for name in ("my_nets_for_test", "my_broken_nets_for_test"):
        sys.modules.pop(name, None)


def test_callable_gets_what_it_accepts(nets):
    path = list(sys.path)
    for name in ("both", "neither", "anything", "Holder.both"):
        assert isinstance(get_model(f"my_nets_for_test:{name}", 7, 1), nn.Linear)
    options = {"num_classes": 7, "in_channels": 1}
    assert sys.modules["my_nets_for_test"].calls == [(7, 1), (), options, (7, 1)]
    assert sys.path == path


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_nets_for_test:bth", r"has no 'bth'. Callables there: .*both"),
        ("my_nets_for_test:number", "is a int, which cannot be called"),
        ("my_nets_for_test:wrong", r"returned a int; it must return a torch.nn.Module"),
        ("no_such_module:net", "there is no module 'no_such_module'.*PYTHONPATH"),
        ("my_nets_for_test:", "not of the form module:callable"),
    ],
)
def test_callable_errors(nets, reference, message):
    with pytest.raises(ConfigError, match=message):
        get_model(reference)


def test_an_error_inside_the_users_module_is_named_with_its_line(nets):
    said = (
        r"importing my_broken_nets_for_test failed: ModuleNotFoundError: .*no_such_package_at_all.*\.py:\d+"
    )
    with pytest.raises(ConfigError, match=said):
        get_model("my_broken_nets_for_test:net")


# ----------------------------------------------------------------------------------------- weights


def equal(one, other):
    other = other.state_dict()
    return all(torch.equal(value, other[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_load_pt(tmp_path, wrap, prefix):
    saved, model = get_model("resnet8"), get_model("resnet8")
    state = {prefix + key: value for key, value in saved.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "net.pth")
    assert load_weights(model, tmp_path / "net.pth") is None
    assert equal(saved, model)


def test_load_safetensors(tmp_path):
    saved, model = get_model("resnet8"), get_model("resnet8")
    save_file(saved.state_dict(), tmp_path / "net.safetensors")
    load_weights(model, str(tmp_path / "net.safetensors"))
    assert equal(saved, model)


def test_a_child_called_module_keeps_its_name(tmp_path):
    saved = nn.Sequential()
    saved.add_module("module", nn.Linear(2, 3))
    model = nn.Sequential()
    model.add_module("module", nn.Linear(2, 3))
    for prefix in ("", "module."):  # the second: the network in a DataParallel
        torch.save({prefix + k: v for k, v in saved.state_dict().items()}, tmp_path / "net.pt")
        nn.init.zeros_(model[0].weight)
        load_weights(model, tmp_path / "net.pt")
        assert equal(saved, model)


def test_old_files_without_batch_counters(tmp_path):
    saved, model = get_model("resnet8"), get_model("resnet8")
    state = {k: v for k, v in saved.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net.pt")
    load_weights(model, tmp_path / "net.pt")
    assert equal(saved, model)


def test_mismatches_are_collected_and_nothing_is_copied(tmp_path):
    model = get_model("resnet8", num_classes=7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = get_model("resnet8").state_dict()
    for key in [k for k in state if k.startswith("stages.1.")]:
        state["extra." + key] = state.pop(key)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(ConfigError) as raised:
        load_weights(model, tmp_path / "net.pt")
    text = str(raised.value)
    assert "do not fit this ResNet" in text
    assert "15 missing: stages.1.0.conv1.weight, stages.1.0.bn1.weight" in text
    assert "18 unexpected: extra.stages.1.0.conv1.weight" in text
    assert "fc.weight (file [10, 64], network [7, 64])" in text
    assert "num_classes and in_channels" in text
    assert text.count("extra.") == 5
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_file(tmp_path, name, damage):
    state, path = get_model("resnet8").state_dict(), tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    content = {"truncated": path.read_bytes()[:5000], "text": b"hello, weights", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} cannot be read as"):
        load_weights(get_model("resnet8"), path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.pt does not exist"):
        load_weights(get_model("resnet8"), tmp_path / "nothing.pt")
    with pytest.raises(ConfigError, match="is a folder"):
        load_weights(get_model("resnet8"), tmp_path)


def test_whole_network_pickled(tmp_path):
    torch.save(get_model("resnet8"), tmp_path / "net.pt")
    text = r"whole pickled network \(chipnet.lab.models.resnet.ResNet\).*weights_only=False\).state_dict\(\)"
    with pytest.raises(ConfigError, match=text):
        load_weights(get_model("resnet8"), tmp_path / "net.pt")
    torch.save({"epoch": 3, "model": get_model("resnet8").half()}, tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"ResNet.*\)\['model'\].state_dict\(\)"):
        load_weights(get_model("resnet8"), tmp_path / "net.pt")
    with warnings.catch_warnings():  # TorchScript is deprecated
        warnings.simplefilter("ignore")
        torch.jit.trace(get_model("resnet8").eval(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"it is a TorchScript file.*torch.jit.load\('net.pt'\).state_dict"):
        load_weights(get_model("resnet8"), tmp_path / "net.pt")


class Settings:
    """What trainers save beside the weights. Its pickle would run code when it is read."""

    def __reduce__(self):
        return (os.system, ("touch ran",))


def lightning(net):
    import lightning

    module = lightning.LightningModule()
    module.net, module.loss = net, nn.CrossEntropyLoss(weight=torch.ones(10))
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": Settings(),
        "optimizer_states": [{"state": {}}],
    }


def averaged(net):
    return torch.optim.swa_utils.AveragedModel(net).state_dict()


def nested(net):
    state = net.state_dict()
    parts = {}
    for key, value in state.items():
        at = parts
        for name in key.split(".")[:-1]:
            at = at.setdefault(name, {})
        at[key.rpartition(".")[2]] = value
    return {"params": parts, "step": 5}


def compiled_inside(net):
    state = net.state_dict()
    return {k.replace("stages.1.", "stages.1._orig_mod."): v for k, v in state.items()}


def both(net):
    other = {f"module.{k}": v + 1 for k, v in net.state_dict().items()}
    return {"ema": other, "net": net.state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}


def prefixed(*prefixes):
    def made(net):
        return {"".join(prefixes) + k: v for k, v in net.state_dict().items()} | {
            "temperature": torch.ones(1)
        }

    made.__name__ = "".join(prefixes)
    return made


@pytest.mark.parametrize(
    "wrap",
    [
        lightning, averaged, nested, compiled_inside, both, prefixed("model."), prefixed("net."),
        prefixed("model.", "_orig_mod."), prefixed("_forward_module.", "module.", "backbone."),
        lambda net: net.state_dict() | {f"shadow.{k}": v for k, v in net.state_dict().items()},
        lambda net: {"model_ema": {"module": net.state_dict()}},
        lambda net: {"state_dict": {k: v.half() for k, v in net.state_dict().items()}},
        lambda net: {"weights": {k: nn.Parameter(v) if v.is_floating_point() else v
                                 for k, v in net.state_dict().items()}},
    ],
)  # fmt: skip
def test_whatever_wraps_the_weights_is_found_and_said(tmp_path, monkeypatch, caplog, wrap):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "chipnet")
    saved, model = get_model("resnet8"), get_model("resnet8")
    torch.save(wrap(saved), "net.ckpt")
    load_weights(model, "net.ckpt")
    assert not os.path.exists("ran")
    close = [torch.allclose(a.float(), b.float(), atol=1e-3) for a, b in zip(saved.state_dict().values(),
             model.state_dict().values(), strict=True)]  # fmt: skip
    assert all(close)
    if wrap is both or wrap is lightning:
        assert "weights are below '" in caplog.text
    if wrap is both:
        assert "below 'net.'" in caplog.text and "also below 'ema.module.'" in caplog.text


def test_a_network_that_is_wrapped_here_and_not_in_the_file(tmp_path, caplog):
    caplog.set_level("INFO", "chipnet")
    saved, model = (
        get_model("resnet8"),
        nn.ModuleDict({"model": nn.ModuleDict({"net": get_model("resnet8")})}),
    )
    torch.save({"state_dict": saved.state_dict()}, tmp_path / "net.pt")
    load_weights(model, tmp_path / "net.pt")
    assert equal(saved, model["model"]["net"])
    assert "the network calls them 'model.net....'" in caplog.text


def test_wrapped_weights_that_do_not_fit_are_named_without_their_prefix(tmp_path):
    torch.save({"state_dict": prefixed("net.")(get_model("resnet8"))}, tmp_path / "net.pt")
    with pytest.raises(
        ConfigError, match=r"fit this ResNet. 2 of another shape: fc.weight \(file \[10, 64\]"
    ):
        load_weights(get_model("resnet8", num_classes=7), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"missing: stages.0.1.conv1"):
        load_weights(get_model("resnet20"), tmp_path / "net.pt")


def test_numbers_that_are_no_weights_are_refused(tmp_path):
    state = get_model("resnet8").state_dict()
    torch.save(state | {"fc.weight": state["fc.weight"].to(torch.int8)}, tmp_path / "int.pt")
    torch.save(state | {"fc.bias": state["fc.bias"] / 0}, tmp_path / "nan.pt")
    for name, text in (("int.pt", r"1 not floating point: fc.weight"), ("nan.pt", r"1 not finite: fc.bias")):
        with pytest.raises(ConfigError, match=text):
            load_weights(get_model("resnet8"), tmp_path / name)


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ({"epoch": 3, "best": 0.9}, "a dict with the keys epoch, best"),
        ([1, 2], "a list"),
        ({}, r"a dict with the keys \(none\)"),
    ],
)
def test_file_without_a_state_dict(tmp_path, content, holds):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=f"holds no state dict but {holds}"):
        load_weights(get_model("resnet8"), tmp_path / "net.pt")
