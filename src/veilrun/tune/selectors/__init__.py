"""Learners that choose an arm for a task, one idea a file, all of the shape in `base`."""
