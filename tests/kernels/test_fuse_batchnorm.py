"""`fuse_batchnorm_`: the same network, step for step, in place; what is fused, what is left alone, and the way back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dfkd_kernels import BatchNormAct2d, freeze_teacher, fuse_batchnorm_, unfuse_batchnorm_
from dfkd_kernels.backend import native_ops

pytestmark = pytest.mark.skipif(native_ops() is None, reason="the C++ extension is not built")


class Block(nn.Module):
    """A residual block with a projected shortcut, as ResNets have it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, momentum=None)
        self.shortcut = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6))
        self.tail = nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5, affine=False), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.tail(F.relu(out, inplace=True)).mean((2, 3))


class Untraceable(Block):
    """The same, with a branch on a value that torch.fx does not have."""

    def forward(self, x):
        return super().forward(x if x.sum() > -1e30 else -x)


def images():
    return torch.randn((4, 3, 9, 9), generator=torch.Generator().manual_seed(1))


def trained(network, steps=3):
    """Losses, and the state after some steps of SGD."""
    optimizer, losses = torch.optim.SGD(network.parameters(), 0.05), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (network(images()) - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), network.state_dict()


@pytest.mark.parametrize("build", [Block, Untraceable])
def test_steps_are_the_same(build):
    plain = build()
    fused = copy.deepcopy(plain)
    fuse_batchnorm_(fused)
    fused = copy.deepcopy(fused)  # a copy runs its own layers, not the original's
    losses, state = trained(plain)
    fused_losses, fused_state = trained(fused)
    torch.testing.assert_close(fused_losses, losses, rtol=1e-5, atol=1e-6)
    assert list(fused_state) == list(state)
    for name, value in state.items():
        torch.testing.assert_close(fused_state[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert fused_state["bn2.num_batches_tracked"] == 3
    fused.load_state_dict(state)
    assert torch.equal(fused.eval()(images()), plain.eval()(images()))


def test_what_is_fused():
    assert fuse_batchnorm_(Block()) == [
        "bn1: with relu",
        "bn2: with add and relu",
        "shortcut.1: alone",
        "tail.1: with leaky_relu(0.2)",
    ]
    report = fuse_batchnorm_(Untraceable())
    assert report[:4] == ["bn1: alone", "bn2: alone", "shortcut.1: alone", "tail.1: with leaky_relu(0.2)"]
    assert report[4].startswith("network: not traced, torch.fx cannot (")
    assert "tail.1: with leaky_relu(0.2)" in fuse_batchnorm_(Block(), trace=False)


def test_what_others_read_is_kept():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            between = self.norm(x)
            return F.relu(between) - between

    network = Both()
    expected = network(images())
    assert fuse_batchnorm_(network) == ["norm: alone"]
    torch.testing.assert_close(network(images()), expected)


def test_what_is_overwritten_between_is_not_moved():
    """BatchNorm would read x after it has been changed."""

    class Overwritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            x = x * 2
            out = self.norm(x)
            x.add_(1)
            return F.relu(out + x)

    network = Overwritten()
    expected = network(images())
    assert fuse_batchnorm_(network) == ["norm: alone"]
    torch.testing.assert_close(network(images()), expected)


def test_other_modes_and_arguments_are_not_traced():
    class Dropped(Block):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    class Optional(Block):
        def forward(self, x, features=False):
            return super().forward(x)

    network = Dropped().eval()
    assert fuse_batchnorm_(network)[-1] == (
        "network: not traced, it computes something else in training than in evaluation mode"
    )
    assert not any(module.training for module in network.modules())
    assert fuse_batchnorm_(Optional())[-1] == "network: not traced, its forward takes more than one argument"


def test_other_layers_are_left_alone():
    network = nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    network[2].register_forward_hook(lambda *_: None)
    report = fuse_batchnorm_(network)
    assert [type(layer) for layer in network] == [nn.SyncBatchNorm, nn.ReLU, nn.BatchNorm2d, nn.ReLU, BatchNormAct2d]
    assert report == ["2: left alone, it has hooks", "4: alone", "network: not traced, it has hooks"]


def test_layers_that_stand_in_two_places():
    """A slice that was taken before, as generators keep them, still runs the layers one by one."""
    network = Block().tail
    part, expected = network[1:], network(torch.ones(2, 6, 3, 3) * images()[:2, :1, :3, :3])
    conv = network[0](torch.ones(2, 6, 3, 3) * images()[:2, :1, :3, :3])
    fuse_batchnorm_(network, trace=False)
    torch.testing.assert_close(part(conv), expected)
    torch.testing.assert_close(network[1:](conv), expected)


@pytest.mark.parametrize("build", [Block, Untraceable])
def test_the_way_back(build):
    plain, fused = build(), build()
    fused.load_state_dict(plain.state_dict())
    fuse_batchnorm_(fused)
    unfuse_batchnorm_(fused)
    assert str(fused) == str(plain)
    assert torch.equal(fused(images()), plain(images()))


def test_a_forward_of_somebody_else_stays():
    network = Block()
    network.forward = lambda x: x
    assert fuse_batchnorm_(network)[-1] == "network: not traced, somebody has replaced its forward"
    unfuse_batchnorm_(network)
    assert network(1) == 1


def test_it_freezes_as_the_plain_one():
    plain = nn.Sequential(Block(), nn.Linear(5, 2)).eval()
    fused = copy.deepcopy(plain)
    fuse_batchnorm_(fused)
    expected = freeze_teacher(plain, image_shape=(3, 9, 9))
    found = freeze_teacher(fused, image_shape=(3, 9, 9))
    assert found.report == expected.report
    assert torch.equal(found(images())[0], expected(images())[0])


def test_the_layer_alone_is_batchnorm():
    """Autocast's bfloat16, a residual of another shape, and one value a channel."""
    torch.manual_seed(0)
    layer, plain = BatchNormAct2d(3), nn.BatchNorm2d(3)
    x = images().bfloat16()
    torch.testing.assert_close(layer(x), plain(x), rtol=0.02, atol=0.02)
    torch.testing.assert_close(layer(x, x[:1], 0.0), F.relu(plain(x) + x[:1]), rtol=0.02, atol=0.05)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(x[:1, :, :1, :1])
    with pytest.raises(ValueError, match="expected 4D input"):
        layer(x[0])
