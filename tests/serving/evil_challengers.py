"""Challengers that do to their process what a shadow must survive; bound in the shadow's own process, by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import swap_lab

from pipelines.config import Home
from pipelines.registry.choosing import Serving
from pipelines.serving.request import Answer, Ask


def fine(home: Home, serving: Serving) -> swap_lab.Telling:
    return swap_lab.Telling(serving)


@dataclass(frozen=True)
class Evil(swap_lab.Telling):
    kept: list[Any] = field(default_factory=list)


class Hanging(Evil):
    def answer(self, ask: Ask) -> Answer:
        time.sleep(3600)
        raise AssertionError


class Crashing(Evil):
    def answer(self, ask: Ask) -> Answer:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class Leaking(Evil):
    def answer(self, ask: Ask) -> Answer:
        self.kept.append(bytearray(400 << 20))
        return super().answer(ask)


class Raising(Evil):
    def answer(self, ask: Ask) -> Answer:
        raise ValueError("no such feature")


def hanging(home: Home, serving: Serving) -> Hanging:
    return Hanging(serving)


def crashing(home: Home, serving: Serving) -> Crashing:
    return Crashing(serving)


def leaking(home: Home, serving: Serving) -> Leaking:
    return Leaking(serving)


def raising(home: Home, serving: Serving) -> Raising:
    return Raising(serving)
