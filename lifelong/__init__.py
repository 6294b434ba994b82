"""lifelong: continual learning benchmarks, forgetting curves, and strategies of one's own."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The Python API, imported on first use so that the command line stays quick: `from lifelong import run`."""
    import importlib

    home = {"run": "experiments.prepare", "prepare": "experiments.prepare", "Options": "spec.run", "Run": "store",
            "Stream": "data.stream", "Part": "learning.parts", "View": "learning.parts", "Learner": "learning.learner",
            "Initialization": "learning.learner", "BATCH": "learning.parts", "rehearse": "learning.parts",
            "Loss": "learning.losses", "cross_entropy": "learning.losses", "squared_error": "learning.losses",
            "quadratic": "learning.losses", "reservoir": "learning.memory", "failures": "experiments.contract"}
    if name not in home:
        raise AttributeError(f"module 'lifelong' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lifelong.{home[name]}"), name)
