"""Frames between machines.

* `connection`: the interface that every protocol is driven over.
* `rounds`: protocols without I/O, and what runs them and counts their cost.
* `streams`: connections over TLS. `memory`: their twin in one process, with faults and delays.
* `tls`: identities and pins. `tap`: what a node's operator sees.
"""
