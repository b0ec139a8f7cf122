"""Completion in the shell."""

import shutil
import subprocess

import pytest

from attnprobe.cli import COMMANDS, main
from attnprobe.tables import EDITS, MEASURES, POSITIONS, TASKS
from attnprobe.tasks import PRESETS


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """Return a function that returns what bash completes for words of a command line, the last of which is begun."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    script = tmp_path_factory.mktemp("completion") / "script"

    def complete(*words):
        call = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _attnprobe; printf "%s\\n" "${COMPREPLY[@]}"'
        ended = subprocess.run(
            [bash, "-u", "-c", call, str(script), "attnprobe", *words], capture_output=True, text=True, check=True
        )
        assert not ended.stderr
        return ended.stdout.split()

    complete.script = script
    return complete


def test_the_shell_completes_commands_flags_and_names(completed, capsys):
    main(["completion", "bash"])
    completed.script.write_text(capsys.readouterr().out)
    assert completed("") == [*COMMANDS, *MEASURES, "--help", "--version"]
    assert completed("tra") == ["train"]
    assert completed("train", "--task", "") == completed("tasks", "") == list(TASKS)
    assert completed("train", "--preset", "small-l") == [name for name in PRESETS if name.startswith("small-l")]
    assert completed("train", "--seed", "3", "--recipe", "s") == ["supervised", "spt"]
    assert completed("train", "--position", "") == list(POSITIONS)
    assert completed("train", "--device", "c") == ["cpu", "cuda"]
    assert completed("train", "--n-l") == ["--n-layers"]
    assert completed("train", "--no-c") == ["--no-compile", "--no-causal"]
    assert completed("interventions", "run", "--edits", "keep") == [name for name in EDITS if name.startswith("keep")]
    assert completed("proximity", "run", "--st") == completed("show", "run", "--st") == ["--step"]
    assert completed("proximity", "ru") == [], "names of files are completed by the shell itself"


def test_zsh_reads_the_same_script(capsys):
    main(["completion", "bash"])
    bash = capsys.readouterr().out
    main(["completion", "zsh"])
    assert capsys.readouterr().out.endswith(f"bashcompinit\n{bash}")
