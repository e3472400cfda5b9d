"""Two convolutions and a dense layer, two epochs in each round. Runs on every backend of Keras 3; conda.yaml names one."""

from typing import Any, List, Tuple

import keras
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate

EPOCHS_PER_ROUND = 2
BATCH = 32


class ModelManager(ModelManagerTemplate):
    def __init__(self) -> None:
        self.model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
                keras.layers.MaxPooling2D(2),
                keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        self.model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])

    def set_model_data(self) -> None:
        (self.x_train, self.x_test), (self.y_train, self.y_test) = DataManager().get_data()

    def get_model(self) -> Any:
        return self.model

    def get_model_parameters(self) -> List[Any]:
        return self.model.get_weights()

    def set_model_parameters(self, parameters: List[Any]) -> None:
        self.model.set_weights(parameters)

    def fit_model(self) -> int:
        self.model.fit(self.x_train, self.y_train, epochs=EPOCHS_PER_ROUND, batch_size=BATCH, verbose=0)
        return len(self.x_train)

    def evaluate_model(self) -> Tuple[float, float, int]:
        loss, accuracy = self.model.evaluate(self.x_test, self.y_test, verbose=0)
        return float(loss), float(accuracy), len(self.x_test)
