"""The paper's experiments, and a way to run your own in a folder with claims, tables, figures and a report.

    import mirrorjax as mj

    def run(folder, setting):
        folder.save_table("sums", [{"n": 1, "sum": 1.0}])
        folder.claim("The sum is 1.", paper="1", ours="1.0", holds=True)

    experiment = mj.experiments.Experiment("sums", "Adds numbers.", run)
    mj.experiments.reproduce(experiment, "runs/sums")     # runs/sums/report.html

The names stand in `__init__.pyi`; each is imported when it is first used. The table `EXPERIMENTS` needs no jax.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
