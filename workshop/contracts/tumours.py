"""The measurements of a tumour: the features of the tumour classifier."""

from itertools import product

_UNITS = {
    "radius": "pixel",
    "texture": "grey level",
    "perimeter": "pixel",
    "area": "pixel²",
    "smoothness": "1",
    "compactness": "1",
    "concavity": "1",
    "concave_points": "1",
    "symmetry": "1",
    "fractal_dimension": "1",
}

UNITS: dict[str, str] = {
    pattern.format(measurement): unit
    for pattern, (measurement, unit) in product(("mean_{}", "{}_error", "worst_{}"), _UNITS.items())
}
"""Unit of each feature, in the order of the model's columns.

Ten measurements of the cell nuclei in one digitised image; of each the mean, its standard error, and the
worst (the mean of the three largest values). Source: Breast Cancer Wisconsin (Diagnostic), W. Street et al., 1993.
"""

FEATURES: tuple[str, ...] = tuple(UNITS)

LARGEST_VALUE = 1e12
"""The largest value of any feature: the area of 10⁶ by 10⁶ pixels. Models need not handle larger ones."""
