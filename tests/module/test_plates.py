"""The observation plate: scale, rows, scope."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroParam
from tests.module.stories import example
from torch import Tensor

from pyrovi.dataloaders import Minibatch
from pyrovi.errors import ModelError
from pyrovi.module import PyroBaseModule, minibatch_scope, obs_plate, plate


def test_scale_is_the_inverse_sampling_fraction() -> None:
    minibatch = Minibatch({}, torch.tensor([4, 1, 7]), 12)
    with minibatch_scope(minibatch), poutine.trace() as tracer, obs_plate() as indices:
        pyro.sample("z", dist.Normal(0.0, 1.0))
    assert indices.tolist() == [4, 1, 7]
    assert tracer.trace.nodes["z"]["scale"] == 4.0
    assert tracer.trace.nodes["z"]["value"].shape == (3,)


@pytest.mark.parametrize("n_obs", [3, 10, 2])
def test_rows_are_those_of_the_minibatch_whatever_the_plate_size(n_obs: int) -> None:
    """A shuffled full batch, a part, and held-out observations beyond the training size."""
    table = torch.arange(20.0).reshape(10, 2)

    class Rows(PyroBaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.rows = PyroParam(table.clone(), event_dim=1)

        def model(self) -> Tensor:
            with self.obs_plate():
                return self.rows

        def guide(self) -> None:
            pass

    module = Rows()
    module.materialise(example(n_obs=10))
    assert module.row_parameters == ("rows_unconstrained",)
    indices = torch.tensor([9, 0, 5])
    rows = module.run_model(example()(3).replace(indices=indices, n_obs=n_obs))
    torch.testing.assert_close(rows, table[indices])


def test_outside_of_scope() -> None:
    with pytest.raises(ModelError, match="no minibatch in scope"):
        obs_plate()
    with minibatch_scope(example()(2)):
        obs_plate()
    with pytest.raises(ModelError, match="no minibatch in scope"):
        obs_plate()


def test_a_story_may_open_the_plate_again() -> None:
    with minibatch_scope(example()(2)), poutine.trace() as tracer:
        with obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with obs_plate():
            pyro.sample("y", dist.Normal(z, 1.0))
    assert tracer.trace.nodes["y"]["scale"] == 5.0


def test_the_name_is_reserved() -> None:
    with pytest.raises(ModelError, match="'obs' belongs to the observations"):
        plate("obs", 3)
    assert plate("var", 3, dim=-2).dim == -2


def test_a_named_plate_can_be_opened_again() -> None:
    def story() -> None:
        with plate("var", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with plate("var", 3):
            pyro.sample("b", dist.Normal(a, 1.0))

    with minibatch_scope(Minibatch({}, torch.arange(2), 2)):
        trace = poutine.trace(story).get_trace()
    assert [f.name for f in trace.nodes["b"]["cond_indep_stack"]] == ["var"]
    assert trace.nodes["b"]["fn"].batch_shape == (3,)
