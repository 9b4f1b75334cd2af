"""Where a sensor saw a place: rational polynomial coefficients, for images in sensor geometry.

Row and column are each a quotient of two cubic polynomials of longitude, latitude and height, all
brought to about -1 to 1 by an offset and a scale. The 20 coefficients stand in the order of RPC00B,
and row 0, column 0 is the centre of the first pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rasterio.rpc import RPC
from rasterio.transform import RPCTransformer

#: Coefficients of one polynomial.
TERMS = 20


@dataclass(frozen=True)
class Camera:
    """The geometry of one image, or of one band of it; equal ones see alike."""

    line_off: float
    line_scale: float
    sample_off: float
    sample_scale: float
    lat_off: float
    """Degrees, as the scale."""
    lat_scale: float
    lon_off: float
    lon_scale: float
    height_off: float
    """Metres above the ellipsoid, as the scale."""
    height_scale: float
    line_num: tuple[float, ...]
    line_den: tuple[float, ...]
    sample_num: tuple[float, ...]
    sample_den: tuple[float, ...]
    height_m: float
    """Of the ground, everywhere: what lies h metres higher is displaced by h x tan(view angle)."""

    def coefficients(self, line: int = 0, sample: int = 0) -> RPC:
        """Return it in the words of GDAL, for the part of the image that begins at a pixel."""
        return RPC(
            height_off=self.height_off,
            height_scale=self.height_scale,
            lat_off=self.lat_off,
            lat_scale=self.lat_scale,
            long_off=self.lon_off,
            long_scale=self.lon_scale,
            line_off=self.line_off - line,
            line_scale=self.line_scale,
            samp_off=self.sample_off - sample,
            samp_scale=self.sample_scale,
            line_num_coeff=list(self.line_num),
            line_den_coeff=list(self.line_den),
            samp_num_coeff=list(self.sample_num),
            samp_den_coeff=list(self.sample_den),
        )

    def rowcol(
        self, lon: NDArray[np.float64], lat: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return row and column, with fractions, of places at `height_m`; pixel edges are whole."""
        heights = [self.height_m] * len(lon)
        rows, cols = self._transformer.rowcol(lon.tolist(), lat.tolist(), heights, op=float)
        return np.asarray(rows), np.asarray(cols)

    @cached_property
    def _transformer(self) -> RPCTransformer:
        return RPCTransformer(self.coefficients())
