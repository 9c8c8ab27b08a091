"""Compare sets of job ids with Python's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_backup import InvalidEvent
from jobs_backup.backup.events import Jobs, job_id, job_sets
from jobs_backup.spool.ids import (
    SEGMENT_BITS,
    JobSet,
    batch_of,
    first_index,
    job_index,
    local,
    local_segment,
    origin_of,
    origin_of_segment,
    segments_of,
)
from jobs_backup.spool.ids import job_id as make_id

LARGEST = (1 << 126) - 1
LARGEST_LOCAL = (1 << 63) - 1
IDS = (
    st.integers(0, 20_000)
    | st.integers(LARGEST_LOCAL - 10_000, LARGEST_LOCAL + 10_000)
    | st.integers(LARGEST - 20_000, LARGEST)
    | st.integers(0, LARGEST)
)
RUNS = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 10_000)), max_size=5)


def job_set(ids: set[int]) -> JobSet:
    made = JobSet()
    for id_ in ids:
        made.add(id_)
    return made


@given(ids=st.sets(IDS), runs=RUNS, others=st.sets(IDS))
def test_it_has_what_was_added(ids: set[int], runs: list[tuple[int, int]], others: set[int]) -> None:
    made, wanted = job_set(ids), set(ids)
    for first, count in runs:
        made.add_run(first, count)
        wanted.update(range(first, first + count))
    assert (list(made), len(made), bool(made)) == (sorted(wanted), len(wanted), bool(wanted))
    assert list(made & job_set(others)) == sorted(wanted & others)
    made.update(job_set(others))
    assert list(made) == sorted(wanted | others)


@given(epoch=st.integers(0, LARGEST_LOCAL), batch=st.integers(0, (1 << 42) - 1), index=st.integers(0, (1 << 21) - 1))
def test_a_segment_belongs_to_one_batch(epoch: int, batch: int, index: int) -> None:
    id_ = make_id(epoch, batch, index)
    assert (origin_of(id_), job_index(id_), local(id_)) == ((epoch, batch), index, (batch << 21) + index)
    ((segment, mask),) = job_set({id_}).masks()
    first, last = segments_of(batch)
    assert first <= local_segment(segment) <= last
    assert batch_of(segment) == batch == batch_of(first) == batch_of(last)
    assert origin_of_segment(segment) == (epoch, batch)
    assert first_index(segment) + mask.bit_length() - 1 == index


@given(ids=st.lists(IDS))
def test_what_ids_are_kept_as_gives_them_back(ids: list[int]) -> None:
    jobs = Jobs()
    jobs.add(ids)
    assert list(jobs) == ids == [jobs[place] for place in range(len(ids))]
    again = Jobs()
    again.extend(jobs)
    assert list(again) == ids


def test_a_run_ends_where_the_epoch_does() -> None:
    """Otherwise an id would come out as another process's."""
    jobs = Jobs()
    jobs.add_run(LARGEST_LOCAL, 1)
    jobs.add_run(LARGEST_LOCAL + 2, 2)
    assert list(jobs) == [LARGEST_LOCAL, LARGEST_LOCAL + 2, LARGEST_LOCAL + 3]


@given(runs=RUNS)
def test_what_record_many_returns_is_taken_as_runs(runs: list[tuple[int, int]]) -> None:
    jobs = Jobs()
    for first, count in runs:
        jobs.add_run(first, count)
    found = list(job_sets(jobs))
    assert [list(one) for one in found] == ([sorted(set(jobs))] if jobs else [])


@pytest.mark.parametrize("as_jobs", [False, True])
def test_many_ids_come_in_sets_of_bounded_size(as_jobs: bool) -> None:
    ids = [number << SEGMENT_BITS for number in range(20_000)]
    jobs = Jobs()
    jobs.add(ids)
    found = list(job_sets(jobs if as_jobs else ids))
    assert [len(one) for one in found] == [8192, 8192, 20_000 - 2 * 8192]
    assert [id_ for one in found for id_ in one] == ids


@pytest.mark.parametrize("id_", [0, 7, LARGEST_LOCAL, LARGEST, "0", "7", "007", str(LARGEST_LOCAL), str(LARGEST)])
def test_ids(id_: int | str) -> None:
    assert job_id(id_) == int(id_)


@pytest.mark.parametrize(
    "id_",
    [
        -1,
        10**38,
        "",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1_0",
        "1.0",
        "1e3",
        "0x1",
        "\u0661",
        "a",
        "9" * 39,
        "9" * 10_000,
        1.0,
        None,
        b"1",
    ],
)
def test_what_is_no_id_is_never_taken_for_one(id_: int | str) -> None:
    with pytest.raises(InvalidEvent, match="is not a job id"):
        job_id(id_)
    with pytest.raises(InvalidEvent):
        list(job_sets([1, id_]))


def test_a_number_that_can_not_even_be_printed_is_no_id() -> None:
    with pytest.raises(InvalidEvent, match="is not a job id"):
        job_id(10**5000)
