"""What broad bands should have seen of ground that an imaging spectrometer saw too.

A spectrometer's bands, weighted by the response of a broad band, are what that band should have
seen. Weighting is linear, so means of the same ground can be compared in place of its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.products.model import Band, Response

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
        Of some of the target's bands, at most one of each (`of_satellite`).

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


def of_satellite(measured: Sequence[Response], datatake: str) -> tuple[Response, ...]:
    """Return the response of each band on the satellite that a datatake is of.

    Parameters
    ----------
    measured : sequence of Response
        `Product.responses`.
    datatake : str
        Of a scene. Where no response of a band is of its satellite, the first is taken.
    """
    found: dict[str, Response] = {}
    for response in measured:
        own = bool(response.datatake) and datatake.startswith(response.datatake)
        if own or response.band not in found:
            found[response.band] = response
    return tuple(found.values())


def described(target: Sequence[Band], measured: Sequence[Response]) -> dict[str, str]:
    """Return what the response of each band is taken from: satellites, or `Gaussian`."""
    platforms: dict[str, list[str]] = {}
    for response in measured:
        platforms.setdefault(response.band, []).append(response.platform)
    return {band.name: ", ".join(platforms.get(band.name, ["Gaussian"])) for band in target}


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


def expected(
    mean: NDArray[np.float64], count: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what broad bands should have seen where a spectrometer saw these means.

    Parameters
    ----------
    mean, count : array, shape (source band,)
        Of any one unit; of a band that counted nothing the mean says nothing.
    weights : array, shape (target band, source band)
        From `responses`.

    Returns
    -------
    array, shape (target band,)
        NaN where the spectrometer sees less than `MIN_COVERED` of a band's response.
    """
    seen = weights * (count > 0)
    covered = seen.sum(axis=1)  # no BLAS: a last digit must not hang on the machine
    total = (seen * np.where(count > 0, mean, 0)).sum(axis=1)
    enough = covered >= MIN_COVERED
    return np.where(enough, total / np.where(enough, covered, 1), np.nan)
