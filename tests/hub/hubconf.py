"""A local torch.hub folder for the tests."""

dependencies = ["torch"]


def tiny(pretrained=False, classes=5):
    import torch
    from torch import nn

    torch.manual_seed(3 if pretrained else 4)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def images_only(pretrained=False):
    """Too deep for small images."""
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 4, 9), nn.Conv2d(4, 4, 9), nn.Flatten(), nn.Linear(4, 5))


def dictionary(pretrained=False):
    """Answers with a dict."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return {"logits": self.fc(self.f(x).mean((2, 3)))}

    return Net()
