import numpy as np
from flops_utils.ml_repo_building_blocks import load_dataset
from flops_utils.ml_repo_templates import DataManagerTemplate


class DataManager(DataManagerTemplate):
    def __init__(self):
        self._prepare_data()

    def _prepare_data(self):
        data = load_dataset().with_format("numpy")
        x = np.asarray(data["x"], dtype=np.float64)
        y = np.asarray(data["y"], dtype=np.int64)
        order = np.random.permutation(len(x))
        cut = int(len(x) * 0.8)
        self.x_train, self.x_test = x[order[:cut]], x[order[cut:]]
        self.y_train, self.y_test = y[order[:cut]], y[order[cut:]]

    def get_data(self):
        return (self.x_train, self.x_test), (self.y_train, self.y_test)
