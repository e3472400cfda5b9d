from typing import Any, Tuple

import numpy as np
import torch
from flops_utils.ml_repo_building_blocks import load_dataset
from flops_utils.ml_repo_templates import DataManagerTemplate
from torch.utils.data import DataLoader


class DataManager(DataManagerTemplate):
    def __init__(self) -> None:
        self.trainloader, self.testloader = self._prepare_data()

    def _prepare_data(self) -> Any:
        partition = load_dataset()
        partition_train_test = partition.train_test_split(test_size=0.2, seed=42)

        def to_normalized_tensor(image) -> torch.Tensor:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
            return (pixels - 0.5) / 0.5

        def apply_transforms(batch):
            batch["img"] = [to_normalized_tensor(image) for image in batch["img"]]
            return batch

        partition_train_test = partition_train_test.with_transform(apply_transforms)
        trainloader = DataLoader(partition_train_test["train"], batch_size=32, shuffle=True)
        testloader = DataLoader(partition_train_test["test"], batch_size=32)
        return trainloader, testloader

    def get_data(self) -> Tuple[Any, Any]:
        return self.trainloader, self.testloader
