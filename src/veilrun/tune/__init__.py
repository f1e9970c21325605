"""The tuner: which way of running a model is fastest for this model, machine and workload."""
