from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.nn import functional

from pyrovi.errors import ModelError
from pyrovi.nn import Decoder, DecoderSCVI, LinearDecoderSCVI


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, 3, generator=generator)
    library = torch.randn(5, 1, generator=generator) + 4
    codes = torch.randint(2, (5, 1), generator=generator)
    return z, library, codes


@pytest.mark.parametrize("make", [DecoderSCVI, LinearDecoderSCVI])
def test_scale_is_a_simplex_and_rate_has_the_library_size(make, inputs):
    z, library, codes = inputs
    out = make(3, 7, [2]).eval()(z, library, codes)
    torch.testing.assert_close(out.scale.sum(-1), torch.ones(6, 5))
    torch.testing.assert_close(out.rate.sum(-1), library.exp().squeeze(-1).expand(6, 5))
    assert out.dropout.shape == (6, 5, 7)
    assert out.r is None
    scale, r, rate, dropout = out  # a plain tuple of four
    assert scale is out.scale
    assert (r, rate, dropout) == (out.r, out.rate, out.dropout)


def test_network_by_its_parts(inputs):
    z, library, codes = inputs
    decoder = DecoderSCVI(3, 7, [2], cell_dispersion=True, scale_activation="softplus").eval()
    out = decoder(z, library, codes)
    hidden = decoder.layers(z, codes)
    torch.testing.assert_close(out.scale, functional.softplus(decoder.scale_head(hidden)))
    torch.testing.assert_close(out.r, decoder.r_head(hidden))
    torch.testing.assert_close(out.dropout, decoder.dropout_head(hidden))
    (layer,) = decoder.layers.layers
    assert layer.dropout is None  # decoders have none
    assert layer.batch_norm is None
    assert DecoderSCVI(3, 7, use_batch_norm=True).layers.layers[0].batch_norm is not None


@pytest.mark.parametrize("make", [DecoderSCVI, LinearDecoderSCVI])
def test_every_parameter_is_used(make, inputs):
    z, library, codes = inputs
    for zero_inflation in (True, False):
        decoder = make(3, 7, [2], zero_inflation=zero_inflation)
        out = decoder(z, library, codes)
        assert (out.dropout is not None) == zero_inflation
        loss = out.rate.square().sum() + (out.dropout.sum() if zero_inflation else 0)
        loss.backward()
        assert all(parameter.grad is not None for parameter in decoder.parameters())


@pytest.mark.parametrize("make", [DecoderSCVI, LinearDecoderSCVI])
def test_leading_dimensions_and_vmap_are_loops(make, inputs):
    z, library, codes = inputs
    decoder = make(3, 7, [2], n_cont=1, use_batch_norm=True).eval()
    cont = torch.randn(5, 1)
    looped = torch.stack([decoder(a, library, codes, cont=cont).rate for a in z])
    torch.testing.assert_close(decoder(z, library, codes, cont=cont).rate, looped)
    mapped = vmap(lambda a: decoder(a, library, codes, cont=cont).rate)(z)
    torch.testing.assert_close(mapped, looped)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_loadings_are_the_effect_of_the_latent_variables(batch_norm, inputs):
    z, _, codes = inputs
    decoder = LinearDecoderSCVI(3, 7, [2], use_batch_norm=batch_norm)
    decoder.scale_layers(z, codes)  # moves the running statistics
    decoder.eval()
    before_softmax = decoder.scale_layers(z, codes)
    difference = before_softmax[0] - before_softmax[1]
    assert decoder.loadings().shape == (7, 3)
    torch.testing.assert_close(difference, (z[0] - z[1]) @ decoder.loadings().T)


def test_plain_decoder_returns_a_standard_deviation(inputs):
    z, _, codes = inputs
    decoder = Decoder(3, 7, [2], n_layers=2).eval()
    mean, scale = decoder(z, codes)
    hidden = decoder.layers(z, codes)
    torch.testing.assert_close(mean, decoder.mean_head(hidden))
    torch.testing.assert_close(scale.square(), decoder.variance_head(hidden).exp())
    torch.testing.assert_close(vmap(lambda a: decoder(a, codes)[1])(z), scale)
    assert decoder.layers.layers[0].dropout is None
    assert Decoder(3, 7, dropout_rate=0.5).layers.layers[0].dropout.p == 0.5


def test_unknown_activation():
    with pytest.raises(ModelError, match="'relu'"):
        DecoderSCVI(3, 7, scale_activation="relu")
