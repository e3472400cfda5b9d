import numpy as np
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

CLASSES, FEATURES = 3, 8


class ModelManager(ModelManagerTemplate):
    def __init__(self):
        self.model = LogisticRegression()
        self.model.classes_ = np.arange(CLASSES)
        self.model.coef_ = np.zeros((CLASSES, FEATURES))
        self.model.intercept_ = np.zeros(CLASSES)

    def set_model_data(self):
        (self.x_train, self.x_test), (self.y_train, self.y_test) = DataManager().get_data()

    def get_model(self):
        return self.model

    def get_model_parameters(self):
        return [self.model.coef_, self.model.intercept_]

    def set_model_parameters(self, parameters):
        self.model.coef_, self.model.intercept_ = (np.array(p) for p in parameters)

    def fit_model(self):
        """Mini-batch gradient descent: the batches are random, so a run is only repeatable if the seeds are."""
        for _ in range(10):
            rows = np.random.choice(len(self.x_train), 32)
            x, y = self.x_train[rows], np.eye(CLASSES)[self.y_train[rows]]
            error = self.model.predict_proba(x) - y
            self.model.coef_ -= 0.05 * error.T @ x / len(x)
            self.model.intercept_ -= 0.05 * error.mean(axis=0)
        return len(self.x_train)

    def evaluate_model(self):
        loss = log_loss(self.y_test, self.model.predict_proba(self.x_test), labels=list(range(CLASSES)))
        return loss, self.model.score(self.x_test, self.y_test), len(self.x_test)
