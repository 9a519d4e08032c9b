"""Ctrl-C at any moment: exit code 130 and no traceback, for every command."""

import signal
import time

import pytest

COMMANDS = {
    "explain": ("explain", "image.png", "--model", "scenes", "--out", "out"),
    "segment": ("segment", "image.png", "--model", "scenes", "--out", "out"),
    "evaluate": ("evaluate", "--data", "scenes:test?n=9", "--model", "scenes", "--out", "out"),
    "finetune": ("finetune", "gap", "--model", "scenes", "--data", "scenes:train?n=9", "--out", "out"),
    "reproduce": ("reproduce", "scenes", "--quick", "--out", "out"),
    "demo": ("demo", "--out", "out.png"),
    "models": ("models", "timm/test_*"),
}
EARLY = ["typer", "torch._C", "numpy.linalg"]


@pytest.mark.parametrize(
    ("name", "module", "times"),
    [("explain", "torch._C", 1), ("evaluate", "typer", 2), ("finetune", "camtools.files", 1)]
    + [
        pytest.param(name, module, times, marks=pytest.mark.slow)
        for name in COMMANDS
        for module in (*EARLY, "torch", "torchvision", "timm", "camtools.loading")
        for times in (1, 2)
    ],
)
def test_ctrl_c_once_a_module_has_been_imported(popen, tmp_path, name, module, times):
    """The interpreter tells when it has imported a module; right then, imports of others are under way."""
    from skimage import data, io

    io.imsave(tmp_path / "image.png", data.chelsea())
    process = popen("-X", "importtime", "-m", "camtools", *COMMANDS[name], cwd=tmp_path)
    for line in process.stderr:
        if line.rpartition("|")[2].strip() == module:
            break
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=120)
    words = "\n".join(line for line in stderr.splitlines() if not line.startswith("import time:"))
    assert process.returncode == 130, words
    assert "Traceback" not in words and "KeyboardInterrupt" not in words and "Error" not in words


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_after_any_time(popen, tmp_path, name):
    from skimage import data, io

    io.imsave(tmp_path / "image.png", data.chelsea())
    for tenths in (6, 12, 20, 30, 45, 60):
        process = popen("-m", "camtools", *COMMANDS[name], cwd=tmp_path)
        time.sleep(tenths / 10)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, 130) and "Traceback" not in stderr, (tenths, stderr)
