"""What usually is behind an error of torch or Pyro in a story, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_INDEX = (
    "A tensor of floating numbers was used as an index. Codes of groups have to be integers: "
    'register the column as such, pv.fields.column("...", kind="integers") or '
    'kind="categories"; a discrete latent is made one with .long().'
)
_SHAPES = (
    "Tensors of different shapes met. Look at each product and sum in the story with the shapes "
    "above in mind: n is the size of the minibatch, parameters of one value per observation have "
    "shape (n,) in the observation plate, and (n, columns) need .to_event(1)."
)
_PLATE = (
    "The site has another number of values than the plate around it has members. In the "
    "observation plate a distribution has one value per observation: several of them (the "
    "variables of X, the factors of z) are one event, .to_event(1), with parameters of shape "
    "(n, number of values). A plate of the observations is pv.obs_plate(), whatever their number."
)
_HINTS: tuple[tuple[str, str], ...] = (
    (r"used as indices must be|one_hot is only applicable|Expected dtype int64", _INDEX),
    (r"Shape mismatch inside plate", _PLATE),
    (
        r"out of bounds|out of range|index .* is invalid",
        "An index is larger than what it looks into: codes run from 0 to the number of groups - 1. "
        "Compare the size of the plate or parameter with the largest code in the data (a field of "
        'kind="categories" counts them: name a keyword-only argument n_<field>); do not index '
        "tensors of the data by the indices of a plate, the minibatch has been taken already.",
    ),
    (
        r"global pyro.param statements",
        "pyro.param makes a parameter of the whole process, which every model would share. Make it "
        "an attribute of a module whose forward is the story: `self.rate = "
        "pyro.nn.PyroParam(value, constraint)` in a pyro.nn.PyroModule; or give it a prior with "
        "pyro.sample.",
    ),
    (
        r"same dtype|Double but|Float but|scalar type|expected m1 and m2",
        "Floating types met that do not mix. The tensors of the data are of single precision: make "
        "constants of the story so too, torch.as_tensor(array, dtype=torch.float32).",
    ),
    (
        r"Multiple (sample|param) sites? named|duplicate",
        "Every statement needs a name of its own; in a loop, number them: "
        'pyro.sample(f"w_{i}", ...).',
    ),
    (
        r"size mismatch|must match the size|cannot be multiplied|not broadcastable|expanded size|"
        r"shape .* is invalid|incompatible with|inconsistent tensor size|Mismatch",
        _SHAPES,
    ),
    (
        r"within the support|satisfy the constraint",
        "A value is outside of what its distribution allows: a scale or rate that is not positive, "
        "a probability outside of [0, 1], or data of another kind. Map real numbers into the "
        "support: .exp(), torch.nn.functional.softplus, .sigmoid(), .softmax(-1).",
    ),
)


def hint(message: str, tensors: Mapping[str, Tensor] | None = None) -> str:
    """Advice on an error, and the shapes of the tensors that the story received.

    Parameters
    ----------
    message
        What the error says.
    tensors
        The story's tensors; their shapes are part of the advice if it is one on shapes.

    Returns
    -------
    str
        Empty if the error is none of the usual ones.
    """
    for pattern, advice in _HINTS:
        if re.search(pattern, message, re.IGNORECASE):
            if advice not in (_SHAPES, _PLATE, _INDEX) or not tensors:
                return advice
            found = ", ".join(
                f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
                for name, value in tensors.items()
            )
            return f"The story received {found}. {advice}"
    return ""
