"""A short campaign with a fleet on PostgreSQL. `make campaign CAMPAIGN_ARGS="--target postgresql"` is the long one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from campaign.checks import FleetRecords
from campaign.fleet import DECK, Conditions, on_fleet
from campaign.runner import Crew, Plan
from campaign.targets import FileTarget
from engines import PostgresqlEngine
from postgres import Postgres
from spools import claim, record

CARDS = (("promote", "dump"), ("lose commits", "restart"), ("partition", "hold xmin"), ("freeze", "kill backends", "lose a host"))


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


def test_what_a_fleet_leaves_behind_is_found(database_server: Postgres) -> None:
    with database_server.database() as database:
        engine, records = PostgresqlEngine(database_server, database), FleetRecords(database_server, database)
        spool = engine.open()
        record(spool, [b'{"n":1}\n'])
        with spool.reading("input"):
            assert [one.partition(" WHERE")[0] for one in records.left_over()] == [
                "1 rows of sessions",
                "1 rows of batches",
                "1 rows of readers",
            ]
        spool.seal()
        batch = claim(spool)
        assert "1 rows of batches WHERE claimed_by IS NOT NULL" in records.left_over()
        spool.stored(batch)
        with database_server.admin(database) as connection:
            connection.execute("CREATE TABLE jobs_backup.chunks_7 ()")
        spool.close()
        assert records.left_over() == ["chunks_7"]
        assert [(one.state, one.events, one.jobs) for one in records.batches()] == [("stored", 1, 1)]
