"""facefix: restore the faces in an album of photos so that they look like those people.

The pipelines of the restoration methods are here under their names: ``from facefix import ReFLDMPipeline``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from facefix.version import __version__

if TYPE_CHECKING:
    from facefix.networks.reference_cache import ReferenceCache

__all__ = ["ReferenceCache", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the heavy public classes only when they are asked for, so that ``facefix --help`` stays fast."""
    if name == "ReferenceCache":
        from facefix.networks.reference_cache import ReferenceCache

        return ReferenceCache
    if name.endswith("Pipeline"):
        from facefix.methods.registry import methods

        for method in methods().values():
            if method.pipeline is not None and name in method.pipelines:
                return method.pipeline.load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
