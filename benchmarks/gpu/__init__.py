"""The benchmarks of the GPU kernels: ``python -m lth_sparse.benchmarks.gpu --out FOLDER`` on a machine with one.

    cases       what is measured, by goal, in the order of importance
    rates       the device's ceilings, probed, and what they allow
    clock       CUDA graphs between events, with a cold L2
    layers      one linear layer or convolution: dense torch, ours, other libraries, float64
    pieces      an MLP block, a decoded stack of layers, memory, the planner's choice
    worker      a process that measures cases and reports each row at once
    suite       starts workers, outlives what kills them, writes the CSV and the table
    verdict     which goals were met
    plots       break-even curves and ratios by density
    session     tests, suite and plots within a number of minutes: ``make gpu``

Nothing here has run on a GPU yet.
"""

from __future__ import annotations
