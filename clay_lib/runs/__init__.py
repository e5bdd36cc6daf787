"""Headless work: notebooks executed with a profile's values, sweeps over their parameters with their tables and
reports, the gallery, pretraining by a configuration, and timings.

A notebook takes its output folder from here and writes its metrics; runs execute notebooks and never import one.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "notebooks": "RUNS claim in_sweep output_folder report report_metric write_metrics",
        "specification": "make_sweep read_sweep",
        "sweep": "run_sweep",
        "tables": "over_seeds best differences one_at_a_time",
    },
)
