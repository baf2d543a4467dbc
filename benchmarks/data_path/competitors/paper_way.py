"""The paper's way: the NIfTI file of each sample, unpacked, zoomed and rotated by scipy."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks.data_path.contract import Competitor
from benchmarks.data_path.source import Arrays

DEGREES = 5


class PaperWay(Competitor):
    """As the published code: linear zoom of image and label, all above 0 foreground, z-score,
    rescaling to 0..1, and both turned with scipy's default, cubic splines.
    """

    name = "paper's way"
    says = "nibabel + scipy.ndimage from .nii.gz: zoom, normalise, rotate"
    equal = False
    most = 4

    def files(self) -> list:
        """The scans."""
        return sorted(self.source.msd.rglob("*.nii.gz"))

    def read(self, case: str) -> Arrays:
        """Voxels along D, H, W."""
        grid = self.source.size.grid
        turned = []
        for role, order in (("imagesTr", 1), ("labelsTr", 1)):
            path = self.source.msd / role / f"{case}.nii.gz"
            scan = nib.load(path).get_fdata().transpose(2, 1, 0)
            scan = ndimage.zoom(scan, [grid / n for n in scan.shape], order=order)
            if role == "imagesTr":
                scan = (scan - scan.mean()) / scan.std()
                scan = (scan - scan.min()) / (scan.max() - scan.min())
            else:
                scan = (scan > 0).astype(np.float64)
            turned.append(ndimage.rotate(scan, DEGREES, axes=(1, 2), reshape=False))
        image, label = turned
        return image[None].astype(np.float16), (label > 0.5).astype(np.uint8)
