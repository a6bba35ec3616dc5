"What type checkers see of the package: whole signatures, true of what users write."

import importlib, inspect, os, pkgutil, re, subprocess, sys, types
from collections import abc
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable, Union, get_args, get_origin

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages([str(ROOT / "saaae")], "saaae.") if not m.ispkg and "._" not in m.name]
USED = """
import torch
from saaae.anchoring import anchor
from saaae.models import SAAAE, VAE
from saaae.precision import temper
from saaae.config import configure
from saaae.training import build_models
from saaae.runs.folder import load_run, train_or_load
from saaae.sources.photos64 import photos64

class Mine(VAE): ...

shipped: SAAAE = SAAAE.from_pretrained("photos64")
mine: Mine = Mine.from_pretrained("somewhere")
cfg, models = load_run("results/quick")
their: Mine = anchor(mine)
bits: torch.Tensor = temper(mine).reconstruct(torch.zeros(1, 3, 64, 64), rate_bits=60).rate_bits
done: bool = train_or_load(build_models(configure("small", epochs=2)), photos64("train"), cfg, "somewhere")
"""
WRONG = """
from saaae.models import SAAAE, VAE
from saaae.runs.folder import load_run, train
shipped: SAAAE = VAE.from_pretrained("photos64")
load_run(3)
train({}, [], 1, "somewhere")
"""


def functions(module):
    "Public functions and methods written in a module, by name."
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        if not inspect.isclass(value):
            continue
        for k, f in vars(value).items():
            f = getattr(f, "__func__", getattr(f, "fget", f))
            if (
                inspect.isfunction(f)
                and f.__code__.co_filename == module.__file__
                and (not k.startswith("_") or k in ("__init__", "__call__"))
            ):
                yield f"{name}.{k}", f


def bare(kind):
    "Whether a type, or a part of it, is a container without its content."
    if isinstance(kind, list):
        return any(map(bare, kind))
    if kind in (
        dict,
        list,
        tuple,
        set,
        Callable,
        AbstractContextManager,
        abc.Callable,
        abc.Iterable,
        abc.Iterator,
        abc.Mapping,
        abc.Sequence,
    ):
        return True
    return any(map(bare, get_args(kind)))


def fits(value, kind):
    "Whether a default is of its parameter's type, as far as the outermost part tells."
    if kind is Any or kind is None:
        return kind is Any or value is None
    if get_origin(kind) in (types.UnionType, Union):
        return any(fits(value, k) for k in get_args(kind))
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, get_origin(kind) or kind)


@pytest.mark.parametrize("name", MODULES)
def test_public_signatures_are_typed(name):
    module, wrong = importlib.import_module(name), []
    for where, f in functions(module):
        signature = inspect.signature(f, eval_str=True)
        said = {p.name: p.annotation for p in signature.parameters.values() if p.name not in ("self", "cls")}
        if not where.endswith("__init__"):
            said["return"] = signature.return_annotation
        wrong += [f"{where}: {k}" for k, kind in said.items() if kind is inspect.Signature.empty or bare(kind)]
        wrong += [
            f"{where}: default of {p.name}"
            for p in signature.parameters.values()
            if p.default is not p.empty and not fits(p.default, p.annotation)
        ]
    assert wrong == []


def mypy(tmp_path, **files):
    "What mypy says of programs that use the package."
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    line = [
        sys.executable,
        "-m",
        "mypy",
        "--follow-imports=silent",
        "--ignore-missing-imports",
        "--cache-dir",
        tmp_path / "cache",
        *(f"{name}.py" for name in files),
    ]
    return subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ, MYPYPATH=str(ROOT))
    ).stdout


def test_a_type_checker_accepts_what_users_write_and_nothing_else(tmp_path):
    pages = {
        p.stem.lower() + "_": "\n".join(
            re.findall(r"^```python\n(.+?)^```", p.read_text(encoding="utf-8"), re.S | re.M)
        )
        for p in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/howto").glob("*.md"))
    }
    pages = {name: 'from pathlib import Path\nFOLDER = Path("mine")\n' + code for name, code in pages.items() if code}
    assert len(pages) > 5
    said = mypy(tmp_path, used=USED, wrong=WRONG, **pages).splitlines()
    assert [
        line for line in said if line.startswith("wrong.py") and "error" in line and re.match(r"wrong.py:[456]:", line)
    ], said
    assert {line.split(":")[1] for line in said if line.startswith("wrong.py")} == {"4", "5", "6"}
    assert [line for line in said if "error:" in line and not line.startswith("wrong.py")] == []


def test_the_names_of_the_package():
    from saaae import SAAAE, VAE, anchor, temper
    from saaae import anchoring, models, precision

    assert (SAAAE, VAE, anchor, temper) == (models.SAAAE, models.VAE, anchoring.anchor, precision.temper)
    with pytest.raises(ImportError, match="cannot import name 'GAN'"):
        from saaae import GAN  # noqa: F401
