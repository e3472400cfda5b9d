"""Tables of names: what conda calls otherwise than the package index does, what only conda has, what the runtime gives itself.

Keys are canonical names (lower case, `-`).
"""

from __future__ import annotations

import re

OURS = {
    "mlflow": "replaced by mlflow-skinny of the runtime, which saves the model; learners need no tracking server",
    "mlflow-skinny": "given by the runtime, in one version for saving and serving",
    "flops-utils": "dropped, its names (load_dataset, the templates) are given by the runtime",
    "flwr": "given by the runtime, in one version for all learners",
    "datasets": "given by the runtime in a version below 4, which `dataset[column].reshape` needs",
}
"""A pin of these in an ML repo is dropped; the text is what the report says about it."""

INSTALLERS = frozenset({"pip", "setuptools", "wheel"})
"""They install packages; an environment is installed from outside and needs none of them."""

RENAMED = {"sklearn": "scikit-learn", "pytorch": "torch", "tensorflow-gpu": "tensorflow", "pil": "pillow"}
"""Names that people write and that the package index has only as empty or broken packages."""

CONDA_RENAMED = {
    **RENAMED, "brotli-python": "brotli", "dask-core": "dask", "faiss": "faiss-cpu", "huggingface-datasets": "datasets",
    "huggingface-transformers": "transformers", "keras-base": "keras", "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack", "numpy-base": "numpy", "opencv": "opencv-python-headless",
    "py-opencv": "opencv-python-headless", "py-lightgbm": "lightgbm", "py-xgboost": "xgboost", "py-xgboost-cpu": "xgboost",
    "pyarrow-core": "pyarrow", "pytables": "tables", "python-graphviz": "graphviz", "python-tzdata": "tzdata",
    "python-xxhash": "xxhash", "pytorch-cpu": "torch", "pytorch-gpu": "torch", "seaborn-base": "seaborn",
    "tensorflow-base": "tensorflow", "tensorflow-cpu": "tensorflow", "tensorflow-mkl": "tensorflow",
    "torchvision-cpu": "torchvision",
}  # fmt: skip

CONDA_ONLY = frozenset({
    "blas", "brotli-bin", "bzip2", "c-ares", "ca-certificates", "cctools", "clang", "compilers", "conda", "cpuonly",
    "cudatoolkit", "cudnn", "expat", "fontconfig", "freetype", "gcc", "gfortran", "gxx", "icu", "intel-openmp", "jpeg",
    "keyutils", "krb5", "lcms2", "lerc", "libgcc", "llvm-openmp", "lz4-c", "make", "mkl", "mkl-fft", "mkl-random",
    "mkl-service", "nccl", "ncurses", "nomkl", "openblas", "openjpeg", "openmp", "openssl", "python-abi", "pytorch-cuda",
    "pytorch-mutex", "readline", "snappy", "sqlite", "tbb", "tk", "ucrt", "vc", "vs2015-runtime", "xz", "yaml", "zlib",
    "zstd",
})  # fmt: skip
"""Libraries and compilers of conda; wheels bring what they need."""
_CONDA_ONLY_PATTERN = re.compile(r"^(_|lib[a-z0-9]|ld-impl|cuda-|mkl-|xorg-|binutils|gcc-|gxx-|gfortran-|vc\d|font-|blas-)")
_PYTHON_LIBRARIES = frozenset({"libclang", "librosa", "libcst", "libsass", "libtmux", "libarchive-c"})


def only_in_conda(name: str) -> bool:
    """Whether a package of conda has no counterpart in the package index and is not missed there."""
    return name in CONDA_ONLY or bool(_CONDA_ONLY_PATTERN.match(name) and name not in _PYTHON_LIBRARIES)
