import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rmpe_jax
from rmpe_jax import _HOME

ROOT = Path(__file__).parents[1]
FUNCTIONS = [name for name in rmpe_jax.__all__ if inspect.isfunction(getattr(rmpe_jax, name))]
HEAVY = ("jax", "flax", "optax", "orbax", "cv2", "PIL", "scipy", "matplotlib", "tensorflow", "pycocotools", "numpy")


def parameters(name):
    return list(inspect.signature(getattr(rmpe_jax, name)).parameters.values())


def typing_imports():
    """Name -> module of the imports under TYPE_CHECKING in the package's __init__."""
    tree = ast.parse(Path(rmpe_jax.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.asname == alias.name for node in imports for alias in node.names)
    return {alias.name: str(node.module).removeprefix("rmpe_jax.") for node in imports for alias in node.names}


@pytest.mark.parametrize("name", rmpe_jax.__all__)
def test_every_public_name_resolves_to_its_home(name):
    found = getattr(rmpe_jax, name)
    assert found is getattr(importlib.import_module(f"rmpe_jax.{_HOME[name]}"), name)
    if inspect.isfunction(found) or inspect.isclass(found):
        assert found.__module__ == f"rmpe_jax.{_HOME[name]}"


def test_type_checkers_see_the_names_that_users_see():
    assert typing_imports() == _HOME


def test_the_public_names_are_sorted_and_listed_by_dir():
    assert rmpe_jax.__all__ == sorted(set(_HOME))
    assert set(rmpe_jax.__all__) <= set(dir(rmpe_jax))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'rmpe_jax' has no attribute 'octopus'"):
        rmpe_jax.__getattr__("octopus")


def test_the_version_is_one_string():
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z0-9.+]*)", rmpe_jax.__version__)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"] and "version" not in settings["project"]
    assert settings["tool"]["hatch"]["version"]["path"] == "rmpe_jax/__init__.py"


@pytest.mark.parametrize("name", [*FUNCTIONS, *(n for n in rmpe_jax.__all__ if n not in FUNCTIONS and n[0].isupper())])
def test_everything_public_is_described(name):
    found = getattr(rmpe_jax, name)
    described = inspect.getdoc(found) if callable(found) else inspect.getdoc(type(found))
    # dataclasses fill in "Name(field: type, ...)" where there is no docstring.
    assert described and not described.startswith(f"{name}(")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_key_comes_first(name):
    names = [parameter.name for parameter in parameters(name)]
    assert "key" not in names or names[0] == "key"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("load", "load_weights")])
def test_options_are_keyword_only(name):
    # `load` and `load_weights` take one optional argument: which weights.
    for parameter in parameters(name):
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_and_result_has_a_type(name):
    signature = inspect.signature(getattr(rmpe_jax, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters(name))


def test_importing_the_package_imports_nothing_heavy():
    code = f"import rmpe_jax, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_command_imports_nothing_heavy():
    code = f"import rmpe_jax.cli, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_examples_of_the_conventions_page_hold():
    page = ROOT / "CONVENTIONS.md"
    if not page.is_file():
        pytest.skip("there is no CONVENTIONS.md")
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 and found.attempted > 5
