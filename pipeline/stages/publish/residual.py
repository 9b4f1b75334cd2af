"""How far a product lies from an imaging spectrometer that saw the same ground, band by band.

A spectrometer's bands, weighted by the response of a broad band, are what that band should have
seen. Weighting is linear, so the mean of a patch can be compared by the means that every patch has
left in its ledger: no pixel is read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.products.catalogue import Band, Product, Response

#: Least share of a band's response that the spectrometer's bands must see.
MIN_COVERED = 0.9
#: A Gaussian of full width at half maximum 1 has this standard deviation: 1 / (2 sqrt(2 ln 2)).
_SIGMA = 0.42466090014400953
#: Where a Gaussian response is taken to end, in standard deviations.
_REACH = 3.0
#: Points at which a response is integrated.
_STEPS = 601


def responses(
    source: Sequence[Band],
    target: Sequence[Band],
    measured: Sequence[Response] = (),
) -> NDArray[np.float64]:
    """Return the weight of each band of a spectrometer in each broad band.

    A response is what was measured of the band, or where nothing was a Gaussian of its centre and
    full width at half maximum. Every wavelength belongs to the spectrometer's band with the nearest
    centre, if it lies within one width of it.

    Parameters
    ----------
    source : sequence of Band
        The spectrometer's, in any order.
    target : sequence of Band
    measured : sequence of Response
        Of some of the target's bands (`Product.responses`): those of one satellite stand for all of
        its kind.

    Returns
    -------
    array, shape (target band, source band)
        Shares of the response: a row sums to 1 where the spectrometer sees all of it, to less
        where it has gaps, and to 0 where a band has no wavelength.
    """
    weights = np.zeros((len(target), len(source)))
    known = [k for k, band in enumerate(source) if band.wavelength_nm and band.fwhm_nm]
    centres = np.array([source[k].wavelength_nm for k in known], dtype=np.float64)
    widths = np.array([source[k].fwhm_nm for k in known], dtype=np.float64)
    by_name = {response.band: response for response in measured}
    for row, band in enumerate(target):
        if not known or band.wavelength_nm is None or band.fwhm_nm is None:
            continue
        wavelengths_nm, response = _response(band, by_name)
        distance = np.abs(wavelengths_nm[:, None] - centres)
        nearest = distance.argmin(axis=1)
        seen = distance[np.arange(_STEPS), nearest] <= widths[nearest]
        share = np.bincount(nearest[seen], response[seen], minlength=len(known)) / response.sum()
        weights[row, known] = share
    return weights


def described(target: Sequence[Band], measured: Sequence[Response]) -> dict[str, str]:
    """Return what the response of each band is taken from: a satellite, or `Gaussian`."""
    platforms = {response.band: response.platform for response in measured}
    return {band.name: platforms.get(band.name, "Gaussian") for band in target}


def _response(
    band: Band, measured: Mapping[str, Response]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the response of a band at `_STEPS` wavelengths; values below 0 are noise."""
    apart = np.linspace(-_REACH, _REACH, _STEPS)
    if band.name not in measured:
        sigma_nm = (band.fwhm_nm or 0) * _SIGMA
        return (band.wavelength_nm or 0) + apart * sigma_nm, np.exp(-(apart**2) / 2)
    own = measured[band.name]
    at_nm = own.start_nm + own.step_nm * np.arange(len(own.values))
    wavelengths_nm = np.linspace(at_nm[0], at_nm[-1], _STEPS)
    return wavelengths_nm, np.interp(wavelengths_nm, at_nm, np.maximum(own.values, 0))


def residuals(
    own: pa.Table,
    reference: pa.Table,
    products: tuple[Product, Product],
    weights: NDArray[np.float64],
) -> list[list[float]]:
    """Return mean minus expected mean of every band, in the product's unit, patch by patch.

    Parameters
    ----------
    own, reference : pa.Table
        Ledger rows (written) of the product and of the spectrometer.
    products : pair of Product
        The same two.
    weights : array, shape (band, band of the spectrometer)
        From `responses`.

    Returns
    -------
    list of list of float
        One list for each row of `own`. NaN where the spectrometer sees less than `MIN_COVERED` of
        a band's response, or one of the two has no value; an empty list where it has no patch.
    """
    keys = zip(reference["location"].to_pylist(), reference["slot"].to_pylist(), strict=True)
    place = {key: row for row, key in enumerate(keys)}
    expected = _expected(_physical(reference, products[1], weights.shape[1]), weights)
    means = _physical(own, products[0], weights.shape[0])
    mine = zip(own["location"].to_pylist(), own["slot"].to_pylist(), strict=True)
    return [
        (means[row] - expected[place[key]]).tolist() if key in place else []
        for row, key in enumerate(mine)
    ]


def _physical(rows: pa.Table, product: Product, bands: int) -> NDArray[np.float64]:
    """Return band means in physical units, shape (patch, band); NaN where nothing was counted."""
    shape = (rows.num_rows, bands)
    count = np.array(rows["count"].to_pylist(), dtype=np.float64).reshape(shape)
    mean = np.array(rows["mean"].to_pylist(), dtype=np.float64).reshape(shape)
    return np.where(count > 0, mean * product.scale + product.offset, np.nan)


def _expected(means: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the broad bands should have seen, shape (patch, broad band)."""
    seen = np.isfinite(means)
    covered = seen @ weights.T
    total = np.where(seen, means, 0) @ weights.T
    enough = covered >= MIN_COVERED
    return np.where(enough, total / np.where(enough, covered, 1), np.nan)
