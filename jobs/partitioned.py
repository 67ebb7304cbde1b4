"""Bounded work cut into partitions: one actor of a Ray Data pool each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def map_partitions(actor: type, arguments: tuple[Any, ...], partitions: int) -> list[dict[str, Any]]:
    """Give every partition, 0 to ``partitions - 1``, to an actor of its own.

    Args:
        actor: built with ``arguments``; called with ``{"partition": numbers}``, it returns columns of the same form.
        arguments: of its constructor.
        partitions: how many there are, so also how many actors.

    Returns:
        A row per row that the actors returned, in no order.

    Raises:
        RayError: an actor failed or died. It is not tried again behind the back of whoever waits: the work says so, and
            is asked for anew.
    """
    return list(each_partition(actor, arguments, range(partitions), partitions))


def each_partition(
    actor: type, arguments: tuple[Any, ...], partitions: Sequence[int], actors: int, name: str | None = None
) -> Iterator[dict[str, Any]]:
    """Like :func:`map_partitions`, with fewer actors than partitions where there are many; rows come as they are ready.

    Args:
        actor: as there.
        arguments: of its constructor.
        partitions: their numbers.
        actors: how many work at once.
        name: of the work, on Ray's dashboard.

    Raises:
        RayError: an actor failed or died.
    """
    import ray.data

    made = ray.data.from_items([{"partition": partition} for partition in partitions]).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        # By default the actor that is ready first is given four: the others would find nothing left to do.
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        max_restarts=0,
        max_task_retries=0,
        # The pool must leave CPUs for the tasks that read the items, or the job hangs without a word.
        num_cpus=0.5,
    )
    if name is not None:
        made.set_name(name)
    yield from made.iter_rows()
