from collections import OrderedDict
from typing import Any, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from data_manager import DataManager
from flops_utils.ml_repo_templates import ModelManagerTemplate

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.norm(self.conv1(x))))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class ModelManager(ModelManagerTemplate):
    def __init__(self) -> None:
        self.model = Net().to(DEVICE)

    def set_model_data(self) -> None:
        self.trainloader, self.testloader = DataManager().get_data()

    def get_model(self) -> Any:
        return self.model

    def get_model_parameters(self) -> List[Any]:
        return [val.cpu().numpy() for _, val in self.model.state_dict().items()]

    def set_model_parameters(self, parameters: List[Any]) -> None:
        params_dict = zip(self.model.state_dict().keys(), parameters)
        state_dict = OrderedDict({k: torch.tensor(v) for k, v in params_dict})
        self.model.load_state_dict(state_dict, strict=True)

    def fit_model(self) -> int:
        criterion = torch.nn.CrossEntropyLoss().to(DEVICE)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.001)
        self.model.train()
        for batch in self.trainloader:
            images, labels = batch["img"], batch["label"]
            optimizer.zero_grad()
            loss = criterion(self.model(images.to(DEVICE)), labels.to(DEVICE))
            loss.backward()
            optimizer.step()
        return len(self.trainloader.dataset)

    def evaluate_model(self) -> Tuple[float, float, int]:
        self.model.eval()
        criterion = torch.nn.CrossEntropyLoss()
        correct, loss = 0, 0.0
        with torch.no_grad():
            for batch in self.testloader:
                images, labels = batch["img"].to(DEVICE), batch["label"].to(DEVICE)
                outputs = self.model(images)
                loss += criterion(outputs, labels).item()
                correct += (torch.max(outputs.data, 1)[1] == labels).sum().item()
        accuracy = correct / len(self.testloader.dataset)
        loss = loss / len(self.testloader)
        return loss, accuracy, len(self.testloader.dataset)
