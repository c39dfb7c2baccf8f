"""Saving and loading: the same bits come back, and no damaged or foreign file does."""

import json
import struct
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

import chipnet
from chipnet import ConfigError, LoadError, PlanError, Structure
from chipnet._util.files import write_atomically, write_json
from chipnet.lab.models import get_model, load_weights
from chipnet.surgery.storage import save_weights


class Residual(nn.Module):
    """in -> stem(13) -> [a(11) -> b(13)] + -> fc(3): the branch a, b can die."""

    def __init__(self, width=11):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 13, 3, padding=1), nn.BatchNorm2d(13)
        self.a, self.norm_a = nn.Conv2d(13, width, 3, padding=1), nn.BatchNorm2d(width)
        self.b, self.norm_b = nn.Conv2d(width, 13, 3, padding=1), nn.BatchNorm2d(13)
        self.fc = nn.Linear(13, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))))
        return self.fc(x.mean((2, 3)))


class Tied(nn.Module):
    """One weight under two names: in -> fc1(11) -> [fc2(3), fc3(3)] +."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 11), nn.Linear(11, 3), nn.Linear(11, 3)
        self.fc3.weight = self.fc2.weight

    def forward(self, x):
        x = torch.relu(self.fc1(x))
        return self.fc2(x) + self.fc3(-x)


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def random_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def pruned(model, inputs, realisation="plain", density=0.6, closed=()):
    """A compact network and its plan, by a random mask; gates of the sites named in `closed` are all shut."""
    structure = Structure(model, inputs, realisation=realisation)
    mask = torch.rand(structure.gates) < density
    for site, gates in zip(structure.sites, structure.analysis.site_gates, strict=True):
        if site.name in closed:
            mask[gates] = False
        elif len(gates):
            mask[gates[:2]] = True
    mask = structure.canonical(mask)
    plan = structure.plan(mask)
    assert plan.compact.params < plan.dense.params
    return chipnet.compact(model, plan), plan


@pytest.fixture
def saved(tmp_path):
    model = random_statistics(Residual())
    small, plan = pruned(model, X)
    path = tmp_path / "small.safetensors"
    chipnet.save(small, plan, path)
    return small, plan, path


def assert_same_bits(a, b, inputs):
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.shape == second[name].shape, name
        if tensor.numel():
            bytes_of = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, second[name])]
            assert torch.equal(*bytes_of), name
    with torch.no_grad():
        assert torch.equal(a.eval()(inputs), b.eval()(inputs))


@pytest.mark.parametrize("realisation", ["plain", "indexed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_bits_come_back(tmp_path, dtype, realisation):
    model = random_statistics(Residual())
    small, plan = pruned(model, X, realisation)
    small = small.to(dtype)
    chipnet.save(small, plan, tmp_path / "s.safetensors")
    again = chipnet.load(Residual, tmp_path / "s.safetensors")
    assert next(again.parameters()).dtype == dtype
    assert type(again) is Residual
    assert_same_bits(small, again, X.to(dtype))


def test_a_dead_branch_comes_back(tmp_path):
    model = random_statistics(Residual())
    small, plan = pruned(model, X, closed=("norm_a",))
    assert plan.stand_ins
    chipnet.save(small, plan, tmp_path / "s.safetensors")
    assert_same_bits(small, chipnet.load(Residual, tmp_path / "s.safetensors"), X)


def test_index_maps_come_back(tmp_path):
    model = random_statistics(get_model("preresnet20"))
    x = torch.randn(1, 3, 8, 8)
    small, plan = pruned(model, x, "indexed", density=0.5)
    assert plan.remaps
    chipnet.save(small, plan, tmp_path / "s.safetensors")
    assert_same_bits(small, chipnet.load(lambda: get_model("preresnet20"), tmp_path / "s.safetensors"), x)


def test_tied_tensors_come_back_tied(tmp_path):
    x = torch.randn(2, 5)
    small, plan = pruned(Tied(), x)
    chipnet.save(small, plan, tmp_path / "s.safetensors")
    again = chipnet.load(Tied, tmp_path / "s.safetensors")
    assert again.fc2.weight is again.fc3.weight
    assert_same_bits(small, again, x)


def test_mixed_dtypes_come_back(tmp_path):
    small, plan = pruned(random_statistics(Residual()), X)
    small.fc.double()
    chipnet.save(small, plan, tmp_path / "s.safetensors")
    again = chipnet.load(Residual, tmp_path / "s.safetensors")
    assert (again.fc.weight.dtype, again.stem.weight.dtype) == (torch.float64, torch.float32)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_factorys(saved, training):
    assert chipnet.load(lambda: Residual().train(training), saved[2]).training is training


def test_parameters_that_need_no_gradient_stay_so(saved):
    def frozen():
        model = Residual()
        model.stem.weight.requires_grad_(False)
        return model

    again = chipnet.load(frozen, saved[2])
    assert not again.stem.weight.requires_grad
    assert again.fc.weight.requires_grad


def test_the_same_network_is_the_same_bytes(saved, tmp_path):
    _, plan, path = saved
    for i in range(5):  # six names in any order: all in one is no luck
        chipnet.save(chipnet.load(Residual, path), plan, tmp_path / f"{i}.safetensors")
        assert (tmp_path / f"{i}.safetensors").read_bytes() == path.read_bytes()


def test_the_plan_can_be_read_from_the_file(saved):
    _, plan, path = saved
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["format_version"] == "1"
    assert header["chipnet_version"] == chipnet.__version__
    assert chipnet.Plan.from_json(json.loads(header["plan"])) == plan


# -- refusals ---------------------------------------------------------------------------------------------


def rewritten(path, change):
    """Write the file again with `change(tensors, header)` applied."""
    with safetensors.safe_open(path, "pt") as file:
        names = list(file.keys())
        tensors, header = {n: file.get_tensor(n).clone() for n in names}, dict(file.metadata())
    change(tensors, header)
    path.write_bytes(safetensors.torch.save(tensors, header))


def test_a_missing_file(tmp_path):
    with pytest.raises(LoadError, match=r"nowhere\.safetensors does not exist\. Give the \.safetensors file"):
        chipnet.load(Residual, tmp_path / "nowhere.safetensors")
    with pytest.raises(LoadError, match="is a folder"):
        chipnet.load(Residual, tmp_path)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    with pytest.raises(LoadError, match="is empty"):
        chipnet.load(Residual, path)
    torch.save(Residual().state_dict(), path)
    with pytest.raises(LoadError, match="is not a safetensors file"):
        chipnet.load(Residual, path)
    save_weights(Residual(), path)
    with pytest.raises(LoadError, match=r"no plan: chipnet\.save did not write it.*load_weights"):
        chipnet.load(Residual, path)


@pytest.mark.parametrize("keep", [5, 30, 0.5, -1])
def test_a_truncated_file(saved, keep):
    path = saved[2]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(LoadError, match="is truncated"):
        chipnet.load(Residual, path)


def test_one_flipped_bit_of_any_tensor(saved):
    path = saved[2]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(LoadError, match="damaged: its content does not match its checksum"):
        chipnet.load(Residual, path)


@pytest.mark.parametrize("part", ["plan", "name", "shape", "missing"])
def test_a_changed_part(saved, part):
    def change(tensors, header):
        if part == "plan":
            header["plan"] = header["plan"].replace('"budget":""', '"budget":"macs=0.1"')
        elif part == "name":
            tensors["other"] = tensors.pop("fc.bias")
        elif part == "shape":
            tensors["fc.weight"] = tensors["fc.weight"].reshape(-1)
        else:
            del tensors["fc.bias"]

    rewritten(saved[2], change)
    with pytest.raises(LoadError, match="does not match its checksum"):
        chipnet.load(Residual, saved[2])


def test_an_unknown_version(saved):
    rewritten(saved[2], lambda tensors, header: header.update(format_version="2"))
    with pytest.raises(LoadError, match=r"format version '2', of chipnet .* reads version '1'"):
        chipnet.load(Residual, saved[2])


def test_a_wrong_factory(saved):
    with pytest.raises(LoadError, match=r"saved from a Residual that the factory does not build.*a\.weight"):
        chipnet.load(lambda: Residual(width=12), saved[2])
    with pytest.raises(LoadError, match="arguments that the dense network was built with"):
        chipnet.load(lambda: nn.Linear(2, 2), saved[2])
    with pytest.raises(LoadError, match="give a callable that builds the dense network"):
        chipnet.load(Residual(), saved[2])
    with pytest.raises(LoadError, match="the factory returned a dict"):
        chipnet.load(dict, saved[2])


def test_the_dense_network_is_not_saved_as_a_compact_one(saved, tmp_path):
    _, plan, _ = saved
    with pytest.raises(PlanError, match=r"was not made with this plan: .*instead of"):
        chipnet.save(Residual(), plan, tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(PlanError, match="not all tensors: _extra_state"):
        save_weights(Extra(2, 2), tmp_path / "x.safetensors")


# -- all or nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_the_old_file_survives_a_failure(saved, monkeypatch, error, where):
    small, plan, path = saved
    before = path.read_bytes()

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"chipnet.surgery.storage.os.{where}", fail)
        with torch.no_grad():
            small.fc.bias += 1
        with pytest.raises(type(error)):
            chipnet.save(small, plan, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    chipnet.load(Residual, path)


def test_no_such_folder(saved):
    small, plan, path = saved
    with pytest.raises(ConfigError, match=r"there is no folder .*no\. Make it first: mkdir -p"):
        chipnet.save(small, plan, path.parent / "no" / "x.safetensors")


def test_write_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5]}


def test_written_files_are_readable_by_others(tmp_path):
    write_atomically(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    (tmp_path / "a").chmod(0o640)
    write_atomically(tmp_path / "a", b"y")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link_and_its_target_is_replaced(saved, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "plan.json").symlink_to(tmp_path / "kept" / "plan.json")
    (tmp_path / "plan.json.tmp").symlink_to(tmp_path / "kept" / "victim")  # a name that can be guessed
    saved[1].save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").is_symlink()
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["plan.json"]
    assert chipnet.Plan.load(tmp_path / "plan.json") == saved[1]


def test_names_of_all_lengths_and_what_is_no_file(tmp_path):
    for name in ("é" * 120, "x" * 255):
        write_atomically(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    write_atomically("/dev/null", b"x")
    assert not Path("/dev/null").is_file()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"x")
    assert len(list(tmp_path.iterdir())) == 3


def test_dense_weights_round_trip(tmp_path):
    model, other = Tied(), Tied()
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert_same_bits(model, other, torch.randn(2, 5))


def test_nothing_in_a_file_is_pickled(saved):
    content = saved[2].read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert 8 + length + end == len(content)  # a JSON header and raw tensors, nothing else
