from fastmem.compat import import_torchvision


def test_torchvision_works_beside_this_torch():
    import torch

    torchvision = import_torchvision()
    model = torchvision.models.resnet18(num_classes=10).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_import_is_repeatable():
    assert import_torchvision() is import_torchvision()
