"""Everything that Dagster shows: assets, checks, sensors, jobs, the IO manager."""

import warnings

# A tile without a transform is refused by name; rasterio need not warn of it as well. (By its words: rasterio's own class of
# the warning would import rasterio, and who loads definitions has no tile to open.)
warnings.filterwarnings("ignore", "Dataset has no geotransform")
