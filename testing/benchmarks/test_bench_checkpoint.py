"""The benchmark of saving runs and says what it promises; its ratios are the benchmark's own business."""

import json

from testing.benchmarks import bench_checkpoint


def test_it_measures_both_ratios(tmp_path, capsys):
    code = bench_checkpoint.main(["--quick", "--folder", str(tmp_path)])
    found = json.loads(capsys.readouterr().out.splitlines()[0])
    assert found["megabytes"] == 64
    assert found["save_ms"] > 0 and found["copy_ms"] > 0
    # Far from the goal only on a machine that is busy elsewhere; hashing after writing would be near 2.
    assert 0.2 < found["save_ratio"] < 20 and 0.05 < found["wait_ratio"] < 20
    assert code == (0 if max(found["save_ratio"], found["wait_ratio"]) <= bench_checkpoint.GOAL else 1)
    assert list(tmp_path.iterdir()) == []
