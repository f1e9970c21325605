"""Intel SGX enclaves and TDX trust domains: quotes of version 3, 4 and 5.

`evidence` reads files, `quotes` and `reports` what is in them; `authenticate` checks them, with
Intel's collateral (`collateral`, `grading`) where it is at hand.
"""
