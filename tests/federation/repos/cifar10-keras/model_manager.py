from typing import Any, List, Tuple

import keras
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate


class ModelManager(ModelManagerTemplate):
    def __init__(self) -> None:
        self.model = keras.models.Sequential(
            [
                keras.layers.Input(shape=(32, 32, 3)),
                keras.layers.Conv2D(16, (3, 3), activation="relu"),
                keras.layers.MaxPooling2D((4, 4)),
                keras.layers.Flatten(),
                keras.layers.Dense(32, activation="relu"),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        self.model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

    def set_model_data(self) -> None:
        (self.x_train, self.x_test), (self.y_train, self.y_test) = DataManager().get_data()

    def get_model(self) -> Any:
        return self.model

    def get_model_parameters(self) -> List[Any]:
        return self.model.get_weights()

    def set_model_parameters(self, parameters: List[Any]) -> None:
        self.model.set_weights(parameters)

    def fit_model(self) -> int:
        self.model.fit(self.x_train, self.y_train, epochs=1, batch_size=32)
        return len(self.x_train)

    def evaluate_model(self) -> Tuple[float, float, int]:
        loss, accuracy = self.model.evaluate(self.x_test, self.y_test)
        return loss, accuracy, len(self.x_test)
