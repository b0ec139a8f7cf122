import sys

import pytest

from attnprobe.provenance import provenance


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["bin/attnprobe", "train", "--seed", "1"], "attnprobe train --seed 1"),
        (["site/ipykernel_launcher.py", "-f", "runtime/kernel-1.json"], "ipykernel_launcher.py"),
    ],
)
def test_the_command_is_that_of_the_user_without_files_of_a_kernel(monkeypatch, arguments, command):
    monkeypatch.setattr(sys, "argv", arguments)
    assert provenance()["command"] == command
