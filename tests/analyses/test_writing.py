"""Every file that a script of the analyses writes is whole: it is written by a function that replaces files at once."""

import ast
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent.parent / "analyses").glob("*.py"))
WRITERS = {"write_text", "write_bytes", "savefig", "to_netcdf", "savez", "savez_compressed", "dump"}
"""Methods that write to their path directly."""


def written_directly(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, arguments = node.func.attr, node.args
            if name in WRITERS or (name == "to_csv" and arguments) or (name == "open" and len(arguments) > 1):
                yield ast.unparse(node)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_write_whole_files(script):
    kernel = "Path('/proc/self/clear_refs').write_text('5')"  # no file: a switch of the kernel
    assert [call for call in written_directly(script.read_text()) if call != kernel] == []
