"""facefix: restore the faces in an album of photos so that they look like those people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facefix.methods.refldm.pipeline import ReFLDMPipeline
    from facefix.networks.reference_cache import ReferenceCache

__version__ = "0.1.0"
__all__ = ["ReFLDMPipeline", "ReferenceCache", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the heavy public classes only when they are asked for, so that ``facefix --help`` stays fast."""
    if name == "ReFLDMPipeline":
        from facefix.methods.refldm.pipeline import ReFLDMPipeline

        return ReFLDMPipeline
    if name == "ReferenceCache":
        from facefix.networks.reference_cache import ReferenceCache

        return ReferenceCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
