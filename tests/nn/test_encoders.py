from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from pyrovi.errors import ModelError
from pyrovi.nn import Classifier, Encoder


def test_second_output_is_the_standard_deviation():
    encoder = Encoder(4, 2, n_hidden=8, var_eps=0.25).eval()
    with torch.no_grad():
        encoder.variance_head.weight.zero_()
        encoder.variance_head.bias.copy_(torch.tensor([0.0, 2.0]))
    mean, scale = encoder(torch.randn(3, 4))
    wanted = torch.tensor([1.25, torch.e**2 + 0.25]).sqrt().expand(3, 2)
    torch.testing.assert_close(scale, wanted)
    assert mean.shape == (3, 2)


def test_heads_are_linear_in_the_hidden_layer():
    encoder = Encoder(4, 2, [3], n_hidden=8).eval()
    x, codes = torch.randn(5, 4), torch.randint(3, (5, 1))
    hidden = encoder.layers(x, codes)
    mean, _ = encoder(x, codes)
    head = encoder.mean_head
    torch.testing.assert_close(mean, hidden @ head.weight.T + head.bias)


def test_variance_activation_and_options_reach_the_layers():
    encoder = Encoder(
        4, 2, n_layers=3, var_activation=torch.nn.functional.softplus, use_batch_norm=False
    )
    assert len(encoder.layers.layers) == 3
    assert encoder.layers.layers[0].batch_norm is None
    encoder.eval()
    x = torch.randn(5, 4)
    raw = encoder.variance_head(encoder.layers(x))
    torch.testing.assert_close(encoder(x)[1], (torch.nn.functional.softplus(raw) + 1e-4).sqrt())


def test_leading_dimensions_and_vmap_are_loops():
    encoder = Encoder(4, 2, [3], 1, n_layers=2).eval()
    x, codes, cont = torch.randn(6, 5, 4), torch.randint(3, (5, 1)), torch.randn(5, 1)
    looped = [encoder(a, codes, cont=cont) for a in x]
    together = encoder(x, codes, cont=cont)
    mapped = vmap(lambda a: encoder(a, codes, cont=cont))(x)
    for k in range(2):
        wanted = torch.stack([pair[k] for pair in looped])
        torch.testing.assert_close(together[k], wanted)
        torch.testing.assert_close(mapped[k], wanted)


def test_transform():
    z = torch.randn(3, 5, 2)
    assert Encoder(4, 2).transform(z) is z
    simplex = Encoder(4, 2, distribution="ln").transform(z)
    torch.testing.assert_close(simplex, z.exp() / z.exp().sum(-1, keepdim=True))
    with pytest.raises(ModelError, match="'gamma'"):
        Encoder(4, 2, distribution="gamma")


def test_classifier():
    x = torch.randn(2, 6, 4)
    classifier = Classifier(4, n_hidden=8, n_labels=3).eval()
    probs = classifier(x)
    assert probs.shape == (2, 6, 3)
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 6))
    logits = Classifier(4, n_hidden=8, n_labels=3, logits=True).eval()
    logits.load_state_dict(classifier.state_dict())
    torch.testing.assert_close(logits(x).softmax(-1), probs)
    torch.testing.assert_close(vmap(classifier)(x), probs)


def test_classifier_without_hidden_layers_is_linear():
    linear = Classifier(4, n_labels=3, n_layers=0, logits=True)
    assert [p.shape for p in linear.parameters()] == [(3, 4), (3,)]
    x = torch.randn(6, 4)
    torch.testing.assert_close(linear(2 * x) - linear(x), linear(x) - linear(0 * x))
