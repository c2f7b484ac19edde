"""A bundle's package made to fit float16, by what its values become on text."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from macai.coreml.islands import widen
from macai.coreml.manifest import Manifest
from macai.coreml.package import package_bytes, package_hash
from macai.coreml.peaks import LIMIT, measure_peaks
from macai.mil import open_package


def fit_float16(folder: Path, manifest: Manifest, ids: Sequence[int], *, widens: bool) -> Manifest:
    """Measure a package's values and keep in float32 what float16 cannot hold.

    Args:
        folder: The bundle's; its package is changed in place.
        manifest: The package's, which has no chunks.
        ids: A text.
        widens: Whether float32 is of use where the package is meant to run: not on the Neural
            Engine.

    Returns:
        The manifest, which says what was found.

    Raises:
        ExportError: values that float16 cannot hold are where there is no float32.
    """
    path = folder / manifest.package
    peaks = measure_peaks(manifest, open_package(path), ids)
    counts: dict[str, int] = {}
    if widens and any(peaks.wide.values()):
        counts = widen(path, peaks.values, peaks.wide)
    after, largest = peaks.largest
    return replace(
        manifest,
        sha256=package_hash(path),
        bytes=package_bytes(path),
        float16={
            "tokens": peaks.tokens,
            "largest": largest,
            "after": after,
            "layers": peaks.layers,
            "limit": LIMIT,
            "float32_values": counts,
        },
    )
