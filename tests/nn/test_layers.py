from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from pyrovi.errors import DataError, ModelError
from pyrovi.nn import BatchNorm, CovariateLinear, FCLayers, one_hot


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def warmed_up(module: nn.Module, n_in: int, *covariates, **kwargs) -> nn.Module:
    """A module in evaluation mode whose running statistics are not the initial ones."""
    module.train()
    module(2 * torch.randn(50, n_in) + 1, *(c.repeat(10, 1)[:50] for c in covariates), **kwargs)
    return module.eval()


def test_a_tiny_network_by_hand():
    layers = FCLayers(2, 1, n_layers=2, n_hidden=2, dropout_rate=0.0, use_batch_norm=False)
    first, second = layers.layers
    with torch.no_grad():
        first.linear.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
        first.linear.bias.copy_(torch.tensor([0.5, -4.0]))
        second.linear.weight.copy_(torch.tensor([[3.0, 1.0]]))
        second.linear.bias.copy_(torch.tensor([-1.0]))
    # relu(1*1 + 2*2 + .5) = 5.5, relu(-1 + 2 - 4) = 0, relu(3*5.5 + 0 - 1) = 15.5
    assert layers(torch.tensor([[1.0, 2.0]])).item() == 15.5


def test_covariate_linear_is_the_linear_layer_of_the_concatenation():
    layer = CovariateLinear(5, 4, [3, 1, 2], n_cont=2)
    assert layer.weight.shape == (4, 5 + 3 + 2 + 2)
    x, cont = torch.randn(6, 5), torch.randn(6, 2)
    a, skipped, b = torch.randint(3, (6, 1)), torch.zeros(6, 1).long(), torch.randint(2, (6, 1))
    everything = torch.cat([x, one_hot(a, 3), one_hot(b, 2), cont], dim=-1)
    wanted = functional.linear(everything, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, a, skipped, b, cont=cont), wanted)
    encoded = layer(x, one_hot(a, 3), skipped, one_hot(b, 2), cont=cont)
    torch.testing.assert_close(encoded, wanted)
    found = torch.autograd.grad(layer(x, a, skipped, b, cont=cont).square().sum(), layer.weight)
    wanted_gradient = torch.autograd.grad(wanted.square().sum(), layer.weight)
    torch.testing.assert_close(found, wanted_gradient)


def test_initialisation_is_that_of_the_concatenated_linear_layer():
    torch.manual_seed(4)
    layer = CovariateLinear(5, 4, [3], n_cont=2)
    torch.manual_seed(4)
    linear = nn.Linear(10, 4)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    assert CovariateLinear(5, 4, bias=False).bias is None


def test_probabilities_of_categories_are_averages():
    layer = CovariateLinear(3, 2, [2])
    x, zero = torch.randn(4, 3), torch.zeros(4, 1).long()
    half = layer(x, torch.full((4, 2), 0.5))
    torch.testing.assert_close(half, (layer(x, zero) + layer(x, zero + 1)) / 2)


def test_steps_and_their_constants():
    layers = FCLayers(3, 4, n_layers=2, n_hidden=5, use_layer_norm=True, dropout_rate=0.2)
    for layer in layers.layers:
        steps = [type(step).__name__ for step in layer.children()]
        assert steps == ["CovariateLinear", "BatchNorm", "LayerNorm", "ReLU", "Dropout"]
        assert layer.batch_norm.momentum == 0.01
        assert layer.batch_norm.eps == 0.001
        assert not list(layer.layer_norm.parameters())
        assert layer.dropout.p == 0.2
    bare = FCLayers(3, 4, use_batch_norm=False, use_activation=False, dropout_rate=0, bias=False)
    assert [type(step).__name__ for step in bare.layers[0].children()] == ["CovariateLinear"]
    assert [name for name, _ in bare.named_parameters()] == ["layers.0.linear.weight"]
    other = FCLayers(3, 4, activation_fn=nn.LeakyReLU)
    assert isinstance(other.layers[0].activation, nn.LeakyReLU)


@pytest.mark.parametrize("inject", [True, False])
def test_injection_reaches_every_layer_or_the_first(inject):
    layers = FCLayers(3, 4, [2], 1, n_layers=3, n_hidden=5, inject_covariates=inject).eval()
    widths = [layer.linear.weight.shape[1] for layer in layers.layers]
    assert widths == ([3 + 3, 5 + 3, 5 + 3] if inject else [3 + 3, 5, 5])
    with torch.no_grad():  # the first layer no longer sees anything
        layers.layers[0].linear.weight.zero_()
    x, cont = torch.randn(6, 3), torch.randn(6, 1)
    zero = torch.zeros(6, 1).long()
    one = zero + 1
    changes = not torch.equal(layers(x, zero, cont=cont), layers(x, one, cont=cont))
    assert changes == inject
    changes = not torch.equal(layers(x, zero, cont=cont), layers(x, zero, cont=cont + 1))
    assert changes == inject


def test_leading_dimensions_are_a_loop():
    codes, cont = torch.randint(3, (5, 1)), torch.randn(5, 2)
    layers = FCLayers(4, 3, [3], 2, n_layers=2, n_hidden=6, use_layer_norm=True)
    layers = warmed_up(layers, 4, codes, cont=cont.repeat(10, 1))
    x = torch.randn(2, 7, 5, 4)
    found = layers(x, codes, cont=cont)  # covariates broadcast over the leading dimensions
    assert found.shape == (2, 7, 5, 3)
    for i in range(2):
        for j in range(7):
            torch.testing.assert_close(found[i, j], layers(x[i, j], codes, cont=cont))
    torch.testing.assert_close(layers(x[0, 0, 0], codes[0], cont=cont[0]), found[0, 0, 0])


def test_covariates_with_more_dimensions_than_the_features():
    layers = FCLayers(4, 3, [3]).eval()
    x, codes = torch.randn(5, 4), torch.randint(3, (2, 5, 1))
    found = layers(x, codes)
    torch.testing.assert_close(found, torch.stack([layers(x, c) for c in codes]))


def test_vmap_is_a_loop():
    layers = warmed_up(FCLayers(4, 3, [3], n_layers=2), 4, torch.randint(3, (5, 1)))
    x, codes = torch.randn(7, 5, 4), torch.randint(3, (7, 5, 1))
    torch.testing.assert_close(
        vmap(layers)(x, codes), torch.stack([layers(a, c) for a, c in zip(x, codes, strict=True)])
    )
    torch.testing.assert_close(
        vmap(layers, in_dims=(0, None))(x, codes[0]), torch.stack([layers(a, codes[0]) for a in x])
    )
    several = [warmed_up(FCLayers(4, 3, [3]), 4, torch.randint(3, (5, 1))) for _ in range(3)]
    parameters, buffers = stack_module_state(several)
    found = vmap(lambda p, b: functional_call(several[0], (p, b), (x[0], codes[0])))(
        parameters, buffers
    )
    torch.testing.assert_close(found, torch.stack([one(x[0], codes[0]) for one in several]))


def test_batch_norm_pools_leading_dimensions_and_is_torchs():
    ours, theirs = BatchNorm(3), nn.BatchNorm1d(3, momentum=0.01, eps=0.001)
    x = 3 * torch.randn(4, 5, 3) + 2
    torch.testing.assert_close(ours(x), theirs(x.reshape(20, 3)).reshape(4, 5, 3))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x.reshape(20, 3)).reshape(4, 5, 3))


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 4), (4,)])
def test_one_observation_uses_the_running_statistics(shape):
    layers = warmed_up(FCLayers(4, 3, n_layers=2, dropout_rate=0.0), 4)
    x = torch.randn(shape)
    expected = layers(x)
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    layers.train()
    found = layers(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert layers.layers[0].linear.weight.grad.isfinite().all()
    for name, value in layers.state_dict().items():
        assert torch.equal(value, before[name])
    layers(torch.randn(2, 4))  # two observations update the statistics again
    assert not torch.equal(
        layers.layers[0].batch_norm.running_mean, before["layers.0.batch_norm.running_mean"]
    )


def test_messages():
    with pytest.raises(ModelError, match="n_layers must be at least 1, found 0"):
        FCLayers(2, 2, n_layers=0)
    layers = FCLayers(2, 2, [3], 1).eval()
    x, codes, cont = torch.randn(4, 2), torch.zeros(4, 1).long(), torch.randn(4, 1)
    with pytest.raises(ModelError, match=r"Expected 1 categorical covariates .* found 0"):
        layers(x, cont=cont)
    with pytest.raises(ModelError, match="Expected 1 continuous covariates, found 0"):
        layers(x, codes)
    with pytest.raises(ModelError, match="found 2"):
        layers(x, codes, cont=torch.randn(4, 2))
    with pytest.raises(DataError, match="number 0: codes must be between 0 and 2"):
        layers(x, codes + 3, cont=cont)


def test_no_copy_of_the_input_with_covariates():
    # The concatenation would hold n_in columns again; what autograd saves tells.
    layer = CovariateLinear(1000, 2, [3])
    x, codes = torch.randn(8, 1000), torch.randint(3, (8, 1))
    saved: list[torch.Tensor] = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, codes)
    large = [t for t in saved if t.numel() >= x.numel()]
    assert large
    assert all(t.data_ptr() == x.data_ptr() for t in large)
