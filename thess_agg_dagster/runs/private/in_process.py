"""A job that is executed in this process many times, as ``JobDefinition.execute_in_process`` does it once.

That makes the job's subset, its snapshots, and its execution plan anew for every run, although nothing of them depends on
the run: as long as a small timestamp takes. Here they are made once for a selection and a run config. What is recorded of a
run is the same (``test_in_process.py`` compares), and Dagster has no public way to keep them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import ExecuteRunWithPlanIterable, create_execution_plan, job_execution_iterator
from dagster._core.execution.context_creation_job import (
    PlanOrchestrationContextManager,
    orchestration_context_event_generator,
)
from dagster._core.execution.execute_in_process import merge_run_tags
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.snap import ExecutionPlanSnapshot, snapshot_from_execution_plan


class _Planned(NamedTuple):
    """What a run config makes of the job; ``config`` is that, as text."""

    config: str
    plan: ExecutionPlan
    snapshot: ExecutionPlanSnapshot


class PreparedJob:
    """One asset of a job, to be executed for many partitions."""

    def __init__(self, job: dg.JobDefinition, asset: dg.AssetKey) -> None:
        self._asked, self._asset = job, asset
        for each in filter(_is_ours, job.resource_defs.values()):
            _make_once(each)
        self._job = job.as_ephemeral_job({}, input_values={}, asset_selection=[asset])
        # What Dagster records as the job of a run: a subset once more.
        self._recorded = self._job.get_subset(asset_selection=frozenset([asset]))
        self._last: _Planned | None = None

    def execute(
        self,
        instance: dg.DagsterInstance,
        run_id: str,
        tags: Mapping[str, str],
        partition: str | None,
        run_config: Mapping[str, Any],
    ) -> dg.ExecuteInProcessResult:
        planned = self._planned(instance, run_config)
        of_run = merge_run_tags(self._asked, partition, tags, [self._asset], instance, run_config)
        run = instance.create_run(
            job_name=self._recorded.name,
            run_id=run_id,
            run_config=run_config,
            status=None,
            tags={**self._job.run_tags, **of_run},
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=planned.plan.step_keys_to_execute,
            execution_plan_snapshot=planned.snapshot,
            job_snapshot=self._recorded.get_job_snapshot(),
            parent_job_snapshot=self._recorded.get_parent_job_snapshot(),
            asset_selection=frozenset([self._asset]),
            asset_check_selection=None,
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=None,
            job_code_origin=None,
            asset_graph=self._recorded.asset_layer.asset_graph,
        )
        return self._execute(run, planned.plan, instance, run_config)

    def _execute(
        self, run: dg.DagsterRun, plan: ExecutionPlan, instance: dg.DagsterInstance, run_config: Mapping[str, Any]
    ) -> dg.ExecuteInProcessResult:
        outputs: dict[Any, Any] = {}
        events = list(
            ExecuteRunWithPlanIterable(
                execution_plan=plan,
                iterator=job_execution_iterator,
                execution_context_manager=PlanOrchestrationContextManager(
                    context_event_generator=orchestration_context_event_generator,
                    job=InMemoryJob(self._job),
                    execution_plan=plan,
                    dagster_run=run,
                    instance=instance,
                    run_config=run_config,
                    executor_defs=None,
                    output_capture=outputs,
                    raise_on_error=True,
                ),
            )
        )
        ended = cast("dg.DagsterRun", instance.get_run_by_id(run.run_id))
        return dg.ExecuteInProcessResult(
            job_def=self._job, event_list=events, dagster_run=ended, output_capture=outputs
        )

    def _planned(self, instance: dg.DagsterInstance, run_config: Mapping[str, Any]) -> _Planned:
        """One is kept: runs of one command have the same config."""
        config = json.dumps(run_config, sort_keys=True)
        if self._last is None or self._last.config != config:
            ref = instance.get_ref() if instance.is_persistent else None
            plan = create_execution_plan(InMemoryJob(self._job), run_config=run_config, instance_ref=ref)
            snapshot = snapshot_from_execution_plan(plan, self._recorded.get_job_snapshot_id())
            self._last = _Planned(config, plan, snapshot)
        return self._last


def _is_ours(resource: dg.ResourceDefinition) -> bool:
    """Whether a resource is nothing but its configuration, as ours are: others may have to be opened for each run."""
    made_of = getattr(resource, "configurable_resource_cls", None)
    return made_of is not None and made_of.__module__.partition(".")[0] == __name__.partition(".")[0]


def _make_once(resource: dg.ResourceDefinition) -> None:
    """Have the same configuration give the same object: Dagster makes three of each for a run, each time with the schema of
    its class. It insists on one definition of a resource in all jobs, so this one is changed."""
    make = resource.resource_fn
    made: dict[str, object] = {}
    if getattr(make, "makes_once", False):
        return

    def once(context: dg.InitResourceContext) -> object:
        config = json.dumps(context.resource_config, sort_keys=True, default=str)
        if config not in made:
            made.clear()
            made[config] = cast("Callable[[object], object]", make)(context)
        return made[config]

    once.makes_once = True  # type: ignore[attr-defined]
    resource._resource_fn = once
