# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where does the jitter of a sweep come from?
#
# Begins at the whole sweep, goes down to one trial, and ends at one bad window and what happened around it.
# `VCG_RESULTS` names the results directory; without it the newest one below `results/` is taken.

# %%
# %matplotlib inline
import os
from pathlib import Path

import experiments
from experiments import plots, report, stats


def newest() -> Path:
    return max(Path("results").glob("*/manifest.json"), key=lambda path: path.stat().st_mtime).parent


results = experiments.load(os.environ.get("VCG_RESULTS") or newest())
print(results)

# %% [markdown]
# ## The sweep
# One row for each trial and dimension. Void trials do not count; here is why each of them is void.

# %%
summary = results.summary.loc[~results.summary["void"]]
results.trials.loc[results.trials["void"], ["trial", "void_reasons"]]

# %%
results.columns("summary")

# %% [markdown]
# Jitter is the mean absolute difference of the lateness of successive windows. The unit of statistics is the trial:
# one figure for each trial, then the median and its interval over trials.

# %%
seed = results.metadata["seed"]
by_configuration = report.labelled(results, stats.intervals_by_configuration(summary, "jitter_ns", seed))
by_configuration[["label", "median", "low", "high", "trials"]]

# %%
plots.intervals(by_configuration, stats.per_trial(summary, "jitter_ns"), "jitter_ns")

# %% [markdown]
# Which dimensions carry it, and do they drift over a trial?

# %%
summary.groupby("dimension", observed=True, sort=False)[["jitter_ns", "lateness_p50_ns", "missed_share"]].median()

# %%
summary.sort_values("trend_p")[["trial", "dimension", "trend_ns_per_s", "trend_p"]].head()

# %% [markdown]
# ## The trial with the most jitter

# %%
worst = str(stats.per_trial(summary, "jitter_ns").sort_values("value")["trial"].iloc[-1])
windows = report.annotate(results, results.table("windows", worst)).sort_values(["dimension", "window"])
plots.over_time(windows, f"Lateness over time: {windows['label'].iloc[0]} ({worst})")

# %% [markdown]
# ## One bad window
# The latest one after the warm-up, in parts: until the dimension was awake, and from there to its workload.

# %%
entered = windows.loc[~windows["warmup"] & windows["lateness_ns"].notna()]
latest = entered.loc[entered["lateness_ns"] == entered["lateness_ns"].max()].iloc[0]
parts_ns = {
    "edge to wake": int(latest["wake_ns"] - latest["planned_ns"]),
    "wake to entry": int(latest["entry_ns"] - latest["wake_ns"]),
}
print(f"{latest['dimension']} window {latest['window']}: {plots.format_ns(latest['lateness_ns'])} late")
for part, length_ns in parts_ns.items():
    print(f"  {part}: {plots.format_ns(length_ns)}")

# %% [markdown]
# What the other dimensions were doing within five milliseconds of it, and whether the reference thread was late as
# well: then it was the host, not us.

# %%
NEAR_NS = 5_000_000
start_ns = windows["planned_ns"].min()
near = windows.loc[(windows["planned_ns"] - latest["planned_ns"]).abs() < NEAR_NS].sort_values("planned_ns")
shown = near[["dimension", "window", "outcome", "planned_ns", "lateness_ns", "used_ns"]]
shown.assign(planned_ns=shown["planned_ns"] - start_ns)

# %%
reference = results.table("reference", worst)
reference.loc[(reference["planned_ns"] - latest["planned_ns"]).abs() < NEAR_NS]
