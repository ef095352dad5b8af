"""Each module of `minilib` stands on a floor and imports only from below."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minilib"

# From the ground up. A module may import what stands on the floors below its own. On
# the floors in SHARED, also its neighbours; on those in ORDERED, also the neighbours
# named before it.
FLOORS = {
    "0 ground": ["torchaudio_guard", "files", "audio", "soundworld", "data", "detectors", "judges", "frechet"],
    "1 process and shared layers": ["diffusion", "guidance", "layers", "model"],
    "2 models": [
        "vae", "vocoder", "discriminators", "audiomae", "clap", "text", "phonemes", "bind", "gpt", "unet",
    ],
    "3 assembly": [
        "pretrained", "original", "released", "lean", "audioldm2", "costs", "metrics", "chain", "training", "peers",
    ],
    "4 faces": ["show", "doctor", "cli", "__main__"],
}  # fmt: skip
SHARED = {"0 ground"}
ORDERED = {"3 assembly", "4 faces"}
FILES = sorted(PACKAGE.rglob("*.py"))


def top_module(path: Path) -> str:
    """The name of the module or subpackage of minilib that the file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(module: str) -> set[str]:
    """The modules that `module` may import, itself among them."""
    below = {module}
    for floor, modules in FLOORS.items():
        if module in modules:
            if floor in SHARED:
                below.update(modules)
            if floor in ORDERED:
                below.update(modules[: modules.index(module)])
            return below
        below.update(modules)
    raise AssertionError(
        f"minilib/{module} stands on no floor: give it one in {Path(__file__).name}"
    )


def imports(tree: ast.AST, package: tuple[str, ...]) -> set[str]:
    """The modules of minilib that a file of `package` imports anywhere, also inside
    functions.
    """
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{source}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {
        part[1] if len(part) > 1 else "minilib"
        for part in parts
        if part[0] == "minilib"
    }


def test_floors_name_modules_that_exist():
    assert {"audio", "diffusion", "vae", "unet", "audioldm2", "training"} <= {
        top_module(path) for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    package = ("minilib", *path.relative_to(PACKAGE).parts[:-1])
    module, found = (
        top_module(path),
        imports(ast.parse(path.read_text(encoding="utf-8")), package),
    )
    if module == "__init__":  # imports each module when it is first asked for
        assert found == {"torchaudio_guard"}
        return
    too_high = found - allowed(module)
    assert not too_high, (
        f"minilib/{module} imports {sorted(too_high)}, which it must not stand on"
    )


def test_the_check_sees_every_way_to_import():
    lines = [
        "import minilib.cli",
        "from minilib import show",
        "import minilib",
        "from . import unet",
        "import torch",
    ]
    code = "\n".join(
        [
            *lines,
            "def f():",
            "    from minilib.training import train",
            "    from .vae import VAE",
        ]
    )
    found = {"cli", "show", "minilib", "unet", "training", "vae"}
    assert imports(ast.parse(code), ("minilib",)) == found
    assert imports(
        ast.parse("from .. import audio\nfrom .scene import Scene"),
        ("minilib", "peers"),
    ) == {"audio", "peers"}
    assert not found & allowed("audio")
    assert "metrics" in allowed("training") and "training" not in allowed("metrics")
    assert (
        "unet" not in allowed("vae")
        and "layers" in allowed("vae")
        and "layers" not in allowed("model")
    )
