"""Import order of the modules, and imports at start-up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "attnprobe"

# Each module or folder may import from itself and from earlier entries.
ORDER = [
    "errors", "former_names", "tables", "files", "interrupts", "axes", "randomness", "provenance", "progress",
    "geometry", "scores", "config",
    "results_accessor", "results", "statistics", "model", "tasks", "training", "networks", "measures", "figures",
    "explore", "report", "sweeps",
    "demo", "cli",
    "__main__",
]  # fmt: skip
FIGURE_IMPORTS = {"errors", "former_names", "tables", "files", "axes", "provenance", "results", "figures"}
"""Modules that figures may import: results and how files are written, but no networks."""
WITHOUT_NETWORKS = {"statistics", "measures", "figures", "explore", "report"}
"""Folders that may not import any network class."""


def imports(source):
    """Return the top-level attnprobe modules imported at run time anywhere in a source."""
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


def full_imports(source):
    """Return the full names of the attnprobe objects imported in a source."""
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("attnprobe")
        for alias in node.names
    }


def wrong_imports(module, source):
    allowed = FIGURE_IMPORTS if module == "figures" else set(ORDER[: ORDER.index(module) + 1])
    return imports(source) - allowed


def test_imports_follow_the_order():
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
        ("model", "from attnprobe.training.loop import train"),
        ("figures", "def f():\n    from attnprobe.measures import MEASURES"),
        ("training", "import attnprobe.measures"),
        ("statistics", "from attnprobe.model.transformer import Transformer"),
        ("tasks", "from attnprobe import report"),
    ],
)
def test_the_check_detects_a_planted_bad_import(module, source):
    assert wrong_imports(module, source)
    allowed = f"if TYPE_CHECKING:\n    {source.splitlines()[-1].strip()}\n"
    assert not wrong_imports(module, allowed)


LARGE = ["transformer_lens", "transformers", "datasets", "matplotlib.pyplot", "sklearn", "numba"]


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], ["torch", "numpy", "tyro", "pydantic"]),
        (["--version"], ["torch", "numpy", "tyro", "pydantic"]),
        (["train", "--help"], ["torch", "transformer_lens", "matplotlib", "scipy", "xarray", "pandas"]),
        (["sweep", "--help"], ["torch", "transformer_lens", "matplotlib", "scipy", "xarray", "pandas"]),
        (["proximity", "--help"], ["transformer_lens", "matplotlib"]),
        (["tasks"], ["torch", "transformer_lens", "matplotlib", "scipy", "pandas", "sklearn"]),
        (["show", "CHECKPOINT"], ["transformer_lens", "matplotlib", "xarray", "scipy", "pandas"]),
        (["proximity", "CHECKPOINT", "--sequences", "2", "--nulls", "1", "--out", "FOLDER"], LARGE),
    ],
)
def test_start_up_imports_only_what_it_needs(arguments, forbidden, spt_run, tmp_path):
    paths = {"CHECKPOINT": str(spt_run.checkpoints[0].path), "FOLDER": str(tmp_path)}
    arguments = [paths.get(argument, argument) for argument in arguments]
    code = (
        "import sys\nfrom attnprobe.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"found = [name for name in {forbidden!r} if name in sys.modules]\nassert not found, found"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout


def test_measures_import_no_network_class():
    """They access networks only through the interface in `networks.base`."""
    for folder in WITHOUT_NETWORKS:
        for path in (PACKAGE / folder).rglob("*.py"):
            wrong = [
                name
                for name in full_imports(path.read_text())
                if name.startswith(("attnprobe.model", "attnprobe.networks.transformer", "transformer_lens"))
            ]
            assert not wrong, f"{path}: {wrong}"


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path):
    """As in the parent folder of a clone called attnprobe."""
    (tmp_path / "attnprobe").mkdir()
    process = subprocess.run(
        [sys.executable, "-c", "import attnprobe; print(attnprobe.load.__name__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.stdout == "load\n", process.stderr


def test_importing_the_package_is_lazy_and_all_names_resolve():
    code = (
        "import sys, attnprobe as ap\n"
        "assert not {'torch', 'numpy', 'xarray'} & set(sys.modules)\n"
        "assert [getattr(ap, name) for name in dir(ap)]\n"
        "try:\n    ap.proximty\nexcept AttributeError as error:\n    assert 'proximity' in str(error)\n"
        "else:\n    raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
