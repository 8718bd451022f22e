"""Imports run one way (see [tool.importlinter] in pyproject.toml); `import s2d` needs torch and numpy alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_layers_hold():
    result = subprocess.run(["lint-imports"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_kernels_import_nothing_of_the_package_but_their_own():
    # import-linter cannot see kernels/: it has no __init__.py.
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [n for n in names if n.split(".")[0] == "s2d" and not n.startswith("s2d.kernels")], path


def test_the_operators_need_torch_and_numpy_alone():
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import s2d, s2d.ops, s2d.nn\n"
        "heavy = {'av', 'cv2', 'skimage', 'sklearn', 'scipy', 'matplotlib', 'PIL', 'typer', 'tqdm', 'safetensors'}\n"
        "print(' '.join(sorted(heavy & (set(sys.modules) - before))))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == ""
