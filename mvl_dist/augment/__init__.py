"""Augmentation on the device, seeded for each sample by (seed, epoch, position) alone.

affine.py moves image and masks in one resampling, intensity.py changes the image's values, noise.py
makes a Gaussian field that is the same on every device, presets.py says what is applied with which
probability. Training batches alone are augmented, as they are drawn.
"""

from mvl_dist.augment.affine import Seed
from mvl_dist.augment.presets import PRESETS, Anatomy

__all__ = ["PRESETS", "Anatomy", "Seed"]
