"""What a newcomer gets wrong at each step: a typed error that names the thing and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovi as pv
from pyrovi.errors import DataError, MissingKeyError, ModelError, PyroviError, TrainingError

pytestmark = pytest.mark.filterwarnings("ignore:.*not trained", "ignore:.*fewer than 3 rows")

N = 12
Story = Callable[..., None]
QUIET: dict[str, Any] = {"enable_progress_bar": False}


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns = {"x": rng.normal(size=N), "y": rng.normal(size=N), "k": np.arange(N) % 3}
    return pd.DataFrame(columns, index=[f"row{i}" for i in range(N)])


def counts() -> anndata.AnnData:
    adata = anndata.AnnData(np.random.default_rng(0).poisson(2.0, (N, 5)).astype(np.float32))
    adata.obs_names = [f"cell{i}" for i in range(N)]
    adata.obs["s"] = np.linspace(-1, 1, N)
    return adata


def line(x: Any, y: Any) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)


def refused(error: type[PyroviError], message: str, run: Callable[[], Any]) -> None:
    """The error, in our words: no table of shapes, and the traceback's cause kept."""
    with pytest.raises(error, match=message) as caught:
        run()
    assert "Trace Shapes" not in str(caught.value)


# ---------------------------------------------------------------------- (n, 1) against (n,)

COLUMN, VECTOR = pv.fields.obs, pv.fields.column


@pytest.mark.parametrize(
    ("x", "y"), [(COLUMN, VECTOR), (COLUMN, COLUMN), (VECTOR, COLUMN)], ids=["xn1", "n1n1", "n1y"]
)
def test_columns_and_vectors_never_make_pairs_of_observations(x: Any, y: Any) -> None:
    """Torch would broadcast to (n, n), and Pyro would sum all of it without a word."""
    data = anndata.AnnData(obs=table())
    fields = {"x": x("x"), "y": y("y")}
    refused(ModelError, r"'y'.*becomes \(n, n\)\. Give all the same shape.*pv\.fields\.column",
            lambda: pv.from_pyro(line, data, fields))  # fmt: skip


def test_the_same_shapes_are_the_same_density() -> None:
    """The ways that are right agree: vectors, and columns as events."""

    def columns(x: Any, y: Any) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(a + b * x, 1.0).to_event(1), obs=y)

    data = anndata.AnnData(obs=table())
    found = [
        pv.from_pyro(s, data, {"x": f("x"), "y": f("y")}).log_likelihood(num_samples=3)["y"]
        for s, f in ((line, VECTOR), (columns, COLUMN))
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def hidden_in_a_factor(x: Any, y: Any) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.factor("f", dist.Normal(a * x, 1.0).log_prob(y).sum(-1))


def reduced_too_early(x: Any, y: Any) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal((a * x - y).mean(0), 1.0), obs=y)


def centred_by_the_minibatch(x: Any, y: Any) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(a * (x - x.mean())[..., 0], 1.0), obs=y)


@pytest.mark.parametrize("story", [hidden_in_a_factor, reduced_too_early, centred_by_the_minibatch])
def test_an_observation_does_not_see_the_others(story: Story) -> None:
    """Shapes that look right afterwards: the densities themselves are compared."""
    data = anndata.AnnData(obs=table())
    fields = {"x": COLUMN("x"), "y": VECTOR("y")}
    refused(ModelError, "depends on the other observations of the minibatch.*whole data beforehand",
            lambda: pv.from_pyro(story, data, fields))  # fmt: skip


# ---------------------------------------------------------------------- shapes and statements


def no_event(X: Any) -> None:
    m = pyro.sample("m", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(m.exp()), obs=X)


def one_rate_for_a_matrix(X: Any) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(m.exp()), obs=X)


def vector_without_event(X: Any) -> None:
    m = pyro.sample("m", dist.Normal(torch.zeros(5), 1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(m.exp()).to_event(1), obs=X)


def local_without_event(X: Any) -> None:
    with pv.obs_plate():
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        pyro.sample("X", dist.Poisson(z.exp() @ torch.ones(3, 5)).to_event(1), obs=X)


def other_event_size(X: Any) -> None:
    with pv.obs_plate():
        pyro.sample("X", dist.Normal(torch.zeros(4), 1.0).to_event(1), obs=X)


def events_of_one_value(X: Any) -> None:
    with pv.obs_plate():
        pyro.sample("X", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=X)


def product_of_other_sizes(X: Any) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(X @ w, 1.0), obs=X[:, 0])


def no_plate(X: Any) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("X", dist.Poisson(m.exp()).expand([len(X), 5]).to_event(2), obs=X)


def plate_that_is_not_entered(X: Any) -> None:
    pv.obs_plate()
    pyro.sample("X", dist.Poisson(1.0).expand([len(X), 5]).to_event(1), obs=X)


def plate_given_the_size(X: Any) -> None:
    with pv.obs_plate(N):
        pyro.sample("X", dist.Poisson(1.0).expand([5]).to_event(1), obs=X)


def plate_of_all_observations(X: Any, *, n_obs: int) -> None:
    with pv.plate("rows", n_obs):
        pyro.sample("X", dist.Poisson(X[:, 0].exp()), obs=X[:, 0])


def own_plate_of_the_same_name(X: Any) -> None:
    with pyro.plate("obs", len(X)):
        pyro.sample("X", dist.Poisson(1.0).expand([5]).to_event(1), obs=X)


def name_of_the_plate(X: Any) -> None:
    with pv.plate("obs", 5):
        pyro.sample("a", dist.Normal(0.0, 1.0))


def same_name_twice(X: Any) -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("a", dist.Normal(0.0, 1.0))


def statement_under_an_if(X: Any) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(1.0).expand([5]).to_event(1), obs=X)
    for i in range(int(a.abs() * 100) + 1):
        pyro.sample(f"b{i}", dist.Normal(0.0, 1.0))


def double_precision(X: Any) -> None:
    with pv.obs_plate():
        rate = (X @ torch.ones(5, 5, dtype=torch.float64)).exp()
        pyro.sample("X", dist.Poisson(rate).to_event(1), obs=X)


def global_parameter(X: Any) -> None:
    rate = pyro.param("rate", torch.tensor(1.0))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(rate).expand([5]).to_event(1), obs=X)


def discrete_without_end(X: Any) -> None:
    with pv.obs_plate():
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("X", dist.Poisson(k[..., None] + torch.ones(5)).to_event(1), obs=X)


def asks_for_an_endless_sum(X: Any) -> None:
    with pv.obs_plate():
        k = pyro.sample("k", dist.Poisson(3.0), infer={"enumerate": "parallel"})
        pyro.sample("X", dist.Poisson(k[..., None] + torch.ones(5)).to_event(1), obs=X)


def support_that_moves(X: Any) -> None:
    a = pyro.sample("a", dist.Uniform(0.0, 1.0))
    b = pyro.sample("b", dist.Uniform(0.0, 1 - a))
    with pv.obs_plate():
        pyro.sample("X", dist.Poisson(a + b).expand([5]).to_event(1), obs=X)


STORIES: list[tuple[Story, str]] = [
    (no_event, r"received X \(2, 5\) float32.*\.to_event\(1\)"),
    (one_rate_for_a_matrix, r"'X' has shape \(2, 5\).*dist\.Poisson\(\.\.\.\)\.to_event\(1\)"),
    (vector_without_event, r"'m' has batch shape \(5,\).*add \.to_event\(1\).*pv\.plate"),
    (local_without_event, r"site z dim -1, 2 vs 3.*\.to_event\(1\)"),
    (other_event_size, r"'X' has shape \(2, 5\).*event shape \(4,\).*same shape"),
    (events_of_one_value, r"'X' has shape \(2, 5\).*event shape \(1,\).*\.expand"),
    (product_of_other_sizes, r"received X \(2, 5\) float32.*different shapes met"),
    (no_plate, r"not inside the observation plate.*pv\.obs_plate\(\)"),
    (plate_that_is_not_entered, r"'X'.*obs_plate\(\)"),
    (plate_given_the_size, r"obs_plate\(12\).*size and indices come from the minibatch"),
    (plate_of_all_observations, r"12 vs 2.*pv\.obs_plate\(\), whatever their number"),
    (own_plate_of_the_same_name, r"named 'obs' of the story's own.*with pv\.obs_plate\(\)"),
    (name_of_the_plate, r"'obs' belongs to the observations"),
    (same_name_twice, r"Multiple sample sites named 'a'.*name of its own"),
    (statement_under_an_if, r"only in some runs.*torch\.where"),
    (double_precision, r"single precision.*dtype=torch\.float32"),
    (global_parameter, r"global pyro\.param.*self\.rate = pyro\.nn\.PyroParam"),
    (discrete_without_end, r"'k' \(Poisson\) cannot be summed out.*NegativeBinomial"),
    (asks_for_an_endless_sum, r"'k' asks to be summed out.*Poisson has no finite list.*truncate"),
    (support_that_moves, r"support of site 'b' depends.*dist\.Uniform\(0, 1\)"),
]


@pytest.mark.parametrize(("story", "message"), STORIES, ids=[s.__name__ for s, _ in STORIES])
def test_stories(story: Story, message: str) -> None:
    refused(ModelError, f"(?s){message}", lambda: pv.from_pyro(story, counts()))


def test_numbers_are_no_indices() -> None:
    def story(k: Any, y: Any) -> None:
        with pv.plate("group", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(a[k], 1.0), obs=y)

    fields = {"k": pv.fields.column("k", kind="numbers"), "y": pv.fields.column("y")}
    message = r'(?s)k \(2,\) float32.*pv\.fields\.column\("\.\.\.", kind="integers"\)'
    refused(ModelError, message, lambda: pv.from_pyro(story, table(), fields))
    fields["k"] = pv.fields.column("k", kind="integers")
    assert list(pv.from_pyro(story, table(), fields).sites) == ["a", "y"]


# ---------------------------------------------------------------------- data and arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("line", {"x": [1.0]}), ModelError, r"story is 'line' \(str\).*Expected a function"),
        ((None, {"x": [1.0]}), ModelError, r"story is None.*itself and not its result"),
        ((torch.nn.Linear, {"x": [1.0]}), ModelError, "class Linear, which needs in_features"),
        ((line, np.zeros((3, 2))), DataError, r"ndarray.*\{'X': array\}"),
        ((line, torch.zeros(3, 2)), DataError, r"Tensor.*\{'X': array\}"),
        ((line, [1.0, 2.0]), DataError, "a list.*Expected an AnnData, a MuData, a DataFrame"),
        ((line, "data.csv"), DataError, r"a str.*pandas\.read_csv"),
        ((line, table(), ["x", "y"]), DataError, "fields= is a list.*Expected a dict"),
        ((line, table()[["x"]]), ModelError, "'y', which the data have nothing of.*found: x"),
        ((line, table().iloc[:0]), DataError, "no observations"),
        ((line, table().assign(y=np.nan)), DataError, r"'y'.*12 missing.*'row0'.*impute"),
        ((line, table(), None, "meanfield"), ModelError, "no guide 'meanfield'.*normal, lowrank"),
    ],
)  # fmt: skip
def test_arguments(arguments: Any, error: type[PyroviError], message: str) -> None:
    refused(error, message, lambda: pv.from_pyro(*arguments))


def test_missing_values_that_a_story_closes_over() -> None:
    y = torch.tensor([1.0, float("nan"), 2.0])

    def story() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pv.plate("row", 3):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    message = r"'y' has 1 missing values \(NaN\), the first at \(1,\).*dist.mask"
    refused(ModelError, message, lambda: pv.from_pyro(story, {}))


def observes(make: Callable[[Any], Any]) -> Story:
    def story(y: Any) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", make(a), obs=y)

    return story


@pytest.mark.parametrize("method", ["svi", "nuts", "map"])
@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (lambda a: dist.Poisson(a.exp()), -2.0, "-2 for observation 'row3'.*Poisson.*0, 1, 2"),
        (lambda a: dist.Poisson(a.exp()), 2.5, "2.5 for observation 'row3'.*raw counts"),
        (lambda a: dist.Bernoulli(logits=a), 2.0, "2 for observation 'row3'.*Bernoulli.*0 or 1"),
        (lambda a: dist.LogNormal(a, 1.0), 0.0, "0 for observation 'row3'.*positive numbers"),
        (lambda a: dist.Categorical(logits=a * torch.ones(2)), 2.0, "'row3'.*draws 0, ..., 1"),
    ],
    ids=["negative", "fraction", "binary", "zero", "code"],
)
def test_impossible_data(method: str, make: Any, wrong: float, message: str) -> None:
    data = table().assign(y=1.0)
    data.loc["row3", "y"] = wrong
    model = pv.from_pyro(observes(make), data)
    refused(DataError, message, lambda: model.train(method=method))
    assert not model.is_trained


def test_data_that_have_become_impossible() -> None:
    data = table().assign(y=1.0)
    model = pv.from_pyro(observes(lambda a: dist.Bernoulli(logits=a)), data)
    model.train(1, **QUIET)
    model.adata.obs.loc["row3", "y"] = 2.0
    message = "2 for observation 'row3'.*Bernoulli.*0 or 1"
    refused(DataError, message, lambda: model.train(1, **QUIET))


def test_codes_beyond_the_plate() -> None:
    def story(k: Any, y: Any) -> None:
        with pv.plate("group", 2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(a[k], 1.0), obs=y)

    model = pv.from_pyro(story, table())
    refused(ModelError, "(?s)fails on its data.*codes run from 0", lambda: model.train(1, **QUIET))


# ---------------------------------------------------------------------- guides


def scale(y: Any) -> None:
    t = pyro.sample("t", dist.HalfNormal(1.0))
    with pv.obs_plate():
        pyro.sample("y", dist.Normal(0.0, t), obs=y)


def sites(**fns: Any) -> Callable[[Any], None]:
    def guide(y: Any) -> None:
        for name, fn in fns.items():
            pyro.sample(name, fn)

    return guide


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (sites(), "does not draw 't'"),
        (sites(t=dist.LogNormal(0.0, 1.0), u=dist.Normal(0.0, 1.0)), "draws 'u', which the model"),
        (sites(t=dist.Normal(3.0, 0.1)), r"'t' from Normal.*can draw -1000.*LogNormal or Gamma"),
        (sites(t=dist.LogNormal(torch.zeros(2), 1.0)), r"shape \(2,\), but in the model.*\(\)"),
        (lambda y, q: None, "asks for 'q', which no field provides. Fields are: y, x, k"),
    ],
    ids=["missing", "extra", "support", "shape", "field"],
)
def test_guides(guide: Any, message: str) -> None:
    fields = {name: pv.fields.column(name) for name in ("y", "x", "k")}
    refused(ModelError, message, lambda: pv.from_pyro(scale, table(), fields, guide))


def test_a_point_outside_of_the_support() -> None:
    def story(y: Any) -> None:
        t = pyro.sample("t", dist.HalfNormal(1.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(t, 1.0), obs=y)

    point = sites(t=dist.Delta(torch.tensor(-1.0)))
    refused(ModelError, "'t' from Delta, which has drawn -1.*LogNormal",
            lambda: pv.from_pyro(story, table(), guide=point))  # fmt: skip


def test_guides_of_the_same_or_a_smaller_support_are_fine() -> None:
    for fn in (dist.LogNormal(0.0, 1.0), dist.Uniform(0.5, 2.0), dist.Gamma(2.0, 1.0)):
        assert pv.from_pyro(scale, table(), guide=sites(t=fn)).get_elbo() < 0


# ---------------------------------------------------------------------- training and queries


def test_training() -> None:
    model = pv.from_pyro(line, table())
    refused(TrainingError, "early_stopping=True watches 'elbo_validation'.*early_stopping='elbo'",
            lambda: model.train(2, early_stopping=True, **QUIET))  # fmt: skip
    refused(PyroviError, "'adam'|method.*svi.*nuts", lambda: model.train(method="adam"))
    with pytest.raises((PyroviError, TypeError), match="max_epoch"):
        model.train(max_epoch=3)
    with pytest.raises((PyroviError, TypeError), match=r"max_epochs|num_samples"):
        model.train(method="nuts", max_epochs=3)


def test_nothing_to_train() -> None:
    def story(y: Any) -> None:
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    model = pv.from_pyro(story, table())
    refused(TrainingError, "nothing to train", lambda: model.train(1, **QUIET))


@pytest.fixture(scope="module")
def mcmc() -> Any:
    model = pv.from_pyro(line, table())
    model.train(method="nuts", num_samples=20, num_warmup=20, num_chains=1, **QUIET)
    return model


def test_queries(mcmc: Any) -> None:
    for query in (mcmc.sample_posterior, mcmc.posterior_predictive, mcmc.summary):
        refused(ModelError, "no site 'c'; the model's sites are: a, b, y", lambda q=query: q("c"))
    refused(ModelError, "'y' is observed.*posterior_predictive", lambda: mcmc.sample_posterior("y"))
    refused(ModelError, "'a'.*not observed", lambda: mcmc.log_likelihood("a"))
    refused(PyroviError, "21.*20", lambda: mcmc.sample_posterior(num_samples=21))
    refused(MissingKeyError, "'y' not found.*Found: 'x'",
            lambda: mcmc.log_likelihood(adata=table()[["x"]]))  # fmt: skip
    refused(PyroviError, "q5x|reduce", lambda: mcmc.sample_posterior(reduce="q5x"))


def test_methods_of_other_models() -> None:
    def story(y: Any) -> None:
        with pv.obs_plate():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    model = pv.from_pyro(story, table())
    refused(PyroviError, "(?i)laplace.*'z'|'z'.*laplace", lambda: model.train(method="laplace"))
    refused(PyroviError, "trained|untrained", lambda: pv.criticism.diagnose(model))


def test_comparisons_and_points() -> None:
    point = pv.from_pyro(line, table(), guide="delta")
    point.train(5, **QUIET)
    refused(PyroviError, "(?i)point.*held_out|held_out.*point", lambda: pv.criticism.loo(point))
    one, other = (pv.from_pyro(line, t) for t in (table(), table().iloc[:-2]))
    for model in (one, other):
        model.train(method="laplace")
    found = {name: pv.criticism.loo(m) for name, m in (("one", one), ("other", other))}
    refused(PyroviError, "(?i)other observations|same observations|different",
            lambda: pv.criticism.compare(found))  # fmt: skip


def test_training_cut_short_is_flagged() -> None:
    def story(y: Any) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 100.0))
        with pv.obs_plate():
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    model = pv.from_pyro(story, table().assign(y=lambda t: t["y"] + 50))
    model.train(12, lr=0.01, start=None, **QUIET)

    def improving() -> Any:
        checked = pv.criticism.diagnose(model).table
        return checked.loc[next(name for name in checked.index if "still improving" in name)]

    short = improving()
    assert short["verdict"] == "warn"
    assert "train() again" in short["advice"]
    model.train(60, lr=0.01, start=None, **QUIET)
    assert improving()["verdict"] in ("warn", "fail")


# ---------------------------------------------------------------------- setting up counts


def test_a_matrix_is_no_annotated_data() -> None:
    refused(
        DataError, r"ndarray.*AnnData\(X\)", lambda: pv.model.SCVI.setup_anndata(np.ones((3, 2)))
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [([], "has no columns"), (["CD3", "CD4", "CD3"], "several columns of one name.*'CD3'")],
)
def test_blocks_of_proteins_have_names_of_their_own(columns: list[str], message: str) -> None:
    adata = counts()
    block = np.ones((N, len(columns)))
    adata.obsm["protein"] = pd.DataFrame(block, index=adata.obs_names, columns=columns)
    refused(DataError, message, lambda: pv.model.TOTALVI.setup_anndata(adata, "protein"))


@pytest.mark.parametrize("name", ["n_latent", "n_hidden", "n_layers"])
@pytest.mark.parametrize("value", ["3", 3.0, 0, True])
def test_sizes_are_whole_numbers(name: str, value: Any) -> None:
    adata = counts()
    pv.model.SCVI.setup_anndata(adata)
    message = f"{name} must be a whole number, at least 1, got {value!r}"
    refused(ModelError, message, lambda: pv.model.SCVI(adata, **{name: value}))


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_dropout_keeps_something(value: float) -> None:
    adata = counts()
    pv.model.SCVI.setup_anndata(adata)
    message = f"dropout_rate must be at least 0 and below 1, got {value}"
    refused(ModelError, message, lambda: pv.model.SCVI(adata, dropout_rate=value))
