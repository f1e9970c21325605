"""The attacks, one file each, all of one shape: a function and, at the end, its `ATTACK`."""
