"""The parts that all experiments share: run folder, claims, report, statistics over seeds."""
