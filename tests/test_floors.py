"""Each module of `minilib` stands on a floor and imports only from below."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minilib"

# From the ground up. A module may import what stands on the floors below its own and,
# on its own floor, what is named before it; on the ground any neighbour.
FLOORS = {
    "0 ground": [
        "torchaudio_guard", "files", "arguments", "audio", "pictures", "soundworld",
        "tables", "data", "readers", "streams", "sets", "detectors", "judges",
        "recogniser", "speakers", "voices", "frechet",
    ],
    "1 process and shared layers": [
        "model", "layers", "conditions", "diffusion", "guidance", "quantise",
    ],
    "2 models": [
        "vae", "vocoder", "discriminators", "audiomae", "tokenizer", "clap", "text",
        "phonemes", "bind", "memory", "transformer", "gpt", "codec", "codec_lm", "unet",
        "codec_diffusion", "classifier",
    ],
    "3 assembly": [
        "convert", "folders", "lean", "audioldm2", "training", "metrics", "chain",
        "costs", "hub", "peers",
    ],
    "4 interfaces": ["results", "show", "doctor", "assign", "cli", "__main__"],
}  # fmt: skip
SHARED = {"0 ground"}
PEERS_USE = {"folders", "lean", "audioldm2", "training", "peers"}  # of their own floor
ANY_PEER_USES = {"text_ldm", "codec"}  # of the other peers
FILES = sorted(PACKAGE.rglob("*.py"))


def top_module(path: Path) -> str:
    """The name of the module or subpackage of minilib that the file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_of(path: Path) -> tuple[str, ...]:
    """The package that a file lies in: ("minilib", "peers")."""
    return ("minilib", *path.relative_to(PACKAGE).parts[:-1])


def allowed(module: str) -> set[str]:
    """The modules that `module` may import, itself among them."""
    below = {module}
    for floor, modules in FLOORS.items():
        if module in modules:
            if module == "peers":
                return below | PEERS_USE
            before = modules if floor in SHARED else modules[: modules.index(module)]
            return below.union(before)
        below.update(modules)
    raise AssertionError(
        f"minilib/{module} stands on no floor: give it one in {Path(__file__).name}"
    )


def imported(tree: ast.AST, package: tuple[str, ...]) -> list[list[str]]:
    """What a file of `package` imports from minilib anywhere, also inside functions,
    taken apart at the dots: ["minilib", "vae", "VAE"].
    """
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{source}.{alias.name}" for alias in node.names]
    return [parts for name in names if (parts := name.split("."))[0] == "minilib"]


def imports(tree: ast.AST, package: tuple[str, ...]) -> set[str]:
    """The modules of minilib that a file of `package` imports."""
    return {(*parts, "minilib")[1] for parts in imported(tree, package)}


def other_peers(tree: ast.AST, peer: str) -> set[str]:
    """The peers that the file of a peer imports and must not."""
    found = imported(tree, ("minilib", "peers"))
    peers = {(*parts, "")[2] for parts in found if parts[1:2] == ["peers"]}
    return peers - {peer} - ANY_PEER_USES


def test_floors_name_modules_that_exist():
    assert {"audio", "diffusion", "vae", "unet", "audioldm2", "training"} <= {
        top_module(path) for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module, found = top_module(path), imports(tree, package_of(path))
    if module == "__init__":  # imports each module when it is first asked for
        assert found == {"torchaudio_guard"}
        return
    too_high = found - allowed(module)
    assert not too_high, (
        f"minilib/{module} imports {sorted(too_high)}, which it must not stand on"
    )


def test_peers_never_import_each_other():
    for path in FILES:
        if package_of(path) == ("minilib", "peers"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not other_peers(tree, path.stem), path.name


def test_the_check_sees_every_way_to_import():
    lines = [
        "import minilib.cli",
        "from minilib import show",
        "import minilib",
        "from . import unet",
        "import torch",
        "def f():",
        "    from minilib.training import train",
        "    from .vae import VAE",
    ]
    found = {"cli", "show", "minilib", "unet", "training", "vae"}
    assert imports(ast.parse("\n".join(lines)), ("minilib",)) == found
    assert imports(
        ast.parse("from .. import audio\nfrom .scene import Scene"),
        ("minilib", "peers"),
    ) == {"audio", "peers"}
    for code, seen in (
        ("from minilib.peers.tango import Tango", {"tango"}),
        ("from minilib.peers import musicldm, text_ldm", {"musicldm"}),
        ("from . import nextgpt\nfrom .tango import Tango", {"nextgpt", "tango"}),
        ("import minilib.peers.text_ldm, minilib.unet", set()),
        ("from .make_an_audio import pseudo_captions", set()),
    ):
        assert other_peers(ast.parse(code), "make_an_audio") == seen, code


def test_each_floor_is_ordered_but_the_ground_and_peers_stand_on_models_and_the_loop():
    assert {"audio", "data"} <= allowed("frechet") and "model" not in allowed("audio")
    assert "layers" in allowed("conditions") and "layers" not in allowed("model")
    assert "vae" in allowed("unet") and "unet" not in allowed("gpt")
    assert "training" in allowed("metrics") and "metrics" not in allowed("training")
    assert {"codec", "training", "audioldm2"} <= allowed("peers")
    assert not {"convert", "metrics", "costs", "show"} & allowed("peers")
    assert "doctor" in allowed("cli") and "cli" not in allowed("doctor")
    assert not {"show", "cli"} & allowed("costs")
