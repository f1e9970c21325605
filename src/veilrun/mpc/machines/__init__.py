"""The four that carry out a network: tracer, dealer, party, twin.

A machine holds what it knows and has the few primitives that its part of the gates is made of.
It knows no gate; `operations` brings the two together.
"""
