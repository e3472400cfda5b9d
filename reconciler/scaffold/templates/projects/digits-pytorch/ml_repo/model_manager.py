"""Two convolutions and a linear layer, two epochs in each round."""

from typing import Any, List, Tuple

import torch
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate
from torch import nn

EPOCHS_PER_ROUND = 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.classify = nn.Sequential(nn.Dropout(0.2), nn.Linear(32 * 4 * 4, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(images))


class ModelManager(ModelManagerTemplate):
    def __init__(self) -> None:
        self.model = Net()
        self.loss = nn.CrossEntropyLoss()

    def set_model_data(self) -> None:
        self.train_loader, self.test_loader = DataManager().get_data()

    def get_model(self) -> Any:
        return self.model

    def get_model_parameters(self) -> List[Any]:
        return [value.cpu().numpy() for value in self.model.state_dict().values()]

    def set_model_parameters(self, parameters: List[Any]) -> None:
        names = self.model.state_dict()
        self.model.load_state_dict({name: torch.as_tensor(value) for name, value in zip(names, parameters)}, strict=True)

    def fit_model(self) -> int:
        # A new optimizer each round: what the old one remembers belongs to other parameters.
        optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        self.model.train()
        for _ in range(EPOCHS_PER_ROUND):
            for images, labels in self.train_loader:
                optimizer.zero_grad()
                self.loss(self.model(images), labels).backward()
                optimizer.step()
        return len(self.train_loader.dataset)

    def evaluate_model(self) -> Tuple[float, float, int]:
        self.model.eval()
        loss, right, count = 0.0, 0, 0
        with torch.no_grad():
            for images, labels in self.test_loader:
                answers = self.model(images)
                loss += self.loss(answers, labels).item() * len(labels)
                right += int((answers.argmax(dim=1) == labels).sum())
                count += len(labels)
        return loss / count, right / count, count
