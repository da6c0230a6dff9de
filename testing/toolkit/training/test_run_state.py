"""What a checkpoint brings back beside the weights: the gradient scaler of fp16 and the average."""

from testing.toolkit.training.test_trainer import Run, batch, scaling_accelerator
from toolkit.training.checkpoints import save_checkpoint
from toolkit.training.run_state import RunIdentity, load_state, snapshot

IDENTITY = RunIdentity({"optimizer": "adamw"}, "items", 4, 4, 1, 1)


def make(scale: float) -> Run:
    batches = [batch([value]) for value in (10.0, 3.0, 2.0)]
    return Run(batches, steps=3, optimizer="adamw", accelerator=scaling_accelerator(scale))


def test_a_gradient_scaler_goes_on_where_it_was(tmp_path):
    first = make(2.0**127).run()  # a step that overflows halves the scale
    scaler = first.trainer.updates.scaler
    assert scaler.get_scale() < 2.0**127
    save_checkpoint(tmp_path, snapshot(first.trainer, IDENTITY))
    second = make(2.0**16)
    assert load_state(tmp_path, second.trainer, IDENTITY)[0] == first.trainer.state.step
    assert second.trainer.updates.scaler.state_dict() == scaler.state_dict()
    assert second.weight.item() == first.weight.item()
    assert second.trainer.ema.num_updates == first.trainer.ema.num_updates > 0
    assert second.trainer.ema.shadow["w"].item() == first.trainer.ema.shadow["w"].item()
