__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .anchoring import anchor
    from .apps.front import load_image
    from .models import SAAAE, VAE
    from .lab.audit import audit
    from .lab.compare import compare
    from .precision import temper, water_fill

__all__ = ["SAAAE", "VAE", "anchor", "audit", "compare", "load_image", "temper", "water_fill"]


def __getattr__(name: str) -> object:
    "What the package is asked for by name, imported then: torch takes seconds."
    homes = dict(SAAAE="models", VAE="models", anchor="anchoring", audit="lab.audit", compare="lab.compare",
                 load_image="apps.front", temper="precision", water_fill="precision")
    home = homes.get(name)
    if home is None: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"{__name__}.{home}"), name)
