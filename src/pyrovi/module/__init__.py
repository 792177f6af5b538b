"""Modules: model/guide pairs, their plates, their sites, and the handlers that run them."""

from __future__ import annotations

from pyrovi.module.base import PyroBaseModule
from pyrovi.module.guides import AutoAmortized, AutoRows, make_guide
from pyrovi.module.ledger import Role, Site, SiteLedger
from pyrovi.module.plates import OBS_PLATE, minibatch_scope, obs_plate, plate

__all__ = [
    "OBS_PLATE",
    "AutoAmortized",
    "AutoRows",
    "PyroBaseModule",
    "Role",
    "Site",
    "SiteLedger",
    "make_guide",
    "minibatch_scope",
    "obs_plate",
    "plate",
]
