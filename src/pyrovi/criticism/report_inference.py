"""The report's account of inference: how the fit was made, and whether it can be trusted."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from pyrovi.criticism.bounds import evidence_bounds
from pyrovi.criticism.document import format_value, plain
from pyrovi.criticism.elbo_plot import plot_elbo
from pyrovi.criticism.report_blocks import Block, Image, Section, Table, checks_table
from pyrovi.criticism.report_figures import plot_energy, plot_threshold_histogram
from pyrovi.criticism.report_subject import Refusal, Subject, attempt
from pyrovi.model.chains import num_chains
from pyrovi.module.stored import StoredDraws

if TYPE_CHECKING:
    import pandas as pd

    from pyrovi.model.base import BaseModelClass

_RHAT = {"svi": 1.05, "nuts": 1.01}
_GAINING = 2e-4
_BOUND_DRAWS = 200


def inference_section(subject: Subject) -> Section:
    """Method, guide, settings and history."""
    import pandas as pd

    model = subject.model
    rows = _settings(model)
    frame = pd.DataFrame(
        {"value": [format_value(plain(v)) for v in rows.values()]},
        index=pd.Index(list(rows), name="setting"),
    )
    blocks: list[Block] = [Table(frame)]
    values: dict[str, Any] = {"inference": rows}
    by_guide = model.module.posterior is None
    if by_guide and model._restarts:
        restarts = model.restarts
        values["restarts"] = restarts.to_dict(orient="index")
        restarts = restarts.assign(
            seed=restarts["seed"].astype(str),
            stopped=[reason or "it did not stop early" for reason in restarts["stopped"]],
            best=["best: the model's own fit" if best else "" for best in restarts["best"]],
        )
        caption = "Restarts: fits from initial values of their own. elbo: per observation, in nats."
        blocks.append(Table(restarts, caption))
    if by_guide and model._history:
        blocks.append(
            Image(
                plot_elbo(model),
                "Course of training. Left: the bound per observation; the first epochs lie below "
                "the frame. Middle: the epochs that convergence is judged by. Right: how far the "
                "guide is from the prior.",
                "Lines of the evidence lower bound and of the KL divergence over the epochs, for "
                "training and held-out observations.",
            )
        )
    else:
        blocks.append("There is no history of epochs: this method has none.")
    return Section("Inference", blocks, values=values)


def diagnostics_section(subject: Subject) -> Section:
    """The diagnosis with its figures, and bounds on the evidence."""
    diagnosis = subject.diagnosis
    model = subject.model
    blocks: list[Block] = [
        checks_table(
            diagnosis.checks,
            "pyrovi.criticism.diagnose(model): what was found, and the limit up to which it "
            "passes.",
        )
    ]
    moving = [c for c in diagnosis.checks if c.what.startswith("ELBO still improving")]
    if any(check.verdict in ("warn", "fail") for check in moving):
        blocks.append(held_out_verdict(model))
    values: dict[str, Any] = {"diagnosis": {"method": diagnosis.method}}
    bounds = subject.bounds
    made = bounds if bounds is not None else attempt(lambda: _bounds(subject))
    if isinstance(made, Refusal):
        blocks.append(f"Bounds on the evidence are not available: {made.reason}")
    else:
        values["bounds"] = made.to_dict(orient="index")
        blocks.append(
            Table(
                made,
                "Lower bounds on the log evidence per observation, in nats: higher is better, and "
                "the true value is at least as high. elbo: the bound that training maximises, with "
                "its standard error over observations. importance: a tighter bound from importance "
                "sampling. gap: their difference, what the guide loses at least.",
            )
        )
    blocks += _figures(subject, diagnosis.method)
    return Section("Diagnostics", blocks, diagnosis.checks, values)


def held_out_verdict(model: BaseModelClass) -> str:
    """What more epochs would bring, judged by the held-out observations."""
    if "elbo_validation" not in model.history:
        return "More epochs may change the fit; hold observations out to see whether they help."
    loss = model.history["elbo_validation"].iloc[:, 0]
    best, last = loss.min(), loss.iloc[-1]
    fifth = max(1, len(loss) // 5)
    recent, before = loss.iloc[-fifth:].mean(), loss.iloc[-2 * fifth : -fifth].mean()
    if len(loss) >= 10 and (before - recent) > _GAINING * abs(recent):
        return "The ELBO of held-out observations was improving too: more epochs may help."
    return (
        f"The ELBO of held-out observations was not improving: its best was {-best:.1f} in epoch "
        f"{loss.idxmin()}, its last {-last:.1f}. More epochs would fit the training observations "
        "alone; early_stopping=True keeps the best parameters."
    )


def _bounds(subject: Subject) -> pd.DataFrame:
    most = subject.affordable(_BOUND_DRAWS, subject.max_observations)
    return evidence_bounds(
        subject.model,
        importance_samples=_BOUND_DRAWS,
        max_observations=most,
        seed=subject.seed,
    )


def _settings(model: BaseModelClass) -> dict[str, Any]:
    training = model._training
    posterior = model.module.posterior
    by_guide = posterior is None
    arguments = {k: v for k, v in model._init_arguments.items() if by_guide or k != "guide"}
    rows: dict[str, Any] = {
        "class": type(model).__name__,
        "arguments": _arguments(arguments),
        "method": "unknown (loaded)" if training is None else training.method,
    }
    if by_guide:
        rows["guide"] = guide_name(model)
    if training is not None:
        rows["training observations"] = training.n_obs
    if isinstance(posterior, StoredDraws):
        rows["chains"] = posterior.num_chains
        rows["draws per chain"] = posterior.num_draws
        rows |= {
            f"mean {name.replace('_', ' ')}": float(posterior.statistics[name].double().mean())
            for name in ("step_size", "n_steps", "acceptance_rate")
            if name in posterior.statistics
        }
    elif by_guide and training is not None:
        rows |= {
            "epochs": training.epochs,
            "optimiser": _optimiser(training.plan_kwargs, model.module.default_lr),
            "ended early": training.stopping_reason or "no",
            "fits (restarts)": num_chains(model),
        }
    return rows


def guide_name(model: BaseModelClass) -> str:
    """The guide in words."""
    if "guide" not in model._init_arguments:
        return f"{type(model.module).__name__}.guide"
    guide = model._init_arguments["guide"]
    if guide is None or isinstance(guide, str):
        return f'"{guide or "normal"}"'
    return _callable_name(guide)


def _arguments(arguments: dict[str, Any]) -> str:
    given = {k: v for k, v in arguments.items() if not (isinstance(v, dict) and not v)}
    return ", ".join(f"{k}={_value(v)}" for k, v in given.items()) or "none"


def _value(value: Any) -> str:
    named = isinstance(value, functools.partial) or inspect.isroutine(value)
    return _callable_name(value) if named or isinstance(value, type) else repr(value)


def _callable_name(value: Any) -> str:
    while isinstance(value, functools.partial):
        value = value.func
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _optimiser(given: Any, default_lr: float) -> str:
    settings = {"optim": None, "lr": default_lr, **given}
    optim = settings.pop("optim")
    name = "Adam" if optim is None else _callable_name(optim)
    return ", ".join([name, *(f"{k}={_value(v)}" for k, v in settings.items())])


def _figures(subject: Subject, method: str) -> list[Block]:
    blocks: list[Block] = []
    if subject.has_globals and num_chains(subject.model) > 1:
        kind = "chains" if method == "nuts" else "restarts"
        axes = plot_threshold_histogram(
            subject.global_summary["r_hat"],
            _RHAT.get(method, 1.05),
            name="R-hat",
            of="Numbers",
            title=f"R-hat over {kind}",
        )
        blocks.append(
            Image(
                axes.figure,
                f"R-hat of every number of the global sites over {kind}: 1 where all agree.",
                "Histogram of R-hat with its limit.",
            )
        )
    fit = subject.local_fit
    if fit is not None:
        axes = plot_threshold_histogram(
            fit["khat"],
            float(fit["threshold"].iloc[0]),
            name="Pareto k-hat of the local posterior",
            of="Observations",
            title="How well the guide fits each observation",
        )
        blocks.append(
            Image(
                axes.figure,
                f"Pareto k-hat of {len(fit)} observations: where it is beyond the limit, the guide "
                "misses parts of the posterior of the local latents.",
                "Histogram of k-hat with its limit.",
            )
        )
    posterior: Any = subject.model.module.posterior
    statistics = getattr(posterior, "statistics", {})
    if "energy" in statistics:
        diverging = statistics.get("diverging")
        axes = plot_energy(
            statistics["energy"].numpy(force=True),
            None if diverging is None else diverging.numpy(force=True),
        )
        blocks.append(
            Image(
                axes.figure,
                "Energies of the draws. Where the changes are much narrower, the sampler is slow "
                "(E-BFMI). Divergent transitions would be marked at the bottom.",
                "Histograms of energies and of their changes.",
            )
        )
    return blocks
