"""The open loop and train() give the same weights, bit for bit."""

from conftest import result, run_recipe

FLAGS = ("--data", "synthetic", "--limit", 300, "--epochs", 2, "--threads", 1, "--out", "run")


def test_by_hand_is_train(tmp_path):
    (tmp_path / "hand").mkdir()
    (tmp_path / "loop").mkdir()
    done = run_recipe("by_hand", *FLAGS, cwd=tmp_path / "hand")
    assert done.returncode == 0, done.stderr
    assert run_recipe("cifar2", *FLAGS, cwd=tmp_path / "loop").returncode == 0
    by_hand = next(line for line in done.stdout.splitlines() if line.startswith("weights_sha256")).split()[1]
    assert by_hand == result(tmp_path / "loop/run")["weights_sha256"]
    again = run_recipe("by_hand", *FLAGS, cwd=tmp_path / "hand")
    assert again.returncode == 0
    assert by_hand in again.stdout
