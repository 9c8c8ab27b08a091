"""A short campaign with a fleet on PostgreSQL. `make campaign CAMPAIGN_ARGS="--target postgresql"` is the long one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from campaign.fleet import DECK, Conditions, on_fleet
from campaign.runner import Crew, Plan
from campaign.targets import FileTarget

CARDS = (("promote", "dump"), ("lose commits", "restart"), ("partition", "hold xmin"), ("freeze", "kill backends"))


def test_all_that_may_happen_is_tested() -> None:
    assert {card for cards in CARDS for card in cards} == set(DECK)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("cards", CARDS, ids=" and ".join)
def test_recorders_and_archivers_of_a_fleet_are_killed(cards: tuple[str, ...], tmp_path: Path) -> None:
    crew = Crew(recorders=3, archivers=1, both=0, threads=2)
    plan = Plan(kills=3, seed=1, crew=crew, cycle=2.0, events=300, forks=0.0, locks=0.0)
    conditions = replace(Conditions.possible(print), lease=1.5, standby="promote" in cards)
    figures = on_fleet(tmp_path / "campaign", FileTarget, plan, conditions=conditions, cards=cards)
    assert figures.violations == []
    assert figures.kills >= 3
    assert figures.stored + figures.gone >= figures.acknowledged >= 300
    assert figures.delivered >= figures.gone
    assert sum(figures.faults[card] for card in cards) > 0, "nothing happened beside the kills"
