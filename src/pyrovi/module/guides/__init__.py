"""Guides by name, right under minibatches, that find the sites of their model themselves."""

from __future__ import annotations

from pyrovi.module.guides.guide import AutoAmortized, AutoRows, StoryGuide
from pyrovi.module.guides.make import NAMES, make_guide

__all__ = ["NAMES", "AutoAmortized", "AutoRows", "StoryGuide", "make_guide"]
