__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .anchoring import anchor
    from .models import SAAAE, VAE
    from .precision import temper

__all__ = ["SAAAE", "VAE", "anchor", "temper"]


def __getattr__(name: str) -> object:
    "What the package is asked for by name, imported then: torch takes seconds."
    home = dict(SAAAE="models", VAE="models", anchor="anchoring", temper="precision").get(name)
    if home is None: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"{__name__}.{home}"), name)
