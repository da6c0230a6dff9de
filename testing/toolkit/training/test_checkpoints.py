import json

import pytest
import torch

from toolkit.errors import RunError
from toolkit.training import checkpoints
from toolkit.training.checkpoints import Checkpoint


def make(step: int) -> Checkpoint:
    return Checkpoint(step, {"weights": {"w": torch.full((4,), float(step))}}, {"epoch": step // 2})


def test_what_is_saved_comes_back(tmp_path):
    folder = checkpoints.save_checkpoint(tmp_path, make(250))
    loaded = checkpoints.load_checkpoint(folder)
    assert folder.name == "step_000000250"
    assert loaded.step == 250 and loaded.values["epoch"] == 125
    assert torch.equal(loaded.tensors["weights"]["w"], torch.full((4,), 250.0))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_an_optimizer_state_survives_the_trip(tmp_path, name):
    from toolkit.training.optimizers import make_optimizer

    parameter = torch.nn.Parameter(torch.randn(4, 4))
    params = {"momentum": 0.9} if name == "sgd" else None
    optimizer = make_optimizer(name, [{"params": [parameter]}], lr=1e-2, params=params)
    for _ in range(3):
        parameter.grad = torch.randn(4, 4)
        optimizer.step()
    tensors, tree = checkpoints.pack_optimizer(optimizer)
    folder = checkpoints.save_checkpoint(tmp_path, Checkpoint(3, {"optimizer": tensors}, {"optimizer": tree}))
    loaded = checkpoints.load_checkpoint(folder)
    twin_parameter = torch.nn.Parameter(parameter.detach().clone())
    twin = make_optimizer(name, [{"params": [twin_parameter]}], lr=1e-2, params=params)
    twin.load_state_dict(checkpoints.unpack(loaded.values["optimizer"], loaded.tensors["optimizer"]))
    parameter.grad = twin_parameter.grad = torch.ones(4, 4)
    optimizer.step()
    twin.step()
    assert torch.equal(parameter, twin_parameter)


def test_the_newest_valid_one_is_found_and_damage_is_told(tmp_path):
    for step in (10, 20, 30):
        checkpoints.save_checkpoint(tmp_path, make(step))
    weights = tmp_path / "step_000000030" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    folder, damaged = checkpoints.newest_valid(tmp_path)
    assert folder == tmp_path / "step_000000020"
    assert damaged == [tmp_path / "step_000000030"]


def test_a_folder_without_manifest_does_not_count(tmp_path):
    folder = checkpoints.save_checkpoint(tmp_path, make(5))
    (folder / "manifest.json").unlink()
    assert checkpoints.newest_valid(tmp_path) == (None, [])


def test_an_interrupted_write_leaves_the_older_one(tmp_path, monkeypatch):
    checkpoints.save_checkpoint(tmp_path, make(1))

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "sha256_of", fail)
    with pytest.raises(RunError, match="No space"):
        checkpoints.save_checkpoint(tmp_path, make(2))
    assert [step for step, _ in checkpoints.list_checkpoints(tmp_path)] == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000001"]


def test_pruning_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoints.save_checkpoint(tmp_path, make(step))
    (tmp_path / ".step_000000009.7f3a.part").mkdir()
    checkpoints.prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000003", "step_000000004"]


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path):
    folder = checkpoints.save_checkpoint(tmp_path, make(1))
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"schema_version": 99}))
    with pytest.raises(RunError, match="later version"):
        checkpoints.load_checkpoint(folder)


def test_packing_keeps_integer_keys_tuples_and_refuses_what_it_cannot_keep():
    tensors: dict[str, torch.Tensor] = {}
    tree = {0: {"a": (1, 2.5, None), "b": [torch.ones(2), True]}}
    back = checkpoints.unpack(json.loads(json.dumps(checkpoints.pack(tree, tensors))), tensors)
    assert back[0]["a"] == (1, 2.5, None)
    assert torch.equal(back[0]["b"][0], torch.ones(2)) and back[0]["b"][1] is True
    with pytest.raises(TypeError, match="cannot save a set"):
        checkpoints.pack({"x": {1}}, tensors)


@pytest.mark.parametrize(
    "manifest", ["[]", "null", "7", '{"files": []}', '{"files": 1}', '{"files": {"a/b": null}}']
)
def test_a_manifest_that_is_none_makes_no_valid_checkpoint(tmp_path, manifest):
    folder = checkpoints.save_checkpoint(tmp_path, Checkpoint(3))
    assert checkpoints.is_valid(folder)
    (folder / "manifest.json").write_text(manifest)
    assert not checkpoints.is_valid(folder)
