"""Neural networks: layers with covariate injection, encoders, decoders, embeddings.

Every module takes any number of leading dimensions, and works under :func:`torch.func.vmap` in
evaluation mode.
"""

from pyrovi.nn.covariates import Embedding, one_hot
from pyrovi.nn.decoders import CountParameters, Decoder, DecoderSCVI, LinearDecoderSCVI
from pyrovi.nn.encoders import Classifier, Encoder
from pyrovi.nn.layers import BatchNorm, CovariateLinear, FCLayer, FCLayers
from pyrovi.nn.skip import SkipNetwork

__all__ = [
    "BatchNorm",
    "Classifier",
    "CountParameters",
    "CovariateLinear",
    "Decoder",
    "DecoderSCVI",
    "Embedding",
    "Encoder",
    "FCLayer",
    "FCLayers",
    "LinearDecoderSCVI",
    "SkipNetwork",
    "one_hot",
]
