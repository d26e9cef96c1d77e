"""Everything that Dagster shows: assets, checks, sensors, jobs, the IO manager."""

import warnings

from rasterio.errors import NotGeoreferencedWarning

# A tile without a transform is refused by name; rasterio need not warn of it as well.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
