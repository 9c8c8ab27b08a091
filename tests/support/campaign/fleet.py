"""The campaign with the spool in PostgreSQL: processes on several hosts, with a failing network and database."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psycopg
from campaign.checks import Figures, FleetRecords, Records
from campaign.cluster import Cluster, cluster, why_no_pooler
from campaign.hosts import Host, Network, network, why_no_namespaces
from campaign.runner import Plan, Round, Worker, rounds
from campaign.targets import S3Target, Target
from campaign.worker import Engine
from servers import Store
from swallowing import swallower

from jobs_backup.testing.fault_proxy import FaultProxy

_TOO_LONG: Final = (1.2, 2.5)
"""How long a process is frozen or cut off, in leases."""
_LOST: Final = (b"COMMIT", b" FROM me")
"""Requests that commit: a transaction's end, and an append in one statement."""
DECK: Final = (
    *("freeze",) * 4,
    *("partition",) * 4,
    *("lose commits",) * 4,
    *("kill backends",) * 2,
    *("restart",) * 2,
    "lose a host",
    "promote",
    "dump",
    "hold xmin",
)
"""Faults beside the kills: one in each cycle, drawn like cards."""


@dataclass(frozen=True)
class Conditions:
    """What a campaign runs with. `lease`: of each process, in seconds."""

    lease: float = 3.0
    namespaces: bool = True
    pooler: bool = True
    standby: bool = True

    @classmethod
    def possible(cls, say: Callable[[str], object] = str) -> Conditions:
        """Everything that this machine offers. The rest is reported with its reason."""
        for what, why in (("network namespaces", why_no_namespaces()), ("pgbouncer", why_no_pooler())):
            if why:
                say(f"without {what}: {why}")
        return cls(namespaces=not why_no_namespaces(), pooler=not why_no_pooler())


class Deck:
    """Draws each card once, in random order, before it draws one again."""

    def __init__(self, seed: int, *, cards: tuple[str, ...] = DECK) -> None:
        self.rng = random.Random(f"{seed} deck")
        self._cards = cards
        self._left: list[str] = []

    def draw(self) -> str:
        """The next one."""
        if not self._left:
            self._left = self.rng.sample(self._cards, len(self._cards))
        return self._left.pop()


class FleetRound(Round):
    """A round whose spool is a new database."""

    engine: Engine = "postgresql"

    def __init__(
        self,
        directory: Path,
        target: Target,
        plan: Plan,
        points: Counter[str],
        fleet: Cluster,
        net: Network,
        deck: Deck,
        lease: float,
        store: str,
    ) -> None:
        """`store`: the URL of the bucket's server as the hosts see it."""
        super().__init__(directory, target, plan, points)
        (directory / "mail").mkdir()
        self._fleet = fleet
        self._net = net
        self._deck = deck
        self._lease = lease
        self._store = store
        self._settings["JOBS_BACKUP_SPOOL_FULL_TIMEOUT"] = self._rng.choice(("1s", "20s"))
        self._aim()

    def _records(self) -> Records:
        return FleetRecords(self._fleet.primary, self._fleet.database)

    def _environment(self) -> dict[str, str]:
        # The same URL everywhere: a batch is bound to it.
        return {**super()._environment(), **({"AWS_ENDPOINT_URL_S3": self._store} if self._store else {})}

    def _state(self) -> str:
        query = (
            "SELECT pid, state, wait_event, pg_blocking_pids(pid), now() - xact_start, left(query, 80) FROM pg_stat_activity"
            " WHERE datname = current_database() AND xact_start IS NOT NULL AND pid != pg_backend_pid()"
        )
        with self._fleet.primary.admin(self._fleet.database) as connection:
            return "; ".join(map(str, connection.execute(query)))

    def _spool_environment(self) -> dict[str, str]:
        return {
            **self._spool_at("127.0.0.1", self._fleet.port),
            "JOBS_BACKUP_REJECTS_DIR": str(self._directory / "rejects"),
            "JOBS_BACKUP_SPOOL_LEASE": f"{self._lease}s",
        }

    def _spool_at(self, address: str, port: int) -> dict[str, str]:
        return {
            "JOBS_BACKUP_SPOOL": f"postgresql://postgres@{address}:{port}/{self._fleet.database}?sslmode=disable",
            "INSTANCE_ID": "operator",
        }

    def _start(self, role: str) -> Worker:
        """Start it on the host of this role with the fewest processes."""
        hosts = self._hosts_of(role)
        busy = Counter(one.host for one in self._workers if one.asked_to_end is None)
        host = min(hosts, key=lambda one: busy[one.name])
        environment = {**self._environment(), **self._spool_at(host.address, host.database.port), "INSTANCE_ID": host.name}
        recorders = tuple(one.name for one in self._hosts_of("recorder"))
        task = msgspec.structs.replace(self._task(role), host=host.name, hosts=recorders)
        return self._launch(task, role, environment, host.prefix)

    def _hosts_of(self, role: str) -> list[Host]:
        recorders = self._plan.crew.recorders + self._plan.crew.both
        return self._net.hosts[:recorders] if role != "archiver" else self._net.hosts[recorders:]

    def _aim(self) -> None:
        for host in self._net.hosts:
            host.database.server_port = self._fleet.port

    def _cycle(self) -> None:
        """Run a cycle, with a fault of hosts or the database beside it."""
        if self._workers:
            action = self._deck.draw()
            acting = threading.Thread(target=self._act, args=(action,), name=action)
            acting.start()
            super()._cycle()
            acting.join()
        else:
            super()._cycle()

    def _act(self, action: str) -> None:
        try:
            happened = self._actions()[action]()
        except psycopg.OperationalError:  # the server was just restarting
            happened = False
        if happened:
            self.figures.faults[action] += 1

    def _actions(self) -> dict[str, Callable[[], bool]]:
        return {
            "freeze": self._freeze,
            "partition": self._partition,
            "lose a host": self._lose_host,
            "lose commits": self._lose_commits,
            "kill backends": lambda: self._fleet.terminate() > 0,
            "restart": self._restart,
            "promote": self._promote,
            "dump": lambda: self._fleet.dump() == 0,
            "hold xmin": self._hold_xmin,
        }

    def _too_long(self) -> float:
        return self._lease * self._deck.rng.uniform(*_TOO_LONG)

    def _freeze(self) -> bool:
        """SIGSTOP for longer than the lease. The process may be killed meanwhile."""
        victim = self._deck.rng.choice(self._workers)
        victim.process.send_signal(signal.SIGSTOP)
        time.sleep(self._too_long())
        victim.process.send_signal(signal.SIGCONT)
        return True

    def _partition(self) -> bool:
        """Cut a host off from everything, or from the database alone, so that it may still upload."""
        host = self._deck.rng.choice(self._net.hosts)
        host.cut(everything=self._deck.rng.random() < 0.5)
        time.sleep(self._too_long())
        host.heal()
        return True

    def _lose_host(self) -> bool:
        """Cut a host off and kill its processes: the database does not hear that their connections have ended."""
        host = self._deck.rng.choice(self._net.hosts)
        host.cut(everything=True)
        host.database.strand()
        for one in self._workers:
            if one.host == host.name:
                one.process.kill()
        time.sleep(self._too_long())
        host.heal()
        return True

    def _lose_commits(self) -> bool:
        """Lose some commits on their way, and the answers to others."""
        for host in self._net.hosts:
            for _ in range(4):
                host.database.lose(self._deck.rng.choice(_LOST), answer=self._deck.rng.random() < 0.6)
        before = self._lost()
        time.sleep(2.0)
        for host in self._net.hosts:
            host.database.lose_no_more()
        self.figures.faults.update(self._lost() - before)
        return True

    def _lost(self) -> Counter[str]:
        proxies = [host.database for host in self._net.hosts]
        answers, requests = sum(one.answers for one in proxies), sum(one.requests for one in proxies)
        return Counter({"commit made, its answer lost": answers, "commit lost": requests})

    def _restart(self) -> bool:
        self._fleet.restart()
        return True

    def _promote(self) -> bool:
        is_done = self._fleet.fail_over()
        self._aim()
        return is_done

    def _hold_xmin(self) -> bool:
        with self._fleet.held_snapshot():
            time.sleep(self._plan.cycle)
        return True

    def _drain(self) -> None:
        """Drain twice: the second process drops the segments that the first one has emptied."""
        super()._drain()
        super()._drain()

    def _end_all(self) -> None:
        for host in self._net.hosts:
            host.heal()
        super()._end_all()
        time.sleep(2 * self._lease)  # of the dead, and of the transactions in which they died


def on_fleet(
    directory: Path,
    make: Callable[[Path], Target],
    plan: Plan,
    round_kills: int = 50,
    say: Callable[[str], object] = str,
    *,
    conditions: Conditions | None = None,
    cards: tuple[str, ...] = DECK,
    store_port: int = 0,
) -> Figures:
    """Run a campaign whose processes share a database.

    Args:
        make: a new bucket.
        conditions: all that is possible, unless given.
        cards: faults beside the kills.
        store_port: of the bucket's server on this machine; 0 if it is a directory.
    """
    conditions = conditions or Conditions.possible(say)
    deck = Deck(plan.seed, cards=cards if conditions.standby else tuple(card for card in cards if card != "promote"))
    names = [f"host{number + 1}" for number in range(len(plan.crew.roles()))]
    with network(names, namespaces=conditions.namespaces) as net, contextlib.ExitStack() as stack:
        store = ""
        if store_port and conditions.namespaces:
            store = f"http://{net.address}:{stack.enter_context(swallower(store_port, net.address)).port}"

        def run(here: Path, some: Plan, points: Counter[str]) -> Figures:
            with cluster(has_standby=conditions.standby, has_pooler=conditions.pooler) as fleet:
                return FleetRound(
                    here, make(here), some, points, fleet=fleet, net=net, deck=deck, lease=conditions.lease, store=store
                ).run()

        return rounds(directory, run, plan, round_kills, say)


def on_fleet_with_s3(
    directory: Path,
    store: Store,
    plan: Plan,
    round_kills: int = 50,
    say: Callable[[str], object] = str,
    *,
    cards: tuple[str, ...] = DECK,
) -> Figures:
    """Run it with buckets of a real server through a proxy."""
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        return on_fleet(directory, lambda _: S3Target(store, proxy), plan, round_kills, say, cards=cards, store_port=proxy.port)
