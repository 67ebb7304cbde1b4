"""Bounded work cut into partitions: one actor of a Ray Data pool each."""

from __future__ import annotations

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
    import ray.data

    made = ray.data.from_items([{"partition": partition} for partition in range(partitions)]).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=partitions),
        max_restarts=0,
        max_task_retries=0,
        # The pool must leave CPUs for the tasks that read the items, or the job hangs without a word.
        num_cpus=0.5,
    )
    rows: list[dict[str, Any]] = made.take_all()
    return rows
