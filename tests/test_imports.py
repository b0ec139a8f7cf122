"""Start-up stays cheap, and imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "attnprobe"

# Each module may import from those before it only. Figures stand apart: they know results, never models.
ORDER = [
    "errors", "files", "axes", "randomness", "provenance", "config", "results", "figures", "statistics",
    "position", "attention", "initialisation", "transformer", "tasks", "objectives", "batches", "transfer",
    "checkpoint", "run", "processes", "trackers", "training", "sweeps",
    "measures", "report", "demo", "cli", "__main__",
]  # fmt: skip
FIGURES_KNOW = {"errors", "axes", "provenance", "results", "figures"}


def imports(source):
    """Return the attnprobe modules that a source imports at run time, anywhere in it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "attnprobe":
            inner = (node.module or "").split(".")[1:2]
            found |= set(inner) if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("attnprobe.")}
    return found


def wrong_imports(module, source):
    allowed = FIGURES_KNOW if module == "figures" else set(ORDER[: ORDER.index(module) + 1])
    return imports(source) - allowed


def test_imports_point_one_way():
    modules = set()
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        modules.add(module)
        assert not wrong_imports(module, path.read_text()), (
            f"{path.name} imports {wrong_imports(module, path.read_text())}"
        )
    assert modules == set(ORDER)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attention", "from attnprobe.training import train"),
        ("figures", "def f():\n    from attnprobe.measures import MEASURES"),
        ("checkpoint", "import attnprobe.measures"),
        ("tasks", "from attnprobe import report"),
    ],
)
def test_the_check_sees_a_planted_bad_import(module, source):
    assert wrong_imports(module, source)
    allowed = f"if TYPE_CHECKING:\n    {source.splitlines()[-1].strip()}\n"
    assert not wrong_imports(module, allowed)


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], ["torch", "transformer_lens", "matplotlib", "scipy", "xarray"]),
        (["train", "--help"], ["torch", "transformer_lens", "matplotlib", "scipy", "xarray"]),
        (["sweep", "--help"], ["torch", "transformer_lens", "matplotlib", "scipy", "xarray"]),
        (["proximity", "--help"], ["torch", "transformer_lens", "matplotlib"]),
        (["tasks"], ["transformer_lens", "matplotlib"]),
        (["show", "CHECKPOINT"], ["transformer_lens", "matplotlib"]),
    ],
)
def test_start_up_imports_only_what_it_needs(arguments, forbidden, spt_run):
    arguments = [str(spt_run.checkpoints[0].path) if one == "CHECKPOINT" else one for one in arguments]
    code = (
        "import sys\nfrom attnprobe.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"found = [name for name in {forbidden!r} if name in sys.modules]\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_importing_the_package_imports_nothing_heavy_and_names_resolve():
    code = (
        "import sys, attnprobe as ap\n"
        "assert not {'torch', 'numpy', 'xarray'} & set(sys.modules)\n"
        "assert [getattr(ap, name) for name in dir(ap)]\n"
        "try:\n    ap.proximty\nexcept AttributeError as error:\n    assert 'proximity' in str(error)\n"
        "else:\n    raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
