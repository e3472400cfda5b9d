"""Logistic regression on the 784 pixels of an image, a few steps of the solver in each round."""

import warnings
from typing import Any, List, Tuple

import numpy as np
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

PIXELS = 28 * 28
DIGITS = 10
STEPS_PER_ROUND = 3


class ModelManager(ModelManagerTemplate):
    def __init__(self) -> None:
        self.model = LogisticRegression(max_iter=STEPS_PER_ROUND, warm_start=True)
        # The aggregator asks for parameters before anything was fitted.
        self.model.classes_ = np.arange(DIGITS)
        self.model.coef_ = np.zeros((DIGITS, PIXELS))
        self.model.intercept_ = np.zeros(DIGITS)
        self.model.n_features_in_ = PIXELS

    def set_model_data(self) -> None:
        (self.x_train, self.x_test), (self.y_train, self.y_test) = DataManager().get_data()

    def get_model(self) -> Any:
        return self.model

    def get_model_parameters(self) -> List[Any]:
        return [self.model.coef_, self.model.intercept_]

    def set_model_parameters(self, parameters: List[Any]) -> None:
        self.model.coef_, self.model.intercept_ = parameters

    def fit_model(self) -> int:
        # The solver has to know every digit, those that this learner has never seen too: a blank of each, without weight.
        x = np.concatenate([self.x_train, np.zeros((DIGITS, PIXELS), self.x_train.dtype)])
        y = np.concatenate([self.y_train, np.arange(DIGITS)])
        weights = np.concatenate([np.ones(len(self.y_train)), np.zeros(DIGITS)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a few steps do not converge, and need not
            self.model.fit(x, y, weights)
        return len(self.x_train)

    def evaluate_model(self) -> Tuple[float, float, int]:
        probabilities = self.model.predict_proba(self.x_test)
        loss = log_loss(self.y_test, probabilities, labels=self.model.classes_)
        accuracy = (probabilities.argmax(axis=1) == self.y_test).mean()
        return float(loss), float(accuracy), len(self.x_test)
