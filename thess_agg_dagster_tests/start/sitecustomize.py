"""Read by every Python that a test starts, also by Dagster's own: seldom look for garbage.

Python looks whenever 700 more objects exist, finds none while it imports, and needs a fifth of an import's time for that.
A run of all tests starts hundreds of processes that hardly do anything else.
"""

import gc

gc.set_threshold(50_000, 20, 20)
