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
