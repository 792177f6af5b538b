"""Package-wide settings: ``pyrovi.settings``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """Settings that hold for the whole process.

    Parameters
    ----------
    seed
        One seed for data splits, initialisation, training and draws (see :mod:`pyrovi._rng`).
    batch_size
        Default minibatch size.
    dl_num_workers
        Default number of worker processes of data loaders; 0 loads in the calling process.
    enable_progress_bar
        Whether training and long queries show a progress bar by default.
    """

    seed: int = 0
    batch_size: int = 128
    dl_num_workers: int = 0
    enable_progress_bar: bool = True

    def __setattr__(self, name: str, value: object) -> None:
        expected = _TYPES.get(name)
        if expected is None:
            raise AttributeError(
                f"pyrovi.settings has no option {name!r}; options: {', '.join(_TYPES)}"
            )
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise TypeError(
                f"pyrovi.settings.{name} must be {expected.__name__}, got {value!r} "
                f"({type(value).__name__})"
            )
        if expected is int and int(value) < _MINIMUM.get(name, 0):  # type: ignore[call-overload]
            raise ValueError(
                f"pyrovi.settings.{name} must be at least {_MINIMUM.get(name, 0)}, got {value!r}"
            )
        object.__setattr__(self, name, value)


_TYPES: dict[str, type] = {
    "seed": int,
    "batch_size": int,
    "dl_num_workers": int,
    "enable_progress_bar": bool,
}
_MINIMUM = {"batch_size": 1}

settings = Settings()
