"""What machine learning libraries have to be told before they are imported, and after: CPU, threads, Keras' backend, determinism.

Invariant: with the same seed, the same number of threads and the same machine, a run's parameters are bit-equal. Importing PyTorch,
JAX or Keras starts no thread of theirs and initialises no device, so a process that only imported them may fork; TensorFlow
starts threads when it is imported, and has to be imported after the fork.
"""

import importlib.util
import os
import sys
from typing import Optional

KERAS_BACKENDS = (("tensorflow", "tensorflow"), ("torch", "torch"), ("jax", "jax"))
"""Modules in the order in which they are preferred, and what Keras calls them."""
FORK_SAFE = ("torch", "jax")


def keras_backend() -> Optional[str]:
    """The backend that Keras gets when the ML repo chooses none: the first that is installed."""
    return next((name for module, name in KERAS_BACKENDS if importlib.util.find_spec(module) is not None), None)


def prepare(backend: Optional[str] = None) -> None:
    """Set what the libraries read from the environment when they are imported; what is set already stays as it is.

    `backend` is the one that a saved Keras model was made with.
    """
    chosen = backend or keras_backend()
    settings = {
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_DETERMINISTIC_OPS": "1",
        "TF_ENABLE_ONEDNN_OPTS": "0",  # its results depend on the shape of the machine's caches
        "TF_NUM_INTEROP_THREADS": "1",
        **({"KERAS_BACKEND": chosen} if chosen else {}),
        # XLA's pool has a thread for each core; kept out of the operations of a learner that was given one.
        **({"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if os.environ.get("OMP_NUM_THREADS") == "1" else {}),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def settle() -> None:
    """Make the libraries that are loaded by now deterministic. Operations that cannot be only warn: the ML repo needs them."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.use_deterministic_algorithms(True, warn_only=True)


def seed(number: int) -> None:
    """Seed the libraries that are loaded by now (32 bits)."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(number)
    if (keras := sys.modules.get("keras")) is not None:
        keras.utils.set_random_seed(number)
    elif (tensorflow := sys.modules.get("tensorflow")) is not None:
        tensorflow.random.set_seed(number)


def preload(flavor: str) -> tuple[str, ...]:
    """What a process that forks learners imports for them: all that it may, since forked learners share its memory."""
    if flavor == "keras":
        return ("keras",) if keras_backend() in FORK_SAFE else ()
    return {
        "sklearn": ("sklearn.linear_model", "sklearn.neural_network"),
        "pytorch": ("torch", "torch.nn", "torch.optim", "torch.utils.data"),
    }.get(flavor, ())
