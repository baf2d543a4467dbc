"""Offline data preparation: MSD NIfTI volumes in, one chunked Zarr store out."""
