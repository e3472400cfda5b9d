"""The two classes that an ML repo fills in."""

from abc import ABC, abstractmethod
from typing import Any


class DataManagerTemplate(ABC):
    """Loads and prepares a learner's data with `load_dataset()`."""

    @abstractmethod
    def _prepare_data(self) -> Any:
        """Load this learner's shard and bring it into the form that the model needs."""

    @abstractmethod
    def get_data(self) -> tuple[Any, Any]:
        """The prepared data, usually `(x_train, x_test), (y_train, y_test)`."""


class ModelManagerTemplate(ABC):
    """Owns a model. The constructor takes no argument and must not load data."""

    @abstractmethod
    def set_model_data(self) -> None:
        """Load the data, once per learner."""

    @abstractmethod
    def get_model(self) -> Any:
        """The model itself, as MLflow logs it."""

    @abstractmethod
    def get_model_parameters(self) -> list[Any]:
        """The parameters as a list of arrays."""

    @abstractmethod
    def set_model_parameters(self, parameters: list[Any]) -> None:
        """Take the parameters that the aggregator sends, in the order of `get_model_parameters`."""

    @abstractmethod
    def fit_model(self) -> int:
        """Train on this learner's data; the number of training samples."""

    @abstractmethod
    def evaluate_model(self) -> tuple[float, float, int]:
        """Loss, accuracy and the number of samples that they were measured on."""
