"""Before any test module is imported: Triton decides on its import whether to interpret."""

import tests.kernels.interpreter  # noqa: F401
