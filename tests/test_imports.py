"""Who may import whom (the house plan's order), and what `import chameleon_jax` needs."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("chameleon_jax", "data_pipeline")

# From the ground up; a module may import from lower layers and from its own. An entry stands for the module and what
# is inside it.
LAYERS = (
    ("errors", "array_types", "runtime"),
    ("config", "document", "display", "batch"),
    ("models",),
    ("tokens",),
    ("sharding",),
    ("training", "generation"),
    ("weights",),
    ("chat", "generating", "chameleon", "summary"),
    ("data_pipeline",),
    ("compilation", "bench", "evaluation", "pages", "serving"),
    ("demo", "project", "console", "__main__"),
)  # fmt: skip
OPEN_TO_DATA_PIPELINE = {"document", "batch", "tokens", "config", "runtime", "array_types", "errors"}
OPEN_TO_MODELS = {"config", "array_types", "models"}


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of both packages."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_nodes(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Imports that can run, each with whether it runs when the module is imported."""

    def walk(node: ast.AST, at_once: bool) -> Iterator:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield child, at_once
            elif is_type_checking(child):
                for other in child.orelse:
                    yield from walk(other, at_once)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, at_once and not inside)

    return walk(tree, True)


@functools.cache
def imports(module: str) -> frozenset[tuple[str, bool]]:
    """What a module imports: (dotted name, whether at once); names inside modules are cut off."""
    path, found = modules()[module], set()
    for node, at_once in import_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{path.name} imports relatively; the packages import by full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else node.module for name in names]
        found |= {(name, at_once) for name in names}
    return frozenset(found)


def ours(module: str) -> set[str]:
    return {name for name, _ in imports(module) if name.split(".")[0] in PACKAGES}


def part(module: str) -> str:
    """chameleon_jax.models.vq -> models; data_pipeline.loader -> data_pipeline; chameleon_jax -> ''."""
    package, *rest = module.split(".")
    return package if package == "data_pipeline" else (rest[0] if rest else "")


def layer(module: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if part(module) in names)


def all_but_roots() -> list[str]:
    return sorted(name for name in modules() if part(name))


def test_the_walk_sees_imports_where_they_are():
    assert ("chameleon_jax.models.attention", True) in imports("chameleon_jax.models.transformer")
    assert ("orbax.checkpoint", False) in imports("chameleon_jax.runtime.arrays")
    assert len(modules()) > 20


def test_every_module_has_a_place_in_the_order():
    placed = {name for names in LAYERS for name in names}
    assert {part(name) for name in all_but_roots()} <= placed


@pytest.mark.parametrize("module", all_but_roots())
def test_arrows_only_go_down(module):
    for imported in ours(module):
        assert part(imported), f"{module} imports the package's public names; import the module itself"
        assert layer(imported) <= layer(module), f"{module} imports {imported}, which stands above it"


def test_models_need_only_the_config():
    for module in all_but_roots():
        if part(module) == "models":
            assert {part(name) for name in ours(module)} <= OPEN_TO_MODELS, module


def test_training_and_generation_do_not_know_each_other():
    for module in all_but_roots():
        if part(module) in ("training", "generation"):
            other = {"training": "generation", "generation": "training"}[part(module)]
            assert other not in {part(name) for name in ours(module)}, module


def test_the_library_does_not_know_the_data_pipeline():
    below = LAYERS.index(("data_pipeline",))
    for module in all_but_roots():
        if layer(module) < below:
            assert "data_pipeline" not in {part(name) for name in ours(module)}, module


def test_the_data_pipeline_uses_only_what_is_open_to_it():
    for module in all_but_roots():
        if part(module) == "data_pipeline":
            assert {part(name) for name in ours(module)} <= OPEN_TO_DATA_PIPELINE | {"data_pipeline"}, module


def test_there_are_no_circles():
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"circle: {' -> '.join([*above[above.index(module) :], module])}"
        if module in done:
            return
        for imported in sorted(ours(module)):
            visit(imported, (*above, module))
        done.add(module)

    for module in modules():
        visit(module, ())
    assert done == set(modules())


def test_tensorflow_and_torch_are_never_imported():
    for module in modules():
        for name, _ in imports(module):
            assert name.split(".")[0] not in ("tensorflow", "torch", "transformers"), module


def test_names_that_are_imported_from_our_packages_exist():
    for module in modules():
        for name in ours(module):
            assert name in modules(), f"{module} imports {name}, which is no module"


# ----------------------------------------------------------------------------------------------------------------------
# Public names
# ----------------------------------------------------------------------------------------------------------------------

PUBLIC = ("chameleon_jax", "chameleon_jax.training", "data_pipeline")


@pytest.mark.parametrize("package", PUBLIC)
def test_type_checkers_see_the_lazy_names(package):
    """`__init__.pyi` says where each name is defined, as the package itself does."""
    module = importlib.import_module(package)
    stub = ast.parse((Path(module.__file__).parent / "__init__.pyi").read_text())
    imported = {node.module: {alias.name for alias in node.names} for node in stub.body
                if isinstance(node, ast.ImportFrom)}  # fmt: skip
    assert imported == {home: set(names) for home, names in module.HOMES.items()}
    (listed,) = (node.value for node in stub.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(listed) == module.__all__


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_there(package):
    module = importlib.import_module(package)
    for home, names in module.HOMES.items():
        for name in names:
            assert getattr(module, name) is getattr(importlib.import_module(home), name)
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_hide_no_module(package):
    """Once a module is imported it is an attribute of its package, whatever else had the name."""
    assert not set(importlib.import_module(package).__all__) & {
        name.removeprefix(f"{package}.") for name in modules() if name.startswith(f"{package}.")
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_may_trust_the_annotations(package):
    assert (ROOT / package / "py.typed").is_file()


# ----------------------------------------------------------------------------------------------------------------------
# With little installed
# ----------------------------------------------------------------------------------------------------------------------

BLOCKED = (
    "orbax", "grain", "array_record", "sentencepiece", "tensorflow_datasets", "tensorflow", "PIL", "jaxtyping",
    "beartype", "tyro", "matplotlib", "sklearn", "torch", "transformers",
)  # fmt: skip

PROGRAM = """
import sys
sys.path.insert(0, {root!r})

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Absent())
{body}
"""

USE = """
import jax, jax.numpy as jnp
from chameleon_jax.config import TransformerConfig
from chameleon_jax.models.transformer import Transformer
config = TransformerConfig(vocab_size=8, d_model=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=8)
model = Transformer(config)
ids = jnp.zeros((1, 3), jnp.int32)
print(jax.jit(lambda key: model.apply(model.init(key, ids), ids))(jax.random.key(0)).shape)
"""


def run_with_little_installed(body: str) -> str:
    program = PROGRAM.format(root=str(ROOT), blocked=BLOCKED, body=body)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_modules_import_and_the_model_runs_without_the_optional_packages():
    body = """
import importlib
for name in ("", ".models.transformer", ".models.vq", ".training", ".training.step"):
    for loaded in [each for each in sys.modules if each.startswith("chameleon_jax")]:
        del sys.modules[loaded]
    importlib.import_module(f"chameleon_jax{name}")
"""
    assert run_with_little_installed(body + USE) == "(1, 3, 8)"


def test_importing_the_package_does_not_load_what_is_rarely_used():
    heavy = ("grain", "tensorflow_datasets", "sentencepiece", "orbax.checkpoint.v1", "matplotlib", "sklearn")
    heavy += ("chameleon_jax.serving", "fastapi", "starlette", "uvicorn", "prometheus_client")
    body = "import chameleon_jax.chameleon, chameleon_jax.training, data_pipeline; "
    body += f"print([name for name in {heavy!r} if name in sys.modules])"
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {body}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"


def test_importing_the_package_loads_next_to_nothing():
    """Names are looked up when they are used: neither JAX nor what serves is loaded before."""
    body = "before = set(sys.modules); import chameleon_jax; print(*sorted(set(sys.modules) - before))"
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {body}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    loaded = {name for name in result.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names}
    assert loaded == {"chameleon_jax", "chameleon_jax.runtime", "chameleon_jax.runtime.lazy_names"}


@pytest.mark.slow
def test_the_train_step_is_measured_without_the_optional_packages(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "{model: {vocab_size: 32, d_model: 8, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 4, mlp_dim: 8}, "
        "batch_size: 2, length: 16, optimizer: {warmup_steps: 3}, warmup: 1, steps: 1, repeats: 1}"
    )
    body = (
        "import json; from chameleon_jax.bench.train import bench_train; "
        "from chameleon_jax.config import BenchTrainConfig, read_config; "
        f"print(json.dumps(bench_train(read_config(BenchTrainConfig, {str(path)!r}))))"
    )
    figures = json.loads(run_with_little_installed(body))
    assert figures["tokens_per_second"]["median"] > 0
    assert figures["memory"]["device_peak_gib"] is None


@pytest.mark.slow
def test_generation_is_measured_without_the_optional_packages():
    body = (
        "import json; from chameleon_jax.bench.generate import bench_generate; "
        "from chameleon_jax.config import BenchGenerateConfig, TransformerConfig; "
        "model = TransformerConfig(vocab_size=64, d_model=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4, "
        "mlp_dim=8); "
        "config = BenchGenerateConfig(model, rows=(1,), prompt=4, new_tokens=12, codes_per_image=0, repeats=1); "
        "print(json.dumps(bench_generate(config)))"
    )
    figures = json.loads(run_with_little_installed(body))
    assert figures["text"][0]["tokens_per_second"]["median"] > 0
    assert figures["pictures"] == []
