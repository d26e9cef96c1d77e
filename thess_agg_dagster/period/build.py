"""Building: a planned period becomes composites in a folder, and an outcome for the audit. Knows no Dagster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from thess_agg_dagster.audit.outcome import BandRecord, BandStatus
from thess_agg_dagster.lake.checksums import BackgroundChecksums, ChangedError, checksum_of
from thess_agg_dagster.lake.published import COUNT, NDVI, PERIOD
from thess_agg_dagster.mosaic.bands import NIR, RED, role_of
from thess_agg_dagster.mosaic.composite import CompositeOptions, CompositeStats, Series, open_mosaics, write_composites
from thess_agg_dagster.mosaic.derive import Derivation, counts_standing_in, derive, standing_in, whose
from thess_agg_dagster.mosaic.engine import WriteError
from thess_agg_dagster.mosaic.ndvi import write_ndvi
from thess_agg_dagster.mosaic.tiles import Problem, TileError
from thess_agg_dagster.period.plan import PeriodPlan, again
from thess_agg_dagster.products.provenance import composite_tags
from thess_agg_dagster.storage.errors import SystemFaultError, first_line
from thess_agg_dagster.storage.paths import is_remote
from thess_agg_dagster.timestamp.build import BuildError, Outcome, Tell, finish, is_passing, masked, picture_of
from thess_agg_dagster.timestamp.records import band_record, failed_attempt

# What the pixels of PERIOD are: how many months they were made of.
_OF_MONTH, _OF_QUARTER = 1, 3


def build_period(plan: PeriodPlan, folder: Path, target: Path, lake: Path, tell: Tell = lambda _: None) -> Outcome:
    """Make the composites of a period in ``folder``, and what stands beside them, as ``build_timestamp`` does it.

    Raises :class:`BuildError` where one cannot be made, ``OSError`` and :class:`ChangedError` as they come.
    """
    with BackgroundChecksums(plan.input_files()) as checksums:
        tell(plan.summary())
        maker = _Maker(plan, folder, checksums)
        records: list[BandRecord] = []
        try:
            stats = maker.make()
            maker.verify_inputs()
            records = [_record(plan, name, stats[name], folder, target, checksums) for name in plan.mosaics]
        except Exception as error:
            raise BuildError(_failed(plan, error, folder, target)) from error
        shown = [*plan.series, *([NDVI] if plan.index else [])]
        previews = {band: masked(stats[band].preview, plan.mosaics[band].nodata) for band in shown}
        return finish(plan, records, picture_of(plan, previews, {}, tell), folder, target, lake, checksums)


class _Maker:
    """Composites of one period in the making."""

    def __init__(self, plan: PeriodPlan, folder: Path, checksums: BackgroundChecksums) -> None:
        self.plan, self.folder, self.checksums = plan, folder, checksums

    def make(self) -> dict[str, CompositeStats]:
        """All files of the plan, by name."""
        stats: dict[str, CompositeStats] = {}
        for number, bands in enumerate(self.plan.grids()):
            count = COUNT if number == 0 else None
            made = self._composites(bands, count) if not self.plan.stand_in else self._with_quarter(bands, count)
            stats |= {name: replace(each, seconds=each.seconds / len(made)) for name, each in made.items()}
        if self.plan.index is not None:
            red, nir = (open_mosaics(band, [self.folder / f"{band}.tif"]) for band in (RED, NIR))
            stats[NDVI] = write_ndvi(red, nir, self.folder / f"{NDVI}.tif", self.plan.index, self._tags(NDVI))
        return stats

    def verify_inputs(self) -> None:
        """Raises ``TileError`` where a mosaic is not what was published; of one in a bucket nothing else than its ETag is known."""
        for path in self.plan.input_files():
            recorded = self.plan.recorded.get(path)
            if recorded and not is_remote(path) and (found := str(self.checksums.of(path))) != recorded:
                raise TileError(again(Problem("checksum_mismatch", f"has {found}, published was {recorded}", path)))

    def _tags(self, name: str) -> dict[str, str]:
        return composite_tags(self.plan.mosaics[name], self.plan, self.checksums)

    def _composites(self, bands: Sequence[str], count: str | None) -> dict[str, CompositeStats]:
        return write_composites(
            [self.plan.series[band] for band in bands], self.folder, self._how(bands), count, self._tags
        )

    def _how(self, bands: Sequence[str]) -> CompositeOptions:
        """Classes become the most frequent one, whatever the method; alone they need not have what it needs."""
        alone = all(role_of(band) == "classes" for band in bands)
        return replace(self.plan.how, method="median") if alone else self.plan.how

    def _with_quarter(self, bands: Sequence[str], count: str | None) -> dict[str, CompositeStats]:
        """The month's composites, and where they have too little the quarter's."""
        least = max(1, self.plan.how.min_observations)
        # The drafts' own format is nobody's business.
        how = replace(self._how(bands), output=replace(self.plan.how.output, format="geotiff"))
        stats: dict[str, CompositeStats] = {}
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            month, quarter = Path(scratch) / "month", Path(scratch) / "quarter"
            for place, source in ((month, self.plan.series), (quarter, self.plan.quarter)):
                place.mkdir()
                write_composites([source[band] for band in bands], place, how, count)

            def drafts(name: str) -> list[Series]:
                return [open_mosaics(name, [place / f"{name}.tif"]) for place in (month, quarter)]

            def write(name: str, of: str, make: Derivation) -> None:
                path = self.folder / f"{name}.tif"
                stats[name] = derive(drafts(of), self.plan.mosaics[name], path, make, self._tags(name))

            for band in bands:
                write(band, band, standing_in(*drafts(band)))
            if count is not None:
                write(COUNT, COUNT, counts_standing_in(least))
                write(PERIOD, COUNT, whose(least, _OF_MONTH, _OF_QUARTER))
        return stats


def _record(
    plan: PeriodPlan, name: str, stats: CompositeStats, folder: Path, target: Path, checksums: BackgroundChecksums
) -> BandRecord:
    mosaic = plan.mosaics[name]
    staged = folder / f"{name}.tif"
    return replace(
        band_record(plan, mosaic, "success", "; ".join(str(note) for note in mosaic.notes)),
        output_path=str(target / staged.name),
        valid_share=round(stats.valid_share, 6),
        seconds=round(stats.seconds, 3),
        bytes=stats.bytes,
        harmonized=mosaic.options.harmonize,
        input_checksums=[str(checksums.of(tile.path)) for tile in mosaic.tiles],
        output_checksum=str(checksum_of(staged)),
    )


def _failed(plan: PeriodPlan, error: Exception, staging: Path, target: Path) -> Outcome:
    """The outcome where a composite could not be made; the band is the one that the error names, else the first."""
    status: BandStatus = "merge_failed"
    message = f"{type(error).__name__}: {first_line(error)}"
    named = next(iter(plan.mosaics))
    if isinstance(error, TileError):
        # Decoding found it out: what the message says of downloading a tile is not for a mosaic.
        problem = error.problem if error.problem.kind == "checksum_mismatch" else again(error.problem)
        status, message = problem.kind, str(problem)
        named = problem.path.stem if problem.path and problem.path.stem in plan.mosaics else named
    elif isinstance(error, WriteError):
        status, message = "write_failed", str(error).replace(str(staging), str(target))
    elif isinstance(error, SystemFaultError | ChangedError | OSError):
        message = str(error)
    records = [
        band_record(plan, mosaic, status, message)
        if name == named
        else band_record(plan, mosaic, "skipped", f"not made, because of {named}")
        for name, mosaic in plan.mosaics.items()
    ]
    return Outcome(failed_attempt(plan, records), None, error, is_passing(error))
